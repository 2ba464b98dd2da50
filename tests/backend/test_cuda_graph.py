"""A step is recorded when it may be, and replays what it would have done."""

import logging

import keras
import numpy as np
import pytest
from keras import ops

from keras_vjepa import AdamW, VJEPABackbone, VJEPAPredictor, VJEPAPretrainer
from keras_vjepa.backend import cuda_graph, distribution
from keras_vjepa.backend.cuda_graph import RecordedStep
from keras_vjepa.backend.device import has_accelerator
from keras_vjepa.training.schedules import CosineSchedule, LinearSchedule, WarmupCosine
from tests.support import random_batch

on_a_gpu = pytest.mark.skipif(
    keras.config.backend() != "torch" or not has_accelerator(), reason="needs torch and a GPU"
)


def batch_of(size):
    return {"x": ops.ones((size,))}


class Graph:
    """Stands in for the recording; keeps what was asked of it."""

    done: list[str]
    error: RuntimeError | None = None

    def __init__(self, step, batch, variables):
        if self.error:
            raise self.error
        self.size, self.variables = batch["x"].shape[0], list(variables)
        Graph.done.append(f"record {self.size}")

    @staticmethod
    def run_beside(step, batch):
        Graph.done.append(f"run {batch['x'].shape[0]}")
        return step(batch)

    def fits(self, batch):
        return batch["x"].shape[0] == self.size and "new memory" not in self.variables

    def replay(self, batch):
        Graph.done.append(f"replay {self.size}")
        return {}


@pytest.fixture
def recorded_step(monkeypatch):
    monkeypatch.setattr(cuda_graph, "_CudaGraph", Graph)
    monkeypatch.setattr(Graph, "done", [], raising=False)
    step = RecordedStep(lambda batch: {"sum": ops.sum(batch["x"])}, lambda: ["a variable"])
    step._may_record = True
    return step


def test_steps_of_one_shape_are_recorded(recorded_step):
    for size in (2, 2, 2, 2, 3, 2):
        recorded_step(batch_of(size))
    assert Graph.done == ["run 2", "run 2", "record 2", "replay 2", "replay 2", "run 3", "replay 2"]


def test_a_recording_gives_way_to_one_of_another_shape(recorded_step):
    for size in (2, 2, 2, 3, 3, 3, 2):
        recorded_step(batch_of(size))
    assert Graph.done[4:] == ["run 3", "run 3", "record 3", "replay 3", "run 2"]


def test_shapes_that_change_are_never_recorded(recorded_step):
    for size in (2, 3, 2, 3, 4, 4, 5):
        logs = recorded_step(batch_of(size))
        assert float(logs["sum"]) == size
    assert len(Graph.done) == 7
    assert all(did.startswith("run") for did in Graph.done)


def test_new_memory_is_recorded_anew(recorded_step):
    for _ in range(3):
        recorded_step(batch_of(2))
    recorded_step._recording.variables.append("new memory")
    recorded_step(batch_of(2))
    assert Graph.done[-2:] == ["record 2", "replay 2"]


def test_a_step_that_cannot_be_recorded_runs_on(recorded_step, monkeypatch, caplog):
    monkeypatch.setattr(Graph, "error", RuntimeError("it waits\nsomewhere"))
    with caplog.at_level(logging.WARNING):
        sums = [float(recorded_step(batch_of(2))["sum"]) for _ in range(5)]
    assert sums == [2.0] * 5
    assert [r.getMessage() for r in caplog.records] == [
        "The step runs op by op: it could not be recorded (it waits)"
    ]


def test_on_a_processor_a_step_is_as_it_is(monkeypatch):
    if has_accelerator():
        pytest.skip("there is a GPU")
    monkeypatch.setattr(cuda_graph, "_CudaGraph", None)
    step = RecordedStep(lambda batch: batch, list)
    assert all(step({"x": i}) == {"x": i} for i in range(4))


def train(num_steps, run_eagerly=False, dtype="float32", optimizer=None, **compile_arguments):
    keras.utils.set_random_seed(0)
    encoder = VJEPABackbone(32, 4, hidden_dim=48, num_layers=2, num_heads=2, dtype=dtype)
    predictor = VJEPAPredictor(48, encoder.position_axes, 24, 1, 1, dtype=dtype)
    pretrainer = VJEPAPretrainer(encoder, predictor, momentum=LinearSchedule(0.5, 1.0, 10.0))
    schedules = WarmupCosine(1e-3, 1e-2, 1e-4, 2, 10), CosineSchedule(0.1, 0.5, 10)
    pretrainer.compile(
        optimizer or AdamW(*schedules, clip_norm=1.0, clip_after=3),
        run_eagerly=run_eagerly,
        **compile_arguments,
    )
    batches, losses = [], []
    for seed in range(num_steps):
        batch = random_batch(seed, pretrainer, 4, context=4, target=4)
        batch["context_indices_0"][::2, -2:] = -1
        batch["target_indices_1"][1:, -1:] = -1
        batches.append(batch)
    keep = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda step, logs: losses.append(float(logs["step_loss"]))
    )
    feed = distribution.setup().feed(iter(batches))
    pretrainer.fit(feed, steps_per_epoch=num_steps, verbose=0, shuffle=False, callbacks=[keep])
    return pretrainer, np.array(losses)


@on_a_gpu
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_replays_are_steps(dtype, accumulation_steps):
    recorded, losses = train(8, dtype=dtype, accumulation_steps=accumulation_steps)
    plain, expected = train(8, True, dtype, accumulation_steps=accumulation_steps)
    assert recorded.one_step.recorded._recording is not None
    assert len(set(losses)) == 8
    bound = 1e-5 if dtype == "float32" else 2e-2
    np.testing.assert_allclose(losses, expected, atol=bound)
    assert int(recorded.optimizer.iterations.value) == 8
    for name in ("encoder", "target_encoder", "predictor"):
        pairs = zip(getattr(recorded, name).weights, getattr(plain, name).weights, strict=True)
        for weight, other in pairs:
            weight, other = (ops.convert_to_numpy(x) for x in (weight, other))
            np.testing.assert_allclose(weight, other, atol=10 * bound)


@on_a_gpu
def test_a_step_that_waits_is_not_recorded_and_trains(caplog):
    waiting = keras.optimizers.LossScaleOptimizer(AdamW(1e-3))
    pretrainer, losses = train(6, dtype="mixed_float16", optimizer=waiting)
    assert pretrainer.one_step.recorded._recording is None
    assert [r.getMessage().split(":")[0] for r in caplog.records] == ["The step runs op by op"]
    waiting = keras.optimizers.LossScaleOptimizer(AdamW(1e-3))
    _, expected = train(6, True, "mixed_float16", waiting)
    np.testing.assert_allclose(losses, expected, atol=1e-2)
