"""The recipe of detection: Table 11's numbers, shrunk runs on official files, one that goes on."""

import json
import os
import shutil

import keras
import numpy as np
import pytest

from keras_vjepa import VJEPAActionDetector, VJEPABackbone
from keras_vjepa.configuration import options, replace
from keras_vjepa.data.sources.ava_files import read_actions, read_key_frames
from keras_vjepa.evaluation.detection import mean_average_precision
from keras_vjepa.monitoring.report import write_report
from keras_vjepa.monitoring.tables import read_rows
from keras_vjepa.recipes import detect
from keras_vjepa.recipes.detect_configs import CONFIGS
from keras_vjepa.tools import check_resume
from keras_vjepa.training.resumable import RunCallback
from tests.backend.test_distribution import finish, launch
from tests.data.sources.ava_layout import write_ava
from tests.support import ROOT, WITHOUT_TENSORFLOW, slow_but_on

SMALL = {
    "crop_size": 16,
    "short_side": (16, 24),
    "test_size": 16,
    "num_frames": 4,
    "batch_size": 2,
    "test_batch_size": 2,
    "max_boxes": 2,
    "epochs": 3,
    "warmup_epochs": 1,
    "dtype": "float32",
    "max_bad_share": 0.5,
    "validate_every": 1,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("detect")
    write_ava(root / "ava")
    VJEPABackbone(
        16, 4, patch_size=8, hidden_dim=8, num_layers=2, num_heads=2, mlp_ratio=2.0
    ).save_to_preset(root / "encoder")
    return root


def small(folder, name="ava", **changes):
    given = {"preset": str(folder / "encoder"), "data": str(folder / "ava")}
    return replace(CONFIGS[name](), **{**given, **SMALL, **changes})


@pytest.mark.data
def test_configs_hold_the_numbers_of_table_11():
    for name, size in (("ava", 224), ("ava_384", 384)):
        config = CONFIGS[name]()
        rates = config.learning_rate, config.warmup_learning_rate, config.final_learning_rate
        assert rates == (1e-4, 1e-6, 1e-6)
        assert (config.weight_decay, config.epsilon) == (0.05, 1e-7)
        assert (config.batches.batch_size, config.epochs, config.warmup_epochs) == (64, 30, 2)
        assert config.crop_size == size and not config.trainable_backbone
        clip = config.clip.make()
        assert (clip.num_frames, clip.frame_step, clip.fps) == (16, 4, 30.0)
        assert config.layers is None and config.data.actions == "60"


@pytest.mark.data
def test_open_choices_are_options():
    wanted = {
        "layers", "output_size", "sampling_ratio", "aligned", "box_pooling", "dropout", "actions",
        "least_score", "box_scores", "jitter", "extension", "rule", "warmup_epochs", "clip_fps",
        "first_second", "kind", "trainable_backbone", "layer_decay",
    }  # fmt: skip
    assert wanted <= options(CONFIGS["ava"]()).keys()


# An epoch has two steps. All random parts of the training are on.
TRAINED = {"trainable_backbone": True, "layer_decay": 0.75, "dropout": 0.3, "drop_path_rate": 0.2}
STEPS = 6


@pytest.fixture(scope="module")
def config(folder):
    boxes = str(folder / "ava" / "detected_val.json")
    return small(folder, boxes=boxes, checkpoint_every=2, **TRAINED)


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """A run that nothing stopped."""
    workdir = tmp_path_factory.mktemp("whole")
    detect.run(config, workdir)
    return workdir


@slow_but_on("torch", "tensorflow")
def test_a_shrunk_run_from_official_files(folder, config, whole):
    result = json.loads((whole / "result.json").read_text())["test"]
    assert result.keys() == {"true", "detected"}
    annotations = folder / "ava" / "annotations"
    # Reading the written files gives the same number.
    truth = read_actions(annotations / "ava_val_v2.2.csv")
    excluded = read_key_frames(annotations / "ava_val_excluded_timestamps_v2.2.csv")
    for kind, found in result.items():
        rows = read_actions(whole / f"detections_{kind}.csv")
        score = mean_average_precision(truth, rows, [1, 17, 80], excluded).mean
        assert found["mean_average_precision"] == score > 0
    preset = VJEPAActionDetector.from_preset(whole / "preset")
    assert preset.class_names == ["bend", "ride", "watch"]
    assert preset.backbone.drop_path_rate == 0.2
    [video] = (folder / "ava" / "videos").glob("1j*.avi")
    [actions] = preset.detect(str(video), [[0.1, 0.1, 0.5, 0.9]], second=2)
    assert {name for name, _ in actions} == {"bend", "ride", "watch"}


def test_what_is_written_of_a_run(whole):
    rows = read_rows(whole / "steps.jsonl")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert all(row["gradient_norm_head"] > 0 <= row["gradient_norm_encoder"] for row in rows)
    result = json.loads((whole / "result.json").read_text())["test"]["true"]
    epochs = read_rows(whole / "epochs.jsonl")
    assert [row["epoch"] for row in epochs] == [1, 2, 3]
    assert epochs[-1]["validation_map"] == pytest.approx(result["mean_average_precision"])
    page = write_report(whole, whole / "page.html").read_text()
    for text in ("Test with detected boxes", "mAP with true boxes", "6 of 6 steps", "watch"):
        assert text in page, text


class Stop(Exception):
    pass


class StopInTheSecondEpoch(RunCallback):
    def on_train_batch_end(self, batch, logs=None):
        if batch + 1 == 3:
            raise Stop


def weights_in(workdir):
    """Of the last checkpoint: its name has the hash of all that is in it."""
    return max(path.name for path in (workdir / "checkpoints").glob("step-*.npz"))


@slow_but_on("torch")
def test_a_run_that_was_stopped_ends_with_the_same_weights(config, whole, tmp_path):
    with pytest.raises(Stop):
        detect.run(replace(config, callbacks=(f"{__name__}:StopInTheSecondEpoch",)), tmp_path)
    detect.run(config, tmp_path)
    assert weights_in(tmp_path) == weights_in(whole)
    assert read_rows(tmp_path / "epochs.jsonl") == read_rows(whole / "epochs.jsonl")
    results = [json.loads((f / "result.json").read_text()) for f in (whole, tmp_path)]
    assert results[0] == results[1]


@slow_but_on("torch")
def test_a_finished_run_needs_no_videos_and_is_tested_anew(
    config, whole, folder, tmp_path, capsys, monkeypatch
):
    shutil.copytree(whole, tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    scores = detect.run(config, tmp_path / "run")
    assert "holds this run, finished: mAP" in capsys.readouterr().err
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")} == before
    with pytest.raises(ValueError, match="another config: learning_rate"):
        detect.run(replace(config, learning_rate=0.1), tmp_path / "run")
    monkeypatch.setattr(VJEPAActionDetector, "fit", None)
    again = detect.run(replace(config, rule="slowfast"), tmp_path / "run")
    assert "`rule` was exclusions_2018, and is slowfast now" in capsys.readouterr().err
    assert again.keys() == scores.keys()


@slow_but_on("torch")
def test_a_run_is_made_longer(config, whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "run")
    detect.run(replace(config, epochs=4), tmp_path / "run")
    said = capsys.readouterr().err
    assert "Schedules stay those of 3 epochs" in said and "Going on from step 6" in said
    assert len(read_rows(tmp_path / "run" / "steps.jsonl")) == 8


@slow_but_on("torch")
def test_less_memory_gives_the_same_weights(folder, tmp_path):
    """Parts of a step, and activations that are computed twice."""
    plain = {**TRAINED, "dropout": 0.0, "drop_path_rate": 0.0, "epochs": 2}
    found = []
    for name, more in (("one", {}), ("less", {"remat": True, "accumulation_steps": 2})):
        detect.run(small(folder, **plain, **more), tmp_path / name)
        found.append(VJEPAActionDetector.from_preset(tmp_path / name / "preset").get_weights())
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-5)


def command_of(folder, **changes):
    given = {**SMALL, **changes, "preset": folder / "encoder", "data": folder / "ava"}
    texts = {k: ",".join(map(str, v)) if isinstance(v, tuple) else v for k, v in given.items()}
    return [f"--{name}={value}" for name, value in texts.items()]


@pytest.mark.slow
def test_killed_at_random_moments(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    if keras.config.backend() != "tensorflow":
        monkeypatch.setenv("PYTHONPATH", str(WITHOUT_TENSORFLOW), prepend=os.pathsep)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "compiled"))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    command = [str(tmp_path / "check"), "--kills", "4", "--recipe", "detect"]
    given = command_of(folder, **TRAINED, epochs=12, checkpoint_every=2)
    with pytest.raises(SystemExit) as exit_info:
        check_resume.main([*command, *given])
    output = capsys.readouterr().out
    assert exit_info.value.code == 0, output
    assert "4 kills" in output and "0 of them different" in output


