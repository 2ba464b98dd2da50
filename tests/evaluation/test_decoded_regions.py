"""What is measured of decoded regions: values that are known without a decoder."""

import keras
import numpy as np
import pytest

from keras_vjepa.evaluation.decoded_regions import (
    RegionClassifier,
    agreement,
    direction_cosine,
    shifts,
    varying_share,
)
from tests.support import slow_but_on


def moving_spot(step, frames=6, side=16, start=(5, 5)):
    """A random patch of 6 pixels that moves by `step` (right, down) from frame to frame."""
    spot = np.random.default_rng(0).integers(60, 256, (6, 6, 1))
    clip = np.zeros((frames, side, side, 3), "uint8")
    for time, frame in enumerate(clip):
        left, top = (at + time * move for at, move in zip(start, step, strict=True))
        frame[top : top + 6, left : left + 6] = spot
    return clip


@pytest.mark.data
def test_agreement_counts_pairs_of_seeds():
    assert agreement(np.array([[3, 3, 3, 3]])) == 1
    assert agreement(np.array([[0, 1, 2, 3]])) == 0
    # 1 of 3 pairs agrees in the first clip, 3 of 3 in the second.
    assert agreement(np.array([[0, 0, 1], [2, 2, 2]])) == pytest.approx(4 / 6)


@pytest.mark.data
def test_varying_share_tells_seeds_from_clips():
    rng = np.random.default_rng(0)
    of_clips = np.repeat(rng.integers(0, 256, (5, 1, 2, 4, 4, 3)), 3, axis=1).astype("uint8")
    of_seeds = np.repeat(rng.integers(0, 256, (1, 3, 2, 4, 4, 3)), 5, axis=0).astype("uint8")
    assert varying_share(of_clips) == 0
    assert varying_share(of_seeds) == pytest.approx(1)
    both = (of_clips.astype("float64") + of_seeds) / 2
    assert 0.2 < varying_share(both.astype("uint8")) < 0.8
    assert varying_share(np.zeros((2, 2, 1, 4, 4, 3), "uint8")) == 1


@pytest.mark.data
@pytest.mark.parametrize(
    ("step", "start"), [((1, 0), (4, 5)), ((0, -1), (5, 9)), ((-1, 1), (8, 3))]
)
def test_shifts_find_how_a_spot_moves(step, start):
    np.testing.assert_allclose(shifts(moving_spot(step, start=start)), [step] * 5, atol=1e-6)


@pytest.mark.data
def test_directions_agree_oppose_or_are_not_there():
    right, still = moving_spot((1, 0), start=(4, 5)), moving_spot((0, 0))
    left = right[::-1]
    real = np.stack([right, right])
    for decoded, expected in ((right, 1), (left, -1), (still, 0)):
        cosine, count = direction_cosine(real, np.stack([[decoded], [decoded]]))
        assert cosine == pytest.approx(expected, abs=1e-6) and count == 10
    # No direction can be read of a clip that stands still.
    assert direction_cosine(np.stack([still]), np.stack([[right]])) == (0.0, 0)


@slow_but_on("torch")
def test_a_classifier_reads_place_and_motion():
    rng = np.random.default_rng(0)
    places, motions = rng.integers(0, 2, (2, 400))
    clips = np.stack(
        [
            moving_spot((1 - 2 * m, 0), start=(2 + 6 * m, 1 + 8 * p))
            for p, m in zip(places, motions, strict=True)
        ]
    )
    classifier = RegionClassifier({"place": 2, "motion": 2}, clips.shape[1:4], width=8)
    classifier.learn(clips[:300], {"place": places[:300], "motion": motions[:300]}, epochs=6)
    seen = classifier.classes(clips[300:].reshape(50, 2, *clips.shape[1:]))
    assert seen["place"].shape == (50, 2)
    assert (seen["place"].ravel() == places[300:]).mean() > 0.9
    assert (seen["motion"].ravel() == motions[300:]).mean() > 0.9


@slow_but_on("torch")
def test_a_classifier_reads_a_shape_that_single_frames_show():
    """Once among six frames, at any place: it is the same shape as at the places of learning."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    lying = np.tile([[250], [0]], (3, 6))
    shapes = np.stack([lying, lying.T, np.full((6, 6), 125)])[..., np.newaxis]
    kinds, times, tops, lefts = (rng.integers(0, most, 600) for most in (3, 6, 11, 11))
    clips = np.zeros((600, 6, 16, 16, 3), "uint8")
    for clip, kind, time, top, left in zip(clips, kinds, times, tops, lefts, strict=True):
        clip[time, top : top + 6, left : left + 6] = shapes[kind]
    classifier = RegionClassifier({"shape": 3}, clips.shape[1:4], width=16)
    classifier.learn(clips[:500], {"shape": kinds[:500]}, epochs=14)
    assert (classifier.classes(clips[500:])["shape"] == kinds[500:]).mean() > 0.8
