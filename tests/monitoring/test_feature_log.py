"""The spread of features over a run (§3.1): what is written, by which weights, and going on."""

import csv

import keras
import numpy as np
import pytest

from keras_vjepa import AdamW, VJEPABackbone, VJEPAPredictor, VJEPAPretrainer
from keras_vjepa.monitoring.feature_log import FeatureLog, _read, encode_with
from keras_vjepa.monitoring.statistics import feature_statistics
from tests.support import slow_but_on


@pytest.fixture
def videos():
    return np.random.default_rng(0).normal(size=(10, 4, 32, 32, 3)).astype("float32")


@pytest.fixture
def pretrainer():
    keras.utils.set_random_seed(0)
    encoder = VJEPABackbone(32, 4, hidden_dim=24, num_layers=1, num_heads=2)
    predictor = VJEPAPredictor(24, (2, 2, 2), 12, 1, 2, num_mask_tokens=1)
    pretrainer = VJEPAPretrainer(encoder, predictor, momentum=0.5)
    pretrainer.compile(AdamW(1e-2))
    return pretrainer


def fit(pretrainer, videos, path, steps, epochs=1):
    rows = np.arange(2)[:, None]
    batch = {
        "videos": videos[:2],
        "context_indices_0": (rows + np.arange(3)).astype("int32"),
        "target_indices_0": (rows + np.arange(3, 6)).astype("int32"),
    }
    data = ((batch,) for _ in range(steps * epochs))
    pretrainer.fit(
        data,
        steps_per_epoch=steps,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        callbacks=[FeatureLog(videos, path, every=2)],
    )


def rows_of(path):
    with open(path) as file:
        return {int(row["step"]): float(row["effective_rank"]) for row in csv.DictReader(file)}


def test_features_are_those_of_the_given_weights(pretrainer, videos):
    encoder = pretrainer.encoder
    kept = [np.array(keras.ops.convert_to_numpy(v)) for v in encoder.variables]
    expected = keras.ops.convert_to_numpy(encoder(videos))
    for variable in encoder.trainable_variables:
        variable.assign(variable + 0.1)
    np.testing.assert_allclose(encode_with(encoder)(kept, videos), expected, atol=1e-5)
    assert np.abs(keras.ops.convert_to_numpy(encoder(videos)) - expected).max() > 1e-2


def test_rows_are_of_the_weights_of_their_step(pretrainer, videos, tmp_path):
    path = tmp_path / "features.csv"
    first = keras.ops.convert_to_numpy(pretrainer.target_encoder(videos))
    fit(pretrainer, videos, path, 3)
    last = keras.ops.convert_to_numpy(pretrainer.target_encoder(videos))
    rows = rows_of(path)
    assert list(rows) == [0, 2, 3]
    assert rows[0] == pytest.approx(feature_statistics(first).effective_rank, rel=1e-3)
    assert rows[3] == pytest.approx(feature_statistics(last).effective_rank, rel=1e-3)
    assert len(set(rows.values())) == 3


@slow_but_on("torch")
def test_a_fit_that_goes_on_keeps_the_rows_of_what_is_done(pretrainer, videos, tmp_path):
    path = tmp_path / "features.csv"
    path.write_text("step,feature_std,effective_rank\n0,1,7\n2,1,8\n4,1,9\n")
    pretrainer.optimizer.iterations.assign(3)
    fit(pretrainer, videos, path, steps=1, epochs=2)
    rows = rows_of(path)
    assert list(rows) == [0, 2, 4, 5]
    assert (rows[0], rows[2]) == (7, 8)
    assert rows[4] != 9


@slow_but_on("torch")
def test_weights_that_are_not_finite_show(pretrainer, videos, tmp_path):
    pretrainer.target_encoder.norm.gamma.assign(np.full(24, np.nan))
    fit(pretrainer, videos, tmp_path / "features.csv", 1)
    assert all(np.isnan(rank) for rank in rows_of(tmp_path / "features.csv").values())


HEADER = "step,feature_std,effective_rank\n"


@pytest.mark.data
@pytest.mark.parametrize(
    ("content", "left"),
    [
        (b"", 1),
        (bytes(50), 1),
        (b"\xff\xfe", 1),
        (b"a,b\n1,2\n", 2),
        (HEADER.encode() + b"0,1,2\n2,0.5\n", 1),
        (HEADER.encode() + b"0,1,2\n2,0.5,x\n-inf,1,1\n", 2),
    ],
)
def test_a_damaged_table_does_not_stop_a_run_that_goes_on(content, left, tmp_path, caplog):
    path = tmp_path / "features.csv"
    path.write_bytes(content)
    found = _read(path, done=10)
    assert list(found) == ([0] if b"0,1,2" in content else [])
    assert caplog.messages == [f"Left out of {path}, which is damaged: {left} of its lines."]


def test_at_least_one_step_between_rows(videos, tmp_path):
    with pytest.raises(ValueError, match="`every` must be at least 1. Received: 0"):
        FeatureLog(videos, tmp_path / "features.csv", 0)
