"""Clips of a file hold the frames that were chosen, each decoded once."""

import numpy as np
import pytest

from keras_vjepa.data.batches.clips import ClipSettings, read_clips
from keras_vjepa.data.reading.clip_indices import clip_frame_indices
from keras_vjepa.data.reading.video import VideoReader
from tests.data.reading.stamped import stamps, write_with_opencv

pytestmark = pytest.mark.data


@pytest.mark.parametrize("num_frames", [1, 2, 7, 30, 100])
@pytest.mark.parametrize(
    "settings",
    [
        ClipSettings(8, 4),
        ClipSettings(8, 4, 3),
        ClipSettings(8, 4, 3, allow_clip_overlap=True),
        ClipSettings(4, 5, 7, allow_clip_overlap=True),
    ],
    ids=str,
)
def test_frames_of_clips(tmp_path, monkeypatch, num_frames, settings):
    path = write_with_opencv(tmp_path / "a.avi", "MJPG", num_frames)
    if num_frames < settings.num_clips:
        pytest.skip("not one frame for each clip")
    read = []
    original = VideoReader.read
    monkeypatch.setattr(
        VideoReader,
        "read",
        lambda self, indices, out: read.append(indices) or original(self, indices, out),
    )
    seen = []

    def transform(frames):
        seen.append(stamps(frames))
        frames[:] = 0  # changing one clip must not change another
        return np.zeros((len(frames), 2, 2, 3), np.float32)

    clips = read_clips(str(path), settings, transform, np.random.default_rng(0))
    expected = clip_frame_indices(
        num_frames,
        settings.frames_per_clip,
        settings.frame_step,
        settings.num_clips,
        settings.allow_clip_overlap,
        np.random.default_rng(0),
    )
    np.testing.assert_array_equal(seen, expected)
    np.testing.assert_array_equal(clips.frame_indices, expected)
    (indices,) = read
    np.testing.assert_array_equal(indices, np.unique(expected))
