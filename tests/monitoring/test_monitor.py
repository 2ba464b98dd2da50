"""A run that is watched: what is looked at, when, and what stops it."""

import keras
import numpy as np
import pytest

from keras_vjepa import AdamW, VJEPABackbone, VJEPAPredictor, VJEPAPretrainer, data
from keras_vjepa.data.sources.video_writing import write_motion_jpeg
from keras_vjepa.monitoring.held_out import HeldOut, held_out_of
from keras_vjepa.monitoring.looks import make_looking, variables_of
from keras_vjepa.monitoring.monitor import CollapseError, Monitor, said
from keras_vjepa.monitoring.tables import read_rows
from tests.support import random_batch, slow_but_on


def make_pretrainer():
    keras.utils.set_random_seed(0)
    encoder = VJEPABackbone(32, 4, 8, hidden_dim=12, num_layers=1, num_heads=2)
    predictor = VJEPAPredictor(12, encoder.position_axes, 8, 1, 2, num_mask_tokens=1)
    pretrainer = VJEPAPretrainer(encoder, predictor, momentum=0.5)
    pretrainer.compile(AdamW(1e-2))
    return pretrainer


def held_out(pretrainer, clips=6):
    batch = random_batch(1, pretrainer, batch_size=clips, context=5, target=4)
    batch["context_indices_0"][:, 4] = -1
    videos = np.repeat(np.arange(clips // 2), 2)
    return HeldOut(batch, videos, {"class": videos % 2}, False)


def fit(pretrainer, steps, *callbacks):
    batch = random_batch(0, pretrainer)
    batches = ((batch,) for _ in range(steps))
    pretrainer.fit(batches, steps_per_epoch=steps, shuffle=False, verbose=0, callbacks=[*callbacks])


def test_a_look_is_at_all_three_networks_without_padding():
    pretrainer = make_pretrainer()
    batch = held_out(pretrainer).batch
    values = [np.array(keras.ops.convert_to_numpy(v)) for v in variables_of(pretrainer)]
    looks = make_looking(pretrainer)(values, batch)
    target = keras.ops.convert_to_numpy(pretrainer.target_encoder(batch["videos"]))
    context = keras.ops.convert_to_numpy(pretrainer.encode_context(batch, 0))
    predictions = keras.ops.convert_to_numpy(pretrainer.predictions(batch, 0))
    np.testing.assert_allclose(looks["target"].clips, target.mean(axis=1), atol=2e-5)
    np.testing.assert_allclose(looks["context"].clips, context[:, :4].mean(axis=1), atol=2e-5)
    np.testing.assert_allclose(looks["predictions"].clips, predictions.mean(axis=1), atol=2e-5)
    assert looks["context"].tokens.shape == (6 * 4, 12)
    assert looks["target"].tokens.shape == (6 * 16, 12)


def test_rows_and_words_of_the_first_the_regular_and_the_last_step(tmp_path, capsys):
    pretrainer = make_pretrainer()
    fit(pretrainer, 3, Monitor(held_out(pretrainer), tmp_path, every=2))
    rows = read_rows(tmp_path / "monitor.jsonl")
    assert [row["step"] for row in rows] == [0, 2, 3]
    assert [(row["clips"], row["tokens"]) for row in rows] == [(6, 96)] * 3
    # Of 2 x 4 x 4 tokens, 4 are seen beside one of padding, and 4 are predicted.
    assert rows[2]["context_share_mask_0"] == rows[2]["target_share_mask_0"] == 4 / 32
    # The moving average starts as a copy of the encoder, and then follows it.
    assert rows[0]["encoder_distance"] == 0 < rows[1]["encoder_distance"]
    assert rows[0]["loss"] is None and rows[1]["loss"] > 0
    printed = capsys.readouterr().err.splitlines()
    assert [line for line in printed if line.startswith("step ")][:3] == [
        f"step {step}: {words}" for step, words in said(tmp_path)
    ]
    assert "Keep the checkpoint of step" in printed[-1]


@slow_but_on("torch")
def test_a_run_stops_on_collapse_if_it_is_to(tmp_path):
    pretrainer = make_pretrainer()
    for variable in pretrainer.target_encoder.variables:
        variable.assign(0 * variable)
    watch = Monitor(held_out(pretrainer), tmp_path, stop_on_collapse=True)
    with pytest.raises(CollapseError, match="Stopped at step 0: .* one constant .target encoder.*"):
        fit(pretrainer, 3, watch)
    assert read_rows(tmp_path / "monitor.jsonl")[0]["state"] == "collapse"
    fit(pretrainer, 1, Monitor(held_out(pretrainer), tmp_path))


@pytest.mark.data
def test_views_of_a_video_lie_beside_each_other(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(5):
        # Videos differ in brightness.
        frames = np.full((12, 32, 32, 3), 40 * i, np.uint8) + rng.integers(
            9, size=(12, 32, 32, 3), dtype=np.uint8
        )
        write_motion_jpeg(tmp_path / f"{i}.avi", frames, 24)
    samples = data.list_samples(tmp_path)
    batches = data.ClipBatches(
        samples,
        batch_size=2,
        clip=data.ClipSettings(4, 1),
        video_shape=(4, 32, 32, 3),
        grid_shape=(2, 4, 4),
    )
    found = held_out_of(str(tmp_path), batches, 3)
    assert found.videos.tolist() == [0, 0, 1, 1, 2, 2]
    assert found.are_trained_on and found.labels == {}
    brightness = found.batch["videos"].mean(axis=(1, 2, 3, 4)).reshape(3, 2)
    assert (np.diff(brightness, axis=1) < 0.2).all() and (np.diff(brightness[:, 0]) > 0.5).all()
    assert (found.batch["context_indices_0"][0] != found.batch["context_indices_0"][1]).any()
    assert held_out_of(str(tmp_path), batches, 1) is None
