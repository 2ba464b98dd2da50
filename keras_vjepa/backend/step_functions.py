"""Make the functions that `fit`, `evaluate` and `predict` run, for any size of videos (§3.3).

TensorFlow's trainer keeps one program for all batches. When a batch of another size comes, the
sizes in the program become unknown, and with them the grid of tokens. Here each size of videos has
a program of its own. The other engines do this by themselves. On JAX, no interrupt breaks a step;
see `loops.py`.
"""

from collections.abc import Callable, Iterable
from typing import Any

import keras

from keras_vjepa.backend import collectives, optimizer_state, updates
from keras_vjepa.backend.device import keep_memory_of_torch
from keras_vjepa.backend.loops import UnbrokenStep

# The lengths of arrays with fewer axes, such as tokens and lists of indices, may be unknown.
_AXES_OF_IMAGES = 4

Run = Callable[[Any], Any]


class StepFunctions:
    """Lets a model run on videos of any size in `fit`, `evaluate` and `predict`.

    It is a mixin, which must precede `keras.Model` among the bases.

    Attributes:
        batch_size_matters: whether a training step must know the number of samples as well.

    Example:

    >>> import keras, numpy as np
    >>> from keras_vjepa.backend.step_functions import StepFunctions
    >>> class Pixels(StepFunctions, keras.Model):
    ...     def call(self, videos):
    ...         return keras.ops.reshape(videos, (-1, np.prod(videos.shape[1:])))
    >>> model = Pixels()
    >>> [model.predict(np.ones((2, n, 8, 8, 3)), verbose=0).shape for n in (2, 3)]
    [(2, 384), (2, 576)]
    """

    batch_size_matters = False

    def make_train_function(self, force: bool = False) -> Any:
        """Make the function for training steps, as Keras does, for each size of videos.

        Raises:
            ValueError: for weights in float16, which do not learn, and if other weights are to be
                trained than those that the optimizer was built for.
        """
        variables = self.trainable_variables  # type: ignore[attr-defined]
        optimizer_state.check_optimized(getattr(self, "optimizer", None), variables)
        if force or self.train_function is None:  # type: ignore[attr-defined]
            updates.check_learning_dtype(variables)
        return self._make("train_function", force)

    def make_test_function(self, force: bool = False) -> Any:
        """Make the function for evaluation steps, as Keras does, for each size of videos."""
        return self._make("test_function", force)

    def make_predict_function(self, force: bool = False) -> Any:
        """Make the function for prediction steps, as Keras does, for each size of videos."""
        return self._make("predict_function", force)

    def _make(self, name: str, force: bool) -> Any:
        make = getattr(super(), f"make_{name}")
        if getattr(self, name) is not None and not force:
            return getattr(self, name)
        keep_memory_of_torch()
        made = make(force=True)
        if keras.config.backend() == "jax":
            setattr(self, name, UnbrokenStep(self, name, getattr(self, name)))
            return getattr(self, name)
        if keras.config.backend() != "tensorflow" or collectives.replicas_in_sync() > 1:
            return made

        def another() -> Run:
            before = getattr(self, name)
            make(force=True)
            function = getattr(self, name)
            setattr(self, name, before)
            return function

        kind = _ProgramForEachSize if name == "predict_function" else _StepForEachSize
        each = kind(getattr(self, name), another)
        if name != "train_function":  # After such a change, training asks for `compile`.
            each.weights = lambda: self.weights  # type: ignore[attr-defined]
        each.batches_a_call = self.steps_per_execution  # type: ignore[attr-defined]
        each.batch_size_matters = self.batch_size_matters and name == "train_function"
        setattr(self, name, each)
        return each


class _ProgramForEachSize:
    """Makes a new function of batches for each size of videos in them; TensorFlow only."""

    batch_size_matters = False
    batches_a_call = 1
    weights: Callable[[], Iterable[Any]] = list

    def __init__(self, first: Run, another: Callable[[], Run]) -> None:
        self._unused: Run | None = first
        self._another = another
        self._functions: dict[Any, Run] = {}
        self._known: tuple[int, ...] = ()

    def __call__(self, data: Any) -> Any:
        return self._function_for(data)(data)

    def _function_for(self, data: Any) -> Run:
        sizes = tuple(self._size(array) for array in keras.tree.flatten(data))
        # LoRA and quantization give a model other weights, which its programs would not see. One
        # that is not built yet has none.
        weights = tuple(map(id, self.weights()))
        if self._known and weights != self._known:
            self._functions.clear()
        self._known = weights
        if sizes not in self._functions:
            self._functions[sizes] = self._unused or self._another()
            self._unused = None
        return self._functions[sizes]

    def _size(self, array: Any) -> Any:
        """Return the part of an array's shape that a program must know."""
        shape = tuple(getattr(array, "shape", ()))
        known = shape[1:] if len(shape) >= _AXES_OF_IMAGES else ()
        return (shape[:1], known) if self.batch_size_matters else known


class _StepForEachSize(_ProgramForEachSize):
    """Makes such a function of an iterator; a call takes `steps_per_execution` batches."""

    def __call__(self, iterator: Any) -> Any:
        specs = getattr(iterator, "element_spec", None)
        if specs is not None and self._are_known(specs):
            return self._function_for(specs)(iterator)
        outputs: Any = None
        for _ in range(self.batches_a_call):
            try:
                batch = next(iterator)
            except StopIteration:
                if outputs is None:
                    raise
                break
            outputs = self._function_for(batch)(iter([batch]))
        return outputs

    def _are_known(self, specs: Any) -> bool:
        """Tell whether a data set says the sizes of its batches, and all have the same."""
        for spec in keras.tree.flatten(specs):
            shape = getattr(spec, "shape", None)
            if shape is None or shape.rank is None or None in keras.tree.flatten(self._size(spec)):
                return False
        return True
