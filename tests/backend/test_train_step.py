"""A step in parts, and what it tells of an optimizer that does not move weights in each."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_vjepa import AdamW
from keras_vjepa.backend.optimizer_state import batches_taken, inner_optimizers, updates_made
from keras_vjepa.backend.train_step import TrainableModel


class Line(TrainableModel):
    """Fits x to itself times 2, and counts the steps that move a weight."""

    def __init__(self):
        super().__init__()
        self.slope = self.add_weight(shape=(1, 1), initializer="ones")
        self.moves = self.add_weight(shape=(), initializer="zeros", trainable=False)
        self.built = True

    def call(self, inputs):
        return ops.square(inputs["x"][:, 0] * (self.slope[0, 0] - 2.0))

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return ops.mean(y_pred)

    def after_step(self, moved=None):
        self.moves.assign_add(1.0 if moved is None else ops.cast(moved, "float32"))
        return {}


def line(optimizer, accumulation_steps=1):
    model = Line()
    model.accumulation_steps = accumulation_steps
    model.compile(optimizer)
    model.optimizer.build(model.trainable_variables)
    return model


def batch(num_samples):
    return {"x": np.arange(1.0, num_samples + 1, dtype="float32")[:, None]}


@pytest.mark.parametrize("num_samples,num_parts", [(7, 3), (2, 4), (6, 3)])
def test_a_part_counts_as_much_as_it_has_samples(num_samples, num_parts):
    whole, parts = line(keras.optimizers.SGD(0.01)), line(keras.optimizers.SGD(0.01), num_parts)
    expected, found = (
        model.train_on_batch(batch(num_samples), return_dict=True) for model in (whole, parts)
    )
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-6)
    np.testing.assert_allclose(parts.get_weights()[0], whole.get_weights()[0], rtol=1e-6)
    assert whole.get_weights()[0] != 1.0


class Labelled(TrainableModel):
    """Two classes of two numbers."""

    def __init__(self):
        super().__init__()
        self.kernel = self.add_weight(shape=(2, 2), initializer="zeros")
        self.built = True

    def call(self, inputs):
        return ops.matmul(inputs, self.kernel)


def test_parts_of_a_labelled_batch_are_the_batch():
    """Loss, accuracy, which knows the order, and step; weights of samples count as in Keras."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(7, 2)).astype("float32"), np.eye(2)[[0, 1, 1, 0, 1, 0, 0]]
    weight = np.array([1, 2, 0, 1, 3, 1, 1], "float32")
    found = []
    for accumulation_steps in (1, 3):
        model = Labelled()
        model.accumulation_steps = accumulation_steps
        loss = keras.losses.CategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.5), loss, metrics=["accuracy"])
        for _ in range(2):
            logs = model.train_on_batch(x, y, weight, return_dict=True)
        found.append((logs, model.get_weights()[0]))
    (whole, weights), (parts, of_parts) = found
    assert 0 < whole["accuracy"] < 1
    for name, value in whole.items():
        assert parts[name] == pytest.approx(value, rel=1e-6), name
    np.testing.assert_allclose(of_parts, weights, rtol=1e-5)


def test_batches_of_any_number_of_samples_follow_each_other():
    """As the last one of an epoch has fewer."""
    whole, parts = line(keras.optimizers.SGD(0.01)), line(keras.optimizers.SGD(0.01), 3)
    for model in (whole, parts):
        model.fit(batch(7), batch_size=6, shuffle=False, verbose=0)
    np.testing.assert_allclose(parts.get_weights()[0], whole.get_weights()[0], rtol=1e-6)


@pytest.mark.parametrize("kind", [AdamW, keras.optimizers.AdamW])
def test_a_step_tells_whether_an_update_was_due(kind):
    model = line(kind(0.1, gradient_accumulation_steps=2))
    moves = []
    for _ in range(4):
        model.train_on_batch(batch(2))
        moves.append(float(ops.convert_to_numpy(model.moves)))
    assert moves == [0.0, 1.0, 1.0, 2.0]
    assert int(ops.convert_to_numpy(batches_taken(model.optimizer))) == 4
    assert int(ops.convert_to_numpy(updates_made(model.optimizer))) == 2


def test_a_step_that_overflows_is_none():
    inner = AdamW(0.1, gradient_accumulation_steps=2)
    model = line(keras.optimizers.LossScaleOptimizer(inner, initial_scale=1e38))
    moves = []
    for _ in range(3):
        model.train_on_batch({"x": np.full((2, 1), 100.0, "float32")})
        moves.append(float(ops.convert_to_numpy(model.moves)))
        model.optimizer.dynamic_scale.assign(2.0)
    assert moves == [0.0, 0.0, 1.0]
    assert inner_optimizers(model.optimizer) == [inner]


def test_optimizers_of_several_parts_of_a_model():
    one, other = AdamW(0.1, name="one"), AdamW(0.1, name="other")
    several = keras.optimizers.OptimizerMap(one, {"nothing": other})
    model = line(keras.optimizers.MultiOptimizer(several))
    model.train_on_batch(batch(2))
    assert {optimizer.name for optimizer in inner_optimizers(model.optimizer)} == {"one", "other"}
    assert int(ops.convert_to_numpy(updates_made(model.optimizer))) == 1
    assert abs(float(model.get_weights()[0][0, 0]) - 1.1) < 0.01
