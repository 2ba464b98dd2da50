"""Batches of key frames: shapes, weights, steps alone, what cannot be read, clips of all sizes."""

import dataclasses

import numpy as np
import pytest

from keras_vjepa.data.batches.actions import (
    ActionBatches,
    ActionTestClips,
    KeyFrameClips,
    predicted,
)
from keras_vjepa.data.batches.indexed import TooManyBadFilesError
from keras_vjepa.data.sources.ava import annotated_key_frames, split_boxes, video_files
from keras_vjepa.data.sources.ava_files import read_actions
from keras_vjepa.data.transforms.boxes import BoxTransform, BoxView
from tests.data.reading.stamped import write_with_opencv
from tests.data.sources.ava_layout import write_ava

pytestmark = pytest.mark.data

CLIP = KeyFrameClips(num_frames=4, frame_step=4)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_ava(tmp_path_factory.mktemp("ava"))


@pytest.fixture
def samples(root):
    rows = read_actions(root / "annotations" / "ava_train_v2.2.csv")
    return annotated_key_frames(rows, video_files(root / "videos"), [1, 4, 17, 80])


def training(samples, **settings):
    transform = BoxTransform(32, short_side=(32, 48), jitter=(0.2, 0.1))
    defaults = {"num_actions": 4, "max_boxes": 3, "seed": 3, "clip": CLIP}
    return ActionBatches(samples, 4, **{**defaults, "transform": transform, **settings})


def test_a_batch(samples):
    batches = training(samples)
    inputs, targets, weights = batches.batch(0)
    assert inputs["videos"].shape == (4, 4, 32, 32, 3) and inputs["boxes"].shape == (4, 3, 4)
    assert targets.shape == (4, 3, 4) and weights.shape == (4, 3)
    there = weights > 0
    assert (targets[~there] == 0).all() and (inputs["boxes"][~there] == 0).all()
    assert (targets[there].sum(axis=-1) >= 1).all()
    # The mean weight is 1, so that the mean over all places is the mean over the boxes.
    assert np.unique(weights[there]).tolist() == [pytest.approx(3 / 2)]


def test_a_batch_is_a_function_of_its_step(samples):
    first, again = training(samples), training(samples)
    for step, streamed in zip(range(2, 4), again.stream(2, 4), strict=True):
        for one, other in zip(first.batch(step)[1:], streamed[1:], strict=True):
            np.testing.assert_array_equal(one, other)
        for name in ("videos", "boxes"):
            np.testing.assert_array_equal(first.batch(step)[0][name], streamed[0][name])


def test_two_processes_share_a_batch(samples):
    whole = training(samples).batch(1)
    halves = [training(samples, process_index=i, process_count=2).batch(1) for i in range(2)]
    for place in (1, 2):
        both = np.concatenate([half[place] for half in halves])
        np.testing.assert_array_equal(both, whole[place])
    videos = np.concatenate([half[0]["videos"] for half in halves])
    np.testing.assert_array_equal(videos, whole[0]["videos"])


def test_more_boxes_than_room_are_chosen_at_random(samples):
    crowded = [sample for sample in samples if len(sample.boxes) == 3]
    view = BoxTransform(32, short_side=(32, 32), horizontal_flip=0)
    batches = training(crowded, max_boxes=1, transform=view)
    seen = {tuple(batches.batch(step)[1][row, 0]) for step in range(8) for row in range(4)}
    assert len(seen) == 3


def test_what_cannot_be_read_is_replaced_or_left_out(samples, caplog):
    bad = dataclasses.replace(samples[0], file="nowhere.avi", path="nowhere.avi at second 1")
    late = dataclasses.replace(samples[1], key=(samples[1].key[0], "0009"), path="late")
    several = [bad, late, *samples[2:]]
    batches = training(several, max_bad_share=0.5)
    for step in range(3):
        batches.batch(step)
    assert set(batches.bad_files) == {"nowhere.avi at second 1", "late"}
    assert "second 9 is not in it" in batches.bad_files["late"]
    clips = ActionTestClips(several, 2, view=BoxView(32), clip=CLIP, max_bad_share=0.5)
    assert [clip.sample.path for group in clips.stream() for clip in group] == [
        sample.path for sample in samples[2:]
    ]
    with pytest.raises(TooManyBadFilesError):
        training(several, max_bad_share=0.0).batch(0)


def test_clips_of_one_size_are_tested_together(samples, tmp_path):
    wide = write_with_opencv(tmp_path / "wide.avi", "MJPG", 120, (160, 64))
    other = [dataclasses.replace(s, file=str(wide), path=f"wide {s.key}") for s in samples[:3]]
    mixed = split_boxes([*samples[:3], *other, *samples[3:]], 2)
    clips = ActionTestClips(mixed, 2, view=BoxView(32), clip=CLIP, max_boxes=2)
    shapes = []

    def predict(batch):
        shapes.append(batch["videos"].shape)
        assert batch["boxes"].shape == (2, 2, 4)
        # The output depends on each box alone.
        return batch["boxes"][..., 2:3] * np.ones(4)

    found = list(predicted(clips, predict))
    assert [clip.sample.path for clip, _ in found] == [sample.path for sample in mixed]
    assert {shape[3] for shape in shapes} == {48, 80} and {shape[0] for shape in shapes} == {2}
    for clip, rows in found:
        assert rows.shape == (len(clip.sample.boxes), 4)
        np.testing.assert_allclose(rows[:, 0], clip.boxes[: len(rows), 2], rtol=1e-6)
