"""The recipe of fine-tuning: the numbers of Table 12, shrunk runs, and one that goes on."""

import json
import os
import shutil
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from keras_vjepa import (
    VJEPABackbone,
    VJEPAVideoClassifier,
    VJEPAVideoPreprocessor,
    fine_tuning,
)
from keras_vjepa.backend.distribution import DataParallel
from keras_vjepa.configuration import options, replace, values
from keras_vjepa.data.sources.video_writing import write_motion_jpeg
from keras_vjepa.monitoring.report import write_report
from keras_vjepa.monitoring.run_tables import read_run
from keras_vjepa.monitoring.side_by_side import write_comparison
from keras_vjepa.monitoring.tables import read_rows
from keras_vjepa.presets.integrity import damage
from keras_vjepa.recipes import finetune
from keras_vjepa.recipes.finetune_configs import CONFIGS, own
from keras_vjepa.tools import check_resume
from keras_vjepa.training.resumable import RunCallback
from tests.backend.test_distribution import finish, launch
from tests.support import ROOT, WITHOUT_TENSORFLOW, slow_but_on

SMALL = {
    "image_size": 16,
    "num_frames": 4,
    "temporal_stride": 1,
    "batch_size": 4,
    "epochs": 3,
    "warmup_epochs": 1,
}
# There are ten training videos. All random parts of the training are on.
STEPS_PER_EPOCH, STEPS = 2, 6
DRAWN = {"mixup": 0.8, "cutmix": 1.0, "head_dropout": 0.5, "auto_augment": "rand-m7-n4-inc1"}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Six videos of each of two classes, one bright and one dark."""
    folder = tmp_path_factory.mktemp("labelled")
    for number in range(12):
        name, level = (("dark", 30), ("light", 220))[number % 2]
        (folder / "videos" / name).mkdir(parents=True, exist_ok=True)
        frames = np.full((8, 24, 32, 3), level + number, np.uint8)
        write_motion_jpeg(folder / "videos" / name / f"{number}.avi", frames, 10)
    VJEPABackbone(
        16, 4, patch_size=8, hidden_dim=12, num_layers=2, num_heads=2, mlp_ratio=2.0
    ).save_to_preset(folder / "encoder")
    return folder


def small(folder, name="own", **changes):
    given = {"preset": str(folder / "encoder"), "data": str(folder / "videos"), **SMALL, **changes}
    return replace(CONFIGS[name](), **given)


@pytest.fixture(scope="module")
def config(videos):
    return small(videos, **DRAWN, checkpoint_every=2)


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """A run that nothing stopped."""
    workdir = tmp_path_factory.mktemp("whole")
    finetune.run(config, workdir)
    return workdir


def weights_in(workdir):
    """Of the last checkpoint: its name has the hash of all that is in it."""
    return max(path.name for path in (workdir / "checkpoints").glob("step-*.npz"))


@pytest.mark.data
def test_configs_hold_the_numbers_of_table_12():
    names = ("k400_large", "k400_huge", "ssv2_large", "ssv2_huge")
    configs = [values(CONFIGS[name]()) for name in names]

    def column(name):
        return [config[name] for config in configs]

    assert column("drop_path_rate") == [0.1, 0.2, 0.2, 0.2]
    assert column("head_dropout") == [0, 0, 0.5, 0.5]
    assert column("batch_size") == [256, 1024, 256, 256]
    assert column("epochs") == [35, 25, 15, 15]
    assert column("learning_rate") == [2e-3, 5e-4, 5e-4, 5e-4]
    assert column("warmup_learning_rate") == [1e-6, 1e-8, 1e-6, 1e-6]
    assert column("final_learning_rate") == [1e-6, 1e-5, 1.5e-4, 1.5e-4]
    assert column("horizontal_flip") == [0.5, 0.5, 0, 0]
    assert column("test_clips") == [5, 5, 2, 2]
    assert column("sampling") == ["dense", "dense", "uniform", "uniform"]
    alike = {"layer_decay": 0.75, "weight_decay": 0.05, "warmup_epochs": 5, "test_views": 3}
    alike |= {"num_sample": 2, "erasing": 0.25, "mixup": 0.8, "cutmix": 1.0, "smoothing": 0.1}
    alike |= {"num_frames": 16, "temporal_stride": 4, "image_size": 224}
    alike |= {"auto_augment": "rand-m7-n4-mstd0.5-inc1", "random_resize_scale": (0.08, 1.0)}
    for name, value in alike.items():
        assert column(name) == [value] * 4, name


@pytest.mark.data
def test_what_other_programs_leave_to_this_one_is_an_option():
    """Arguments that pretraining and probes have no option for."""
    of_fine_tuning = {"drop_path_rate", "layer_decay", "head_dropout", "encoder_norm"}
    assert of_fine_tuning <= options(own()).keys()


@slow_but_on("torch")
def test_a_folder_of_classes_is_all_that_is_needed(videos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    # Users would not give these options; they make the test shorter.
    given = ["--epochs", "4", "--temporal_stride", "1"]
    finetune.main(["--preset", f"{videos}/encoder", "--data", f"{videos}/videos", *given])
    folder = tmp_path / "workdir" / "finetune_own"
    result = json.loads((folder / "result.json").read_text())
    assert result["test_videos"] == 2 and 0 <= result["accuracy"] <= 1
    # With ten videos, a batch of 8 would leave two out.
    assert result["config"]["batch_size"] == 8
    classifier = VJEPAVideoClassifier.from_preset(folder / "preset")
    assert classifier.head == "fine_tuning"
    [video] = list((videos / "videos" / "dark").glob("10.avi"))
    assert {name for name, _ in classifier.classify(str(video))} == {"dark", "light"}
    said = capsys.readouterr()
    assert "accuracy" in said.out and "10 videos of 2 classes, 2 to test on" in said.err
    assert "epoch 4: loss" in said.err


SHRUNK = ["own", "k400_large", "k400_huge", "ssv2_large", "ssv2_huge"]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n == "k400_large" else pytest.mark.slow) for n in SHRUNK]
)
def test_shrunk_runs(name, videos, tmp_path):
    """In its own precision, with its own augmentation, clips and views."""
    shrunk = small(videos, name, epochs=1, warmup_epochs=0)
    assert 0 <= finetune.run(shrunk, tmp_path) <= 1
    preset = VJEPAVideoClassifier.from_preset(tmp_path / "preset")
    assert (preset.num_clips, preset.num_views) == (shrunk.test_clips, shrunk.test_views)
    assert preset.backbone.drop_path_rate == shrunk.drop_path_rate
    assert preset.dtype_policy.name == CONFIGS[name]().dtype


# --- A run that goes on --------------------------------------------------------------------------


class Stop(Exception):
    pass


class StopInTheSecondEpoch(RunCallback):
    def on_train_batch_end(self, batch, logs=None):
        if batch + 1 == STEPS_PER_EPOCH + 1:
            raise Stop


@slow_but_on("torch")
def test_a_run_that_was_stopped_ends_with_the_same_weights(config, whole, tmp_path):
    stopped = replace(config, callbacks=(f"{__name__}:StopInTheSecondEpoch",))
    with pytest.raises(Stop):
        finetune.run(stopped, tmp_path)
    assert read_rows(tmp_path / "steps.jsonl")[-1]["step"] == STEPS_PER_EPOCH
    finetune.run(config, tmp_path)
    assert weights_in(tmp_path) == weights_in(whole)
    expected, found = (read_rows(folder / "epochs.jsonl") for folder in (whole, tmp_path))
    assert found == expected and len(found) == 3
    results = [json.loads((f / "result.json").read_text()) for f in (whole, tmp_path)]
    assert results[0] == results[1]


def test_what_is_written_of_a_run(whole):
    rows = read_rows(whole / "steps.jsonl")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    for row in rows:
        assert row["gradient_norm_head"] > 0 and row["gradient_norm_encoder"] >= 0
        assert row["weight_decay"] == pytest.approx(0.05) and "clips_per_second" in row
    # The rates at both ends of the warm-up, for a batch of 4.
    rates = [row["learning_rate"] for row in rows]
    np.testing.assert_allclose(rates[:3], [1e-6 / 64, 8e-3 / 64, 8e-3 / 64], rtol=1e-4)
    epochs = read_rows(whole / "epochs.jsonl")
    assert [(row["step"], row["epoch"]) for row in epochs] == [(2, 1), (4, 2), (6, 3)]
    losses = [row["loss"] for row in rows]
    assert epochs[1]["training_loss"] == pytest.approx(np.mean(losses[2:4]), rel=1e-5)
    result = json.loads((whole / "result.json").read_text())
    # Validation uses the test videos, and the test has only one clip and one view.
    assert epochs[-1]["validation_accuracy"] == result["accuracy"] == result["test"]["top1"]
    assert epochs[-1]["validation_loss"] == pytest.approx(result["test"]["loss"], rel=1e-5)


@slow_but_on("torch")
def test_pages_of_runs(whole, tmp_path):
    page = write_report(whole, tmp_path / "page.html").read_text()
    accuracy = json.loads((whole / "result.json").read_text())["accuracy"]
    assert f"{accuracy:.1%} of 2 videos are named right" in page
    for text in ("6 of 6 steps are done", "dark", "Accuracy on test videos", "mixup"):
        assert text in page, text
    shutil.copytree(whole, tmp_path / "other")
    options = json.loads((whole / "options.json").read_text())
    (tmp_path / "other" / "options.json").write_text(json.dumps({**options, "task": "other"}))
    write_comparison([whole, tmp_path / "other"], tmp_path / "compare.html")
    page = (tmp_path / "compare.html").read_text()
    assert "<h2>Test</h2>" in page and "Loss of an epoch" in page


@slow_but_on("torch")
def test_a_finished_run_says_so_and_needs_no_videos(config, whole, videos, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    accuracy = json.loads((whole / "result.json").read_text())["accuracy"]
    assert finetune.run(config, tmp_path / "run") == accuracy
    assert "holds this run, finished: accuracy" in capsys.readouterr().err
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")} == before
    shutil.copytree(videos / "videos", tmp_path / "moved")
    shutil.copytree(videos / "encoder", tmp_path / "encoder")
    moved = {"data": str(tmp_path / "moved"), "preset": str(tmp_path / "encoder")}
    assert finetune.run(replace(config, **moved), tmp_path / "run") == accuracy
    with pytest.raises(ValueError, match="another config: learning_rate 0.008 -> 0.1, seed 0 -> 1"):
        finetune.run(replace(config, learning_rate=0.1, seed=1), tmp_path / "run")
    other = {**moved, "data": str(tmp_path / "relabelled")}
    shutil.copytree(videos / "videos", tmp_path / "relabelled")
    os.rename(tmp_path / "relabelled/dark/0.avi", tmp_path / "relabelled/light/0.avi")
    with pytest.raises(ValueError, match="another config: labels .*"):
        finetune.run(replace(config, **other), tmp_path / "run")


@slow_but_on("torch")
def test_the_colours_that_are_used_are_recorded(videos, tmp_path, monkeypatch):
    """Of the preset; the usual ones stood in all files, also in those of runs of before."""
    preset, own = tmp_path / "encoder", {"mean": (0.5, 0.25, 0.75), "std": (0.25, 0.5, 0.5)}
    shutil.copytree(videos / "encoder", preset)
    VJEPAVideoPreprocessor.from_preset(preset, **own).save_to_preset(preset)
    config, run = small(videos, preset=str(preset), epochs=2), tmp_path / "run"
    accuracy = finetune.run(config, run)
    result = json.loads((run / "result.json").read_text())
    options = json.loads((run / "options.json").read_text())
    for found in (result["config"], options, read_run(run).options):
        assert (found["mean"], found["std"]) == ([*own["mean"]], [*own["std"]])
    with monkeypatch.context() as patch:
        patch.setattr(VJEPAVideoClassifier, "fit", None)  # it is finished
        result["config"]["mean"] = [0.485, 0.456, 0.406]
        assert finetune.run(config, run) == accuracy
        (run / "result.json").write_text(json.dumps(result))
        assert finetune.run(config, run) == accuracy
        with pytest.raises(ValueError, match=r"another config: mean .* -> \[0.1, 0.1, 0.1\]"):
            finetune.run(replace(config, mean=(0.1, 0.1, 0.1)), run)
    # So it is with checkpoints.
    assert finetune.run(replace(config, epochs=3), run) is not None
    shutil.rmtree(preset)
    assert finetune.FineTuning(replace(config, epochs=3), run).is_finished()


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


@slow_but_on("torch")
def test_damaged_results_are_named_and_made_anew(config, whole, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(VJEPAVideoClassifier, "fit", None)
    result = (whole / "result.json").read_text()
    for name, do in (
        ("preset/task.json", os.remove),
        ("preset/model.weights.h5", cut),
        ("preset", shutil.rmtree),
        ("loss.csv", cut),
        ("result.json", cut),
    ):
        run = tmp_path / name.replace("/", "-")
        shutil.copytree(whole, run)
        do(run / name)
        assert not finetune.FineTuning(config, run).is_finished()
        said = capsys.readouterr().err
        assert f"{run / name} is " in said and "made anew from the checkpoint" in said
    finetune.run(config, run)
    assert (run / "result.json").read_text() == result and damage(run / "preset") is None
    shutil.rmtree(run / "checkpoints")
    cut(run / "result.json")
    with pytest.raises(ValueError, match="no checkpoint to make it anew"):
        finetune.run(config, run)


@slow_but_on("torch")
def test_a_run_is_made_longer(config, whole, tmp_path, capsys):
    """Its schedule stays, unless another is asked for; less is refused."""
    shutil.copytree(whole, tmp_path / "run")
    pytest.importorskip("tensorboardX")
    finetune.run(replace(config, epochs=4, tensorboard=True), tmp_path / "run")
    [events] = (tmp_path / "run" / "tensorboard").glob("events*")
    for name in (b"steps/gradient_norm_head", b"epochs/validation_accuracy"):
        assert name in events.read_bytes()
    said = capsys.readouterr().err
    assert "Schedules stay those of 3 epochs" in said and "Going on from step 6" in said
    rows = read_rows(tmp_path / "run" / "steps.jsonl")
    assert len(rows) == STEPS + STEPS_PER_EPOCH
    assert rows[-1]["learning_rate"] == pytest.approx(1e-6 / 64, rel=1e-3)
    with pytest.raises(ValueError, match="`epochs` must be at least 4"):
        finetune.run(replace(config, epochs=3), tmp_path / "run")


@pytest.mark.slow
def test_killed_at_random_moments(videos, tmp_path, monkeypatch, capsys):
    """By SIGKILL; at length: `keras-vjepa check-resume --recipe finetune`."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    if keras.config.backend() != "tensorflow":
        monkeypatch.setenv("PYTHONPATH", str(WITHOUT_TENSORFLOW), prepend=os.pathsep)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "compiled"))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    given = {**SMALL, **DRAWN, "preset": videos / "encoder", "data": videos / "videos"}
    given |= {"epochs": 12, "checkpoint_every": 2}
    command = [str(tmp_path / "check"), "--kills", "4", "--recipe", "finetune"]
    with pytest.raises(SystemExit) as exit_info:
        check_resume.main([*command, *(f"--{name}={value}" for name, value in given.items())])
    output = capsys.readouterr().out
    assert exit_info.value.code == 0, output
    assert "4 kills" in output and "0 of them different" in output


