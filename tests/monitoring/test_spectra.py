"""Measures of collapse against other packages' numbers, and what they say of a constant."""

import json

import numpy as np
import pytest

from keras_vjepa import monitoring
from keras_vjepa.monitoring.statistics import feature_statistics
from tests.support import GOLDEN

pytestmark = pytest.mark.data

FEATURES = np.load(GOLDEN / "monitoring" / "features.npz")
EXPECTED = json.loads((GOLDEN / "monitoring" / "expected.json").read_text())
MATRICES = [name for name in FEATURES if FEATURES[name].ndim == 2]


@pytest.mark.parametrize("name", MATRICES)
def test_golden_matrices(name):
    rows, expected = FEATURES[name], EXPECTED[name]
    views = expected["lidar_delta_1e-4_eps_1e-8"]
    rank = expected["covariance_entropy_rank"]
    found = [
        monitoring.rank_me(rows),
        monitoring.covariance_rank(rows),
        monitoring.lidar(rows.reshape(-1, views["views_per_clip"], rows.shape[1])),
        monitoring.channel_deviation(rows),
        monitoring.normalized_deviation(rows),
    ]
    wanted = [
        expected["rankme_eps_1e-7"],
        np.nan if rank is None else rank,
        views["value"],
        expected["mean_channel_std"],
        expected["std_of_l2_normalised_times_sqrt_dim"],
    ]
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("name", ["power_law_spectrum", "noisy_power_law_spectrum"])
def test_golden_spectra(name):
    found = monitoring.power_law_exponent(FEATURES[name])
    assert found == pytest.approx(EXPECTED[name]["fit_10_100"], abs=1e-5)


def test_alpha_is_that_of_the_covariance():
    rng = np.random.default_rng(0)
    # Orthogonal columns, so that the covariance is diagonal.
    columns = np.linalg.qr(rng.normal(size=(400, 120)))[0]
    columns -= columns.mean(axis=0)
    columns = np.linalg.qr(columns)[0]
    rows = columns * np.arange(1, 121) ** -0.75
    assert monitoring.alpha_req(rows) == pytest.approx(1.5, abs=1e-6)
    assert np.isnan(monitoring.alpha_req(rng.normal(size=(50, 11))))


@pytest.mark.parametrize("value", [0.0, 1.0, -3e5, 1e-20])
@pytest.mark.parametrize("noise", [0.0, 1e-8])
def test_a_constant_is_never_healthy(value, noise):
    rng = np.random.default_rng(0)
    rows = np.full((40, 16), value) * (1 + noise * rng.normal(size=(40, 16)))
    assert np.isnan(monitoring.covariance_rank(rows))
    assert np.isnan(monitoring.alpha_req(rows))
    assert np.isnan(monitoring.same_video_retrieval(rows, np.repeat(np.arange(20), 2)))
    assert np.isnan(monitoring.mean_cosine(rows)) or monitoring.mean_cosine(rows) > 0.999
    assert monitoring.normalized_deviation(rows) < 1e-6
    assert not monitoring.rank_me(rows) > 1.01
    assert feature_statistics(rows).effective_rank == 1.0


def test_what_is_not_finite_is_no_number():
    rows = np.ones((4, 3))
    rows[0, 0] = np.nan
    for measure in (
        monitoring.rank_me,
        monitoring.covariance_rank,
        monitoring.alpha_req,
        monitoring.mean_cosine,
        monitoring.channel_deviation,
    ):
        assert np.isnan(measure(rows))
    assert np.isnan(monitoring.lidar(rows[:, None].repeat(2, axis=1)))


def test_cosine_is_the_mean_over_pairs():
    rows = np.random.default_rng(0).normal(size=(7, 5)) + 1
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    pairs = [unit[i] @ unit[j] for i in range(7) for j in range(7) if i != j]
    assert monitoring.mean_cosine(rows) == pytest.approx(np.mean(pairs))


def test_retrieval_counts_the_nearest_of_the_same_video():
    clips = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1], [-1, 0.1], [0.9, 0.05]])
    # The last clip is close to those of the first video.
    assert monitoring.same_video_retrieval(clips, [0, 0, 1, 1, 2, 2]) < 1
    assert monitoring.same_video_retrieval(clips[:4], [0, 0, 1, 1]) == 1.0
    assert monitoring.same_video_retrieval(clips[:4], [0, 1, 0, 1]) == 0.0
    with pytest.raises(ValueError, match="at least 2 clips of each. Received: .0, 0, 1. for 3"):
        monitoring.same_video_retrieval(clips[:3], [0, 0, 1])


def test_other_axes_are_refused():
    for measure in (monitoring.rank_me, monitoring.covariance_rank, monitoring.mean_cosine):
        with pytest.raises(ValueError, match="at least 2 samples. Received: .1, 3."):
            measure(np.ones((1, 3)))
    with pytest.raises(ValueError, match="samples of 2 views. Received shape: .4, 1, 3."):
        monitoring.lidar(np.ones((4, 1, 3)))
