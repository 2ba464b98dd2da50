"""What a recipe does before it knows the other processes."""

import importlib

import keras
import pytest

pytestmark = pytest.mark.data


@pytest.mark.parametrize("recipe", ["pretrain", "probe", "finetune", "detect", "decode"])
def test_configs_make_no_variable(recipe, monkeypatch):
    """A variable starts JAX and TensorFlow, which can then not join other processes any more."""

    def fail(self, *_, **__):
        raise AssertionError("a variable was made")

    configs = importlib.import_module(f"keras_vjepa.recipes.{recipe}_configs").CONFIGS
    monkeypatch.setattr(keras.Variable, "__init__", fail)
    with pytest.raises(AssertionError, match="a variable was made"):
        keras.optimizers.SGD()
    assert all(make() is not None for make in configs.values())
