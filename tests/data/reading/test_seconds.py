"""Frames around a second: SlowFast's numbers, times that a video has, what is not in it."""

from dataclasses import dataclass

import cv2
import numpy as np
import pytest

from keras_vjepa.data.batches.actions import KeyFrameClips
from keras_vjepa.data.reading.errors import UnreadableVideoError
from keras_vjepa.data.reading.frame_folder import FrameFolder
from keras_vjepa.data.reading.seconds import frames_at, seconds_around
from tests.data.reading.stamped import (
    stamped_frame,
    stamps,
    write_with_av,
    write_with_opencv,
)

pytestmark = pytest.mark.data


@dataclass
class Video:
    """As much of a `VideoReader` as times need."""

    shown: np.ndarray | None
    num_frames: int = 0
    fps: float = 0.0
    path: str = "video.mp4"

    def times(self):
        return self.shown


@pytest.mark.parametrize("second", [902, 1000, 1798])
def test_of_extracted_frames_they_are_slowfasts(second):
    """From (second - 900) * 30 - 32 on, every fourth, not beyond the ends."""
    count = 27_030
    video = Video(np.arange(count) / 30)
    expected = np.clip((second - 900) * 30 - 32 + 4 * np.arange(16), 0, count - 1)
    np.testing.assert_array_equal(
        frames_at(video, seconds_around(second - 900, 16, 4, 30)), expected
    )


def test_ends_are_repeated():
    video = Video(np.arange(40) / 30)
    found = frames_at(video, seconds_around(1, 16, 4, 30))
    np.testing.assert_array_equal(found, np.clip(30 - 32 + 4 * np.arange(16), 0, 39))


def test_steps_are_counted_in_seconds():
    """A video of 24 frames a second shows the same moments."""
    wanted = seconds_around(5, 8, 4, 30)
    found = frames_at(Video(np.arange(240) / 24), wanted)
    assert np.abs(found / 24 - wanted).max() <= 0.5 / 24 + 1e-9
    uneven = np.cumsum(np.random.default_rng(0).uniform(0.01, 0.09, 300))
    found = frames_at(Video(uneven), wanted)
    nearest = np.abs(uneven[:, None] - wanted).argmin(axis=0)
    np.testing.assert_array_equal(found, nearest)


@pytest.mark.parametrize("second", [3, 12])
def test_a_second_that_is_not_there_is_named(second):
    video = Video(4 + np.arange(100) / 30)
    with pytest.raises(UnreadableVideoError, match=f"second {second} is not in it: its frames are"):
        frames_at(video, seconds_around(second, 4, 4, 30))


def test_a_video_without_times_needs_a_rate():
    wanted = seconds_around(2, 4, 15, 30)
    np.testing.assert_array_equal(frames_at(Video(None, 200, 10.0), wanted), [10, 15, 20, 25])
    with pytest.raises(UnreadableVideoError, match="how many frames make a second"):
        frames_at(Video(None, 200), wanted)


def test_real_files(tmp_path):
    """Of constant and of changing rate, and a folder of the same frames from another second on."""
    clips = KeyFrameClips(num_frames=4, frame_step=6, fps=30)
    plain = write_with_opencv(tmp_path / "plain.avi", "MJPG")
    assert stamps(clips.read(str(plain), 2)) == [48, 54, 60, 66]
    folder = tmp_path / "frames"
    folder.mkdir()
    for number in range(120):
        cv2.imwrite(str(folder / f"f_{number + 1:06d}.png"), stamped_frame(number))
    later = KeyFrameClips(num_frames=4, frame_step=6, fps=30, first_second=900)
    assert stamps(later.read(FrameFolder(str(folder), 30), 902)) == [48, 54, 60, 66]
    with pytest.raises(UnreadableVideoError, match="lies before its `first_second`=900"):
        later.read(FrameFolder(str(folder), 30), 899)


def test_a_changing_rate(tmp_path):
    times = [20 * n if n < 60 else 1200 + 50 * (n - 60) for n in range(120)]
    path = write_with_av(tmp_path / "uneven.mkv", "libx264", times)
    found = stamps(KeyFrameClips(num_frames=4, frame_step=15, fps=30).read(str(path), 2))
    assert found == [50, 66, 76, 86]
