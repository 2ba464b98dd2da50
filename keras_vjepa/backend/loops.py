"""Keep the weights of a model whose loop over batches ends early (App. C).

On JAX, Keras' `fit`, `evaluate` and `predict` take the weights out of a model and pass them from
step to step. An error in the first step, or an interrupt within any step, would leave the model
without weights, and a second thread would find it so. The other engines change weights in place.
"""

import contextlib
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import keras

from keras_vjepa.backend import keras_internals

# The groups of variables that pass from step to step, by the attribute that holds the step.
_STATES = {
    "train_function": ("trainable", "non_trainable", "optimizer", "metrics"),
    "test_function": ("trainable", "non_trainable", "metrics"),
    "predict_function": ("trainable", "non_trainable"),
}

_locks: "weakref.WeakKeyDictionary[Any, threading.RLock]" = weakref.WeakKeyDictionary()  # type: ignore[valid-type]
_before: "weakref.WeakKeyDictionary[Any, list[Any]]" = weakref.WeakKeyDictionary()
_making_a_lock = threading.Lock()


@contextlib.contextmanager
def values_kept(model: keras.Model) -> Iterator[None]:
    """Keep a model's weights safe while Keras loops over batches, however the loop ends.

    Loops of the same model in several threads wait for each other.

    Args:
        model: the model whose `fit`, `evaluate` or `predict` is called within the block.

    Example:

    >>> import keras, numpy as np
    >>> from keras_vjepa.backend.loops import values_kept
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> with values_kept(model):
    ...     outputs = model.predict(np.ones((3, 2)), verbose=0)
    >>> outputs.shape
    (3, 1)
    """
    if keras.config.backend() != "jax":
        yield
        return
    with _making_a_lock:
        lock = _locks.setdefault(model, threading.RLock())
    with lock:
        outer = _before.get(model)
        if outer is not None:
            # A callback has called this inside a loop that holds the weights.
            model.jax_state_sync()
        optimizer = getattr(model, "optimizer", None)
        variables = [*model.variables, *getattr(optimizer, "variables", ())]
        pairs = [(one, keras_internals.stored_value(one)) for one in variables]
        _before[model] = pairs
        try:
            yield
        except BaseException:
            _give_back(model, pairs)
            raise
        finally:
            _before.pop(model, None)
            if outer is not None:
                _before[model] = outer


def _give_back(model: Any, pairs: list[Any]) -> None:
    """Put back the weights of the last step, or those from before the loop if no step was done."""
    model.jax_state_sync()
    keras_internals.lend_state(model, None)
    for variable, value in pairs:
        taken = keras_internals.stored_value(variable) is None
        if taken and value is not None and not value.is_deleted():
            variable.assign(value)


class UnbrokenStep:
    """Runs a step on JAX that no interrupt breaks, and then gives the model its weights.

    Args:
        model: the model of the step.
        name: `"train_function"`, `"test_function"` or `"predict_function"`.
        step: the step, as Keras has made it.
    """

    def __init__(self, model: Any, name: str, step: Callable[[Any, Any], Any]) -> None:
        self._model, self._names, self._step = weakref.ref(model), _STATES[name], step

    def __call__(self, state: Any, iterator: Iterator[Any]) -> Any:
        model: Any = self._model()
        # Batches are fetched first, because waiting for data may be interrupted.
        batches = [next(iterator)]
        for _ in range(model.steps_per_execution - 1):
            with contextlib.suppress(StopIteration):
                batches.append(next(iterator))
        with _interrupts_wait():
            outputs, state = self._step(state, iter(batches))
            named = zip(self._names, state, strict=True)
            keras_internals.lend_state(model, {f"{name}_variables": one for name, one in named})
            # The weights from before the loop are not needed any more, and would take memory.
            _before.get(model, []).clear()
        return outputs, state


@contextlib.contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Let a first Ctrl-C wait until the block ends; a second one acts at once."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    came: list[Any] = []

    def note(*arguments: Any) -> None:
        came.append(arguments)
        if len(came) > 1:
            handler(*arguments)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if len(came) == 1:
            handler(*came[0])
