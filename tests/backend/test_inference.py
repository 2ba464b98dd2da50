"""Outputs of a batch that several processes share."""

import keras
import numpy as np
import pytest

from keras_vjepa.backend import inference
from keras_vjepa.backend.step_functions import StepFunctions


class Outer(StepFunctions, keras.Model):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def call(self, rows):
        return self.layer(rows)


def test_a_process_gets_the_outputs_of_its_own_rows(monkeypatch):
    """Stands in for the second of two processes, each of which gets the outputs of both."""
    model = inference.DistributedInference(keras.Sequential([keras.layers.Flatten()]))
    given = []

    def of_all(inputs, weight):
        given.append((inputs, weight.tolist()))
        return {"doubled": np.concatenate([np.zeros((2, 3)), 2 * inputs["rows"]])}

    monkeypatch.setattr(model, "_forward", of_all)
    found = model.own_rows({"rows": np.arange(6.0).reshape(2, 3)}, process_index=1)
    np.testing.assert_array_equal(found["doubled"], [[0, 2, 4], [6, 8, 10]])
    assert given[0][1] == [1, 1]


def test_one_process_has_all_rows():
    model = inference.DistributedInference(keras.Sequential([keras.layers.Flatten()]))
    found = model.own_rows(np.ones((2, 1, 3), "float32"), process_index=0)
    np.testing.assert_array_equal(found, np.ones((2, 3)))


@pytest.mark.parametrize("model_of", [lambda layer: layer, lambda layer: Outer(layer)])
def test_outputs_after_lora_are_those_of_lora(model_of):
    """TensorFlow's programs keep the variables that a model had when they were made."""
    layer = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model, rows = model_of(layer), np.ones((2, 3), "float32")
    all_of = inference.DistributedInference(model)
    before, weight = model.predict(rows, verbose=0), np.ones(2, "float32")
    np.testing.assert_allclose(all_of(rows, weight), before, atol=1e-6)
    layer.layers[0].enable_lora(1)
    layer.layers[0].lora_kernel_a.assign(np.ones((3, 1)))
    layer.layers[0].lora_kernel_b.assign(np.ones((1, 2)))
    np.testing.assert_allclose(all_of(rows, weight), before + 3, atol=1e-5)
    if isinstance(model, Outer):
        np.testing.assert_allclose(model.predict(rows, verbose=0), before + 3, atol=1e-5)
