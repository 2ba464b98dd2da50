"""Batches as a function of the step: shuffled, sharded, resumable (§3.4, App. C).

`ClipBatches.batch(step)` depends on the seed and the step alone, so a run that resumes at step s
sees what it would have seen. Threads read ahead: decoding releases the interpreter's lock.

Departures, from the authors' code: a file that cannot be read is named in the log, and its place
is taken by a clip that the seed and the position name; theirs puts a random one there, unlogged.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from keras_vjepa.data.index import Sample
from keras_vjepa.data.video import UnreadableVideoError, clip_frame_indices, open_video

Batch = dict[str, NDArray[np.generic]]

_LOG = logging.getLogger(__name__)

# Other files tried for one place in a batch before the run stops.
_MAX_SUBSTITUTES = 16
# "clip" and "shuf" in ASCII: keep these draws apart from others made from the same seed.
_CLIP_STREAM, _SHUFFLE_STREAM = 0x636C6970, 0x73687566


class TooManyBadFilesError(RuntimeError):
    """More of the files cannot be read than the settings allow."""


class MaskIndices(Protocol):
    """What `MaskSampler` offers: index arrays of a batch."""

    def __call__(
        self, step: int, batch_size: int, start: int = 0
    ) -> dict[str, NDArray[np.int32]]: ...


@dataclass(frozen=True)
class ClipSettings:
    """How one clip is taken from a video (App. B, Table 9).

    Args:
        frames_per_clip: frames of a clip.
        frame_step: source frames per clip frame; a clip spans `frames_per_clip * frame_step`.
    """

    frames_per_clip: int = 16
    frame_step: int = 4


def random_stream(seed: int, *key: int) -> np.random.Generator:
    """A generator of its own for each key, independent of all others of this seed."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


@dataclass
class ClipBatches:
    """Endless training batches of clips and masks.

    Every epoch is a new permutation of the samples; batches run on across its end, so none is
    partial. With several processes each makes its own slice of the global batch.

    Args:
        samples: what to read; see `list_samples`.
        batch_size: clips in the global batch.
        transform: frames `(frames, height, width, 3)` uint8 and a generator to a float32 clip.
        masks: index arrays of a batch, for example a `MaskSampler`.
        clip: how to choose frames.
        seed: of everything random here.
        num_workers: decoding threads.
        read_ahead: batches prepared in advance.
        max_bad_share: stop when more than this share of the samples cannot be read.
        process_index, process_count: this process's slice of the global batch.

    Attributes:
        bad_files: files that could not be read, with the reason.
        error: what ended `stream`, if anything did; for callers that consume it through a library
            which wraps errors in its own.

    Raises:
        ValueError: for no samples, or sizes that do not fit.

    Example:

    >>> from keras_vjepa.data.pipeline import ClipBatches
    >>> ClipBatches([], 8, transform=None, masks=None)
    Traceback (most recent call last):
    ...
    ValueError: `samples` must hold at least one video. Received: none
    """

    samples: Sequence[Sample]
    batch_size: int
    transform: Callable[[NDArray[np.uint8], np.random.Generator], NDArray[np.float32]]
    masks: MaskIndices
    clip: ClipSettings = ClipSettings()
    seed: int = 0
    num_workers: int = 2
    read_ahead: int = 4
    max_bad_share: float = 0.05
    process_index: int = 0
    process_count: int = 1
    bad_files: dict[str, str] = field(default_factory=dict, init=False)
    error: Exception | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if not self.samples:
            raise ValueError("`samples` must hold at least one video. Received: none")
        if self.batch_size < 1 or self.batch_size % self.process_count:
            raise ValueError(
                f"`batch_size` must be a multiple of `process_count`={self.process_count}. "
                f"Received: {self.batch_size}"
            )
        if not 0 <= self.process_index < self.process_count:
            raise ValueError(
                f"`process_index` must be in [0, {self.process_count}). "
                f"Received: {self.process_index}"
            )
        # OpenCV's own threads would compete with ours for the same cores.
        cv2.setNumThreads(1)
        self._permutations: dict[int, NDArray[np.int64]] = {}

    def batch(self, step: int) -> Batch:
        """The batch of a step (0-based): `videos`, and the index arrays of its masks."""
        clips = [self.sample_clip(position) for position in self._positions(step)]
        return self._assembled(step, clips)

    def stream(self, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
        """Batches from step `start` to `stop`, or for ever, read ahead by threads."""
        pending: deque[tuple[int, list[Future[NDArray[np.float32]]]]] = deque()
        next_step = start
        with ThreadPoolExecutor(self.num_workers) as pool:
            try:
                while True:
                    while len(pending) < self.read_ahead and (stop is None or next_step < stop):
                        positions = self._positions(next_step)
                        futures = [pool.submit(self.sample_clip, p) for p in positions]
                        pending.append((next_step, futures))
                        next_step += 1
                    if not pending:
                        return
                    step, futures = pending.popleft()
                    yield self._assembled(step, [future.result() for future in futures])
            except Exception as error:
                self.error = error
                raise
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def sample_clip(self, position: int) -> NDArray[np.float32]:
        """The transformed clip at a position of the endless sample stream.

        Raises:
            TooManyBadFilesError: when the bound on unreadable files is passed.
        """
        substitutes = random_stream(self.seed, _CLIP_STREAM, position, 1)
        index = self._sample_index(position)
        for _ in range(_MAX_SUBSTITUTES):
            sample = self.samples[index]
            if sample.path not in self.bad_files:
                try:
                    return self._read_clip(sample.path, position)
                except UnreadableVideoError as error:
                    self._note_bad_file(sample.path, str(error))
            index = int(substitutes.integers(len(self.samples)))
        raise TooManyBadFilesError(
            f"{_MAX_SUBSTITUTES} files in a row could not be read, the last one: {sample.path}. "
            "Check the data; the log names each file with its reason."
        )

    def _read_clip(self, path: str, position: int) -> NDArray[np.float32]:
        rng = random_stream(self.seed, _CLIP_STREAM, position, 0)
        with open_video(path) as video:
            [indices] = clip_frame_indices(
                video.num_frames, self.clip.frames_per_clip, self.clip.frame_step, rng=rng
            )
            return self.transform(video.read(indices), rng)

    def _note_bad_file(self, path: str, reason: str) -> None:
        self.bad_files[path] = reason
        _LOG.warning("Skipped, another clip takes its place: %s", reason)
        if len(self.bad_files) > self.max_bad_share * len(self.samples):
            raise TooManyBadFilesError(
                f"{len(self.bad_files)} of {len(self.samples)} videos cannot be read, more than "
                f"`max_bad_share`={self.max_bad_share:g} allows. The last one: {reason}"
            )

    def _positions(self, step: int) -> range:
        per_process = self.batch_size // self.process_count
        first = step * self.batch_size + self.process_index * per_process
        return range(first, first + per_process)

    def _sample_index(self, position: int) -> int:
        epoch, place = divmod(position, len(self.samples))
        permutation = self._permutations.get(epoch)
        if permutation is None:
            rng = random_stream(self.seed, _SHUFFLE_STREAM, epoch)
            permutation = rng.permutation(len(self.samples))
            # A batch may lie across two epochs; older ones are not needed again.
            self._permutations = {e: p for e, p in self._permutations.items() if e >= epoch - 1}
            self._permutations[epoch] = permutation
        return int(permutation[place])

    def _assembled(self, step: int, clips: list[NDArray[np.float32]]) -> Batch:
        start = self.process_index * len(clips)
        return {"videos": np.stack(clips), **self.masks(step, len(clips), start)}
