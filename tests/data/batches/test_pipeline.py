"""Batches as a function of the step."""

import logging

import cv2
import numpy as np
import pytest

from keras_vjepa.data.batches.clips import ClipSettings
from keras_vjepa.data.batches.indexed import TooManyBadFilesError
from keras_vjepa.data.batches.mask_kinds import LONG_RANGE, SHORT_RANGE
from keras_vjepa.data.batches.mask_sampler import MaskSampler
from keras_vjepa.data.batches.pretraining import ClipBatches
from keras_vjepa.data.reading.limits import ReadingLimits
from keras_vjepa.data.sources.samples import Sample
from keras_vjepa.data.transforms.training import PretrainTransform

pytestmark = pytest.mark.data


@pytest.fixture
def samples(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(6):
        fourcc = cv2.VideoWriter_fourcc(*"MJPG")
        writer = cv2.VideoWriter(str(tmp_path / f"{i}.avi"), fourcc, 24, (32, 32))
        for frame in rng.integers(256, size=(12, 32, 32, 3), dtype=np.uint8):
            writer.write(frame)
        writer.release()
    return [Sample(str(tmp_path / f"{i}.avi")) for i in range(6)]


def batches(samples, **arguments):
    masks = MaskSampler([SHORT_RANGE, LONG_RANGE], (2, 8, 8), "budget", (20, 10), (40, 60))
    defaults = {"batch_size": 4, "clip": ClipSettings(4, 2), "seed": 3}
    return ClipBatches(
        samples, transform=PretrainTransform(16), masks=masks, **{**defaults, **arguments}
    )


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


def test_a_batch(samples):
    batch = batches(samples).batch(0)
    assert {name: (a.shape, a.dtype.name) for name, a in batch.items()} == {
        "videos": ((4, 4, 16, 16, 3), "float32"),
        "context_indices_0": ((4, 20), "int32"),
        "target_indices_0": ((4, 40), "int32"),
        "context_indices_1": ((4, 10), "int32"),
        "target_indices_1": ((4, 60), "int32"),
    }


def test_the_stream_is_the_batches_and_resumes_anywhere(samples):
    expected = [batches(samples).batch(step) for step in range(5)]
    for step, batch in enumerate(batches(samples, num_workers=3).stream(stop=5)):
        assert_same(batch, expected[step])
    resumed = list(batches(samples).stream(start=3, stop=5))
    assert len(resumed) == 2
    assert_same(resumed[0], expected[3])
    other = batches(samples, seed=4).batch(0)
    assert np.abs(other["videos"] - expected[0]["videos"]).max() > 0


def test_every_sample_once_an_epoch(samples):
    pipeline = batches(samples)
    for epoch in range(3):
        indices = [pipeline._sample_index(epoch * 6 + place) for place in range(6)]
        assert sorted(indices) == list(range(6))
    orders = {tuple(pipeline._sample_index(e * 6 + p) for p in range(6)) for e in range(4)}
    assert len(orders) > 1


def test_processes_share_the_global_batch(samples):
    whole = batches(samples).batch(2)
    parts = [batches(samples, process_index=i, process_count=2).batch(2) for i in range(2)]
    for name in whole:
        joined = np.concatenate([part[name] for part in parts])
        np.testing.assert_array_equal(joined, whole[name])


def test_a_bad_file_is_named_and_its_place_is_filled(samples, caplog):
    with open(samples[2].path, "w") as file:
        file.write("no video")
    pipeline = batches(samples, max_bad_share=0.2)
    with caplog.at_level(logging.WARNING):
        found = [pipeline.batch(step) for step in range(3)]
    assert all(len(batch["videos"]) == 4 for batch in found)
    assert list(pipeline.bad_files) == [samples[2].path]
    assert len(caplog.records) == 1 and samples[2].path in caplog.text
    # Another run replaces the same files by the same others, whatever it has read before.
    assert_same(batches(samples, max_bad_share=0.2).batch(2), found[2])


def test_a_file_beyond_the_limits_is_a_bad_one(samples):
    size = (64, 32)
    writer = cv2.VideoWriter(samples[2].path, cv2.VideoWriter_fourcc(*"MJPG"), 24, size)
    for _ in range(12):
        writer.write(np.zeros((*size[::-1], 3), np.uint8))
    writer.release()
    pipeline = batches(samples, limits=ReadingLimits(max_frame_pixels=32 * 32), max_bad_share=0.2)
    for step in range(3):
        pipeline.batch(step)
    (reason,) = pipeline.bad_files.values()
    assert reason.endswith("2.avi: 64x32 pixels are more than `max_frame_pixels`=1024")
    pipeline = batches(samples, limits=ReadingLimits(max_frame_pixels=64 * 32))
    for step in range(3):
        pipeline.batch(step)
    assert not pipeline.bad_files


def test_too_many_bad_files_stop_the_run(samples):
    for sample in samples[:2]:
        with open(sample.path, "w") as file:
            file.write("no video")
    pipeline = batches(samples, max_bad_share=0.2)
    with pytest.raises(TooManyBadFilesError, match="2 of 6 videos cannot be read, more than"):
        list(pipeline.stream(stop=3))
    assert isinstance(pipeline.error, TooManyBadFilesError)


def test_every_thread_gives_the_same_reason(samples):
    """Also a thread that only meets the file which another one found to be one too many."""
    broken = Sample("/nowhere/a.mp4")
    pipeline = batches([broken], max_bad_share=0.2)
    pipeline.bad_files[broken.path] = "what another thread found"
    with pytest.raises(TooManyBadFilesError, match="1 of 1 videos cannot be read.*another thread"):
        pipeline.batch(0)


def test_nothing_readable_ends(samples):
    missing = [Sample("/nowhere/a.mp4"), Sample("/nowhere/b.mp4")]
    with pytest.raises(TooManyBadFilesError):
        batches(missing, max_bad_share=1.0).batch(0)


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"batch_size": 3, "process_count": 2}, "`batch_size` must be a multiple of"),
        ({"process_count": 2, "process_index": 2}, r"`process_index` must be in \[0, 2\)"),
    ],
)
def test_bad_arguments_are_named(samples, arguments, message):
    with pytest.raises(ValueError, match=message):
        batches(samples, **arguments)
