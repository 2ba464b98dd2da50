"""Every argument of the parts of a pretraining run can be set on the command line."""

import inspect
import re

import numpy as np
import pytest

from keras_vjepa import AdamW, VJEPABackbone, VJEPAPredictor, VJEPAPretrainer, data, training
from keras_vjepa.command_line import as_typed, text_of
from keras_vjepa.configuration import descriptions, options, replace, values
from keras_vjepa.data.batches.indexed import TooManyBadFilesError
from keras_vjepa.data.sources.video_writing import write_motion_jpeg
from keras_vjepa.monitoring import Monitor
from keras_vjepa.presets.fingerprints import fingerprint
from keras_vjepa.recipes import pretrain, pretrain_objects
from keras_vjepa.recipes.pretrain_configs import CONFIGS, digit_motion
from keras_vjepa.tasks.named_presets import load_encoder
from tests.support import slow_but_on

# Constructor arguments that are not options by themselves, and the options that determine them.
KNOWN = {
    # This is an option of `finetune`.
    VJEPABackbone: {"drop_path_rate": []},
    VJEPAPredictor: {"encoder_dim": ["hidden_dim"], "grid_shape": ["image_size", "patch_size"]},
    VJEPAPretrainer: {
        "encoder": ["hidden_dim"],
        "predictor": ["predictor_hidden_dim"],
        "momentum": ["start_momentum", "final_momentum"],
        "teacher": ["teacher"],
    },
    AdamW: {
        "learning_rate": ["learning_rate", "start_learning_rate", "warmup_steps"],
        "weight_decay": ["start_weight_decay", "final_weight_decay"],
        "name": [],
        # The recipe counts optimizer steps, so it has `accumulation_steps` instead.
        "gradient_accumulation_steps": ["accumulation_steps"],
        # This is an option of `finetune`.
        "layer_decay": [],
    },
    data.CausalMultiBlockMask: {"num_frames": ["num_frames"]},
    data.MaskSampler: {"masks": ["masks"], "grid": ["image_size"], "seed": ["seed"]},
    data.PretrainTransform: {"crop_size": ["image_size"], "augmentation": []},
    data.ClipSettings: {
        "frames_per_clip": ["num_frames"],
        "num_clips": [],
        "allow_clip_overlap": [],
    },
    Monitor: {
        "held_out": ["monitor_clips"],
        "probe": ["monitor_probe_clips"],
        "folder": [],
        "writers": ["tensorboard"],
    },
}
PARTS = [
    VJEPABackbone,
    VJEPAPredictor,
    VJEPAPretrainer,
    data.MultiBlockMask,
    data.CausalMultiBlockMask,
    data.RandomTubeMask,
    data.RandomTokenMask,
    data.MaskSampler,
    data.PretrainTransform,
    data.ClipSettings,
    data.ReadingLimits,
    AdamW,
    Monitor,
]


def arguments_of(constructor):
    parameters = inspect.signature(constructor).parameters.values()
    return [p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]


def options_for(constructor):
    """Of a constructor's arguments, by their names."""
    config = digit_motion()
    fields = {f: part for f in vars(config) if hasattr(part := getattr(config, f), "constructors")}
    [field] = [f for f, part in fields.items() if constructor in part.constructors]
    return {o.argument: o for o in options(config).values() if o.field == field}


