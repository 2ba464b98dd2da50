"""A preset keeps the precision that it was saved in, and says so where another is set for all."""

import logging

import keras
import numpy as np
import pytest

from keras_vjepa import (
    FeatureDecoder,
    VJEPABackbone,
    VJEPAPredictor,
    VJEPAPretrainer,
    VJEPAVideoClassifier,
)
from keras_vjepa.models.diffusion_network import DiffusionNetwork

pytestmark = pytest.mark.data


@pytest.fixture
def global_policy():
    before = keras.config.dtype_policy()
    yield keras.config.set_dtype_policy
    keras.config.set_dtype_policy(before)


@pytest.fixture(scope="module")
def presets(tmp_path_factory):
    parent = tmp_path_factory.mktemp("presets")
    backbone = VJEPABackbone(32, 4, hidden_dim=24, num_layers=1, num_heads=2)
    backbone.save_to_preset(parent / "backbone")
    VJEPAVideoClassifier(backbone, 3).save_to_preset(parent / "classifier")
    predictor = VJEPAPredictor(24, (2, 2, 2), 12, 1, 2)
    pretrainer = VJEPAPretrainer(backbone, predictor, teacher=backbone)
    pretrainer.save_to_preset(parent / "pretrainer")
    network = DiffusionNetwork(
        (2, 8, 8), 6, (2, 2, 2), width=8, multipliers=(1, 2), num_blocks=1, attention_at=()
    )
    FeatureDecoder(network).save_to_preset(parent / "decoder")
    return parent


@pytest.mark.parametrize("load_weights", [True, False])
@pytest.mark.parametrize("kind", ["backbone", "classifier"])
def test_a_global_policy_that_does_not_count_is_said_once(
    kind, load_weights, presets, global_policy, caplog
):
    cls = {"backbone": VJEPABackbone, "classifier": VJEPAVideoClassifier}[kind]
    global_policy("mixed_bfloat16")
    model = cls.from_preset(presets / kind, load_weights=load_weights)
    assert model.dtype_policy.name == "float32"
    (line,) = [record.getMessage() for record in caplog.records if "dtype" in record.getMessage()]
    assert str(presets / kind) in line and "stays float32" in line
    assert "dtype='mixed_bfloat16'" in line and "\n" not in line


@pytest.mark.parametrize("kind", ["backbone", "classifier"])
def test_a_precision_that_is_given_counts(kind, presets, global_policy, caplog):
    cls = {"backbone": VJEPABackbone, "classifier": VJEPAVideoClassifier}[kind]
    global_policy("mixed_bfloat16")
    model = cls.from_preset(presets / kind, dtype="mixed_bfloat16")
    assert model.dtype_policy.name == "mixed_bfloat16"
    assert getattr(model, "backbone", model).dtype_policy.name == "mixed_bfloat16"
    assert not [record for record in caplog.records if "dtype" in record.getMessage()]


PARTS = {
    VJEPAPretrainer: ("encoder", "target_encoder", "teacher", "predictor"),
    FeatureDecoder: ("network", "averaged"),
}


@pytest.mark.parametrize(
    ("kind", "cls"), [("pretrainer", VJEPAPretrainer), ("decoder", FeatureDecoder)]
)
@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "float16"])
def test_a_precision_counts_for_all_parts(kind, cls, dtype, presets):
    stored, model = cls.from_preset(presets / kind), cls.from_preset(presets / kind, dtype=dtype)
    for name in PARTS[cls]:
        part, before = getattr(model, name), getattr(stored, name)
        assert part.compute_dtype == dtype.removeprefix("mixed_"), name
        for found, expected in zip(part.weights, before.weights, strict=True):
            np.testing.assert_allclose(
                keras.ops.convert_to_numpy(found).astype("float32"),
                keras.ops.convert_to_numpy(expected),
                atol=1e-3,
            )


def test_nothing_is_said_where_nobody_set_a_policy(presets, caplog):
    with caplog.at_level(logging.WARNING):
        VJEPABackbone.from_preset(presets / "backbone")
    assert not caplog.records
