"""Linear layers and norms take the arguments of Keras' layers."""

import keras
import numpy as np
import pytest

from keras_vjepa.layers import TokenDense, TokenNorm
from tests.layers.small import in_float32


@pytest.mark.parametrize(
    "ours,theirs,arguments",
    [
        (TokenDense, keras.layers.Dense, {}),
        (TokenDense, keras.layers.Dense, {"activation": "relu"}),
        (TokenDense, keras.layers.Dense, {"use_bias": False}),
        (TokenDense, keras.layers.Dense, {"use_bias": False, "activation": "gelu"}),
        (TokenNorm, keras.layers.LayerNormalization, {}),
        (TokenNorm, keras.layers.LayerNormalization, {"center": False}),
        (TokenNorm, keras.layers.LayerNormalization, {"scale": False}),
        (TokenNorm, keras.layers.LayerNormalization, {"center": False, "scale": False}),
        (TokenNorm, keras.layers.LayerNormalization, {"axis": [-1], "epsilon": 0.5}),
        (TokenNorm, keras.layers.LayerNormalization, {"rms_scaling": True}),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_arguments_of_keras_layers_act(ours, theirs, arguments, dtype):
    if ours is TokenDense:
        arguments = {"units": 6, **arguments}
    layer, other = ours(dtype=dtype, **arguments), theirs(dtype=dtype, **arguments)
    rng = np.random.default_rng(0)
    x = rng.normal(loc=1.0, size=(2, 5, 8)).astype("float32")
    for each in (layer, other):
        each.build(x.shape)
    weights = [rng.normal(size=w.shape) for w in other.get_weights()]
    layer.set_weights(weights)
    other.set_weights(weights)
    bound = 1e-5 if dtype == "float32" else 0.03
    np.testing.assert_allclose(in_float32(layer(x)), in_float32(other(x)), bound, bound)
    assert ours.from_config(layer.get_config()).get_config() == layer.get_config()
    assert {**layer.get_config(), "name": ""} == {**other.get_config(), "name": ""}


@pytest.mark.parametrize("axis", [1, [1, 2], 2])
def test_a_norm_over_another_axis_is_refused(axis):
    with pytest.raises(ValueError, match="`axis` must be -1, a token's width"):
        TokenNorm(axis=axis)
