"""The run as an object of the package, as in a notebook; and `fit` on the same batches."""

import threading
import time

import keras
import numpy as np
import pytest

from keras_vjepa import VJEPABackbone, VJEPAPredictor, VJEPAPretrainer, data, training
from keras_vjepa.data.sources.video_writing import write_motion_jpeg
from keras_vjepa.locks import FolderInUseError
from keras_vjepa.recipes import pretrain
from keras_vjepa.training.resumable import writable_folder
from tests.support import lock_holder, slow_but_on

STEPS = 4


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    rng = np.random.default_rng(0)
    for i in range(3):
        frames = rng.integers(256, size=(12, 32, 32, 3), dtype=np.uint8)
        write_motion_jpeg(folder / f"{i}.avi", frames, 24)
    return data.list_samples(folder)


def make_pretrainer(batches_an_update=None, **arguments):
    keras.utils.set_random_seed(0)
    encoder = VJEPABackbone(32, 4, 8, hidden_dim=12, num_layers=1, num_heads=2)
    predictor = VJEPAPredictor(12, encoder.position_axes, 8, 1, 2)
    pretrainer = VJEPAPretrainer(encoder, predictor, **arguments)
    pretrainer.compile(training.AdamW(1e-3, gradient_accumulation_steps=batches_an_update))
    return pretrainer


def batches_for(pretrainer, samples, **arguments):
    encoder = pretrainer.encoder
    return data.ClipBatches(
        samples,
        batch_size=2,
        video_shape=encoder.video_shape,
        grid_shape=encoder.grid_shape,
        **arguments,
    )


class Losses(training.RunCallback):
    """What a callback of a run sees, and a crash after some step."""

    def __init__(self, crash_after=0):
        super().__init__()
        self.steps, self.checkpoints, self.crash_after = [], [], crash_after

    def on_train_batch_end(self, batch, logs=None):
        self.steps.append(float(logs["step_loss"]))
        if len(self.steps) == self.crash_after:
            raise RuntimeError("crashed")

    def on_checkpoint(self, losses):
        self.checkpoints.append(list(losses))


@pytest.fixture(scope="module")
def whole(samples, tmp_path_factory):
    """Workdir and losses of a run that nothing stops."""
    workdir, seen = tmp_path_factory.mktemp("whole"), Losses()
    pretrainer = make_pretrainer()
    losses = training.run(
        pretrainer,
        batches_for(pretrainer, samples),
        workdir,
        STEPS,
        [seen],
        checkpoint_every=3,
    )
    return workdir, losses, seen


def test_a_run_returns_its_losses_and_tells_its_callbacks(whole):
    workdir, losses, seen = whole
    assert len(losses) == STEPS and np.isfinite(losses).all()
    np.testing.assert_allclose(seen.steps, losses)
    assert seen.checkpoints == [losses[:3], losses]
    assert training.Checkpoints(workdir / "checkpoints").steps() == [3, 4]


@slow_but_on("torch", "jax")
def test_the_same_call_goes_on_after_a_crash(samples, whole, tmp_path, capsys):
    pretrainer = make_pretrainer()
    batches = batches_for(pretrainer, samples)
    with pytest.raises(RuntimeError, match="crashed"):
        training.run(pretrainer, batches, tmp_path, STEPS, [Losses(3)], checkpoint_every=2)
    # A new process would have other weights, which the checkpoint replaces.
    keras.utils.set_random_seed(1)
    pretrainer = make_pretrainer()
    pretrainer.encoder.set_weights([np.zeros_like(w) for w in pretrainer.encoder.get_weights()])
    losses = training.run(
        pretrainer, batches_for(pretrainer, samples), tmp_path, STEPS, log_every=1
    )
    assert losses == whole[1]
    assert "Going on from step 2" in capsys.readouterr().err


