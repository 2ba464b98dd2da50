"""Notice pixels that no preprocessor has normalised, before a model runs on them (App. D.1).

Integers are refused, in the same words on each engine; for floats outside the range of normalised
pixels there is one warning. Values are looked at where they enter, on the host, and never within a
compiled step.
"""

import contextlib
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np

from keras_vjepa.arguments import shown
from keras_vjepa.backend.batch_sources import looked_into
from keras_vjepa.backend.host_values import host_array, sample_of
from keras_vjepa.backend.loops import values_kept

# Normalised pixels lie between -2.2 and 2.7; random numbers of deviation 1 do not get as far.
_FAR = 10.0
# Its attribute `a_model` says whether one of these models is being called in this thread.
_within = threading.local()
_REMEDY = "pass it through the preprocessor (`VJEPAVideoPreprocessor`)"


def check_pixels(pixels: Any) -> float | None:
    """Check that the pixels that enter a model are floats.

    Args:
        pixels: videos or images, or what a user passed in their place.

    Returns:
        The largest distance from 0 in a sample of the values; None if they cannot be read.

    Raises:
        ValueError: for integers, paths and other things that are not floats.

    Example:

    >>> import numpy as np
    >>> from keras_vjepa.models.pixels import check_pixels
    >>> check_pixels(np.zeros((1, 4, 32, 32, 3), np.uint8))
    Traceback (most recent call last):
    ValueError: `videos` must be normalised floats: pass it through the preprocessor \
(`VJEPAVideoPreprocessor`). Received: uint8 of shape (1, 4, 32, 32, 3)
    """
    name, is_array = "", hasattr(pixels, "dtype") and hasattr(pixels, "shape")
    if is_array:
        with contextlib.suppress(ValueError):  # raised for types that no engine has, such as text
            name = keras.backend.standardize_dtype(pixels.dtype)
    if "float" not in name:
        # Written only for the error: writing a whole batch takes as long as a small step.
        what = f"{name or pixels.dtype} of shape {tuple(pixels.shape)}" if is_array else None
        raise ValueError(
            f"`videos` must be normalised floats: {_REMEDY}. Received: {what or shown(pixels)}"
        )
    sample = sample_of(pixels)
    if sample is None or not sample.size:
        return None
    return max(float(sample.max()), -float(sample.min()))


def _of(inputs: Any) -> Any:
    """Return the pixels of a model's input, which may be a dictionary."""
    return inputs.get("videos") if isinstance(inputs, Mapping) else inputs


def is_in_memory(source: Any) -> bool:
    """Tell whether an object is the data itself, and not something that yields batches."""
    kinds = Mapping | list | tuple | str | os.PathLike
    return source is None or isinstance(source, kinds) or hasattr(source, "shape")


def _as_labels(y: Any) -> Any:
    """Turn a list of numbers or names into an array, since Keras accepts no lists as labels."""
    if isinstance(y, list | tuple):
        with contextlib.suppress(ValueError):  # raised if rows differ in length
            array = np.asarray(y)
            return array if array.dtype.kind in "iufbUS" else y
    return y


def _known_shape(array: Any) -> tuple[int | None, ...] | None:
    """Return the shape of an array or a symbolic tensor; None if the number of axes is unknown."""
    try:
        return tuple(array.shape)
    except ValueError:  # raised by TensorFlow for an unknown rank
        return None