@pytest.mark.slow
@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_two_processes_equal_one(accumulation_steps, videos, tmp_path):
    """Mixed clips, labels in parts, tests by both; draws that differ by the process are off."""
    drawn = {"drop_path_rate": 0.0, "mixup": 0.8, "cutmix": 1.0, "random_resize_scale": "0.5,1"}
    given = {**SMALL, **drawn, "preset": videos / "encoder", "data": videos / "videos"}
    given["accumulation_steps"] = accumulation_steps
    options = [f"--{name}={value}" for name, value in given.items()]
    recipe = ["-m", "keras_vjepa", "finetune"]
    for name, count in (("one", 1), ("two", 2)):
        command = [*recipe, *options, "--workdir", str(tmp_path / name)]
        codes, outputs = finish(launch(command, count))
        assert codes == [0] * count, "\n".join(outputs)
    assert "2 processes" in outputs[0] and outputs[1].count("accuracy") == 0
    one, two = (
        VJEPAVideoClassifier.from_preset(tmp_path / name / "preset") for name in ("one", "two")
    )
    for expected, found in zip(one.get_weights(), two.get_weights(), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)
    expected, found = (read_rows(tmp_path / n / "epochs.jsonl") for n in ("one", "two"))
    for row, other in zip(expected, found, strict=True):
        assert row == pytest.approx(other, abs=1e-5)


