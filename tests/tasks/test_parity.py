"""The authors' numbers, from their checkpoint through our converter (§3.1, §3.3)."""

import json

import keras
import numpy as np
import pytest
from keras import ops

from keras_vjepa.conversion.authors import encoder_entries, predictor_entries
from keras_vjepa.training.optimizer import AdamW
from keras_vjepa.training.schedules import CosineSchedule, LinearSchedule, WarmupCosine
from tests.gradients import RecordGradients
from tests.support import GOLDEN, channels_last, compiled, golden, reference_batch, slow_but_on

FORWARD_TOLERANCE = 2e-5
LOSS_TOLERANCE = 3e-6


def numpy(x):
    return ops.convert_to_numpy(x)


def assert_close(actual, expected, tolerance):
    actual = numpy(actual)
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= tolerance


def test_encoder(tiny_pretrainer):
    reference = golden("forward.npz")
    encoder, clip = tiny_pretrainer.encoder, channels_last(reference["clip"])

    def outputs(clip):
        x = encoder.embed(clip)
        found = {
            "patch_embed": encoder.tubelet_embedding(clip),
            "block0_attn_branch": encoder.blocks[0].attention_branch(x),
        }
        for i, block in enumerate(encoder.blocks):
            x = found[f"encoder_block_{i}_full"] = block(x)
        return {**found, "encoder_full": encoder(clip)}

    found = compiled(outputs)(clip)
    assert len(found) == 3 + len(encoder.blocks) == 6
    for name, value in found.items():
        assert_close(value, reference[name], FORWARD_TOLERANCE)


def test_target_encoder(tiny_pretrainer):
    reference = golden("forward.npz")
    clip = channels_last(reference["clip"])
    features = compiled(tiny_pretrainer.target_encoder)(clip)
    assert_close(features, reference["target_full"], FORWARD_TOLERANCE)
    targets = compiled(tiny_pretrainer.targets)(clip)
    assert_close(targets, reference["target_full_layernormed"], FORWARD_TOLERANCE)


@pytest.mark.parametrize("padding", [True, False])
def test_masked_encoder_and_predictor(tiny_pretrainer, padding):
    reference = golden("forward.npz")
    tiny_pretrainer.padding = padding

    def outputs(batch):
        found = {}
        for i in range(2):
            found[f"encoder_masked_{i}"] = tiny_pretrainer.encoder(
                batch["videos"], batch[f"context_indices_{i}"]
            )
            found[f"predictor_{i}"] = tiny_pretrainer.predictions(batch, i)
        return found

    for name, value in compiled(outputs)(reference_batch(reference)).items():
        assert_close(value, reference[name], FORWARD_TOLERANCE)


def test_losses(tiny_pretrainer):
    reference = golden("forward.npz")

    def losses(batch):
        found = tiny_pretrainer.sample_losses(batch)
        tiny_pretrainer.loss_exponent = 2.0
        return *found, tiny_pretrainer.sample_losses(batch)[0]

    names = "loss", "loss_reg", "loss_exp2"
    found = compiled(losses)(reference_batch(reference))
    for name, loss in zip(names, found, strict=True):
        assert abs(numpy(loss).mean() - reference[name]) <= LOSS_TOLERANCE


def test_norm_epsilons(tiny_pretrainer):
    reference = golden("forward.npz")
    encoder, predictor = tiny_pretrainer.encoder, tiny_pretrainer.predictor
    small = reference["lnprobe_input"]
    norm = encoder.blocks[0].attention_norm
    assert_close(norm(small), reference["lnprobe_encoder_block0_norm1"], 1e-5)
    assert_close(encoder.norm(small), reference["lnprobe_encoder_norm"], 1e-5)
    narrow = reference["lnprobe_predictor_input"]
    assert_close(predictor.norm(narrow), reference["lnprobe_predictor_norm"], 1e-5)


def test_every_gradient(tiny_pretrainer):
    tiny_pretrainer.compile(optimizer=RecordGradients())
    batch = reference_batch(golden("forward.npz"))
    tiny_pretrainer.fit(batch, batch_size=2, epochs=1, verbose=0)
    variables = tiny_pretrainer.trainable_variables
    found = {
        id(v): numpy(g) for v, g in zip(variables, tiny_pretrainer.optimizer.gradients, strict=True)
    }
    reference, compared = golden("grads.npz"), 0
    for network, entries in (
        ("encoder", encoder_entries(tiny_pretrainer.encoder)),
        ("predictor", predictor_entries(tiny_pretrainer.predictor)),
    ):
        for (name,), variable, rearrange in entries:
            if not variable.trainable:
                continue
            expected = rearrange(reference[f"{network}/{name}"])
            error = np.abs(found[id(variable)] - expected).max()
            assert error <= 1e-5 * np.abs(expected).max(), f"{network}/{name}"
            compared += 1
    assert compared == len(variables)


