"""A step of fine-tuning or detection: compiled once; it neither waits nor copies to the device."""

import keras
import numpy as np
import pytest

from keras_vjepa import VJEPAActionDetector, VJEPABackbone, VJEPAVideoClassifier
from keras_vjepa.training.optimizer import AdamW
from keras_vjepa.training.schedules import WarmupCosine
from tests.support import slow_but_on, waits_of_a_step

STEPS = 6


def backbone(**arguments):
    sizes = {"patch_size": 8, "hidden_dim": 8, "num_layers": 2, "num_heads": 2}
    return VJEPABackbone(16, 4, **sizes, **arguments)


def fine_tuned(**arguments):
    """A classifier as `finetune` makes it, and its batches with soft targets."""
    encoder = backbone(drop_path_rate=0.2)
    model = VJEPAVideoClassifier(
        encoder, 3, head="fine_tuning", head_dropout=0.3, trainable_backbone=True, **arguments
    )
    rate = WarmupCosine(1e-4, 1e-3, 1e-5, 2, 20)
    model.compile(
        AdamW(rate, 0.05, layer_decay=0.75),
        keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1),
        metrics=["accuracy"],
    )

    def batches():
        rng = np.random.default_rng(0)
        for _ in range(STEPS):
            targets = rng.dirichlet(np.ones(3), size=2).astype("float32")
            yield rng.normal(size=(2, 4, 16, 16, 3)).astype("float32"), targets

    return model, batches


def detecting():
    """A detector as `detect` makes it, and its batches, whose clips have some boxes each."""
    model = VJEPAActionDetector(backbone(), 5, layers=[0, 1], trainable_backbone=True)
    model.compile(AdamW(1e-3, 0.05))

    def batches():
        rng = np.random.default_rng(0)
        for _ in range(STEPS):
            corner = rng.uniform(0, 8, (2, 3, 2))
            boxes = np.concatenate([corner, corner + rng.uniform(2, 8, (2, 3, 2))], axis=-1)
            inputs = {
                "videos": rng.normal(size=(2, 4, 16, 16, 3)).astype("float32"),
                "boxes": boxes.astype("float32"),
            }
            targets = rng.integers(0, 2, (2, 3, 5)).astype("float32")
            yield inputs, targets, rng.integers(0, 2, (2, 3)).astype("float32")

    return model, batches


MAKERS = pytest.mark.parametrize("make", [fine_tuned, detecting])


@slow_but_on("torch")
@MAKERS
def test_a_step_is_compiled_once(make):
    model, batches = make()
    traces, compute = [], model.compute_loss
    model.compute_loss = lambda *args, **kwargs: traces.append(1) or compute(*args, **kwargs)
    model.fit(batches(), steps_per_epoch=STEPS, verbose=0)
    if keras.config.backend() == "torch":
        # On torch the code runs in each step.
        assert len(traces) >= STEPS
    else:
        # It runs once for the shapes, and once for the program.
        assert 1 <= len(traces) <= 2


@pytest.mark.skipif(keras.config.backend() != "torch", reason="elsewhere a step is one program")
@MAKERS
def test_a_step_neither_waits_nor_copies_from_the_host(make, monkeypatch):
    """Of its own accord: Keras' random numbers and losses do."""
    model, batches = make()
    model.fit(batches(), steps_per_epoch=STEPS, verbose=0)
    waits = waits_of_a_step(model, next(batches()), monkeypatch)
    assert [wait for wait in waits if " by keras_vjepa/" in wait] == []
    # These are a loss, a metric, and two draws, each of which copies a number and reads one back.
    assert len(waits) <= 7


@pytest.mark.skipif(keras.config.backend() != "torch", reason="elsewhere a step is one program")
def test_a_step_that_asks_for_a_number_is_found(monkeypatch):
    model, batches = fine_tuned()
    model.fit(batches(), steps_per_epoch=STEPS, verbose=0)
    compute = model.compute_loss
    model.compute_loss = lambda *args, **kwargs: float(loss := compute(*args, **kwargs)) * 0 + loss
    waits = waits_of_a_step(model, next(batches()), monkeypatch)
    assert "a number is asked for by tests/tasks/test_steps_of_labels.py" in waits
