"""Whatever ends a loop over batches, the model has the weights of the last step afterwards."""

import signal
import threading

import keras
import numpy as np
import pytest

from keras_vjepa.backend.loops import UnbrokenStep, values_kept
from keras_vjepa.backend.step_functions import StepFunctions

X, Y = np.ones((4, 2), "float32"), np.zeros((4, 1), "float32")


class Line(StepFunctions, keras.Model):
    """A model whose loops are such as those of this package's models."""

    def __init__(self):
        super().__init__()
        self.line, self.frozen = keras.layers.Dense(1), keras.layers.Dense(1, trainable=False)
        self.line.build((None, 2))
        self.frozen.build((None, 2))
        self.built = True

    def call(self, inputs):
        return self.line(inputs) + self.frozen(inputs)


def line():
    model = Line()
    model.compile("sgd", "mse")
    return model


def use(model, name, *data):
    with values_kept(model):
        return getattr(model, name)(*data, verbose=0)


def batches(labelled, error):
    # Some engines read batches ahead of the step.
    for _ in range(3):
        yield (X, Y) if labelled else (X,)
    raise error


@pytest.mark.parametrize("name", ["fit", "evaluate", "predict"])
def test_an_error_leaves_the_weights(name):
    labelled = name != "predict"
    for data in ((X[:, :1], Y), batches(labelled, OSError("disk"))):
        model = line()
        before = model.get_weights()
        given = data if isinstance(data, tuple) else (data,)
        with pytest.raises(Exception):  # noqa: B017, each engine's own
            use(model, name, *given[: 1 + labelled])
        after = model.get_weights()
        moved = [not np.array_equal(a, b) for a, b in zip(before, after, strict=True)]
        # Updates from before the error are kept.
        assert moved == [name == "fit" and data is not given and i < 2 for i in range(4)]
        assert use(model, "predict", X).shape == (4, 1)


@pytest.fixture
def interrupts():
    """Python's own answer to Ctrl-C, which what runs in the background of a shell does not have."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interrupts")
def test_an_interrupt_waits_for_the_end_of_a_step():
    seen = []

    def interrupted(state, iterator):
        signal.raise_signal(signal.SIGINT)
        seen.extend(iterator)
        return {"loss": 0}, ("weights", "others")

    class Model:
        steps_per_execution = 2

    model = Model()
    step = UnbrokenStep(model, "predict_function", interrupted)
    with pytest.raises(KeyboardInterrupt):
        step(("old", "old"), iter([1, 2, 3]))
    assert seen == [1, 2]
    assert model._jax_state == {
        "trainable_variables": "weights",
        "non_trainable_variables": "others",
    }
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("interrupts")
def test_a_second_interrupt_does_not_wait():
    class Model:
        steps_per_execution = 1

    def interrupted(state, iterator):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("not reached")

    model = Model()
    with pytest.raises(KeyboardInterrupt):
        UnbrokenStep(model, "predict_function", interrupted)((), iter([1]))
    assert not hasattr(model, "_jax_state")


def test_the_last_batches_are_fewer_and_none_ends_the_loop():
    class Model:
        steps_per_execution = 3

    model, seen = Model(), []
    step = UnbrokenStep(
        model, "predict_function", lambda state, data: (seen.append([*data]), ((), ()))
    )
    iterator = iter([1, 2, 3, 4])
    step((), iterator)
    step((), iterator)
    with pytest.raises(StopIteration):
        step((), iterator)
    assert seen == [[1, 2, 3], [4]]


def test_threads_predict_at_once():
    model = line()
    wanted, found = use(model, "predict", X), []

    def predict():
        for _ in range(5):
            found.append(use(model, "predict", X))

    threads = [threading.Thread(target=predict) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 15 and all(np.array_equal(one, wanted) for one in found)


@pytest.mark.parametrize("when,times", [("on_train_batch_end", 4), ("on_epoch_end", 2)])
def test_a_callback_may_predict_and_evaluate_within_fit(when, times):
    model, alone, seen = line(), line(), []
    alone.set_weights(model.get_weights())

    def look(*_, **__):
        seen.append(use(model, "predict", X))
        use(model, "evaluate", X, Y)

    callback = keras.callbacks.LambdaCallback(**{when: look})
    for one, callbacks in ((model, [callback]), (alone, [])):
        with values_kept(one):
            one.fit(X, Y, batch_size=2, epochs=2, shuffle=False, verbose=0, callbacks=callbacks)
    assert len(seen) == times and len({outputs.tobytes() for outputs in seen}) == times
    for found, wanted in zip(model.get_weights(), alone.get_weights(), strict=True):
        np.testing.assert_array_equal(found, wanted)
