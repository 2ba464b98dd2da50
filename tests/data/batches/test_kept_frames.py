"""Frames that are kept in memory are those of the files, and files are opened once."""

import logging

import numpy as np
import pytest

from keras_vjepa.data import EvaluationBatches, LabelledBatches, Sample
from keras_vjepa.data.reading import kept_frames
from keras_vjepa.data.reading.errors import UnreadableVideoError
from keras_vjepa.data.reading.kept_frames import KeptFrames
from tests.data.batches.stamped_sources import (
    HEIGHT,
    NUM_FRAMES,
    NUM_VIDEOS,
    WIDTH,
    as_it_is,
    batches_of,
    samples_of,
    seen,
    write_sources,
)

pytestmark = pytest.mark.data

VIDEO_BYTES = NUM_FRAMES * HEIGHT * WIDTH * 3


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("sources")
    write_sources(root)
    (root / "folder" / "05.avi").write_bytes(b"RIFF" + bytes(200))
    return root


@pytest.fixture
def opened(monkeypatch):
    """The names of the videos that were opened, in their order."""
    names, real = [], kept_frames.open_video

    def open_video(source, **options):
        names.append(str(source))
        return real(source, **options)

    monkeypatch.setattr(kept_frames, "open_video", open_video)
    return names


@pytest.mark.parametrize("num_workers", [1, 3])
def test_clips_are_the_same_from_every_source(root, num_workers):
    samples = [s for kind in ("folder", "frames", "shards", "rows") for s in samples_of(root, kind)]
    options = {"max_bad_share": 0.1, "num_workers": num_workers}
    expected, found = batches_of(samples, **options), batches_of(samples, cache_gib=1, **options)
    whole = [seen(batch) for batch in expected.stream(0, 60)]
    assert [seen(batch) for batch in found.stream(0, 37)] == whole[:37]
    assert [seen(batch) for batch in found.stream(37, 60)] == whole[37:]
    assert found.bad_files == expected.bad_files and found.bad_files


def test_each_file_is_opened_once(root, opened):
    samples = samples_of(root, "frames")
    batches = batches_of(samples, cache_gib=1, num_workers=1)
    list(batches.stream(0, 3 * NUM_VIDEOS // 4))
    assert len(opened) == len(set(opened)) == NUM_VIDEOS


def test_what_is_given_out_is_a_copy(root):
    kept, sample = KeptFrames(VIDEO_BYTES), samples_of(root, "folder")[0]
    for _ in range(2):
        with kept.opened(sample.path) as video:
            first, again = video.read([0]), video.read([0, 1, 0])
            np.testing.assert_array_equal(again[[0, 2]], np.repeat(first, 2, axis=0))
            expected = first.copy()
            first[:] = 0
    with kept.opened(sample.path) as video:
        np.testing.assert_array_equal(video.read([0]), expected)
    assert kept.num_bytes == VIDEO_BYTES


def test_what_does_not_fit_is_said_once_and_read_each_time(root, opened, caplog):
    kept, samples = KeptFrames(2 * VIDEO_BYTES + 1), samples_of(root, "folder")[:4]
    with caplog.at_level(logging.WARNING):
        for sample in 3 * samples:
            with kept.opened(sample.path) as video:
                assert len(video.read([0, 3])) == 2
    assert kept.num_bytes == 2 * VIDEO_BYTES
    assert [opened.count(sample.path) for sample in samples] == [1, 1, 3, 3]
    assert caplog.text.count("2 videos are kept in memory") == 1


def test_a_video_with_a_damaged_frame_is_unreadable_and_takes_no_room(root, monkeypatch):
    kept, path = KeptFrames(10 * VIDEO_BYTES), samples_of(root, "folder")[2].path
    real = kept_frames.VideoReader.read

    def read(reader, indices, out=None):
        if 3 in indices:
            raise UnreadableVideoError(path, "frame 3 is damaged")
        return real(reader, indices, out)

    monkeypatch.setattr(kept_frames.VideoReader, "read", read)
    for _ in range(2):
        with pytest.raises(UnreadableVideoError, match="frame 3"), kept.opened(path) as video:
            video.read([0])
    assert kept.num_bytes == 0
    monkeypatch.undo()
    with kept.opened(path) as video:
        assert len(video.read([0, 3])) == 2
    assert kept.num_bytes == VIDEO_BYTES


def test_labelled_batches_keep_frames_too(root, opened):
    samples = [Sample(s.path, n % 2) for n, s in enumerate(samples_of(root, "folder")[:4])]
    for kind in (LabelledBatches, EvaluationBatches):
        opened.clear()
        batches = kind(samples, 4, as_it_is, num_classes=2, cache_gib=0.5)
        (first,), (again,) = ([*batches.stream(0, 1)] for _ in range(2))
        np.testing.assert_array_equal(first[0], again[0])
        assert len(opened) == 4


def test_it_does_not_go_with_processes(root):
    with pytest.raises(ValueError, match=r"`cache_gib` must be None with `use_multiprocessing`"):
        batches_of(samples_of(root, "folder"), cache_gib=1, use_multiprocessing=True)
    with pytest.raises(ValueError, match=r"`cache_gib` must be in \(0, 65536\] or None"):
        batches_of(samples_of(root, "folder"), cache_gib=0)
