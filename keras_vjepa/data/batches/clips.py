"""Take the clips of a sample from its file, and put them into batches (App. B, App. D.1).

A clip is `frames_per_clip` frames, `frame_step` frames apart; a video gives one or several clips.
"""

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from keras_vjepa.arguments import MOST_LONG, check_flag, check_number, check_whole
from keras_vjepa.data.batches.reading_processes import ReadingProcesses
from keras_vjepa.data.reading.clip_indices import clip_frame_indices
from keras_vjepa.data.reading.decoders import Indices
from keras_vjepa.data.reading.errors import UnreadableVideoError
from keras_vjepa.data.reading.fine_tuning_indices import (
    dense_frame_indices,
    interleaved_frame_indices,
    segment_frame_indices,
)
from keras_vjepa.data.reading.frame_memory import lent_frames, stacked
from keras_vjepa.data.reading.image import read_image
from keras_vjepa.data.reading.kept_frames import KeptFrames, KeptVideo
from keras_vjepa.data.reading.limits import DEFAULT_LIMITS, ReadingLimits
from keras_vjepa.data.reading.locating import is_image, name_of
from keras_vjepa.data.reading.media import Media
from keras_vjepa.data.reading.video import VideoReader, open_video

Floats = NDArray[np.float32]
Transform = Callable[[NDArray[np.uint8]], Floats]


@dataclass(frozen=True)
class ClipSettings:
    """Says how clips are taken from a video (App. B, App. D.1, Table 9).

    Args:
        frames_per_clip: frames of a clip; an image is repeated that often.
        frame_step: source frames per clip frame; a clip spans `frames_per_clip * frame_step`.
        num_clips: equal segments of the video, with one clip in each.
        allow_clip_overlap: let clips overlap where the segments are too short (evaluation).

    Raises:
        ValueError: if an argument is out of its range.
    """

    frames_per_clip: int = 16
    frame_step: int = 4
    num_clips: int = 1
    allow_clip_overlap: bool = False

    def __post_init__(self) -> None:
        check_whole(1, MOST_LONG, frames_per_clip=self.frames_per_clip, num_clips=self.num_clips)
        check_whole(1, frame_step=self.frame_step)
        check_flag(allow_clip_overlap=self.allow_clip_overlap)

    def indices(self, video_length: int, rng: np.random.Generator | None) -> Indices:
        """Choose the frames of the clips of a video, `(clips, frames)`.

        Args:
            video_length: number of the video's frames.
            rng: source of the clips' places; None for the first places that there are.
        """
        return clip_frame_indices(
            video_length,
            self.frames_per_clip,
            self.frame_step,
            self.num_clips,
            self.allow_clip_overlap,
            rng,
        )


@dataclass(frozen=True)
class SegmentClips(ClipSettings):
    """Cuts a video into as many equal parts as a clip has frames, and takes one of each (App. D.3).

    Fine-tuning on Something-Something v2 takes clips in this way, with a random frame of each
    part. `frame_step` is not used.

    Example:

    >>> SegmentClips(4).indices(40, np.random.default_rng(0)) // 10
    array([[0, 1, 2, 3]])
    """

    def indices(self, video_length: int, rng: np.random.Generator | None) -> Indices:
        """Choose the frames of the clips of a video, with the arguments of `ClipSettings`."""
        return segment_frame_indices(video_length, self.frames_per_clip, self.num_clips, rng)


@dataclass(frozen=True)
class SegmentTestClips(ClipSettings):
    """Takes evenly spread frames; those of one clip lie between those of the others (App. D.3).

    Example:

    >>> SegmentTestClips(4, num_clips=2).indices(16, None).tolist()
    [[0, 4, 8, 12], [2, 6, 10, 14]]
    """

    def indices(self, video_length: int, rng: np.random.Generator | None) -> Indices:
        """Choose the frames of the clips of a video, with the arguments of `ClipSettings`."""
        return interleaved_frame_indices(video_length, self.frames_per_clip, self.num_clips)


