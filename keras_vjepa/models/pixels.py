"""Notice pixels that no preprocessor has made before a model is run on them (App. D.1).

Integers are refused, on each engine in the same words; floats far from what normalised ones are
get one warning. Values are looked at where they enter on the host, never within a compiled step.
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

# Normalised pixels lie between -2.2 and 2.7; random numbers of deviation 1 do not get here.
_FAR = 10.0
# Of this thread: whether one of these models is being called.
_within = threading.local()
_REMEDY = "pass it through the preprocessor (`VJEPAVideoPreprocessor`)"


def check_pixels(pixels: Any) -> float | None:
    """Check that what enters a model are floats.

    Args:
        pixels: videos or images, or what a user took for such.

    Returns:
        The largest distance from 0 among some of them; None where it cannot be seen.

    Raises:
        ValueError: for integers, paths and other things that are no floats.

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
        with contextlib.suppress(ValueError):  # of types that no engine has, such as text
            name = keras.backend.standardize_dtype(pixels.dtype)
    if "float" not in name:
        # Written only now: of a whole batch it takes as long as a small step.
        what = f"{name or pixels.dtype} of shape {tuple(pixels.shape)}" if is_array else None
        raise ValueError(
            f"`videos` must be normalised floats: {_REMEDY}. Received: {what or shown(pixels)}"
        )
    sample = sample_of(pixels)
    if sample is None or not sample.size:
        return None
    return max(float(sample.max()), -float(sample.min()))


def _of(inputs: Any) -> Any:
    """The pixels of a model's input, which may be a dictionary."""
    return inputs.get("videos") if isinstance(inputs, Mapping) else inputs


def is_in_memory(source: Any) -> bool:
    """Tell whether something can only be the data itself, and nothing that yields batches."""
    kinds = Mapping | list | tuple | str | os.PathLike
    return source is None or isinstance(source, kinds) or hasattr(source, "shape")


def _as_labels(y: Any) -> Any:
    """Labels as an array where they are a list of numbers or names, which Keras does not take."""
    if isinstance(y, list | tuple):
        with contextlib.suppress(ValueError):  # rows of several lengths
            array = np.asarray(y)
            return array if array.dtype.kind in "iufbUS" else y
    return y


def _known_shape(array: Any) -> tuple[int | None, ...] | None:
    """The shape of an array or a symbolic tensor; None of one that does not know its axes."""
    try:
        return tuple(array.shape)
    except ValueError:  # TensorFlow's, of unknown rank
        return None


class PixelModel(keras.Model):
    """Adds the check of pixels to a model, and of labels where a subclass knows what they must be.

    A mixin, before the other bases that derive from `keras.Model`. Within a `keras.Sequential` or a
    functional model, Keras has made floats of integers before this model sees them, and on JAX and
    TensorFlow a compiled step shows no values: check what goes into such a model with
    `check_inputs`.

    Attributes:
        warned_of_pixels: whether this model has warned of numbers that are not normalised.
        refusal: what data were refused with during a call of `fit`, `evaluate` or `predict`.
    """

    warned_of_pixels = False
    refusal: Exception | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As Keras', for normalised floats."""
        if getattr(_within, "a_model", False):  # whose own input was checked
            return super().__call__(*args, **kwargs)
        for inputs in args[:1] or [kwargs[name] for name in ("videos", "inputs") if name in kwargs]:
            self.check_inputs(inputs)
        _within.a_model = True
        try:
            return super().__call__(*args, **kwargs)
        finally:
            _within.a_model = False

    def check_inputs(self, inputs: Any) -> None:
        """Check the pixels of an input; a missing one is left to Keras.

        Raises:
            ValueError: as `check_pixels`.
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
        # Not a number is no further than any, nor nearer.
        if largest is not None and not largest <= _FAR and not self.warned_of_pixels:
            self.warned_of_pixels = True
            far = "NaN" if np.isnan(largest) else f"values as far as {largest:.4g} from 0"
            warnings.warn(
                f"`videos` should be normalised floats, about -2 to 3: {_REMEDY}. Received: {far}",
                stacklevel=3,
            )

    def check_shape(self, shape: tuple[int | None, ...]) -> None:
        """Check the shape of pixels; here, anything is right.

        Args:
            shape: of videos or images, None for an axis whose length is not known.
        """

    def check_labels(self, y: Any, num_videos: int | None = None) -> None:
        """Check labels on the host; of this class, anything is right.

        Args:
            y: what `fit` or a batch has as labels.
            num_videos: how many there must be.
        """

    # --- Where arrays and batches enter ----------------------------------------------------------

    def fit(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As Keras', with pixels and labels checked: arrays first, batches one by one."""
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
        """As Keras', with pixels and labels checked."""
        gate, y = _Gate(self), _as_labels(y)
        return gate.through(super().evaluate, gate(x, y), y, *args, **kwargs)

    def predict(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """As Keras', with pixels checked."""
        gate = _Gate(self)
        return gate.through(super().predict, gate(x), *args, **kwargs)

    def train_on_batch(self, x: Any, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As Keras', with pixels and labels checked."""
        gate, y = _Gate(self), _as_labels(y)
        return gate.through(super().train_on_batch, gate(x, y), y, *args, **kwargs)

    def test_on_batch(self, x: Any, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As Keras', with pixels and labels checked."""
        gate, y = _Gate(self), _as_labels(y)
        return gate.through(super().test_on_batch, gate(x, y), y, *args, **kwargs)

    def predict_on_batch(self, x: Any) -> Any:
        """As Keras', with pixels checked."""
        gate = _Gate(self)
        return gate.through(super().predict_on_batch, gate(x))


def _checked_pair(gate: "_Gate", pair: Any) -> tuple[Any, ...]:
    x, y, *weight = pair
    y = _as_labels(y)
    return (gate(x, y), y, *weight)


class _Gate:
    """What the data of a call pass, whether they are arrays or drawn in batches."""

    def __init__(self, model: PixelModel) -> None:
        self.model = model

    def __call__(self, x: Any, *labels: Any) -> Any:
        """`x`, checked if it is an array, as are labels; or of batches that will be checked."""
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
        """Call a function of Keras; what data are refused with is raised as it was.

        Some engines wrap what is raised while they draw a batch, or trace a step, into pages of
        their own.
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
        """Draw a batch and check it."""
        try:
            batch = draw()
        except StopIteration:
            raise
        except Exception as error:
            self.model.refusal = error
            raise
        return self.checked(batch)

    def checked(self, batch: Any) -> Any:
        """Check a batch; in what is returned, lists are what Keras takes in their place."""
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
    """A dataset whose batches pass a gate."""

    def __init__(self, dataset: keras.utils.PyDataset, gate: _Gate) -> None:
        super().__init__(dataset.workers, dataset.use_multiprocessing, dataset.max_queue_size)
        self.dataset, self.gate = dataset, gate

    @property
    def num_batches(self) -> int | None:
        """As the dataset's."""
        return self.dataset.num_batches

    def __getitem__(self, index: int) -> Any:
        return self.gate.drawn(lambda: self.dataset[index])

    def on_epoch_begin(self) -> None:
        """As the dataset's."""
        self.dataset.on_epoch_begin()

    def on_epoch_end(self) -> None:
        """As the dataset's."""
        self.dataset.on_epoch_end()
