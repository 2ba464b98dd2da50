"""Features in the place of clips: the same order, labels, counts and unreadable files."""

import cv2
import numpy as np
import pytest

from keras_vjepa.data.batches.clips import ClipSettings
from keras_vjepa.data.batches.features import (
    EvaluationFeatureBatches,
    Features,
    LabelledFeatureBatches,
)
from keras_vjepa.data.batches.labelled import ClipPlaces, EvaluationBatches, LabelledBatches
from keras_vjepa.data.reading.errors import UnreadableVideoError
from keras_vjepa.data.sources.samples import Sample

pytestmark = pytest.mark.data

NUM_VIDEOS = 7
MISSING = 3


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """Videos whose frames say which video and which frame they are; one is missing."""
    folder = tmp_path_factory.mktemp("videos")
    for i in range(NUM_VIDEOS):
        fourcc = cv2.VideoWriter_fourcc(*"MJPG")
        writer = cv2.VideoWriter(str(folder / f"{i}.avi"), fourcc, 24, (32, 32))
        for frame in range(12):
            writer.write(np.full((32, 32, 3), 20 * i + 8 * frame, np.uint8))
        writer.release()
    (folder / f"{MISSING}.avi").unlink()
    return [Sample(str(folder / f"{i}.avi"), i % 3) for i in range(NUM_VIDEOS)]


def means(frames):
    """A transform that stands for an encoder: a number for each frame."""
    return frames.mean(axis=(1, 2), keepdims=True).astype("float32")


@pytest.fixture(scope="module")
def features(samples):
    """What `means` gives of every sample, in shards of 3."""
    batches = evaluation(samples)
    videos = np.concatenate([videos for videos, _, _ in batches.stream()])[:NUM_VIDEOS]
    contents = videos.reshape(NUM_VIDEOS, 1, 4, 3)
    shards = [contents[start : start + 3] for start in range(0, NUM_VIDEOS, 3)]
    return Features(samples, shards, dict(batches.bad_files))


COMMON = {"num_classes": 3, "seed": 5}
CLIP = ClipSettings(4, 2)


def evaluation(samples, **settings):
    defaults = {**COMMON, "clip": CLIP, "max_bad_share": 0.5}
    return EvaluationBatches(samples, 2, means, **{**defaults, **settings})


@pytest.mark.parametrize("process_count", [1, 2])
def test_training_sees_what_it_would_see_of_clips(samples, features, process_count):
    for index in range(process_count):
        share = {"process_index": index, "process_count": process_count}
        clips = LabelledBatches(
            samples,
            4,
            lambda frames, rng: means(frames),
            clip=CLIP,
            places=ClipPlaces(samples, COMMON["seed"]),
            max_bad_share=0.5,
            **COMMON,
            **share,
        )
        stored = LabelledFeatureBatches(samples, 4, features, **COMMON, **share)
        for step in range(5):
            (videos, labels), (found, found_labels) = clips.batch(step), stored.batch(step)
            np.testing.assert_array_equal(found, videos.reshape(found.shape))
            np.testing.assert_array_equal(found_labels, labels)
        assert set(stored.bad_files) == {samples[MISSING].path}


@pytest.mark.parametrize("skip", [False, True])
def test_evaluation_counts_as_it_would_count_clips(samples, features, skip, caplog):
    part = samples[2:]
    clips = evaluation(
        part, places=ClipPlaces(samples, COMMON["seed"]), num_workers=1, skip_unreadable=skip
    )
    stored = EvaluationFeatureBatches(part, 2, features, skip_unreadable=skip, **COMMON)
    pairs = list(zip(clips.stream(), stored.stream(), strict=True))
    assert len(pairs) == 3
    for (videos, labels, weight), (found, found_labels, found_weight) in pairs:
        np.testing.assert_array_equal(found, videos.reshape(found.shape))
        np.testing.assert_array_equal(found_labels, labels)
        np.testing.assert_array_equal(found_weight, weight)
    assert [weight.tolist() for *_, weight in (found for _, found in pairs)] == [
        [1, 0],
        [1, 1],
        [1, 0],
    ]
    assert stored.num_counted == clips.num_counted == (4 if skip else 5)
    # Both lines are the same, and the reason is given once.
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2 and lines[0] == lines[1]
    assert lines[0].count(samples[MISSING].path) == lines[0].count("Cannot read the video") == 1


def test_places_do_not_change_with_the_epoch_or_the_part(samples):
    places = ClipPlaces(samples, 5)
    whole = {i: batch for i, batch in enumerate(evaluation(samples).stream())}
    part = evaluation(samples[4:6], places=places).batch(0)
    np.testing.assert_array_equal(part[0], whole[2][0])
    other = evaluation(samples[4:6]).batch(0)
    assert np.abs(other[0] - whole[2][0]).max() > 0


def test_why_a_sample_cannot_be_read(samples):
    batches = evaluation(samples, process_index=0, process_count=2)
    assert batches.why_unreadable(0) is None
    assert samples[MISSING].path in batches.why_unreadable(MISSING)


def test_features_of_a_sample(samples, features):
    assert features.shape == (1, 4, 3)
    np.testing.assert_array_equal(features.of(samples[4]), features.shards[1][1])
    assert features.row(samples[6]) == 6
    assert features.pooled().shape == (NUM_VIDEOS, 3)
    np.testing.assert_allclose(features.pooled()[4], features.of(samples[4]).mean(axis=(0, 1)))
    with pytest.raises(UnreadableVideoError, match=f"{MISSING}.avi"):
        features.of(samples[MISSING])


def test_bad_labels_are_named(samples, features):
    for make in (LabelledFeatureBatches, EvaluationFeatureBatches):
        with pytest.raises(ValueError, match=r"`label` must be in \[0, `num_classes`=2\)"):
            make(samples, 2, features, num_classes=2)
    with pytest.raises(ValueError, match="Missing: 3"):
        LabelledFeatureBatches(samples, 2, features, num_classes=4)