@dataclass(frozen=True)
class DenseTestClips(ClipSettings):
    """Takes every `frame_step`-th frame, and spreads the clips over these frames (App. D.3).

    Example:

    >>> DenseTestClips(4, 2, num_clips=2).indices(16, None).tolist()
    [[0, 2, 4, 6], [8, 10, 12, 14]]
    """

    def indices(self, video_length: int, rng: np.random.Generator | None) -> Indices:
        """Choose the frames of the clips of a video, with the arguments of `ClipSettings`."""
        return dense_frame_indices(
            video_length, self.frames_per_clip, self.frame_step, self.num_clips
        )


@dataclass(frozen=True)
class Clips:
    """Holds the transformed clips of one sample.

    Attributes:
        videos: float32 (frames, height, width, 3), with an axis (views,) before these if the
            transform makes views, and (clips,) before all if there are views or several clips.
        frame_indices: int32 (clips, frames), the places of these frames in the video.
    """

    videos: Floats
    frame_indices: NDArray[np.int32]


def read_clips(
    source: str | Path | Media,
    settings: ClipSettings,
    transform: Transform,
    rng: np.random.Generator,
    limits: ReadingLimits = DEFAULT_LIMITS,
    kept: KeptFrames | None = None,
) -> Clips:
    """Read and transform the clips of a video, or an image repeated to one.

    Args:
        source: a path, or anything else that `media_at` takes; the extension tells images.
        settings: how to choose frames.
        transform: (frames, height, width, 3) to (frames, height, width, 3) or, in several views,
            (views, frames, height, width, 3).
        rng: source of the clips' places.
        limits: time and pixels that the file may take.
        kept: keeps the frames of videos; None keeps none.

    Returns:
        The clips.

    Raises:
        UnreadableVideoError: if the file cannot be read or has fewer frames than clips.
        ValueError: for several clips of an image.
    """
    if is_image(source):
        if settings.num_clips > 1:
            raise ValueError(
                f"`num_clips` must be 1 for images, such as {name_of(source)}. "
                f"Received: {settings.num_clips}"
            )
        view = transform(read_image(source, limits)[np.newaxis])
        clips = np.repeat(view, settings.frames_per_clip, axis=-4)[np.newaxis]
        indices = np.zeros((1, settings.frames_per_clip), np.int64)
    else:
        opened = open_video if kept is None else kept.opened
        with opened(source, limits=limits) as video:
            if video.num_frames < settings.num_clips:
                raise UnreadableVideoError(
                    video.path,
                    f"{video.num_frames} frames are not enough for {settings.num_clips} clips",
                )
            indices = settings.indices(video.num_frames, rng)
            clips = _transformed(video, indices, transform)
    single = len(clips) == 1 and clips.ndim == 5
    return Clips(clips[0] if single else clips, indices.astype(np.int32))


def _transformed(video: VideoReader | KeptVideo, indices: Indices, transform: Transform) -> Floats:
    # All clips are read in one call, so that a frame which several of them share is decoded and
    # stored only once.
    distinct, places = np.unique(indices, return_inverse=True)
    with lent_frames((len(distinct), video.info.height, video.info.width, 3)) as memory:
        frames = video.read(distinct, memory)
        if np.array_equal(distinct, indices.ravel()):
            clips = [transform(clip) for clip in np.split(frames, len(indices))]
        else:
            clips = [transform(frames[row]) for row in places.reshape(indices.shape)]
        if len(clips) == 1 and not np.may_share_memory(clips[0], frames):
            return clips[0][np.newaxis]  # copying takes a tenth of the time of a clip
        return stacked(clips)