@pytest.mark.slow
@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_two_processes_equal_one(accumulation_steps, folder, tmp_path):
    """Both test together; draws that differ by the process are off."""
    plain = {"trainable_backbone": True, "batch_size": 4, "test_batch_size": 3}
    given = command_of(folder, **plain, accumulation_steps=accumulation_steps)
    for name, count in (("one", 1), ("two", 2)):
        command = ["-m", "keras_vjepa", "detect", *given, "--workdir", str(tmp_path / name)]
        codes, outputs = finish(launch(command, count))
        assert codes == [0] * count, "\n".join(outputs)
    assert "2 processes" in outputs[0] and outputs[1].count("mAP") == 0
    one, two = (
        VJEPAActionDetector.from_preset(tmp_path / name / "preset") for name in ("one", "two")
    )
    for expected, found in zip(one.get_weights(), two.get_weights(), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)
    rows = [read_rows(tmp_path / name / "epochs.jsonl") for name in ("one", "two")]
    for row, other in zip(*rows, strict=True):
        assert row == pytest.approx(other, abs=1e-5)


@slow_but_on("torch")
def test_the_untrained_encoder_is_another(folder, tmp_path):
    for untrained in (False, True):
        detect.run(small(folder, epochs=2, untrained=untrained), tmp_path / str(untrained))
    one, other = (
        VJEPAActionDetector.from_preset(tmp_path / name / "preset") for name in ("False", "True")
    )
    kernel = [m.backbone.blocks[0].mlp_hidden.kernel for m in (one, other)]
    assert np.abs(np.asarray(kernel[0]) - np.asarray(kernel[1])).max() > 1e-3


@pytest.mark.data
def test_refused(folder):
    for changes, message in (
        ({"short_side": (8, 24)}, "`short_side` must be at least `crop_size`=16"),
        ({"rule": "coco"}, "`rule` must be"),
        ({"box_pooling": "sum"}, "`box_pooling` must be 'max' or 'average'"),
        ({"warmup_epochs": 3}, "`warmup_epochs` must be"),
        ({"drop_path_rate": 0.5}, "`drop_path_rate` must be None or 0 without"),
        ({"keep_last": 0}, "`keep_last` must be"),
        ({"layer_decay": 0.5}, "`layer_decay` must be None without `trainable_backbone`"),
    ):
        with pytest.raises(ValueError, match=message):
            small(folder, **changes)
    with pytest.raises(ValueError, match="`preset` must be given"):
        detect.check(replace(CONFIGS["ava"](), data=str(folder / "ava")), folder)
