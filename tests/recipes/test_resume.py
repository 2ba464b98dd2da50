"""A run that is stopped by anything goes on, and ends as if it had not been."""

import functools
import gc
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_vjepa import VJEPAPretrainer
from keras_vjepa.backend import choice
from keras_vjepa.configuration import replace
from keras_vjepa.data.sources.digit_motion import prepare_digit_motion
from keras_vjepa.data.sources.digit_motion_rendering import DigitMotionConfig
from keras_vjepa.recipes import pretrain, pretrain_objects
from keras_vjepa.recipes.pretrain_configs import digit_motion
from keras_vjepa.tools import check_resume
from keras_vjepa.training import Checkpoints, loss_log, signals
from tests.support import ROOT, slow_but_on

SMALL = {
    "hidden_dim": 24,
    "num_layers": 1,
    "num_heads": 2,
    "predictor_hidden_dim": 12,
    "predictor_num_layers": 1,
    "patch_size": 16,
    "context_budgets": (28, 8),
    "target_budgets": (20, 44),
    "batch_size": 2,
    "steps": 6,
    "warmup_steps": 1,
    "clip_after": 2,
    "checkpoint_every": 2,
}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    config = DigitMotionConfig(num_training_videos=5, num_test_videos=4)
    files = prepare_digit_motion(tmp_path_factory.mktemp("cache"), config, None)
    return str(files.folder / "train")


@pytest.fixture
def config(videos):
    return replace(digit_motion(), **SMALL, data=videos)


@pytest.fixture(scope="module")
def whole(videos, tmp_path_factory):
    """The run that nothing stops."""
    config = replace(digit_motion(), **SMALL, data=videos)
    workdir = tmp_path_factory.mktemp("whole")
    pretrain.run(config, workdir)
    return workdir


def assert_same_result(workdir, whole):
    assert check_resume.result_of(workdir) == check_resume.result_of(whole)
    assert len(check_resume.result_of(workdir)[0]) == 1 + SMALL["steps"]


def at_step(monkeypatch, step, action):
    """Do something in the middle of a run, once."""
    original, done = loss_log.LossLog.on_train_batch_end, []

    def on_train_batch_end(self, batch, logs=None):
        original(self, batch, logs)
        if self.done == step and not done:
            done.append(True)
            action()

    monkeypatch.setattr(loss_log.LossLog, "on_train_batch_end", on_train_batch_end)


@slow_but_on("torch", "jax")
def test_a_signal_saves_and_the_same_command_goes_on(config, whole, tmp_path, monkeypatch, capsys):
    # These are not steps at which a checkpoint is written anyway.
    for number, step in ((signal.SIGTERM, 3), (signal.SIGINT, 5)):
        handler = signal.getsignal(number)
        at_step(monkeypatch, step, functools.partial(os.kill, os.getpid(), number))
        with pytest.raises(SystemExit) as exit_info:
            pretrain.run(config, tmp_path)
        assert exit_info.value.code == 75
        assert f"Stopped by {number.name}. Step {step} is saved" in capsys.readouterr().err
        assert signal.getsignal(number) == handler
        assert not (tmp_path / "preset").exists()
    # Options that do not change the results may change.
    pretrain.run(replace(config, num_workers=1, keep_last=3), tmp_path)
    assert "Going on from step 5" in capsys.readouterr().err
    assert_same_result(tmp_path, whole)


@slow_but_on("torch")
def test_a_damaged_checkpoint_costs_a_few_steps(config, whole, tmp_path, caplog):
    shutil.copytree(whole / "checkpoints", tmp_path / "checkpoints")
    newest = max((tmp_path / "checkpoints").iterdir())
    os.truncate(newest, 1000)
    pretrain.run(config, tmp_path)
    assert str(newest) in caplog.text
    assert_same_result(tmp_path, whole)


def test_a_finished_run_says_so(config, whole, capsys):
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    pretrain.run(config, whole)
    assert "holds this run, finished: 6 steps" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before


def test_training_that_is_done_is_not_done_again(config, whole, tmp_path, monkeypatch):
    """Stopped while it wrote its results."""
    shutil.copytree(whole / "checkpoints", tmp_path / "checkpoints")
    monkeypatch.setattr(VJEPAPretrainer, "fit", None)
    pretrain.run(config, tmp_path)
    assert (tmp_path / "preset" / "config.json").is_file()
    assert_same_result(tmp_path, whole)