@pytest.mark.parametrize("constructor", PARTS, ids=lambda constructor: constructor.__name__)
def test_every_argument_is_an_option_with_its_description(constructor, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100000")
    with pytest.raises(SystemExit):
        pretrain.parse_arguments(["--help"])
    help_text = " ".join(capsys.readouterr().out.split())
    known, found = KNOWN.get(constructor, {}), options_for(constructor)
    for argument in arguments_of(constructor):
        if argument in known:
            assert set(known[argument]) <= options(digit_motion()).keys()
            continue
        option = found[argument]
        # If several kinds of masks have an argument, the description of the first one is shown.
        assert descriptions(constructor)[argument]
        assert f"--{option.name} VALUE {as_typed(option, options(digit_motion()))} (" in help_text
    assert not set(known) - set(arguments_of(constructor))


@pytest.mark.parametrize("name", list(CONFIGS))
def test_every_value_can_be_given_as_it_is_shown(name):
    config = CONFIGS[name]()
    given = [f"--{option}={text_of(value)}" for option, value in values(config).items()]
    found, _ = pretrain.parse_arguments(["--config", name, *given])
    assert values(found) == values(config)


def test_what_is_given_reaches_the_models():
    given = {
        "image_size": (16, 24),
        "num_frames": 4,
        "patch_size": 4,
        "tubelet_size": 1,
        "hidden_dim": 16,
        "num_layers": 1,
        "num_heads": 2,
        "mlp_ratio": 1.5,
        "position_embedding": "sincos",
        "uniform_power": False,
        "position_mode": "fresh",
        "layer_norm_epsilon": 1e-3,
        "num_channels": 3,
        "remat": True,
    }
    predictor = {
        "hidden_dim": 8,
        "num_layers": 1,
        "num_heads": 4,
        "num_mask_tokens": 3,
        "mlp_ratio": 2.5,
        "layer_norm_epsilon": 1e-4,
        "remat": False,
    }
    objective = {"loss_exponent": 2.0, "variance_weight": 0.5, "padding": False}
    optimizer = {"beta_1": 0.8, "beta_2": 0.99, "epsilon": 1e-5, "clip_norm": None, "clip_after": 3}
    everything = {**given, **objective, **optimizer}
    everything |= {f"predictor_{name}": value for name, value in predictor.items()}
    line = [f"--{name}={text_of(value)}" for name, value in everything.items()]
    config, _ = pretrain.parse_arguments(line)
    pretrainer = pretrain_objects.make_pretrainer(config)
    for made, expected in (
        (pretrainer.encoder, given),
        (pretrainer.predictor, {**predictor, "uniform_power": False}),
        (pretrainer, objective),
        (pretrainer.optimizer, optimizer),
    ):
        found = made.get_config()
        assert {name: found[name] for name in expected} == expected


def test_what_is_given_reaches_the_masks():
    config, _ = pretrain.parse_arguments(
        "--masks causal_multi_block --mask_num_blocks 3,1,2 --mask_spatial_scale 0.2,0.5:0.6,0.3 "
        "--mask_temporal_scale 0.5 --mask_aspect_ratio 1,2 --mask_max_temporal_keep 0.75 "
        "--mask_max_keep 40 --max_context_frames 6 --context_budgets 20,none,30 "
        "--target_budgets none --seed 5".split()
    )
    shared = {
        "temporal_scale": 0.5,
        "aspect_ratio": (1.0, 2.0),
        "max_temporal_keep": 0.75,
        "max_keep": 40,
        "num_context_frames": 6,
        "num_frames": 8,
    }
    assert pretrain_objects.mask_kinds(config) == [
        data.CausalMultiBlockMask(3, 0.2, **shared),
        data.CausalMultiBlockMask(1, (0.5, 0.6), **shared),
        data.CausalMultiBlockMask(2, 0.3, **shared),
    ]
    sampler = pretrain_objects.make_masks(config, (4, 8, 8))
    means = data.mean_counts(pretrain_objects.mask_kinds(config), (4, 8, 8), batch_size=32)
    assert sampler.context_budgets == (20, means[0][1], 30) and 15 < means[0][1] <= 40
    assert sampler.target_budgets == means[1]
    config = replace(config, context_budgets=(20, 15, 30), budget_batch_size=24)
    sampler = pretrain_objects.make_masks(config, (4, 8, 8))
    means = data.mean_counts(pretrain_objects.mask_kinds(config), (4, 8, 8), batch_size=24)
    assert (sampler.context_budgets, sampler.target_budgets) == ((20, 15, 30), means[1])
    assert (sampler.seed, sampler.truncation) == (5, "budget")
    with pytest.raises(ValueError, match=r"`mask_num_blocks`=\(3, 1\), `mask_spatial_scale`="):
        pretrain_objects.mask_kinds(replace(config, mask_num_blocks=(3, 1)))
    with pytest.raises(ValueError, match="`mask_ratio` must be in .* Received: 1.5"):
        pretrain_objects.mask_kinds(replace(config, masks="random_tube", mask_ratio=1.5))


SHRUNK = {
    "image_size": (16, 24),
    "num_frames": 4,
    "temporal_stride": 2,
    "patch_size": 4,
    "hidden_dim": 12,
    "num_layers": 1,
    "num_heads": 2,
    "predictor_hidden_dim": 12,
    "predictor_num_layers": 1,
    "batch_size": 2,
    "steps": 2,
    "warmup_steps": 1,
}


@pytest.mark.data
def test_a_preset_to_begin_with_says_what_encoder_it_is(tmp_path, capsys):
    preset = str(tmp_path / "preset")
    encoder = VJEPABackbone((16, 24), 4, 4, hidden_dim=12, num_layers=1, num_heads=2, mlp_ratio=2.0)
    encoder.save_to_preset(preset)
    begun = ["--start_from", preset, "--temporal_stride", "2"]
    config, _ = pretrain.parse_arguments([*begun, "--hidden_dim", "12", "--remat", "true"])
    made = pretrain_objects.make_encoder(config)
    assert made.remat and {**made.get_config(), "remat": False, "name": encoder.name} == {
        **encoder.get_config(),
        "dtype": made.get_config()["dtype"],
    }
    # An argument that only matters in fine-tuning does not change the identity of an encoder.
    tuned = VJEPABackbone.from_config({**encoder.get_config(), "drop_path_rate": 0.5})
    tuned.save_to_preset(tmp_path / "tuned")
    begun_with = load_encoder(replace(config, start_from=str(tmp_path / "tuned")), "start_from")
    assert begun_with.drop_path_rate == 0 and fingerprint(begun_with) == fingerprint(tuned)
    for option, value, known in (("hidden_dim", "24", "12"), ("image_size", "16", r"\(16, 24\)")):
        with pytest.raises(SystemExit) as error:
            pretrain.parse_arguments([*begun, f"--{option}", value])
        assert error.value.code == 2
        [line] = capsys.readouterr().err.splitlines()
        assert re.fullmatch(
            rf"pretrain.py: --{option} must be left out with --start_from, or be {known}, as "
            rf"{preset} has it. Received: {value}",
            line,
        )
    with pytest.raises(SystemExit):
        pretrain.parse_arguments(["--start_from", str(tmp_path / "nothing")])
    assert "--start_from must be the folder of a preset. Received: " in capsys.readouterr().err


@slow_but_on("torch")
def test_rotary_positions_and_clips_that_are_no_squares_train(tmp_path):
    """V-JEPA 2's positions (official-behaviour §12), of encoder and predictor together."""
    frames = np.random.default_rng(0).integers(256, size=(8, 20, 30, 3), dtype=np.uint8)
    write_motion_jpeg(tmp_path / "a.avi", frames, 24)
    config = replace(digit_motion(), **SHRUNK, position_embedding="rotary", data=str(tmp_path))
    pretrainer = pretrain_objects.make_pretrainer(config)
    assert pretrainer.predictor.position_embedding == "rotary"
    assert pretrainer.encoder.grid_shape == (2, 4, 6)
    batches = pretrain_objects.make_batches(config, pretrainer.encoder.grid_shape)
    assert batches.batch(0)["videos"].shape == (2, 4, 16, 24, 3)
    limited = replace(config, max_frame_pixels=20 * 30 - 1, max_file_seconds=9.0)
    with pytest.raises(TooManyBadFilesError, match="30x20 pixels are more than .*=599"):
        pretrain_objects.make_batches(limited, pretrainer.encoder.grid_shape).batch(0)
    losses = training.run(pretrainer, batches, tmp_path / "run", config.run.steps)
    assert len(losses) == 2 and np.isfinite(losses).all()
    mixed = replace(config, predictor_position_embedding="sincos")
    with pytest.raises(ValueError, match="^`predictor_position_embedding` must be the encoder's"):
        pretrain_objects.make_pretrainer(mixed)