@slow_but_on("torch")
def test_a_crash_leaves_no_checkpoint_on_its_way(samples, tmp_path, monkeypatch):
    """The cell that is run again at once finds it."""
    write = training.Checkpoints._write

    def write_slowly(*arguments):
        time.sleep(0.5)
        write(*arguments)

    monkeypatch.setattr(training.Checkpoints, "_write", write_slowly)
    pretrainer = make_pretrainer()
    batches = batches_for(pretrainer, samples)
    with pytest.raises(RuntimeError, match="crashed"):
        training.run(pretrainer, batches, tmp_path, STEPS, [Losses(3)], checkpoint_every=2)
    assert training.Checkpoints(tmp_path / "checkpoints").steps() == [2]


@slow_but_on("torch")
def test_a_run_goes_on_between_two_updates_of_the_optimizer(samples, tmp_path):
    """Of three batches each; the sums of their gradients are in the checkpoint."""

    def losses_of(workdir, crash_after=0):
        pretrainer = make_pretrainer(3)
        batches, callbacks = batches_for(pretrainer, samples), [Losses(crash_after)]
        return training.run(pretrainer, batches, workdir, STEPS, callbacks, checkpoint_every=2)

    expected = losses_of(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="crashed"):
        losses_of(tmp_path / "stopped", crash_after=3)
    assert training.Checkpoints(tmp_path / "stopped" / "checkpoints").steps() == [2]
    assert losses_of(tmp_path / "stopped") == expected


def test_a_run_that_is_done_trains_no_more(samples, whole, monkeypatch):
    workdir, losses, _ = whole
    pretrainer, seen = make_pretrainer(), Losses()
    monkeypatch.setattr(VJEPAPretrainer, "fit", None)
    batches = batches_for(pretrainer, samples)
    assert training.run(pretrainer, batches, workdir, STEPS, [seen]) == losses
    assert (seen.steps, seen.checkpoints) == ([], [losses])


@pytest.mark.data
def test_a_second_run_in_the_folder_is_refused(samples, tmp_path):
    pretrainer = make_pretrainer()
    batches = batches_for(pretrainer, samples)
    with lock_holder(tmp_path) as holder, pytest.raises(FolderInUseError) as error:
        training.run(pretrainer, batches, tmp_path, STEPS)
    [line] = str(error.value).splitlines()
    assert line.startswith("`workdir` must be") and f"where process {holder.pid} on " in line
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss_exponent": 2.0}, "model.loss_exponent 1.0 -> 2.0"),
        ({"seed": 3}, "batches.seed 0 -> 3"),
        ({"transform": data.PretrainTransform(32, horizontal_flip=0.0)}, "horizontal_flip=0.0"),
        ({"samples": 2}, "samples 3 files, .* -> 2 files"),
    ],
)
def test_the_folder_of_another_run_is_refused(change, message, samples, whole):
    change = dict(change)
    of_model = {k: change.pop(k) for k in list(change) if k == "loss_exponent"}
    samples = samples[: change.pop("samples", None)]
    pretrainer = make_pretrainer(**of_model)
    with pytest.raises(ValueError, match=f"holds a run of another config: .*{message}") as error:
        training.run(pretrainer, batches_for(pretrainer, samples, **change), whole[0], STEPS)
    assert len(str(error.value).splitlines()) == 1


@slow_but_on("torch")
def test_names_that_are_new_have_been_at_their_default(samples, tmp_path):
    def go_on(description, defaults=None, upgrade=None):
        pretrainer = make_pretrainer()
        batches = batches_for(pretrainer, samples)
        settings = {"description": description, "defaults": defaults, "upgrade": upgrade}
        return training.run(pretrainer, batches, tmp_path, 1, **settings)

    losses = go_on({"width": 3})
    assert go_on({"width": 3, "depth": 2}, {"width": 1, "depth": 2}) == losses
    with pytest.raises(ValueError, match="another config: depth 2 -> 5. Take"):
        go_on({"width": 3, "depth": 5}, {"width": 1, "depth": 2})
    with pytest.raises(ValueError, match="another config: depth absent -> 2. Take"):
        go_on({"width": 3, "depth": 2})
    # This argument has a new name.
    renamed = {"breadth": 3, "depth": 2}

    def upgrade(stored):
        return {{"width": "breadth"}.get(name, name): value for name, value in stored.items()}

    assert go_on(renamed, {"depth": 2}, upgrade) == losses


