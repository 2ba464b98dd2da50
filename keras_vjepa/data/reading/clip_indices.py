"""Choose the frames of a clip (§3.4, App. B, App. D.1).

Departures from the authors' reader: see `clip_frame_indices` and `frame_step_for_duration`.
"""

import numpy as np

from keras_vjepa.data.reading.decoders import (
    Indices,
)

# ------------------------------------------------------------------ choosing the frames of a clip


def clip_frame_indices(
    video_length: int,
    frames_per_clip: int,
    frame_step: int,
    num_clips: int = 1,
    allow_clip_overlap: bool = False,
    rng: np.random.Generator | None = None,
) -> Indices:
    """Choose the frames of one or more clips.

    The video is split into `num_clips` equal partitions. A clip lies somewhere in its partition
    if the window of `frames_per_clip * frame_step` frames fits; otherwise it takes what there is
    and repeats the last frame (or, with `allow_clip_overlap`, clips start closer together). The
    frames are spread over the window *including its end*: 16 x 4 has the mean step 64 / 15.

    Args:
        video_length: number of frames of the video.
        frames_per_clip: number of frames in a clip.
        frame_step: mean distance between two frames of a clip, in frames of the video.
        num_clips: number of clips, one in each partition.
        allow_clip_overlap: whether clips may overlap where the partitions are shorter than the
            window (evaluation); if not, short partitions repeat their last frame (pretraining).
        rng: draws the end of each window, with `rng.integers(low, high)`, once for each clip
            that has a choice. `None` takes the start of each partition.

    Returns:
        int64 (num_clips, frames_per_clip), each in [0, video_length).

    Raises:
        ValueError: if a count is below 1.

    Departures: the authors' reader gives frame -1 for a partition of one frame with overlap and
    for a video with fewer frames than clips; here it is frame 0. A clip that is shortened by
    overlap never uses its last frame, as in their reader.

    Example:

    >>> clip_frame_indices(100, frames_per_clip=8, frame_step=4)
    array([[ 0,  4,  9, 13, 18, 22, 27, 31]])
    >>> clip_frame_indices(6, frames_per_clip=4, frame_step=2)
    array([[0, 3, 5, 5]])
    """
    counts = (video_length, frames_per_clip, frame_step, num_clips)
    names = ("video_length", "frames_per_clip", "frame_step", "num_clips")
    for name, count in zip(names, counts, strict=True):
        if count < 1:
            raise ValueError(f"`{name}` must be at least 1. Received: {count}")
    window = frames_per_clip * frame_step
    partition = video_length // num_clips
    starts = partition * np.arange(num_clips)
    if partition > window:
        ends = [window if rng is None else rng.integers(window, partition) for _ in starts]
        clips = [_window(int(end) - window, int(end), frames_per_clip) for end in ends]
    elif not allow_clip_overlap:
        clips = [_short_clip(partition, frames_per_clip, frame_step)] * num_clips
    else:
        clips = [_short_clip(min(window, video_length) - 1, frames_per_clip, frame_step)]
        slack = max(0, video_length - window)
        starts = slack // max(1, num_clips - 1) * np.arange(num_clips)
    return starts[:, None] + np.stack(clips)


def _window(start: int, end: int, num_points: int) -> Indices:
    """Spread points from start to end; the last is moved back, as the end is one frame too far."""
    return np.linspace(start, end, num_points).clip(start, max(end - 1, 0)).astype(np.int64)


def _short_clip(length: int, frames_per_clip: int, frame_step: int) -> Indices:
    """Take as many steps as fit into `length`, then its last frame until the clip is full."""
    indices = np.full(frames_per_clip, max(length - 1, 0), np.int64)
    num_points = length // frame_step
    indices[:num_points] = _window(0, length, num_points)
    return indices


def frame_step_for_duration(fps: float, duration: float, frames_per_clip: int) -> int:
    """Compute the frame step with which a clip lasts about `duration` seconds.

    Args:
        fps: frames per second of the video.
        duration: length of the clip in seconds.
        frames_per_clip: number of frames in the clip.

    Returns:
        The step in frames of the video, rounded down, at least 1.

    Raises:
        ValueError: if an argument is not positive.

    Departure: the step is never 0, with which the authors' reader divides by zero.

    Example:

    >>> frame_step_for_duration(fps=30.0, duration=2.0, frames_per_clip=16)
    3
    """
    for name, value in (("fps", fps), ("duration", duration), ("frames_per_clip", frames_per_clip)):
        if not value > 0:
            raise ValueError(f"`{name}` must be positive. Received: {value}")
    return max(1, int(duration * fps / frames_per_clip))
