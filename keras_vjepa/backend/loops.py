"""Keep the weights of a model whose loop over batches ends early (App. C).

On JAX, Keras' `fit`, `evaluate` and `predict` take the weights out of a model and hand them from
step to step. An error in the first step, an interrupt within any, or a second thread would leave
or find a model without weights. The other engines change weights in their place.
"""

import contextlib
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import keras

from keras_vjepa.backend import keras_internals

# What is handed from step to step, by the attribute that holds the step.
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
    """Run a loop of Keras over batches so that whatever ends it leaves the model its weights.

    Loops of the same model in several threads wait for each other.

    Args:
        model: whose `fit`, `evaluate` or `predict` is called within.

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
            # Called by a callback, within a loop that has the weights.
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
    """Put the weights of the last step back, or those of before the loop if there was none."""
    model.jax_state_sync()
    keras_internals.lend_state(model, None)
    for variable, value in pairs:
        taken = keras_internals.stored_value(variable) is None
        if taken and value is not None and not value.is_deleted():
            variable.assign(value)


class UnbrokenStep:
    """A step on JAX that an interrupt waits for, after which the model knows its weights.

    Args:
        model: whose step it is.
        name: `"train_function"`, `"test_function"` or `"predict_function"`.
        step: as Keras has made it.
    """

    def __init__(self, model: Any, name: str, step: Callable[[Any, Any], Any]) -> None:
        self._model, self._names, self._step = weakref.ref(model), _STATES[name], step

    def __call__(self, state: Any, iterator: Iterator[Any]) -> Any:
        model: Any = self._model()
        # Waiting for data may be interrupted.
        batches = [next(iterator)]
        for _ in range(model.steps_per_execution - 1):
            with contextlib.suppress(StopIteration):
                batches.append(next(iterator))
        with _interrupts_wait():
            outputs, state = self._step(state, iter(batches))
            named = zip(self._names, state, strict=True)
            keras_internals.lend_state(model, {f"{name}_variables": one for name, one in named})
            # Where they are not overwritten, they would be kept in memory once more.
            _before.get(model, []).clear()
        return outputs, state


@contextlib.contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Let a first Ctrl-C wait until this ends; a second one does not."""
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
