"""Every way to read gives the same clips, and what is timed is their number."""

import sys
import time
import types

import numpy as np
import pytest

from keras_vjepa.data.batches.clips import ClipReader, ClipSettings
from keras_vjepa.data.preparation.pipeline_share import pipeline_share
from keras_vjepa.data.preparation.throughput import (
    ClipReading,
    TimedClip,
    decoders,
    kinds_of_workers,
    throughput,
)
from keras_vjepa.data.reading.errors import UnreadableVideoError
from tests.data.reading.stamped import write_with_av, write_with_opencv

pytestmark = pytest.mark.data

CLIP = ClipSettings(4, 2)


@pytest.fixture
def paths(tmp_path):
    return [str(write_with_opencv(tmp_path / f"{n}.avi", "MJPG", num_frames=20)) for n in "ab"]


@pytest.mark.parametrize("kind", ["threads", "processes", "grain"])
def test_all_workers_give_the_same_clips(kind, paths):
    if kind == "grain":
        pytest.importorskip("grain")
    reading = ClipReading("opencv", CLIP, 32)
    items = [(path, number) for number, path in enumerate(3 * paths)]
    found = [timed.clip for timed in kinds_of_workers()[kind](reading, items, 2)]
    expected = [reading(item).clip for item in items]
    assert len({clip.tobytes() for clip in expected}) > 2 and len(found) == 6
    assert expected[0].shape == (4, 32, 32, 3)
    # Processes return clips in the order in which they finish.
    assert sorted(c.tobytes() for c in found) == sorted(c.tobytes() for c in expected)


def test_all_decoders_give_nearly_the_same_clips(tmp_path):
    path = str(write_with_av(tmp_path / "a.mp4", "libx264"))
    clips = [ClipReading(decoder, CLIP, 32)((path, 1)).clip for decoder in decoders()]
    assert {"av", "opencv"} <= set(decoders())
    for clip in clips:
        assert np.abs(clip - clips[0]).mean() < 0.1


def test_rates_are_counted_once_all_are_at_work():
    def slow_start(reading, items, count):
        for number, _ in enumerate(items):
            time.sleep(0.3 if number == 0 else 0.01)
            yield TimedClip(np.zeros(1, np.float32), 0.5)

    found = throughput(slow_start, None, ["a", "b"], 2, 20)
    assert found.seconds_per_clip == 0.5
    assert 5 < found.clips_per_second < 100  # 20 clips of 10 ms, without those of the start


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UnreadableVideoError, match="gone.mp4"):
        throughput(kinds_of_workers()["threads"], ClipReading("opencv"), ["gone.mp4"], 1, 1)
    with pytest.raises(UnreadableVideoError, match="gone.mp4"):
        throughput(kinds_of_workers()["processes"], ClipReading("opencv"), ["gone.mp4"], 1, 1)


def test_decord_is_timed_where_it_is_installed(paths, monkeypatch):
    class Frames:
        def __init__(self, path, num_threads):
            assert num_threads == 1
            if path == "bad":
                raise OSError("no video")

        def __len__(self):
            return 20

        def get_batch(self, indices):
            frames = np.zeros((len(indices), 64, 96, 3), np.uint8)
            return types.SimpleNamespace(asnumpy=lambda: frames)

    module = types.ModuleType("decord")
    module.VideoReader, module.DECORDError = Frames, RuntimeError
    monkeypatch.setitem(sys.modules, "decord", module)
    assert ClipReading("decord", CLIP, 32)((paths[0], 0)).clip.shape == (4, 32, 32, 3)
    with pytest.raises(UnreadableVideoError, match="no video"):
        ClipReading("decord", CLIP, 32)(("bad", 0))


def test_the_share_of_batches_is_that_of_the_same_clips(paths, monkeypatch):
    read = []
    original = ClipReader.__call__
    monkeypatch.setattr(
        ClipReader,
        "__call__",
        lambda self, item: (
            read.append((item[0], str(item[1].bit_generator.state))),
            original(self, item),
        )[1],
    )
    share = pipeline_share(paths, CLIP, 32, 6)
    assert share.plain > 0 and share.batched > 0 and -1 < share.added_by_the_clock < 100
    # In each of three rounds, the batches read the same clips as the loop.
    loop = read[: 4 * (8 + 2)]
    assert loop == read[len(loop) : 2 * len(loop)] and len(set(loop)) == len(loop)
