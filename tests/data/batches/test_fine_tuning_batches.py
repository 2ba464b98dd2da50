"""Batches of fine-tuning: test frames as the field's, repeats, mixing by the step."""

import json

import numpy as np
import pytest

from keras_vjepa.data.batches.clips import ClipSettings, DenseTestClips, SegmentClips
from keras_vjepa.data.batches.clips import SegmentTestClips as Interleaved
from keras_vjepa.data.batches.fine_tuning import FineTuningBatches
from keras_vjepa.data.batches.mixing import Mixing
from keras_vjepa.data.sources.samples import Sample
from keras_vjepa.data.sources.video_writing import write_motion_jpeg
from keras_vjepa.data.transforms.augmentation import RandAugment
from keras_vjepa.data.transforms.training import VideoProbeTransform
from tests.support import GOLDEN

pytestmark = pytest.mark.data

FRAMES = json.loads((GOLDEN / "finetune" / "test_frames.json").read_text())


@pytest.mark.parametrize("case", FRAMES, ids=lambda case: str(case["frames"]))
def test_test_frames(case):
    dense = DenseTestClips(16, 4, num_clips=5).indices(case["frames"], None)
    assert dense.tolist() == case["kinetics_stride4_clip16_5"]
    uniform = Interleaved(16, num_clips=2).indices(case["frames"], None)
    assert uniform.tolist() == case["ssv2_16_frames_2"]


def test_training_frames_of_segments():
    rng = np.random.default_rng(0)
    clips = np.concatenate([SegmentClips(8).indices(83, rng) for _ in range(200)])
    assert (clips // 10 == np.arange(8)).all()
    assert len(np.unique(clips)) == 80
    assert SegmentClips(4).indices(2, rng).tolist() == [[0, 0, 1, 1]]


@pytest.fixture
def samples(tmp_path):
    for number in range(4):
        frames = np.full((6, 24, 32, 3), 60 * number + 20, np.uint8)
        write_motion_jpeg(tmp_path / f"{number}.avi", frames, 10)
    return [Sample(str(tmp_path / f"{number}.avi"), number % 2) for number in range(4)]


def batches(samples, **arguments):
    transform = VideoProbeTransform(16, augmentation=None, erasing=0.0)
    arguments = {"clip": ClipSettings(4, 1), "num_classes": 2, **arguments}
    return FineTuningBatches(samples, 4, transform, **arguments)


def test_batches_follow_from_the_step(samples):
    made = batches(samples, num_repeats=2)
    videos, targets = made.batch(5)
    assert videos.shape == (8, 4, 16, 16, 3) and targets.shape == (8, 2)
    np.testing.assert_allclose(targets.sum(1), 1.0, atol=1e-6)
    again = list(batches(samples, num_repeats=2).stream(5, 6))[0]
    for one, other in zip((videos, targets), again, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(targets, made.batch(6)[1])
    other = batches(samples, num_repeats=2, seed=1).batch(5)[1]
    assert not np.array_equal(targets, other)


def test_views_of_a_video_stand_side_by_side(samples):
    videos, targets = batches(samples, num_repeats=2, mixing=Mixing(0.0, 0.0, smoothing=0.0)).batch(
        0
    )
    assert (targets.argmax(1)[::2] == targets.argmax(1)[1::2]).all()
    means = videos.mean(axis=(1, 2, 3, 4))
    np.testing.assert_allclose(means[::2], means[1::2], atol=0.05)
    assert len(set(means[::2].round(1).tolist())) == 4


@pytest.mark.parametrize("mixing", [Mixing(0.8, 0.0), Mixing(0.0, 1.0), Mixing(0.0, 0.0)])
def test_two_processes_make_the_batch_of_one(samples, mixing):
    """The same clips, mixed with the same partners by the same share."""
    whole = batches(samples, num_repeats=2, mixing=mixing)
    shares = [
        batches(samples, num_repeats=2, mixing=mixing, process_count=2, process_index=index)
        for index in range(2)
    ]
    for step in range(2):
        expected = sorted(
            (target.tolist(), clip.tobytes())
            for clip, target in zip(*whole.batch(step), strict=True)
        )
        found = [pair for share in shares for pair in zip(*share.batch(step), strict=True)]
        assert sorted((target.tolist(), clip.tobytes()) for clip, target in found) == expected


def test_what_cannot_be_mixed_is_refused(samples):
    with pytest.raises(ValueError, match="`clip` must have `num_clips`=1"):
        batches(samples, clip=ClipSettings(2, 1, num_clips=2))
    with pytest.raises(ValueError, match="`batch_size` must give each process an even number"):
        batches(samples, process_count=4)
    with pytest.raises(ValueError, match="an even number of videos, mixed .* of 4 processes"):
        batches(samples, process_count=4, num_repeats=2)
    with pytest.raises(ValueError, match="`num_repeats` must be"):
        batches(samples, num_repeats=0)


def test_the_short_form_of_rand_augment():
    assert RandAugment.from_string("rand-m7-n4-mstd0.5-inc1") == RandAugment()
    other = RandAugment.from_string("rand-m9-inc1-p0.25")
    assert (other.magnitude, other.num_operations, other.magnitude_std) == (9, 2, 0.0)
    assert other.probability == 0.25
    for text in (
        "rand-m7-n4", "original", "rand-m7-x3-inc1", "rand-inc0", "rand-m7-m9-inc1",
        "rand-inc1-inc0", "rand-m7-inc1-", "rand-m7-n1e3-inc1", "rand-m\u0667-inc1",
    ):  # fmt: skip
        with pytest.raises(ValueError, match="`auto_augment` must be as rand-m7-n4-mstd0.5-inc1"):
            RandAugment.from_string(text)
    for text, name in (
        ("n4.5", "num_operations"), ("m11", "magnitude"), ("p2", "probability")
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"`auto_augment` has a number out .* `{name}` must"):
            RandAugment.from_string(f"rand-{text}-inc1")
