"""V-JEPA 2.1's configs: their models are the zoo's, and shrunk ones make a step."""

import numpy as np
import pytest

from keras_vjepa import VJEPABackbone
from keras_vjepa.configuration import replace
from keras_vjepa.presets.preset import BUILT_IN
from keras_vjepa.recipes.pretrain_configs import CONFIGS
from keras_vjepa.recipes.pretrain_derived import check_options
from keras_vjepa.recipes.pretrain_objects import make_pretrainer
from tests.support import random_batch, slow_but_on

SMALL = {
    "image_size": 32,
    "num_frames": 4,
    "hidden_dim": 8,
    "num_layers": 4,
    "num_heads": 1,
    "mlp_ratio": 2.0,
    "level_layers": (0, 1, 2, 3),
    "predictor_hidden_dim": 8,
    "predictor_num_layers": 1,
    "predictor_num_heads": 1,
    "predictor_num_mask_tokens": 2,
    "mask_num_blocks": (1, 1),
    "mask_spatial_scale": (0.25, 0.25),
    "budget_batch_size": 2,
    "batch_size": 2,
    "dtype": "float32",
}


@pytest.mark.data
@pytest.mark.parametrize("size", ["base", "large", "giant", "gigantic"])
def test_models_are_those_of_the_zoo(size):
    config, entry = CONFIGS[f"vjepa21_{size}"](), BUILT_IN[f"vjepa21_{size}_patch16_384"]
    check_options(config)
    for name, value in entry.encoder.items():
        if name not in ("image_size", "num_frames"):
            assert getattr(config.encoder, name) == value, name
    for name in ("num_layers", "num_heads", "hidden_dim", "num_levels", "predicts_context"):
        assert getattr(config.predictor, name) == entry.predictor[name], name
    for name, value in entry.objective.items():
        if name != "target":
            assert getattr(config.pretrainer, name) == value, name


@pytest.mark.data
@pytest.mark.parametrize(
    "changes,message",
    [
        ({"predictor_num_levels": 3}, "`level_layers` must be 3 blocks"),
        ({"predictor_predicts_context": False}, "`context_loss_weight` must be 0 without"),
        ({"target": "given"}, "`target` must not be 'given'"),
        ({"mask_token": 2}, "`mask_token` must be less than"),
    ],
)
def test_options_that_do_not_fit_are_named(changes, message):
    config = replace(CONFIGS["vjepa21_giant"](), **{**SMALL, **changes})
    with pytest.raises(ValueError, match=message):
        check_options(config)


@slow_but_on("torch")
@pytest.mark.parametrize("name", ["vjepa21_giant", "vjepa21_base"])
def test_shrunk_configs_make_a_step(name, tmp_path):
    changes = {**SMALL}
    if name == "vjepa21_base":
        # Like the released teacher, it has another width and size.
        teacher = VJEPABackbone(
            64,
            8,
            hidden_dim=12,
            num_layers=2,
            num_heads=2,
            position_embedding="rotary_pairs",
            position_reach=15,
        )
        teacher.save_to_preset(tmp_path / "teacher")
        changes["teacher"] = str(tmp_path / "teacher")
    config = replace(CONFIGS[name](), **changes)
    check_options(config)
    pretrainer = make_pretrainer(config)
    width = 12 if name == "vjepa21_base" else 4 * 8
    assert pretrainer.predictor.output_dim == width
    assert float(pretrainer.context_factor()) == 0.0
    before = pretrainer.encoder.get_weights()
    batch = random_batch(0, pretrainer, target=1)
    logs = pretrainer.train_on_batch(batch, return_dict=True)
    assert np.isfinite(float(logs["step_loss"])) and float(logs["finite"]) == 1.0
    after = pretrainer.encoder.get_weights()
    assert any((a != b).any() for a, b in zip(before, after, strict=True))
