"""A model computes in the precision that it is asked to have, or is not made."""

import keras
import numpy as np
import pytest

from keras_vjepa import VJEPABackbone, VJEPAPredictor, VJEPAProbe
from keras_vjepa.backend.device import check_computes_in

SIZES = {"num_layers": 1, "num_heads": 1}
AXES = VJEPABackbone(16, 2, patch_size=8, hidden_dim=8, **SIZES).position_axes
MODELS = {
    "backbone": lambda dtype: VJEPABackbone(
        16, 2, patch_size=8, hidden_dim=8, dtype=dtype, **SIZES
    ),
    "predictor": lambda dtype: VJEPAPredictor(8, AXES, dtype=dtype, **SIZES),
    "probe": lambda dtype: VJEPAProbe(2, num_heads=2, dtype=dtype),
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("dtype", ["float64", keras.DTypePolicy("float64")])
@pytest.mark.skipif(keras.config.backend() != "jax", reason="has float64 at any time")
def test_what_jax_would_make_float32_of_is_refused(model, dtype):
    with pytest.raises(ValueError, match="`dtype` must be float32 or less on JAX, .*enable_x64"):
        MODELS[model](dtype=dtype)


@pytest.mark.skipif(keras.config.backend() != "jax", reason="has float64 at any time")
def test_jax_that_was_told_to_has_float64():
    import jax

    jax.config.update("jax_enable_x64", True)
    try:
        assert check_computes_in(keras.DTypePolicy("float64")) is None
    finally:
        jax.config.update("jax_enable_x64", False)


@pytest.mark.skipif(keras.config.backend() == "jax", reason="is told to first")
def test_others_have_float64():
    model = MODELS["backbone"](dtype="float64")
    outputs = model(np.ones((1, 2, 16, 16, 3)))
    assert keras.backend.standardize_dtype(outputs.dtype) == "float64"
