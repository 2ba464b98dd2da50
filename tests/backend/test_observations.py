"""What a step tells of itself beside its loss: of each kind of mask, and of each gradient."""

import keras
import numpy as np
import pytest

from keras_vjepa import AdamW, VJEPABackbone, VJEPAPredictor, VJEPAPretrainer
from keras_vjepa.backend.observations import observe, observed
from tests.support import random_batch, slow_but_on

NAMES = {"loss_mask_0", "loss_mask_1", "gradient_norm_encoder", "gradient_norm_predictor"}


def make_pretrainer(optimizer, accumulation_steps=1):
    keras.utils.set_random_seed(0)
    encoder = VJEPABackbone(32, 4, hidden_dim=24, num_layers=1, num_heads=2)
    predictor = VJEPAPredictor(24, (2, 2, 2), 12, 1, 2)
    pretrainer = VJEPAPretrainer(encoder, predictor)
    pretrainer.compile(optimizer, accumulation_steps)
    return pretrainer


class Kept(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.logs = {}

    def on_train_batch_end(self, batch, logs=None):
        self.logs = {name: float(value) for name, value in logs.items()}


def logs_of(pretrainer):
    kept, batch = Kept(), random_batch(0, pretrainer, batch_size=3)
    data = (one for one in [(batch,)])
    pretrainer.fit(data, steps_per_epoch=1, shuffle=False, verbose=0, callbacks=[kept])
    return kept.logs


@pytest.mark.parametrize("accumulation_steps", [pytest.param(1, marks=slow_but_on("torch")), 2])
def test_a_step_tells_losses_of_masks_and_norms_of_gradients(accumulation_steps):
    pretrainer = make_pretrainer(AdamW(0.5, clip_norm=1e-7), accumulation_steps)
    batch = random_batch(0, pretrainer, batch_size=3)
    expected = []
    for i in range(2):
        predictions = pretrainer.predictions(batch, i)
        targets = keras.ops.convert_to_numpy(pretrainer.targets(batch["videos"]))
        wanted = np.take_along_axis(targets, batch[f"target_indices_{i}"][..., None], axis=1)
        expected.append(np.abs(keras.ops.convert_to_numpy(predictions) - wanted).mean())
    logs = logs_of(pretrainer)
    assert NAMES <= set(logs)
    assert [logs["loss_mask_0"], logs["loss_mask_1"]] == pytest.approx(expected, rel=1e-4)
    assert np.mean(expected) == pytest.approx(logs["step_loss"], rel=1e-4)
    # The norms are those before clipping.
    assert min(logs["gradient_norm_encoder"], logs["gradient_norm_predictor"]) > 1e-6


@slow_but_on("torch")
def test_norms_are_those_before_clipping():
    clipped = logs_of(make_pretrainer(AdamW(1e-3, clip_norm=1e-7)))
    free = logs_of(make_pretrainer(AdamW(1e-3, clip_norm=1e9)))
    for name in ("gradient_norm_encoder", "gradient_norm_predictor"):
        assert clipped[name] == pytest.approx(free[name], rel=1e-5)
        assert free[name] > 1e-6


@slow_but_on("torch")
def test_an_optimizer_that_may_skip_a_step_tells_no_norms():
    optimizer = keras.optimizers.LossScaleOptimizer(AdamW(1e-3, clip_norm=1.0))
    assert NAMES - set(logs_of(make_pretrainer(optimizer))) == {
        "gradient_norm_encoder",
        "gradient_norm_predictor",
    }


@pytest.mark.data
def test_nothing_is_made_where_nobody_listens():
    made = []
    observe("a", lambda: made.append("outside"))
    with observed() as found:
        observe("a", lambda: 1)
        with observed(listens=False) as inner:
            observe("a", lambda: made.append("inside"))
        observe("b", lambda: 2)
    assert (found, inner, made) == ({"a": 1, "b": 2}, {}, [])
