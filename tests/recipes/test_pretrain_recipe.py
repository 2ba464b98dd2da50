"""The recipes, shrunk: run, results, bad input; and the small recipe's golden curve."""

import dataclasses
import io
import json
import sys

import keras
import numpy as np
import pytest

from keras_vjepa import VJEPABackbone, VJEPAPretrainer, command_line, training
from keras_vjepa.configuration import replace, values
from keras_vjepa.data.reading.clip_indices import clip_frame_indices
from keras_vjepa.data.sources import labelled_sets
from keras_vjepa.data.sources.digit_motion import prepare_digit_motion
from keras_vjepa.data.sources.digit_motion_rendering import SETS, render_digit_motion
from keras_vjepa.data.transforms.training import PretrainTransform
from keras_vjepa.pretraining_check import check_probe_memory
from keras_vjepa.recipes import pretrain, pretrain_evaluation, pretrain_objects, supervised
from keras_vjepa.recipes.pretrain_configs import (
    CONFIGS,
    digit_motion,
    digit_motion_features,
    digit_motion_long,
    digit_motion_pixels,
    vitl16,
)
from tests.support import GOLDEN, slow_but_on

SHRUNK = {
    "hidden_dim": 24,
    "num_layers": 1,
    "num_heads": 2,
    "predictor_hidden_dim": 12,
    "predictor_num_layers": 1,
    "batch_size": 2,
    "steps": 2,
    "warmup_steps": 1,
    "dtype": "float32",
}


@pytest.fixture
def small_set(tmp_path, monkeypatch):
    """The built-in set with a few videos."""

    def prepare(config=SETS["digit_motion"]):
        config = dataclasses.replace(config, num_training_videos=8, num_test_videos=4)
        return prepare_digit_motion(tmp_path / "cache", config, None)

    for module in (pretrain_objects, labelled_sets):
        monkeypatch.setattr(module, "prepare_digit_motion", prepare)
    return prepare()


def test_teacher_from_a_preset(tmp_path):
    config = replace(digit_motion(), **SHRUNK, teacher=str(tmp_path / "it"))
    with pytest.raises(FileNotFoundError, match="`teacher` must be a preset of a trained encoder"):
        pretrain_objects.make_pretrainer(config)
    wider = replace(config, hidden_dim=32, teacher="", seed=7)
    teacher = pretrain_objects.make_encoder(wider)
    teacher.save_to_preset(tmp_path / "it")
    pretrainer = pretrain_objects.make_pretrainer(config)
    videos = np.random.default_rng(0).normal(size=(1, 8, 64, 64, 3)).astype("float32")
    expected = keras.ops.convert_to_numpy(teacher(videos))
    expected = (expected - expected.mean(-1, keepdims=True)) / expected.std(-1, keepdims=True)
    found = keras.ops.convert_to_numpy(pretrainer.targets(videos))
    np.testing.assert_allclose(found, expected, atol=0.05)
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.9999


def test_start_from_a_preset(tmp_path):
    config = replace(digit_motion(), **SHRUNK, start_from=str(tmp_path / "it"))
    with pytest.raises(FileNotFoundError, match="`start_from` must be a preset of a trained"):
        pretrain_objects.make_pretrainer(config)
    encoder = pretrain_objects.make_encoder(replace(config, seed=7))
    encoder.save_to_preset(tmp_path / "it")
    pretrainer = pretrain_objects.make_pretrainer(config)
    for model in (pretrainer.encoder, pretrainer.target_encoder):
        for found, expected in zip(model.get_weights(), encoder.get_weights(), strict=True):
            np.testing.assert_array_equal(found, expected)
    other = replace(config, num_layers=2)
    with pytest.raises(ValueError, match="architecture, with `num_layers`=2. Received: 1 in"):
        pretrain_objects.make_pretrainer(other)
    # The probe still compares with random weights.
    pairs = zip(
        pretrain_objects.make_encoder(config).get_weights(), encoder.get_weights(), strict=True
    )
    assert max(np.abs(one - other).max() for one, other in pairs) > 1e-3


