"""Find the frames around a second of a video, by the times at which they are shown (App. D.2).

AVA's actions are annotated at seconds of the original videos. Cutting these and converting them to
30 frames a second first, as is usual, costs as much as 3 points of mAP where another version of the
program does it; here the frames are found in the original by time. Of frames that were extracted
already, `first_second` says when they begin.
"""

import numpy as np
from numpy.typing import NDArray

from keras_vjepa.arguments import MOST_LONG, check_number, check_whole
from keras_vjepa.data.reading.decoders import Indices
from keras_vjepa.data.reading.errors import UnreadableVideoError
from keras_vjepa.data.reading.video import VideoReader

# The most seconds by which a key frame may lie outside of the video.
_TOLERANCE = 0.5


def seconds_around(
    second: float, num_frames: int, frame_step: int, fps: float
) -> NDArray[np.float64]:
    """Compute the times of a clip's frames: the key frame is the first of its second half.

    Args:
        second: of the key frame.
        num_frames: of the clip.
        frame_step: distance between two of them, in frames of a video of `fps` frames a second.
        fps: in which the step is counted, whatever the video has.

    Raises:
        ValueError: for a number out of range.

    Example:

    >>> seconds_around(902, num_frames=4, frame_step=15, fps=30).tolist()
    [901.0, 901.5, 902.0, 902.5]
    """
    check_number("[0, inf)", second=second)
    check_whole(1, MOST_LONG, num_frames=num_frames)
    check_whole(1, frame_step=frame_step)
    check_number("(0, 100000]", fps=fps)
    offsets = np.arange(num_frames) * frame_step - num_frames * frame_step // 2
    return second + offsets / fps


def frames_at(video: VideoReader, seconds: NDArray[np.float64]) -> Indices:
    """Find the frames shown nearest to some times; beyond the video's ends, its first or last.

    Args:
        video: an open video.
        seconds: times, of which the middle one is the key frame's.

    Returns:
        int64, as many; of two that are equally near, the earlier.

    Raises:
        UnreadableVideoError: if the key frame is not in the video, or the video has no times.
    """
    times = _times(video)
    key = float(seconds[len(seconds) // 2])
    if not times[0] - _TOLERANCE <= key <= times[-1] + _TOLERANCE:
        raise UnreadableVideoError(
            video.path,
            f"second {key:g} is not in it: its frames are from second {times[0]:.2f} to "
            f"{times[-1]:.2f}",
        )
    if len(times) == 1:
        return np.zeros(len(seconds), np.int64)
    after = np.searchsorted(times, seconds).clip(1, len(times) - 1)
    # Files contain rounded times, so frames that are almost as near count as equally near.
    earlier = seconds - times[after - 1] <= times[after] - seconds + 1e-6
    return np.asarray(after - earlier, np.int64)


def middle_second(video: VideoReader) -> float:
    """Tell when the middle frame of a video is shown.

    Args:
        video: an open video.

    Raises:
        UnreadableVideoError: if it has no times.
    """
    return float(_times(video)[video.num_frames // 2])


def _times(video: VideoReader) -> NDArray[np.float64]:
    """Return the second at which each frame is shown."""
    times = video.times()
    if times is not None:
        return times
    if not video.fps > 0:
        raise UnreadableVideoError(video.path, "it does not say how many frames make a second")
    return np.asarray(np.arange(video.num_frames) / video.fps)
