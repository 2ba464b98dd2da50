"""Time how fast clips come, by decoder, by kind of workers and by their number (§3.4, App. C)."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from keras_vjepa.data.batches.clips import ClipSettings
from keras_vjepa.data.preparation.processes import ProcessFailure, each_in_processes
from keras_vjepa.data.random_streams import random_stream
from keras_vjepa.data.reading.av_decoder import has_av
from keras_vjepa.data.reading.clip_indices import clip_frame_indices
from keras_vjepa.data.reading.errors import UnreadableVideoError
from keras_vjepa.data.reading.frame_memory import lent_frames
from keras_vjepa.data.reading.limits import DEFAULT_LIMITS, ReadingLimits
from keras_vjepa.data.reading.video import open_video
from keras_vjepa.data.transforms.training import PretrainTransform

# A file and the number of a clip, which determines where in the file the clip begins.
Item = tuple[str, int]

# If a clip takes longer than this many seconds, the measurement is given up.
_SECONDS = 600.0


@dataclass(frozen=True)
class TimedClip:
    """Holds a clip, and the processor time that it took.

    Attributes:
        clip: the clip as training reads it.
        seconds: processor time of all threads of the process, so it is right for one worker only.
    """

    clip: NDArray[np.float32]
    seconds: float


@dataclass(frozen=True)
class ClipReading:
    """Says how a clip is read; it can be sent to another process.

    Args:
        decoder: one of `decoders`.
        clip: how to choose frames.
        crop_size: crop size of the pretraining transform.
        limits: time and pixels that a file may take.
    """

    decoder: str
    clip: ClipSettings = field(default=ClipSettings(16, 4))
    crop_size: int = 224
    limits: ReadingLimits = field(default=DEFAULT_LIMITS)

    def __call__(self, item: Item) -> TimedClip:
        """Read a clip at a place that follows from its number, and transform it."""
        path, number = item
        rng = random_stream(0, number)
        cv2.setNumThreads(1)  # as in training, also in a process of its own
        start = time.process_time()
        read = self._with_decord if self.decoder == "decord" else self._with_reader
        clip = read(path, rng)
        return TimedClip(clip, time.process_time() - start)

    def _indices(self, num_frames: int, rng: np.random.Generator) -> NDArray[np.int64]:
        return clip_frame_indices(
            num_frames, self.clip.frames_per_clip, self.clip.frame_step, rng=rng
        )[0]

    def _with_reader(self, path: str, rng: np.random.Generator) -> NDArray[np.float32]:
        with open_video(path, self.decoder, self.limits) as video:
            indices = self._indices(video.num_frames, rng)
            distinct, places = np.unique(indices, return_inverse=True)
            shape = (len(distinct), video.info.height, video.info.width, 3)
            with lent_frames(shape) as memory:
                frames = video.read(distinct, memory)
                clip = frames if len(distinct) == len(indices) else frames[places]
                return PretrainTransform(self.crop_size)(clip, rng)

    def _with_decord(self, path: str, rng: np.random.Generator) -> NDArray[np.float32]:
        """Read a clip in the shortest way that decord has, which gets some files' frames wrong."""
        import decord

        try:
            video = decord.VideoReader(path, num_threads=1)
            frames = video.get_batch(self._indices(len(video), rng)).asnumpy()
        except (decord.DECORDError, OSError) as error:
            raise UnreadableVideoError(path, " ".join(str(error).split())[:200]) from error
        return PretrainTransform(self.crop_size)(frames, rng)


def decoders() -> list[str]:
    """Name the decoders that are installed and can be timed."""
    found = ["av"] if has_av() else []
    found += ["opencv"]
    with suppress(ImportError):
        import decord  # noqa: F401

        found += ["decord"]
    return found


def _with_threads(reading: ClipReading, items: Sequence[Item], count: int) -> Iterator[TimedClip]:
    with ThreadPoolExecutor(count) as pool:
        yield from pool.map(reading, items)


def _with_processes(reading: ClipReading, items: Sequence[Item], count: int) -> Iterator[TimedClip]:
    for (path, _), result in each_in_processes(reading, items, count, _SECONDS):
        if isinstance(result, ProcessFailure):
            raise UnreadableVideoError(path, result.reason)
        yield result


def _with_grain(reading: ClipReading, items: Sequence[Item], count: int) -> Iterator[TimedClip]:
    import grain

    source = grain.MapDataset.source(list(items)).map(reading)
    options = grain.ReadOptions(num_threads=count, prefetch_buffer_size=2 * count)
    yield from source.to_iter_dataset(options)


Workers = Callable[[ClipReading, Sequence[Item], int], Iterable[TimedClip]]


def kinds_of_workers() -> dict[str, Workers]:
    """Name the ways to read several clips at a time that are installed."""
    found: dict[str, Workers] = {"threads": _with_threads, "processes": _with_processes}
    with suppress(ImportError):
        import grain  # noqa: F401

        found["grain"] = _with_grain
    return found


@dataclass(frozen=True)
class Throughput:
    """Says how fast clips came.

    Attributes:
        clips_per_second: clips in a second by the clock, once all workers are at work.
        seconds_per_clip: median processor time of a clip; with one worker it is what a core needs.
    """

    clips_per_second: float
    seconds_per_clip: float

    def or_faster(self, other: "Throughput") -> "Throughput":
        """Take the better of each number, because other work on a machine only slows down."""
        return Throughput(
            max(self.clips_per_second, other.clips_per_second),
            min(self.seconds_per_clip, other.seconds_per_clip),
        )


def throughput(
    workers: Workers, reading: ClipReading, paths: Sequence[str], count: int, clips: int
) -> Throughput:
    """Time clips of some files; each file is read once before the clock starts, so it is known.

    Args:
        workers: one of `kinds_of_workers`.
        reading: how a clip is read.
        paths: files; each worker process meets them for the first time.
        count: number of workers.
        clips: how many clips to time.

    Returns:
        How fast the clips came.

    Raises:
        UnreadableVideoError: if a file cannot be read.
    """
    before = max(len(paths), 2 * count)
    items: list[Any] = [(paths[n % len(paths)], n) for n in range(before + clips)]
    seconds, start = [], 0.0
    for number, found in enumerate(workers(reading, items, count)):
        if number == before - 1:
            start = time.perf_counter()
        elif number >= before:
            seconds.append(found.seconds)
    passed = time.perf_counter() - start
    return Throughput(len(seconds) / passed, float(np.median(seconds)))