# --- Damaged results -----------------------------------------------------------------------------


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


@pytest.fixture
def copy(whole, tmp_path):
    """The finished run in a folder that may be changed."""
    shutil.copytree(whole, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.mark.parametrize(
    ("name", "do"),
    [
        *((name, cut) for name in ("config.json", "preset/metadata.json", "preset/config.json")),
        ("config.json", lambda path: path.write_text("{}")),
        *((f"preset/{name}.weights.h5", cut) for name in ("model", "encoder", "predictor")),
        ("preset/model.weights.h5", os.remove),
        ("preset/pretrainer.json", os.remove),
        ("preset", shutil.rmtree),
        *((name, cut) for name in ("loss.csv", "loss.png")),
        ("loss.csv", os.remove),
    ],
)
def test_a_run_with_a_damaged_result_is_not_finished(name, do, config, copy, capsys):
    assert pretrain._is_finished(config, copy, is_first=True)
    do(copy / name)
    assert not pretrain._is_finished(config, copy, is_first=True)
    said = capsys.readouterr().err
    if do is not shutil.rmtree:
        assert said.startswith(f"{copy / name} is ")
        assert said.endswith(": the results are made anew from the checkpoint.\n")
    if name == "preset/model.weights.h5":
        shutil.rmtree(copy / "checkpoints")
        with pytest.raises(ValueError) as error:
            pretrain._is_finished(config, copy, is_first=True)
        [line] = str(error.value).splitlines()
        assert line.startswith(f"{copy / name} is ") and "no checkpoint to make it anew" in line


@pytest.mark.parametrize("name", ["config.json", "preset/config.json", "preset"])
def test_what_cannot_be_made_anew_is_not_replaced(name, config, copy):
    """Checkpoints that were removed to have room, and a result that is gone."""
    shutil.rmtree(copy / "checkpoints")
    shutil.rmtree(copy / name) if name == "preset" else (copy / name).unlink()
    left = {path: path.stat().st_mtime_ns for path in copy.rglob("*") if path.is_file()}
    for one in (config, replace(config, seed=7)):
        with pytest.raises(
            FileExistsError, match="`workdir` must be a new folder, or hold"
        ) as error:
            pretrain.run(one, copy)
        assert len(str(error.value).splitlines()) == 1
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*") if path.is_file()} == left


def test_a_finished_run_s_videos_may_be_moved(config, copy, videos, tmp_path, capsys):
    shutil.copytree(videos, tmp_path / "videos")
    pretrain.run(replace(config, data=str(tmp_path / "videos")), copy)
    assert "holds this run, finished" in capsys.readouterr().err


def test_a_finished_run_needs_no_videos(config, copy, tmp_path, capsys):
    """Nor the folder in which they were; another one has to be there."""
    stored = json.loads((copy / "config.json").read_text())
    gone = str(tmp_path / "gone")
    (copy / "config.json").write_text(json.dumps({**stored, "data": gone}))
    moved = replace(config, data=gone)
    pretrain.check_files(moved, copy)
    pretrain.run(moved, copy)
    assert "holds this run, finished" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match="`data` must be a folder, .*other"):
        pretrain.check_files(replace(config, data=gone + "other"), copy)


@pytest.mark.parametrize("do", [cut, os.remove, lambda path: path.write_text("")])
def test_a_lost_table_of_looks_is_said(do, config, copy, capsys):
    do(copy / "monitor.jsonl")
    pretrain.run(config, copy)
    lost, finished = capsys.readouterr().err.splitlines()
    assert lost == (
        f"{copy / 'monitor.jsonl'} is missing or damaged, and cannot be made anew: a run writes it "
        "step by step."
    )
    assert "holds this run, finished" in finished


def test_damaged_results_are_made_anew(config, whole, copy, monkeypatch, capsys):
    (copy / "preset" / "metadata.json").unlink()
    (copy / "loss.csv").unlink()
    cut(copy / "config.json")
    cut(copy / "preset" / "model.weights.h5")
    monkeypatch.setattr(VJEPAPretrainer, "fit", None)
    pretrain.run(config, copy)
    assert "the results are made anew" in capsys.readouterr().err
    assert_same_result(copy, whole)
    pretrain.run(config, copy)
    assert "holds this run, finished" in capsys.readouterr().err