class PixelModel(keras.Model):
    """Adds a check of pixels to a model, and one of labels if a subclass knows what they must be.

    It is a mixin, which must precede the other bases that derive from `keras.Model`. Within a
    `keras.Sequential` or a functional model, Keras turns integers into floats before this model
    sees them, and on JAX and TensorFlow no values can be read in a compiled step. Check the input
    of such a model with `check_inputs`.

    Attributes:
        warned_of_pixels: whether this model has warned of numbers that are not normalised.
        refusal: the error that refused data during a call of `fit`, `evaluate` or `predict`.
    """

    warned_of_pixels = False
    refusal: Exception | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model as Keras does, once its pixels are known to be normalised floats."""
        # An outer model of this kind has checked its input already.
        if getattr(_within, "a_model", False):
            return super().__call__(*args, **kwargs)
        for inputs in args[:1] or [kwargs[name] for name in ("videos", "inputs") if name in kwargs]:
            self.check_inputs(inputs)
        _within.a_model = True
        try:
            return super().__call__(*args, **kwargs)
        finally:
            _within.a_model = False

    def check_inputs(self, inputs: Any) -> None:
        """Check the pixels of an input; if they are missing, Keras itself reports that.

        Raises:
            ValueError: for pixels that `check_pixels` refuses, and for a shape that `check_shape`
                does.
        """
        pixels = _of(inputs)
        if pixels is None and isinstance(inputs, Mapping):
            return
        try:
            largest = check_pixels(pixels)
            shape = _known_shape(pixels)
            if shape is not None:
                self.check_shape(shape)
        except ValueError as error:
            self.refusal = error.with_traceback(None)
            raise
        # Written with `not`, because a comparison with NaN is never true.
        if largest is not None and not largest <= _FAR and not self.warned_of_pixels:
            self.warned_of_pixels = True
            far = "NaN" if np.isnan(largest) else f"values as far as {largest:.4g} from 0"
            warnings.warn(
                f"`videos` should be normalised floats, about -2 to 3: {_REMEDY}. Received: {far}",
                stacklevel=3,
            )

    def check_shape(self, shape: tuple[int | None, ...]) -> None:
        """Check the shape of pixels; this class accepts any, subclasses may refuse some.

        Args:
            shape: shape of videos or images, None for an axis whose length is not known.
        """

    def check_labels(self, y: Any, num_videos: int | None = None) -> None:
        """Check labels on the host; this class accepts any, subclasses may refuse some.

        Args:
            y: labels, as given to `fit` or in a batch.
            num_videos: how many labels there must be; None if it is not known.
        """

    # --- Where arrays and batches enter ----------------------------------------------------------

    def fit(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Train as Keras does, and check pixels and labels: arrays first, batches one by one."""
        gate = _Gate(self)
        validation = kwargs.get("validation_data")
        if isinstance(validation, tuple | list) and len(validation) in (2, 3):
            kwargs["validation_data"] = _checked_pair(gate, validation)
        elif validation is not None:
            kwargs["validation_data"] = gate(validation)
        if getattr(x, "keeps_order", False):
            kwargs.setdefault("shuffle", False)
        y = _as_labels(y)
        return gate.through(super().fit, gate(x, y), y, *args, **kwargs)

    def evaluate(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Evaluate as Keras does, and check pixels and labels."""
        gate, y = _Gate(self), _as_labels(y)
        return gate.through(super().evaluate, gate(x, y), y, *args, **kwargs)

    def predict(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Predict as Keras does, and check pixels."""
        gate = _Gate(self)
        return gate.through(super().predict, gate(x), *args, **kwargs)

    def train_on_batch(self, x: Any, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Train on one batch as Keras does, and check pixels and labels."""
        gate, y = _Gate(self), _as_labels(y)
        return gate.through(super().train_on_batch, gate(x, y), y, *args, **kwargs)

    def test_on_batch(self, x: Any, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Evaluate one batch as Keras does, and check pixels and labels."""
        gate, y = _Gate(self), _as_labels(y)
        return gate.through(super().test_on_batch, gate(x, y), y, *args, **kwargs)

    def predict_on_batch(self, x: Any) -> Any:
        """Predict one batch as Keras does, and check pixels."""
        gate = _Gate(self)
        return gate.through(super().predict_on_batch, gate(x))


def _checked_pair(gate: "_Gate", pair: Any) -> tuple[Any, ...]:
    x, y, *weight = pair
    y = _as_labels(y)
    return (gate(x, y), y, *weight)


class _Gate:
    """Checks the data of one call of a model, whether they are arrays or drawn in batches."""

    def __init__(self, model: PixelModel) -> None:
        self.model = model

    def __call__(self, x: Any, *labels: Any) -> Any:
        """Check arrays and their labels at once; make anything else check each batch it yields."""
        if is_in_memory(x):
            self.model.check_inputs(x)
            first = keras.tree.flatten(x)[0] if isinstance(x, Mapping) else x
            if not len(first):
                raise ValueError("`x` must hold at least one video. Received: none")
            for y in labels:
                self.model.check_labels(y, len(first))
            return x
        if isinstance(x, Iterator):
            return self._batches(x)
        if isinstance(x, keras.utils.PyDataset) and not x.use_multiprocessing:
            return _CheckedDataset(x, self)
        return looked_into(x, self.checked)

    def through(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function of Keras; if data are refused in it, raise that error unchanged.

        Some engines would wrap an error that is raised while they draw a batch, or trace a step,
        into pages of their own.
        """
        self.model.refusal = None
        try:
            with values_kept(self.model):
                return function(*args, **kwargs)
        except Exception:
            if self.model.refusal is not None:
                raise self.model.refusal from None
            raise
        finally:
            self.model.refusal = None

    def drawn(self, draw: Callable[[], Any]) -> Any:
        """Draw a batch by a function, and check it."""
        try:
            batch = draw()
        except StopIteration:
            raise
        except Exception as error:
            self.model.refusal = error
            raise
        return self.checked(batch)

    def checked(self, batch: Any) -> Any:
        """Check a batch; return it with lists turned into types that Keras accepts."""
        try:
            batch = tuple(batch) if isinstance(batch, list) else batch
            x, y, weight = keras.utils.unpack_x_y_sample_weight(batch)
            self.model.check_inputs(x)
            labels = _as_labels(y)
            if isinstance(y, list | tuple) and labels is not y:
                batch = keras.utils.pack_x_y_sample_weight(x, labels, weight)
            labels = host_array(labels)
            if isinstance(labels, np.ndarray):
                self.model.check_labels(labels)
        except Exception as error:
            self.model.refusal = error
            raise
        return batch

    def _batches(self, source: Any) -> Iterator[Any]:
        while True:
            try:
                batch = self.drawn(lambda: next(source))
            except StopIteration:
                return
            yield batch


class _CheckedDataset(keras.utils.PyDataset):
    """Wraps a dataset so that a gate checks its batches."""

    def __init__(self, dataset: keras.utils.PyDataset, gate: _Gate) -> None:
        super().__init__(dataset.workers, dataset.use_multiprocessing, dataset.max_queue_size)
        self.dataset, self.gate = dataset, gate

    @property
    def num_batches(self) -> int | None:
        """Return the number of batches of the dataset."""
        return self.dataset.num_batches

    def __getitem__(self, index: int) -> Any:
        return self.gate.drawn(lambda: self.dataset[index])

    def on_epoch_begin(self) -> None:
        """Tell the dataset that an epoch begins."""
        self.dataset.on_epoch_begin()

    def on_epoch_end(self) -> None:
        """Tell the dataset that an epoch has ended."""
        self.dataset.on_epoch_end()
