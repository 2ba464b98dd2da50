"""Choose the frames of clips as fine-tuning does, in training and test (App. D.3, Table 12).

Table 12 of the paper names segments and a sampling rate. Everything else is as in VideoMAE, which
the paper follows.
"""

import numpy as np

from keras_vjepa.arguments import check_whole
from keras_vjepa.data.reading.decoders import Indices


def segment_frame_indices(
    video_length: int,
    frames_per_clip: int,
    num_clips: int = 1,
    rng: np.random.Generator | None = None,
) -> Indices:
    """Choose a random frame of each of `frames_per_clip` equal parts of a video, for each clip.

    Args:
        video_length: number of frames of the video.
        frames_per_clip: number of frames in a clip.
        num_clips: number of clips, each drawn by itself.
        rng: source of the choice; None takes the first frame of each part.

    Returns:
        int64 (num_clips, frames_per_clip), in ascending order. If a video has fewer frames than a
        clip, some are there more than once.

    Raises:
        ValueError: if a count is below 1.

    Example:

    >>> segment_frame_indices(8, 4)
    array([[0, 2, 4, 6]])
    >>> segment_frame_indices(2, 4)
    array([[0, 0, 1, 1]])
    """
    check_whole(1, video_length=video_length, frames_per_clip=frames_per_clip, num_clips=num_clips)
    part = video_length // frames_per_clip
    if part == 0:
        spread = np.arange(frames_per_clip) * video_length // frames_per_clip
        return np.tile(spread.astype(np.int64), (num_clips, 1))
    starts = np.tile(part * np.arange(frames_per_clip, dtype=np.int64), (num_clips, 1))
    return starts if rng is None else starts + rng.integers(part, size=starts.shape)


def interleaved_frame_indices(video_length: int, frames_per_clip: int, num_clips: int) -> Indices:
    """Choose evenly spread frames of a video, and deal them out to the clips in turn.

    Args:
        video_length: number of frames of the video.
        frames_per_clip: number of frames in a clip.
        num_clips: number of clips.

    Returns:
        int64 (num_clips, frames_per_clip).

    Raises:
        ValueError: if a count is below 1.

    Example:

    >>> interleaved_frame_indices(64, 4, 2)
    array([[ 0, 16, 32, 48],
           [ 8, 24, 40, 56]])
    """
    check_whole(1, video_length=video_length, frames_per_clip=frames_per_clip, num_clips=num_clips)
    part = video_length / frames_per_clip
    starts = part * np.arange(frames_per_clip)
    offsets = part * np.arange(num_clips)[:, None] / num_clips
    return (starts + offsets).astype(np.int64)


def dense_frame_indices(
    video_length: int, frames_per_clip: int, frame_step: int, num_clips: int
) -> Indices:
    """Choose clips that are spread over every `frame_step`-th frame of a video.

    Args:
        video_length: number of frames of the video.
        frames_per_clip: number of frames in a clip.
        frame_step: distance between two frames of a clip.
        num_clips: number of clips, from the beginning of the video to its end.

    Returns:
        int64 (num_clips, frames_per_clip). A short video repeats its last frame.

    Raises:
        ValueError: if a count is below 1.

    Example:

    >>> dense_frame_indices(40, 4, 4, 3)
    array([[ 0,  4,  8, 12],
           [12, 16, 20, 24],
           [24, 28, 32, 36]])
    """
    check_whole(1, video_length=video_length, frames_per_clip=frames_per_clip)
    check_whole(1, frame_step=frame_step, num_clips=num_clips)
    thinned = np.arange(0, video_length, frame_step, dtype=np.int64)
    missing = max(frames_per_clip - len(thinned), 0)
    thinned = np.concatenate([thinned, np.repeat(thinned[-1:], missing)])
    slack = max(len(thinned) - frames_per_clip, 0) / max(num_clips - 1, 1)
    starts = [int(slack * clip) for clip in range(num_clips)]
    return np.stack([thinned[start : start + frames_per_clip] for start in starts])