class Batches(keras.utils.PyDataset):
    """The five batches of train5.npz, in order; padded to masks of one shape, or as they are."""

    def __init__(self, padded):
        super().__init__()
        self.arrays, self.padded = golden("train5.npz"), padded

    def __len__(self):
        return 5

    def __getitem__(self, index):
        batch = reference_batch(self.arrays, index)
        if self.padded:
            for name, length in (("context_indices", 20), ("target_indices", 48)):
                for key in (f"{name}_0", f"{name}_1"):
                    missing = length - batch[key].shape[1]
                    batch[key] = np.pad(batch[key], ((0, 0), (0, missing)), constant_values=-1)
        return (batch,)


class History(keras.callbacks.Callback):
    """Loss of every step."""

    def __init__(self):
        super().__init__()
        self.losses = []

    def on_train_batch_end(self, batch, logs=None):
        self.losses.append(float(logs["step_loss"]))


# Unpadded, the five batches have four different shapes, each of which is compiled.
AS_THEY_ARE = pytest.param(False, marks=slow_but_on("torch"))


@pytest.mark.parametrize("padded", [True, AS_THEY_ARE])
def test_five_training_steps(tiny_pretrainer, padded):
    settings = json.loads((GOLDEN / "train5.json").read_text())["settings"]
    reference, history = golden("train5.npz"), History()
    tiny_pretrainer.momentum = LinearSchedule(*settings["ema"], 5 * settings["ipe_scale"])
    tiny_pretrainer.compile(
        optimizer=AdamW(
            WarmupCosine(settings["start_lr"], settings["lr"], settings["final_lr"], 2, 6),
            CosineSchedule(settings["weight_decay"], settings["final_weight_decay"], 6),
            clip_norm=settings["clip_grad"],
            clip_after=3,
        )
    )
    tiny_pretrainer.fit(Batches(padded), epochs=1, shuffle=False, verbose=0, callbacks=[history])
    np.testing.assert_allclose(history.losses, reference["losses"], rtol=0, atol=LOSS_TOLERANCE)
    _assert_trajectory_ends_as(tiny_pretrainer, reference)


def _assert_trajectory_ends_as(pretrainer, reference):
    checksums = json.loads((GOLDEN / "train5.json").read_text())["final_checksums"]
    entries = {
        "encoder": encoder_entries(pretrainer.encoder),
        "predictor": predictor_entries(pretrainer.predictor),
        "target_encoder": encoder_entries(pretrainer.target_encoder),
    }
    compared = 0
    for network, (name,), variable, rearrange in (
        (part, *entry) for part in entries for entry in entries[part]
    ):
        value = numpy(variable)
        tolerance = 1e-4 if name == "patch_embed.proj.weight" else 5e-5
        # The true gradient of key biases is zero, but Adam turns its rounding noise into steps.
        if name.endswith("qkv.bias"):
            continue
        # There are checksums for every parameter, and complete values for some.
        expected_sum = checksums[network][name]["abs_sum"]
        assert abs(np.abs(value.astype("float64")).sum() - expected_sum) <= (
            tolerance * value.size
        ), f"{network}/{name}"
        if f"final/{network}/{name}" in reference:
            expected = rearrange(reference[f"final/{network}/{name}"])
            assert np.abs(value - expected).max() <= tolerance, f"{network}/{name}"
            compared += 1
    assert compared > 30


@pytest.mark.parametrize("name", ["paper", "eval_video_k400", "short"])
def test_schedules(name):
    run = json.loads((GOLDEN / "schedules.json").read_text())[name]
    s = run["settings"]
    learning_rate = WarmupCosine(
        s["start_lr"], s["lr"], s["final_lr"], s["warmup_steps"], s["T_max"]
    )
    weight_decay = CosineSchedule(s["weight_decay"], s["final_weight_decay"], s["T_max"])
    for row in run["rows"]:
        step = row["iteration"] - 1
        assert float(learning_rate(step)) == pytest.approx(row["lr"], rel=1e-6, abs=1e-11)
        assert float(weight_decay(step)) == pytest.approx(row["weight_decay"], rel=1e-6, abs=1e-11)
        if row["momentum"] is not None:
            steps = s["ipe"] * s["epochs"] * s["ipe_scale"]
            momentum = LinearSchedule(*s["ema"], steps)
            assert float(momentum(step)) == pytest.approx(row["momentum"], abs=1e-7)
            complement = float(momentum.complement(step))
            assert complement == pytest.approx(1 - row["momentum"], rel=1e-4, abs=1e-9)
