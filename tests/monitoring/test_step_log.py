"""What a run writes of each step: right numbers, as it goes, each step once."""

import csv
import json

import keras
import numpy as np
import pytest

from keras_vjepa import (
    AdamW,
    CosineSchedule,
    LinearSchedule,
    VJEPABackbone,
    VJEPAPredictor,
    VJEPAPretrainer,
    WarmupCosine,
    data,
    training,
)
from keras_vjepa.data.sources.video_writing import write_motion_jpeg
from keras_vjepa.monitoring import StepLog, step_log
from keras_vjepa.monitoring.schedule_values import ScheduleValues
from keras_vjepa.monitoring.tables import read_rows
from tests.support import slow_but_on

SCHEDULES = {
    "learning_rate": WarmupCosine(1e-4, 1e-3, 1e-5, 2, 8),
    "weight_decay": CosineSchedule(0.1, 0.4, 8),
    "momentum": LinearSchedule(0.9, 1.0, 8),
}


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    frames = np.random.default_rng(0).integers(256, size=(8, 32, 32, 3), dtype=np.uint8)
    write_motion_jpeg(folder / "a.avi", frames, 24)
    return data.list_samples(folder)


def make_pretrainer():
    keras.utils.set_random_seed(0)
    encoder = VJEPABackbone(32, 4, 8, hidden_dim=12, num_layers=1, num_heads=2)
    predictor = VJEPAPredictor(12, encoder.position_axes, 8, 1, 2)
    pretrainer = VJEPAPretrainer(encoder, predictor, momentum=SCHEDULES["momentum"])
    rates = SCHEDULES["learning_rate"], SCHEDULES["weight_decay"]
    pretrainer.compile(AdamW(*rates, clip_norm=1e-7, clip_after=3))
    return pretrainer


class Crash(keras.callbacks.Callback):
    """Ends the process after a step, and keeps what the log has written by then."""

    def __init__(self, step, path):
        super().__init__()
        self.step, self.path, self.seen = step, path, []

    def on_train_batch_end(self, batch, logs=None):
        self.seen = [row["step"] for row in read_rows(self.path)]
        if batch + 1 == self.step:
            raise RuntimeError("crashed")


def run(samples, workdir, steps, *callbacks):
    pretrainer = make_pretrainer()
    grid, shape = pretrainer.encoder.grid_shape, pretrainer.encoder.video_shape
    clip = data.ClipSettings(4, 1)
    batches = data.ClipBatches(samples, batch_size=2, clip=clip, video_shape=shape, grid_shape=grid)
    return training.run(
        pretrainer,
        batches,
        workdir,
        steps,
        [StepLog(workdir, every=2), *callbacks],
        checkpoint_every=3,
        description={},
    )


def test_a_row_a_step_with_what_was_used_in_it(samples, tmp_path):
    losses = run(samples, tmp_path, 5)
    rows = read_rows(tmp_path / "steps.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert [row["loss"] for row in rows] == pytest.approx(losses, rel=1e-6)
    for name, schedule in SCHEDULES.items():
        expected = [float(schedule(step)) for step in range(5)]
        assert [row[name] for row in rows] == pytest.approx(expected, rel=1e-6), name
    masks = np.array([[row["loss_mask_0"], row["loss_mask_1"]] for row in rows])
    np.testing.assert_allclose(masks.mean(axis=1), losses, rtol=1e-4)
    # From the fourth step on, all gradients exceed the limit.
    assert [row["clipped_encoder"] for row in rows] == [0, 0, 0, 1, 1]
    assert all(row["gradient_norm_predictor"] > 1e-7 for row in rows)
    assert all(row["clips_per_second"] > 0 and row["memory_bytes"] > 1e6 for row in rows)
    assert all(0 <= row["data_wait_share"] <= 1 for row in rows)
    with open(tmp_path / "steps.csv", newline="") as file:
        assert [float(row["loss"]) for row in csv.DictReader(file)] == pytest.approx(losses)


@slow_but_on("torch")
def test_rows_are_written_as_it_goes_and_once(samples, tmp_path):
    crash = Crash(5, tmp_path / "steps.jsonl")
    with pytest.raises(RuntimeError, match="crashed"):
        run(samples, tmp_path, 6, crash)
    assert crash.seen == [1, 2, 3, 4]
    # The checkpoint is that of step 3, so the row of step 4 belongs to weights that are lost.
    run(samples, tmp_path, 6)
    lines = (tmp_path / "steps.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]


@pytest.mark.data
def test_schedules_of_keras_are_read_step_by_step():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    schedule = keras.optimizers.schedules.CosineDecay(1.0, 10, warmup_target=2.0, warmup_steps=2)
    model.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(schedule)))
    found = ScheduleValues(model)([1, 2, 3])["learning_rate"]
    assert found == pytest.approx([1.0, 1.5, 2.0])


def test_at_least_one_step_between_two_readings(tmp_path):
    with pytest.raises(ValueError, match="`every` must be at least 1. Received: 0"):
        StepLog(tmp_path, every=0)


def test_memory_is_of_this_process_and_not_of_its_parent(tmp_path, monkeypatch):
    # `getrusage` of a process that a large one started gives the memory of the large one.
    monkeypatch.setattr(step_log, "peak_device_memory", lambda: None)
    monkeypatch.setattr(step_log, "_STATUS", tmp_path / "status")
    elsewhere = step_log.memory_in_use()
    assert elsewhere is None or elsewhere > 1e7
    (tmp_path / "status").write_text("Name:\tpython\nVmHWM:\t  2048 kB\nVmRSS:\t  1024 kB\n")
    assert step_log.memory_in_use() == 2 * 2**20
