"""A fixed sample of damaged files ends in frames or in the error that names it; see fuzz.py."""

import numpy as np
import pytest

from keras_vjepa.data.reading import video
from keras_vjepa.data.sources.video_writing import write_motion_jpeg
from tests.data.reading import fuzz
from tests.data.reading.mutants import damaged, frames, sound_images, sound_videos

pytestmark = pytest.mark.data


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    path = tmp_path_factory.mktemp("sound") / "a.avi"
    write_motion_jpeg(path, np.stack(frames()), 30)
    return str(path)


@pytest.mark.parametrize("has_av", [True, False])
def test_damaged_videos(tmp_path, monkeypatch, sound, has_av):
    if has_av:
        pytest.importorskip("av")
    monkeypatch.setattr(video, "has_av", lambda: has_av)
    outcomes = read(tmp_path, sound, damaged(sound_videos(), 57, seed=1))
    # Both outcomes occur often enough for the test to mean something.
    assert min(outcomes.count("frames"), outcomes.count("named")) > 9


def test_damaged_images(tmp_path, sound):
    outcomes = read(tmp_path, sound, damaged(sound_images(), 36, seed=1))
    assert min(outcomes.count("frames"), outcomes.count("named")) > 5


def read(folder, sound, mutants):
    outcomes = []
    for name, content in mutants:
        (folder / name).write_bytes(content)
        outcomes.append(fuzz.read_in_all_ways(str(folder / name), sound))
        assert outcomes[-1] in ("frames", "named"), name
    return outcomes


def test_the_same_seed_makes_the_same_files():
    videos = sound_videos(["mjpg.avi", "mp4v.mp4"])
    first, second = (list(damaged(videos, 20, seed=2)) for _ in "ab")
    assert first == second and len({content for _, content in first}) == 20
    assert [c for _, c in damaged(videos, 20, seed=3)] != [c for _, c in first]


def test_another_frame_alone_is_noticed(sound, monkeypatch):
    """So is an error that does not name the file."""
    read = video.VideoReader._read
    assert fuzz.read_in_all_ways(sound, sound) == "frames"

    def neighbour(self, wanted, out=None):
        return read(self, wanted - 1 if len(wanted) == 1 else wanted, out)

    monkeypatch.setattr(video.VideoReader, "_read", neighbour)
    outcome = fuzz.read_in_all_ways(sound, sound)
    assert outcome.startswith("another frame alone: ['8 shows 7, in a row 8'")

    def fail(self, wanted, out=None):
        raise KeyError("x")

    monkeypatch.setattr(video.VideoReader, "_read", fail)
    assert fuzz.read_in_all_ways(sound, sound) != "frames"
    monkeypatch.setattr(video.VideoReader, "read", fail)
    assert fuzz.read_in_all_ways(sound, sound).startswith("KeyError")