@pytest.mark.parametrize("config", [digit_motion_long, digit_motion_pixels])
def test_the_long_run_sees_digits_on_black(config, small_set):
    config = replace(config(), **SHRUNK)
    pretrainer = pretrain_objects.make_pretrainer(config)
    batches = pretrain_objects.make_batches(config, pretrainer.encoder.grid_shape)
    batch = next(batches.stream(0, 1))
    assert batch["videos"].shape == (2, 8, 32, 32, 3)
    # The context is a quarter of the 8 x 4 x 4 tokens, which have one frame each.
    assert batch["context_indices_0"].shape == (2, 32)
    black = (0 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    assert np.abs(np.median(batch["videos"], axis=(0, 1, 2, 3)) - black).max() < 0.1


def test_the_long_run_predicts_features_of_a_teacher_that_learnt_from_pixels():
    config = replace(digit_motion_long(), batch_size=2)
    assert values(config)["target"] == "features"
    pretrainer = pretrain_objects.make_pretrainer(config)
    shipped = VJEPABackbone.from_preset("vjepa_tiny_digits_pixels")
    for found, expected in zip(
        pretrainer.teacher.get_weights(), shipped.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(found, expected)
    # Everything else is as with the moving average.
    expected = replace(
        digit_motion_features(), teacher=config.teacher, steps=12_000, cache_gib=1, batch_size=2
    )
    assert values(config) == values(expected)


@slow_but_on("torch")
def test_trained_with_labels(small_set, tmp_path, capsys):
    config = replace(
        digit_motion(),
        **SHRUNK,
        probe_epochs=80,
        learning_rate=1e-2,
        clip_norm=1.0,
    )
    # An encoder that learns is better than chance on the videos that it was trained on.
    clips, _ = pretrain_evaluation.labelled_clips(config)
    assert supervised.train(config, "motion", clips, clips) > 0.7
    supervised.run(replace(config, probe_epochs=1), tmp_path / "run")
    found = json.loads((tmp_path / "run" / "result.json").read_text())["accuracy"]
    assert set(found) == {"digit", "motion"}
    assert "motion: " in capsys.readouterr().out


@slow_but_on("torch")
def test_training_with_labels_stops_on_a_loss_that_is_not_finite(small_set, tmp_path, monkeypatch):
    config = {**SHRUNK, "learning_rate": 1e30, "probe_epochs": 4}
    line = [f"--{name}={command_line.text_of(value)}" for name, value in config.items()]
    with pytest.raises(SystemExit, match="^supervised.py: The loss is .*; the --learning_rate"):
        supervised.main([*line, "--workdir", str(tmp_path / "run")])
    assert not (tmp_path / "run" / "result.json").exists()


@slow_but_on("torch")
def test_default_recipe(small_set, tmp_path, capsys):
    config = replace(digit_motion(), **SHRUNK, probe_epochs=1)
    start = pretrain_objects.make_pretrainer(config).encoder
    pretrain.run(config, tmp_path / "run")
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert files == {
        "checkpoints",
        "config.json",
        "input_files.npz",
        "loss.csv",
        "loss.png",
        "masks.png",
        "monitor.csv",
        "model.json",
        "monitor.jsonl",
        "options.json",
        "preset",
        "probe.json",
        "report.html",
        "steps.csv",
        "steps.jsonl",
        "untrained",
    }
    assert len((tmp_path / "run" / "loss.csv").read_text().splitlines()) == 1 + config.run.steps
    assert VJEPABackbone.from_preset(tmp_path / "run" / "preset").hidden_dim == 24
    untrained = VJEPABackbone.from_preset(tmp_path / "run" / "untrained")
    for found, expected in zip(untrained.get_weights(), start.get_weights(), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert VJEPAPretrainer.from_preset(tmp_path / "run" / "preset").predictor.num_layers == 1
    table = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in table[1:]] == [
        "pretrained target encoder",
        "untrained encoder",
        "single frame, pretrained",
    ]
    results = json.loads((tmp_path / "run" / "probe.json").read_text())
    assert set(results["untrained encoder"]) == {
        "digit_accuracy",
        "motion_accuracy",
        "digit_probe_learning_rate",
        "motion_probe_learning_rate",
        "feature_std",
        "effective_rank",
    }


@pytest.mark.parametrize(
    ("masks", "kinds", "context"),
    [("causal_multi_block", 2, 58), ("random_tube", 2, 64), ("random_tokens", 1, 64)],
)
def test_masks_of_the_config(masks, kinds, context):
    config = replace(
        digit_motion(),
        **SHRUNK,
        masks=masks,
        mask_ratio=0.75,
        max_context_frames=4,
    )
    pretrainer = pretrain_objects.make_pretrainer(config)
    assert pretrainer.predictor.num_mask_tokens == kinds
    # If all lists have the same length there is no padding, unless longer ones are asked for.
    assert pretrainer.padding == (masks == "causal_multi_block")
    longer = replace(config, context_budgets=(70,) * kinds)
    assert pretrain_objects.make_pretrainer(longer).padding
    batch = pretrain_objects.make_masks(config, pretrainer.encoder.grid_shape)(0, 2)
    assert len(batch) == 2 * kinds and batch["context_indices_0"].shape == (2, context)
    # 4 of 8 frames are 2 of 4 time steps of 64 tokens: half of the 29 tubes of multi_block's 116.
    assert (batch["context_indices_0"].max() < 128) == (masks == "causal_multi_block")
    with pytest.raises(ValueError, match="`masks` must be .* or 'random_tokens'. Received: 'x'"):
        pretrain_objects.make_masks(replace(config, masks="x"), (4, 8, 8))


def test_deviation_of_the_initial_weights():
    config = replace(digit_motion(), **SHRUNK, initializer_stddev=0.1)
    pretrainer = pretrain_objects.make_pretrainer(config)
    for kernel in (
        pretrainer.target_encoder.tubelet_embedding.kernel,
        pretrainer.encoder.blocks[0].mlp_hidden.kernel,
        pretrainer.predictor.blocks[0].mlp_output.kernel,
    ):
        assert 0.08 < np.std(keras.ops.convert_to_numpy(kernel)) < 0.12
    assert not np.any(keras.ops.convert_to_numpy(pretrainer.predictor.mask_tokens[0]))


@pytest.mark.parametrize(
    "name", ["vitl16", *(pytest.param(n, marks=pytest.mark.slow) for n in ("vith16", "vith16_384"))]
)
def test_paper_recipes_train_on_a_folder(name, small_set, tmp_path, capsys):
    """The paper's configs at their own resolution, masks and precision, with a shrunk network."""
    config = CONFIGS[name]()
    shrunk = {**SHRUNK, "steps": 1, "warmup_steps": 0, "dtype": config.dtype}
    config = replace(config, **shrunk, data=str(small_set.folder))
    assert config.dtype == "mixed_bfloat16"
    pretrain.run(config, tmp_path / "run")
    assert (tmp_path / "run" / "preset" / "model.weights.h5").is_file()
    assert not (tmp_path / "run" / "probe.json").exists()
    lines = capsys.readouterr().err.splitlines()
    masks = next(line for line in lines if line.startswith("Masks: multi_block, 2 sets a clip"))
    assert f"cut to the shortest of {10 if name == 'vith16_384' else 24} have on" in masks
    batch = next(line for line in lines if line.startswith("`batch_size` 2 is far from"))
    assert batch.endswith("which `learning_rate` 0.000625 was made for.")


def test_configs_hold_the_numbers_of_table_9():
    large, huge, high = (values(CONFIGS[n]()) for n in ("vitl16", "vith16", "vith16_384"))
    expected = {
        "steps": 90_000,
        "warmup_steps": 12_000,
        "schedule_scale": 1.25,
        "num_frames": 16,
        "temporal_stride": 4,
        "tubelet_size": 2,
        "random_resize_scale": (0.3, 1.0),
        "mask_num_blocks": (8, 2),
        "mask_spatial_scale": (0.15, 0.7),
        "mask_aspect_ratio": (0.75, 1.5),
        "predictor_num_layers": 12,
        "predictor_hidden_dim": 384,
        "start_learning_rate": 2e-4,
        "learning_rate": 6.25e-4,
        "final_learning_rate": 1e-6,
        "start_weight_decay": 0.04,
        "final_weight_decay": 0.4,
        "start_momentum": 0.998,
        "final_momentum": 1.0,
        "clip_norm": 10.0,
        "beta_1": 0.9,
        "beta_2": 0.999,
    }
    for found in (large, huge, high):
        assert {name: found[name] for name in expected} == expected
    assert [c["image_size"] for c in (large, huge, high)] == [224, 224, 384]
    assert [c["batch_size"] for c in (large, huge, high)] == [3072, 3072, 2400]
    assert [c["hidden_dim"] for c in (large, huge, high)] == [1024, 1280, 1280]


def test_overrides():
    config, workdir = pretrain.parse_arguments(
        ["--config", "vitl16", "--steps", "70000", "--context_budgets", "10,20", "--data", "videos"]
    )
    assert config == replace(vitl16(), steps=70_000, context_budgets=(10, 20), data="videos")
    assert str(workdir) == "workdir/vitl16"


@slow_but_on("torch")
@pytest.mark.parametrize("mode", ["budget", "batch_min"])
def test_both_truncations_train(mode, small_set, tmp_path):
    config = replace(digit_motion(), **SHRUNK, truncation=mode)
    pretrainer = pretrain_objects.make_pretrainer(config)
    assert pretrainer.padding == (mode == "budget")
    batches = pretrain_objects.make_batches(config, pretrainer.encoder.grid_shape)
    assert np.isfinite(training.run(pretrainer, batches, tmp_path, config.run.steps)).all()


def refused(arguments, tmp_path):
    """What `main` prints for bad input, in this process; exit code 2 if it has done nothing."""
    said = io.StringIO()
    with pytest.raises(SystemExit) as exit_info, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["pretrain.py", *arguments])
        patch.setattr(sys, "stderr", said)
        patch.chdir(tmp_path)
        pretrain.main()
    code = exit_info.value.code
    assert code not in (0, None)
    return said.getvalue().removesuffix("\n") if code == 2 else str(code)


def test_bad_data_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.csv").write_text("a.mp4 1e3\n")
    small = ["--hidden_dim", "24", "--num_layers", "1", "--num_heads", "2"]
    for data in ("empty", "list.csv", "nowhere"):
        message = refused(["--data", str(tmp_path / data), *small], tmp_path)
        assert message.startswith("pretrain.py: ") and data in message
        assert len(message.splitlines()) == 1


def test_broken_videos_stop_the_run(tmp_path):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").write_text("no video")
    small = ["--hidden_dim", "24", "--num_layers", "1", "--num_heads", "2", "--steps", "30"]
    message = refused(["--data", str(tmp_path / "videos"), *small], tmp_path)
    assert "1 of 1 videos cannot be read" in message and len(message.splitlines()) == 1


def test_bad_settings_are_named(tmp_path):
    assert "--num_heads=5" in refused(["--num_heads", "5"], tmp_path)
    assert "--warmup_steps must be" in refused(["--steps", "5", "--warmup_steps", "9"], tmp_path)
    assert "--data must be text, and not empty" in refused(["--data", ""], tmp_path)
    assert "--workdir: must be a folder" in refused(["--workdir", ""], tmp_path)
    assert "--num_channels must be 3, as videos" in refused(["--num_channels", "4"], tmp_path)
    message = refused(["--budget_batch_size", "100000"], tmp_path)
    assert "--budget_batch_size must be at most 1,024" in message
    message = refused(["--predictor_output_dim", "7", "--steps", "9"], tmp_path)
    assert "--predictor_output_dim must be 96 for --target='features'. Received: 7" in message
    message = refused(["--workdir", str(tmp_path / ("x" * 300))], tmp_path)
    assert "--workdir must be a folder that can be made: File name too long" in message
    assert "--teacher must be a folder, hf://" in refused(["--teacher", "nowhere"], tmp_path)
    (tmp_path / "file").write_text("")
    message = refused(["--workdir", str(tmp_path / "file")], tmp_path)
    assert message == f"pretrain.py: --workdir must be a folder. Received: {tmp_path / 'file'}"
    with pytest.raises(SystemExit) as exit_info:
        pretrain.main(["--workdir", str(tmp_path / "file")])
    # The error comes before any device, model or video is used.
    assert exit_info.value.code == 2


@pytest.mark.parametrize(
    ("line", "options"),
    [
        ("--mask_ratio 0.5 --max_context_frames 4", ["mask_ratio", "max_context_frames"]),
        ("--masks random_tube --mask_num_blocks 8,2 --mask_ratio 0.5", ["mask_num_blocks"]),
        ("--masks random_tokens --mask_aspect_ratio 1,2", ["mask_aspect_ratio"]),
        ("--masks causal_multi_block --max_context_frames 4 --mask_ratio 0.5", ["mask_ratio"]),
        ("--config digit_motion_long --masks random_tube --mask_ratio 0.5", []),
        # The ratio in the config then has no effect, but the user did not ask for it.
        ("--config digit_motion_long --masks multi_block", []),
    ],
)
def test_options_of_other_kinds_of_masks_are_said(line, options, capsys):
    config, _ = pretrain.parse_arguments(line.split())
    said = [f"--{option} has no effect with --masks {config.masks}." for option in options]
    assert capsys.readouterr().err.splitlines() == said


def test_clips_of_the_probe_that_no_memory_holds(tmp_path, monkeypatch):
    """Said before the run, and not at its end."""
    config = replace(digit_motion(), image_size=384, num_frames=16)
    monkeypatch.setattr("keras_vjepa.pretraining_check.memory_of_machine", lambda: 10**11)
    with pytest.raises(
        ValueError, match="`probe_videos` must be fewer, .* take 113 GB at 16 x 384"
    ):
        check_probe_memory(config)
    check_probe_memory(replace(config, probe_videos=1000))
    check_probe_memory(replace(config, data=str(tmp_path)))
    check_probe_memory(replace(config, data=str(tmp_path), monitor_probe_clips=1000))
    with pytest.raises(ValueError, match="`monitor_probe_clips` must be fewer, .* take 163 GB"):
        check_probe_memory(replace(config, data=str(tmp_path), monitor_probe_clips=2000))
    monkeypatch.setattr("keras_vjepa.pretraining_check.memory_of_machine", lambda: None)
    check_probe_memory(config)
    monkeypatch.setattr("keras_vjepa.pretraining_check.memory_of_machine", lambda: 10**6)
    message = refused(["--steps", "9"], tmp_path)
    assert message.startswith("pretrain.py: --probe_videos must be fewer, or clips smaller: ")


def test_unknown_names_are_errors(capsys):
    for arguments in (["--config", "vitx"], ["--step", "5"], ["--steps", "many"]):
        with pytest.raises(SystemExit) as exit_info:
            pretrain.parse_arguments(arguments)
        assert exit_info.value.code == 2
        assert arguments[0] in capsys.readouterr().err


def test_help_lists_configs_with_their_cost(capsys):
    with pytest.raises(SystemExit):
        pretrain.parse_arguments(["--help"])
    text = capsys.readouterr().out
    for name in CONFIGS:
        assert f"\n  {name} " in text
    assert "90,000 steps of 3,072 clips" in text


# --- The golden curve ----------------------------------------------------------------------------


class RenderedBatches(keras.utils.PyDataset):
    """Batches of the small recipe from rendered frames: no codec stands between machines."""

    def __init__(self, config, grid_shape, steps):
        super().__init__()
        self.config, self.steps = config, steps
        self.masks = pretrain_objects.make_masks(config, grid_shape)
        self.transform = PretrainTransform(
            config.encoder.image_size, config.transform.scale, horizontal_flip=0.0
        )

    def __len__(self):
        return self.steps

    def __getitem__(self, step):
        batch_size, clips = self.config.batches.batch_size, []
        num_frames, frame_step = self.config.encoder.num_frames, self.config.clip.frame_step
        for i in range(batch_size):
            rng = np.random.default_rng([step, i])
            video = render_digit_motion("train", step * batch_size + i)
            [indices] = clip_frame_indices(len(video.frames), num_frames, frame_step, rng=rng)
            clips.append(self.transform(video.frames[indices], rng))
        return ({"videos": np.stack(clips), **self.masks(step, batch_size)},)


def set_weights_from_numpy(pretrainer):
    """The same initial weights on every backend; biases and norms stay as they are."""
    rng = np.random.default_rng(0)
    for network in (pretrainer.encoder, pretrainer.predictor):
        for variable in network.trainable_variables:
            if variable.path.endswith("kernel"):
                variable.assign(0.02 * rng.normal(size=variable.shape))
    pretrainer.target_encoder.set_weights(pretrainer.encoder.get_weights())


def small_recipe_curve():
    config = replace(digit_motion(), batch_size=4)
    pretrainer = pretrain_objects.make_pretrainer(config)
    set_weights_from_numpy(pretrainer)
    log = training.LossLog(20)
    batches = RenderedBatches(config, pretrainer.encoder.grid_shape, 20)
    pretrainer.fit(batches, shuffle=False, verbose=0, callbacks=[log])
    return log.losses


def test_golden_curve_of_the_small_recipe():
    """20 steps, the same on all; `python -m tests.recipes.test_pretrain_recipe` writes them."""
    expected = json.loads((GOLDEN / "small_recipe_curve.json").read_text())
    np.testing.assert_allclose(small_recipe_curve(), expected, rtol=0, atol=1e-4)


if __name__ == "__main__":
    (GOLDEN / "small_recipe_curve.json").write_text(json.dumps(small_recipe_curve(), indent=1))