# --- Another run ---------------------------------------------------------------------------------


@pytest.mark.parametrize("finished", [True, False])
def test_another_config_is_an_error_with_the_difference(finished, config, whole, tmp_path):
    if not finished:
        shutil.copytree(whole / "checkpoints", tmp_path / "checkpoints")
        whole = tmp_path
    other = replace(config, learning_rate=1e-3, context_budgets=(24, 8))
    with pytest.raises(ValueError) as error:
        pretrain.run(other, whole)
    assert (
        "holds a run of another config: "
        "context_budgets [28, 8] -> [24, 8], learning_rate 0.0005 -> 0.001. Take"
    ) in str(error.value)


def test_other_samples_are_another_run(config, whole, videos, tmp_path):
    """They are the same wherever the folder is."""
    shutil.copytree(whole / "checkpoints", tmp_path / "run" / "checkpoints")
    shutil.copytree(videos, tmp_path / "videos")
    moved = replace(config, data=str(tmp_path / "videos"))
    pretrain.run(moved, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "preset")
    next((tmp_path / "videos").rglob("*.*")).unlink()
    with pytest.raises(ValueError, match="another config: samples 5 files, .* -> 4 files, "):
        pretrain.run(moved, tmp_path / "run")


@pytest.mark.parametrize("finished", [True, False])
def test_a_replaced_video_is_named(finished, config, whole, videos, tmp_path):
    """Of the same name and size, and with the times of before."""
    shutil.copytree(whole, tmp_path / "run")
    if not finished:
        shutil.rmtree(tmp_path / "run" / "preset")
    shutil.copytree(videos, tmp_path / "videos")
    moved = replace(config, data=str(tmp_path / "videos"))
    left = json.loads((tmp_path / "run" / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps({**left, "data": moved.data}))
    *_, second, first = sorted((tmp_path / "videos").rglob("*.*"), key=os.path.getsize)
    status = first.stat()
    first.write_bytes(second.read_bytes().ljust(status.st_size, b"\0"))
    os.utime(first, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(
        ValueError, match="whose data has changed since it began. Received: other content in 1 of 5"
    ) as error:
        pretrain.run(moved, tmp_path / "run")
    assert str(first) in str(error.value) and len(str(error.value).splitlines()) == 1


@slow_but_on("torch")
@pytest.mark.parametrize("field", ["start_from", "teacher"])
def test_another_model_in_a_preset_s_place_is_another_run(field, config, tmp_path, capsys):
    preset, away, workdir = (tmp_path / name for name in ("preset", "away", "run"))
    config = replace(config, steps=2, **{field: str(preset)})
    pretrain_objects.make_encoder(replace(config, seed=7)).save_to_preset(preset)
    pretrain.run(config, workdir)
    # The same weights may be in another folder, and results stay valid without the preset.
    shutil.move(preset, away)
    for config_now in (config, replace(config, **{field: str(away)})):
        pretrain.run(config_now, workdir)
        assert "holds this run, finished" in capsys.readouterr().err
    pretrain_objects.make_encoder(replace(config, seed=8)).save_to_preset(preset)
    for finished in (True, False):
        if not finished:
            shutil.rmtree(workdir / "preset")
        with pytest.raises(ValueError, match=f"another config: {field}_weights .* -> ") as error:
            pretrain.run(config, workdir)
        assert str(workdir) in str(error.value) and len(str(error.value).splitlines()) == 1
    pretrain.run(replace(config, **{field: str(away)}), workdir)
    assert (workdir / "preset").is_dir()


def test_a_loss_that_is_not_finite_stops_the_run(config, tmp_path, monkeypatch):
    make_batches = pretrain.make_batches

    def spoiled(*arguments):
        batches = make_batches(*arguments)
        assembled = batches._assembled

        def with_nan(step, items):
            batch = assembled(step, items)
            batch["videos"][0, 0, 0, 0, 0] = np.nan if step == 3 else 0.0
            return batch

        batches._assembled = with_nan
        return batches

    write = Checkpoints._write

    def slowly(*arguments):
        time.sleep(1)
        write(*arguments)

    monkeypatch.setattr(pretrain, "make_batches", spoiled)
    # The message takes into account a checkpoint that is still being written.
    monkeypatch.setattr(Checkpoints, "_write", slowly)
    with pytest.raises(FloatingPointError, match="loss is nan at step 4: .*step 2 is kept") as e:
        pretrain.run(config, tmp_path)
    assert len(str(e.value).splitlines()) == 1
    listed = (tmp_path / "not_finite_step_4.txt").read_text().splitlines()
    grid_shape = pretrain_objects.make_pretrainer(config).encoder.grid_shape
    read = make_batches(config, grid_shape)
    assert listed == [read._read(position)[0].path for position in read._positions(3)]


def test_gradients_that_are_not_finite_are_seen_in_their_step(config, tmp_path):
    wild = replace(config, start_learning_rate=1e38, learning_rate=1e38)
    with pytest.raises(FloatingPointError, match="not finite at step 1: .*no checkpoint"):
        pretrain.run(wild, tmp_path)
    assert not list((tmp_path / "checkpoints").glob("*"))


def test_paths_that_are_no_folders_are_refused(config):
    with pytest.raises(ValueError, match="`workdir` must be a local or a mounted path"):
        pretrain.run(config, Path("gs://bucket/run"))


def test_a_signal_outside_training_ends_the_process_at_once(capsys):
    with pytest.raises(SystemExit) as exit_info, signals.stop_signals():
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("not reached")
    assert exit_info.value.code == 75
    assert "Stopped by SIGTERM" in capsys.readouterr().err


@pytest.mark.filterwarnings("error")
def test_a_signal_that_python_ignores_ends_the_process_a_moment_later(capsys):
    """Errors in a callback of its garbage collector are ignored; JAX has such a callback."""
    number, came = [signal.SIGTERM, signal.SIGINT], []
    before = signal.getsignal(signal.SIGINT)

    def interrupted(phase, _):
        if phase == "start" and number:
            came.append(number.pop())
            signal.raise_signal(came[-1])

    for _ in range(2):
        gc.callbacks.append(interrupted)
        try:
            with pytest.raises(SystemExit) as exit_info, signals.stop_signals():
                gc.collect()
                assert came, "the exit was ignored"
                time.sleep(20)
        finally:
            gc.callbacks.remove(interrupted)
        assert exit_info.value.code == 75
        assert capsys.readouterr().err.count(f"Stopped by {came[-1].name}") == 1
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_that_python_ignores_interrupts_a_moment_later(monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    choice.quieten()
    # A process that began in the background ignores the signal.
    before, came = signal.signal(signal.SIGINT, signal.default_int_handler), []

    def interrupted(phase, _):
        if phase == "start" and not came:
            came.append(True)
            signal.raise_signal(signal.SIGINT)

    gc.callbacks.append(interrupted)
    try:
        with pytest.raises(KeyboardInterrupt):
            gc.collect()
            assert came, "the interrupt was ignored"
            time.sleep(20)
    finally:
        gc.callbacks.remove(interrupted)
        signal.signal(signal.SIGINT, before)


@pytest.mark.slow
def test_killed_at_random_moments(videos, tmp_path, monkeypatch, capsys):
    """At length: `tools/check_resume.py`."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    if keras.config.backend() != "tensorflow":
        # Keras imports TensorFlow if it is installed, which would take seconds in every process.
        without = str(ROOT / "tests" / "without_tensorflow")
        monkeypatch.setenv("PYTHONPATH", without, prepend=os.pathsep)
    # Four processes share one compilation.
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "compiled"))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    options = [
        f"--{name}={','.join(map(str, value)) if isinstance(value, tuple) else value}"
        for name, value in {**SMALL, "steps": 16, "data": videos}.items()
    ]
    with pytest.raises(SystemExit) as exit_info:
        check_resume.main([str(tmp_path / "check"), "--kills", "2", *options])
    output = capsys.readouterr().out
    assert exit_info.value.code == 0, output
    assert "2 kills" in output and "0 of them different" in output