# --- What is refused -----------------------------------------------------------------------------


@slow_but_on("torch")
@pytest.mark.parametrize(
    ("frames", "kind", "said"), [(1, None, True), (1, "image", False), (4, None, False)]
)
def test_an_encoder_of_images_is_said_to_see_one_frame(frames, kind, said, videos):
    encoder = VJEPABackbone(16, frames, 8, 1, hidden_dim=12, num_layers=1, num_heads=2)
    classifier = VJEPAVideoClassifier(encoder, num_classes=2)
    config = small(videos, **({} if kind is None else {"kind": kind}))
    data = SimpleNamespace(in_words=lambda: "10 videos")
    one = DataParallel(0, 1, 1, "none")
    line = fine_tuning.introduction(config, classifier, data, one, 1.0)
    assert ("sees one frame of each clip" in line) is said and "10 videos" in line


def test_weights_that_cannot_learn_are_refused(videos, tmp_path):
    backbone = VJEPABackbone.from_preset(videos / "encoder")
    backbone.quantize("int8")
    backbone.save_to_preset(tmp_path / "int8")
    with pytest.raises(ValueError, match="`preset` must hold weights that can learn, .* of int8"):
        finetune.run(small(videos, preset=str(tmp_path / "int8")), tmp_path / "run")


@pytest.mark.data
def test_refused(videos):
    for changes, message in (
        ({"test_views": 2}, "`test_views` must be 1 or 3"),
        ({"auto_augment": "rand"}, "`auto_augment` must be as"),
        ({"color_jitter": 0.4}, "`color_jitter` must be 0 without"),
        ({"warmup_epochs": 3}, "`warmup_epochs` must be"),
        ({"task": "digit"}, "`task` must be left out with `data`"),
        ({"fraction": 0.0}, "`fraction` must be"),
        ({"drop_path_rate": 1.0}, "`drop_path_rate` must be"),
        ({"layer_decay": 0.0}, "`layer_decay` must be"),
        ({"keep_last": 0}, "`keep_last` must be"),
    ):
        with pytest.raises(ValueError, match=message):
            small(videos, **changes)
    with pytest.raises(ValueError, match="`preset` must be given"):
        finetune.check(replace(own(), data=str(videos / "videos")), videos)