@dataclass(frozen=True)
class ClipReader:
    """Reads the clips of one source after another, as some batches have them, in any process.

    Args:
        transform: called with the frames of a clip and a generator.
        clip: how to choose frames.
        limits: time and pixels that a file may take.
        kept: keeps the frames of videos; None keeps none.
    """

    transform: Callable[[NDArray[np.uint8], np.random.Generator], Floats]
    clip: ClipSettings
    limits: ReadingLimits
    kept: KeptFrames | None = None

    def __call__(self, item: tuple[str | Media, np.random.Generator]) -> Clips:
        """Read the clips of a source; the generator places and augments them."""
        source, rng = item
        # OpenCV's own threads would compete with ours for the same cores.
        if cv2.getNumThreads() != 1:
            cv2.setNumThreads(1)
        transform = functools.partial(self._transformed, rng=rng)
        return read_clips(source, self.clip, transform, rng, self.limits, self.kept)

    def _transformed(self, frames: NDArray[np.uint8], rng: np.random.Generator) -> Floats:
        return self.transform(frames, rng)


@dataclass(frozen=True)
class Undrawn:
    """Makes a transform that draws nothing callable as those that do.

    Args:
        transform: called with the frames of a clip.
    """

    transform: Callable[[NDArray[np.uint8]], Floats]

    def __call__(self, frames: NDArray[np.uint8], rng: np.random.Generator) -> Floats:
        """Transform the frames of a clip."""
        return self.transform(frames)


class _Own(threading.local):
    """Holds what the thread at work reads with, if not by itself."""

    processes: ReadingProcesses | None = None


_own = _Own()


def check_cache(cache_gib: float | None, use_multiprocessing: bool = False) -> None:
    """Check how much is to be kept in memory, before there are samples; see `OfClips`.

    Raises:
        ValueError: if it is no number of GiB, or worker processes are to read.
    """
    check_number("(0, 65536]", optional=True, cache_gib=cache_gib)
    if use_multiprocessing and cache_gib is not None:
        raise ValueError(
            "`cache_gib` must be None with `use_multiprocessing`, because every process would keep "
            f"frames of its own. Received: {cache_gib:g}"
        )


@dataclass
class OfClips:
    """Adds to indexed batches how the clips of a sample are taken and transformed.

    Args:
        transform: transforms a clip; each kind of batches says what it is called with.
        clip: how to choose frames.
        limits: time and pixels that a file may take; one that takes more is unreadable.
        use_multiprocessing: read in worker processes, not threads, `num_workers` of them. Batches
            are the same; a crash of a decoder costs a file and not the run.
        cache_gib: GiB of memory in which decoded videos are kept, so that later epochs need not
            decode them; clips are the same. By default, no video is kept.
    """

    transform: Callable[..., NDArray[np.float32]]
    clip: ClipSettings = field(default=ClipSettings(), kw_only=True)
    limits: ReadingLimits = field(default=DEFAULT_LIMITS, kw_only=True)
    use_multiprocessing: bool = field(default=False, kw_only=True)
    cache_gib: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        check_flag(use_multiprocessing=self.use_multiprocessing)
        check_cache(self.cache_gib, self.use_multiprocessing)
        self._kept = KeptFrames(int(self.cache_gib * 2**30)) if self.cache_gib else None
        super().__post_init__()  # type: ignore[misc]

    def reader(self) -> ClipReader:
        """Return what reads the clips of a sample."""
        return ClipReader(self.transform, self.clip, self.limits, self._kept)

    def _clips(self, source: str | Media, rng: np.random.Generator) -> Clips:
        """Read the clips of a source; the generator places and augments them."""
        if _own.processes is not None:
            return cast(Clips, _own.processes.read(source, rng))
        return self.reader()((source, rng))

    @contextmanager
    def _reading(self) -> Iterator[Callable[[], None]]:
        """Lend what each reading thread is to begin with."""
        if not self.use_multiprocessing:
            yield lambda: None
            return
        processes = ReadingProcesses(self.reader())
        try:
            yield lambda: setattr(_own, "processes", processes)
        finally:
            processes.end()
