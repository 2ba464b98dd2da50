"""What a pretrainer says of what is no batch, and that it evaluates what it trains on."""

import keras
import numpy as np
import pytest

from keras_vjepa import AdamW, VJEPABackbone, VJEPAPredictor, VJEPAPretrainer, data
from keras_vjepa.data.sources.video_writing import write_motion_jpeg
from keras_vjepa.training.batches import FirstSteps
from tests.support import random_batch, slow_but_on

METHODS = ("__call__", "fit", "evaluate", "predict")
ON_BATCHES = ("train_on_batch", "test_on_batch", "predict_on_batch")


@pytest.fixture(scope="module")
def pretrainer():
    keras.utils.set_random_seed(0)
    encoder = VJEPABackbone(32, 4, patch_size=8, hidden_dim=24, num_layers=1, num_heads=2)
    pretrainer = VJEPAPretrainer(encoder, VJEPAPredictor(24, encoder.position_axes, 12, 1, 2))
    pretrainer.compile(AdamW(1e-3))
    return pretrainer


@pytest.fixture(scope="module")
def batches(pretrainer, tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("videos"), np.random.default_rng(0)
    for i in range(4):
        frames = rng.integers(256, size=(20, 36, 40, 3), dtype=np.uint8)
        write_motion_jpeg(folder / f"{i}.avi", frames, 24)
    shapes = {name: getattr(pretrainer.encoder, name) for name in ("video_shape", "grid_shape")}
    return data.ClipBatches(data.list_samples(folder), 2, **shapes)


def without(name):
    def make(batch):
        return {key: array for key, array in batch.items() if key != name}

    return make


NO_BATCHES = {
    "array": (lambda batch: batch["videos"], "an array of shape (2, 4, 32, 32, 3)"),
    "no videos": (without("videos"), "without `videos`"),
    "no targets": (without("target_indices_1"), "without `target_indices_1`"),
    "no masks": (
        lambda batch: {"videos": batch["videos"]},
        "a dictionary of `videos`, without `context_indices_0` and `target_indices_0`",
    ),
    "labels": (lambda batch: (batch, np.zeros(2)), "tuple"),
    "nothing": (lambda batch: None, "NoneType"),
}


def line_of(raised):
    [line] = str(raised.value).splitlines()
    assert "must be a batch: a dictionary of `videos` (batch, frames, height, width," in line
    assert "as keras_vjepa.data.ClipBatches makes them. Received: " in line
    return line


@pytest.mark.parametrize("method", [*METHODS, *ON_BATCHES])
@pytest.mark.parametrize("kind", NO_BATCHES)
def test_what_is_no_batch_is_answered_with_what_is_one(kind, method, pretrainer):
    make, received = NO_BATCHES[kind]
    arguments = {"verbose": 0} if method in METHODS[1:] else {}
    with pytest.raises(ValueError) as raised:
        getattr(pretrainer, method)(make(random_batch(0, pretrainer)), **arguments)
    assert line_of(raised).endswith(received)


@pytest.mark.parametrize("method", ON_BATCHES)
def test_batches_are_not_one_of_them(method, pretrainer, batches):
    with pytest.raises(ValueError) as raised:
        getattr(pretrainer, method)(batches)
    assert line_of(raised).endswith("Received: ClipBatches, whose `batch(0)` is one")


@slow_but_on("torch")
def test_evaluate_and_predict_take_endless_batches(pretrainer, batches):
    losses = [pretrainer.predict_on_batch(batches.batch(step)) for step in range(3)]
    predicted = pretrainer.predict(batches, steps=3, verbose=0)
    np.testing.assert_allclose(predicted, np.concatenate(losses), rtol=1e-5)
    for _ in range(2):  # it does not continue where the last evaluation ended
        found = pretrainer.evaluate(batches, steps=3, verbose=0, return_dict=True)
        assert found["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    for method in ("evaluate", "predict"):
        with pytest.raises(ValueError, match="`steps` must be given with endless batches"):
            getattr(pretrainer, method)(batches, verbose=0)
        with pytest.raises(ValueError, match="`steps` must be at least 1. Received: 0"):
            getattr(pretrainer, method)(batches, steps=0, verbose=0)


@slow_but_on("torch")
def test_fit_validates_on_the_same_batches_after_every_epoch(pretrainer, batches, monkeypatch):
    asked = []
    batch = data.ClipBatches.batch

    def noted(self, step):
        asked.append(step)
        return batch(self, step)

    held_out = data.ClipBatches(
        batches.samples, 2, video_shape=(4, 32, 32, 3), grid_shape=(2, 4, 4), seed=7, num_workers=1
    )
    monkeypatch.setattr(data.ClipBatches, "batch", noted)
    options = {"steps_per_epoch": 1, "epochs": 2, "verbose": 0, "validation_data": held_out}
    history = pretrainer.fit(batches, validation_steps=2, **options).history
    found = pretrainer.evaluate(held_out, steps=2, verbose=0, return_dict=True)
    assert history["val_loss"][-1] == pytest.approx(found["loss"], rel=1e-5)
    assert set(asked) == {0, 1}
    with pytest.raises(ValueError, match="`validation_steps` must be given with endless batches"):
        pretrainer.fit(batches, **options)
    with pytest.raises(ValueError, match="`validation_data` must be a batch: "):
        pretrainer.fit(batches, **{**options, "validation_data": np.zeros((2, 4, 32, 32, 3))})


def test_what_the_data_raises_leaves_an_evaluation_as_it_was_raised(tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    shapes = {"video_shape": (4, 32, 32, 3), "grid_shape": (2, 4, 4)}
    first = FirstSteps(data.ClipBatches(data.list_samples(tmp_path), 2, **shapes), 1)
    assert len(first) == 1
    with pytest.raises(RuntimeError, match="^1 of 1 videos cannot be read"), first.raising():
        try:
            first[0]
        except RuntimeError as error:  # as some backends do
            raise KeyError(f"pages around {error}") from error


def test_what_a_source_yields_is_looked_at_too(pretrainer):
    """The last test, for on JAX a `fit` that failed has taken the weights with it."""

    def source():
        while True:
            yield (np.zeros((2, 4, 32, 32, 3), "float32"),)

    with pytest.raises(ValueError, match="must be a batch: a dictionary of `videos`"):
        pretrainer.fit(source(), steps_per_epoch=1, shuffle=False, verbose=0)