@pytest.mark.parametrize("name", ["checkpoint_every", "log_every", "keep_last"])
def test_numbers_out_of_range_are_named(name, samples, tmp_path):
    pretrainer = make_pretrainer()
    with pytest.raises(ValueError, match=f"`{name}` must be at least 1. Received: 0"):
        training.run(pretrainer, batches_for(pretrainer, samples), tmp_path, STEPS, **{name: 0})


def test_fit_takes_the_batches_and_continues_their_stream(samples, whole):
    pretrainer, seen = make_pretrainer(), Losses()
    batches, threads = batches_for(pretrainer, samples), set(threading.enumerate())
    history = pretrainer.fit(batches, steps_per_epoch=1, epochs=3, verbose=0, callbacks=[seen])
    assert len(history.history["loss"]) == 3
    pretrainer.fit(batches, steps_per_epoch=1, verbose=0, callbacks=[seen])
    np.testing.assert_allclose(seen.steps, whole[1], rtol=1e-5)
    # The threads that read ahead have ended. Those of a backend may stay.
    left = [t for t in set(threading.enumerate()) - threads if "ThreadPoolExecutor" in t.name]
    assert not [thread for thread in left if thread.is_alive()]
    with pytest.raises(ValueError, match="`steps_per_epoch` must be given with endless batches"):
        pretrainer.fit(batches, verbose=0)


def test_fit_raises_what_the_data_raised(samples):
    pretrainer = make_pretrainer()
    missing = [data.Sample("/nowhere/a.mp4")]
    with pytest.raises(RuntimeError, match="1 of 1 videos cannot be read.*/nowhere/a.mp4") as error:
        pretrainer.fit(batches_for(pretrainer, missing), steps_per_epoch=1, verbose=0)
    assert type(error.value).__name__ == "TooManyBadFilesError"


def test_batches_have_the_papers_settings_for_an_encoder(samples):
    batches = batches_for(make_pretrainer(), samples, seed=7)
    assert batches.transform == data.PretrainTransform((32, 32))
    assert (batches.clip, batches.masks) == (
        data.ClipSettings(4, 4),
        data.paper_masks((2, 4, 4), seed=7),
    )
    batch = next(iter(batches))
    assert batch["videos"].shape == (2, 4, 32, 32, 3)
    assert [batch[f"context_indices_{i}"].shape for i in (0, 1)] == [(2, 10), (2, 6)]
    for name, message in (
        ("video_shape", "`video_shape` must be given without `clip`"),
        ("grid_shape", "`grid_shape` must be given without `masks`"),
    ):
        shapes = {"video_shape": (4, 32, 32, 3), "grid_shape": (2, 4, 4), name: None}
        with pytest.raises(ValueError, match=message):
            data.ClipBatches(samples, 2, **shapes)
    with pytest.raises(ValueError, match="`frames_per_clip` must be 4, as in `video_shape`"):
        batches_for(make_pretrainer(), samples, clip=data.ClipSettings(8))


def a_link_to_nothing(folder):
    (folder / "link").symlink_to("nowhere")
    return folder / "link"


@pytest.mark.data
@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda folder: folder / ("x" * 300), "can be made: File name too long"),
        (a_link_to_nothing, "can be made: File exists"),
        (lambda folder: "~/runs/a", "without ~"),
    ],
)
def test_a_folder_that_cannot_be_made_is_named(make, problem, tmp_path):
    with pytest.raises((OSError, ValueError)) as error:
        writable_folder(make(tmp_path))
    [line] = str(error.value).splitlines()
    assert line.startswith("`workdir` must be a ") and problem in line and "Received: " in line


@pytest.mark.data
def test_the_home_folder_is_found_on_a_command_line(monkeypatch, tmp_path):
    """No shell does that in `--workdir=~/runs`."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert pretrain.parse_arguments(["--workdir=~/runs/a"])[1] == tmp_path / "runs" / "a"
