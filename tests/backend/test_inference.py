"""Outputs of a batch that several processes share."""

import keras
import numpy as np

from keras_vjepa.backend import inference


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
