"""Make batches as a function of the step: shuffled, sharded, resumable (§3.4, App. C).

`batch(step)` depends on the settings and the step alone, so a run that resumes at step s sees what
it would have seen. Threads read ahead: decoding releases the interpreter's lock. `pretraining.py`,
`labelled.py` and `features.py` say what a batch holds.

Departure from the authors' code: a file that cannot be read is named in the log, and a clip that
follows from the seed and the position takes its place; theirs takes a random one and logs nothing.
"""

import logging
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from keras_vjepa.arguments import MOST_SEED, check_number, check_whole
from keras_vjepa.data.batches.epochs import EpochOrder
from keras_vjepa.data.batches.workers import default_threads
from keras_vjepa.data.random_streams import random_stream
from keras_vjepa.data.reading.errors import UnreadableVideoError
from keras_vjepa.data.reading.frame_memory import give_back_unused
from keras_vjepa.data.sources.samples import Sample

BatchT = TypeVar("BatchT")
ItemT = TypeVar("ItemT")
ContentT = TypeVar("ContentT")

_LOG = logging.getLogger(__name__)

# The number of files that are tried for one place in a batch before the run stops.
_MAX_SUBSTITUTES = 16
# "clip" and "shuf" in ASCII: keep these draws apart from others made from the same seed.
_CLIP_STREAM, _SHUFFLE_STREAM = 0x636C6970, 0x73687566


_MOST_SAMPLES, _MOST_THREADS = 2**20, 2**10


class TooManyBadFilesError(RuntimeError):
    """Says that more of the files cannot be read than the settings allow."""


def check_reading(
    batch_size: int, seed: int, num_workers: int | None, read_ahead: int, max_bad_share: float
) -> None:
    """Check how batches are to be read, before there are samples; see `IndexedBatches`.

    Raises:
        ValueError: for the first argument that is out of range.
    """
    check_whole(1, _MOST_SAMPLES, batch_size=batch_size)
    check_whole(1, _MOST_THREADS, optional=True, num_workers=num_workers)
    check_whole(1, _MOST_SAMPLES, read_ahead=read_ahead)
    check_whole(0, MOST_SEED, seed=seed)
    check_number("[0, 1]", max_bad_share=max_bad_share)


@dataclass
class IndexedBatches(Generic[ItemT, BatchT]):
    """Makes batches addressed by their step; a subclass says what is in them.

    Args:
        samples: what to read; see `list_samples`.
        batch_size: samples in the global batch.
        seed: seed of all random choices.
        num_workers: decoding threads, or worker processes where batches have these; by default
            one for each core, from 2 to 32, divided among the processes. Where a clip takes only a
            millisecond or two, more than two or three threads wait for Python's lock: 930 clips/s
            with 2 of them, 470 with 16 (2 cores).
        read_ahead: batches prepared in advance.
        max_bad_share: stop when more than this share of the samples cannot be read.
        process_index, process_count: this process's slice of the global batch.

    Attributes:
        bad_files: files that could not be read, with the reason.
        error: the error that ended `stream`, if one did, for callers that consume the stream
            through a library which wraps errors in its own.

    Raises:
        ValueError: for no samples, or sizes that do not fit.
    """

    samples: Sequence[Sample]
    batch_size: int
    seed: int = field(default=0, kw_only=True)
    num_workers: int | None = field(default=None, kw_only=True)
    read_ahead: int = field(default=4, kw_only=True)
    max_bad_share: float = field(default=0.05, kw_only=True)
    process_index: int = field(default=0, kw_only=True)
    process_count: int = field(default=1, kw_only=True)
    bad_files: dict[str, str] = field(default_factory=dict, init=False)
    error: Exception | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if not self.samples:
            raise ValueError("`samples` must hold at least one video. Received: none")
        check_whole(1, process_count=self.process_count)
        check_reading(
            self.batch_size, self.seed, self.num_workers, self.read_ahead, self.max_bad_share
        )
        if self.batch_size % self.process_count:
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

    @property
    def threads(self) -> int:
        """Return the number of threads that decode, or wait for a worker process each."""
        return self.num_workers or default_threads(self.process_count)

    def _read(self, position: int) -> ItemT:
        """Read the item at a position of the sample stream."""
        raise NotImplementedError

    def _assembled(self, step: int, items: list[ItemT]) -> BatchT:
        """Make the batch of a step from the items at its positions."""
        raise NotImplementedError

    def batch(self, step: int) -> BatchT:
        """Make the batch of a step (0-based)."""
        return self._assembled(step, [self._read(position) for position in self._positions(step)])

    def stream(self, start: int = 0, stop: int | None = None) -> Generator[BatchT, None, None]:
        """Yield batches from step `start` to `stop`, or for ever, read ahead by threads."""
        pending: deque[tuple[int, list[Future[ItemT]]]] = deque()
        next_step = start
        with self._reading() as begin, ThreadPoolExecutor(self.threads, "clips", begin) as pool:
            try:
                while True:
                    while len(pending) < self.read_ahead and (stop is None or next_step < stop):
                        positions = self._positions(next_step)
                        futures = [pool.submit(self._read, p) for p in positions]
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
                pending.clear()
                give_back_unused()

    @contextmanager
    def _reading(self) -> Iterator[Callable[[], None]]:
        """Lend what each reading thread is to begin with."""
        yield lambda: None

    def _positions(self, step: int) -> range:
        per_process = self.batch_size // self.process_count
        first = step * self.batch_size + self.process_index * per_process
        return range(first, first + per_process)

    def _note_bad_file(self, path: str, reason: str, consequence: str) -> None:
        self.bad_files[path] = reason
        _LOG.warning("%s: %s", consequence, reason)
        self._stop_at_too_many_bad_files()

    def _stop_at_too_many_bad_files(self) -> None:
        if len(self.bad_files) > self.max_bad_share * len(self.samples):
            last_reason = list(self.bad_files.values())[-1]
            raise TooManyBadFilesError(
                f"{len(self.bad_files)} of {len(self.samples)} videos cannot be read, more than "
                f"`max_bad_share`={self.max_bad_share:g} allows. The last one: {last_reason}"
            )


@dataclass
class ShuffledBatches(IndexedBatches[tuple[Sample, ContentT], BatchT]):
    """Makes endless training batches: every epoch is a new permutation of the samples.

    A batch may continue across the end of an epoch, so none is partial. With several processes each
    makes its own slice of the global batch. A subclass says what the content of a sample is: its
    clips, or their features.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self._permutations: dict[int, NDArray[np.int64]] = {}
        self._epoch = self._epoch_order()

    def _epoch_order(self) -> EpochOrder:
        """Return what draws the samples of an epoch: here every sample once."""
        return EpochOrder([None] * len(self.samples))

    def _content(self, sample: Sample, rng: np.random.Generator) -> ContentT:
        """Read a sample, or raise `UnreadableVideoError` if its file cannot be read."""
        raise NotImplementedError

    def _read(self, position: int) -> tuple[Sample, ContentT]:
        """Read the sample at a position of the endless stream, or one that takes its place."""
        for sample in self._candidates(position):
            if sample.path not in self.bad_files:
                try:
                    return sample, self._content(sample, self.draws_at(position))
                except UnreadableVideoError as error:
                    self._note_bad_file(
                        sample.path, str(error), "Skipped, another clip takes its place"
                    )
        # Another thread may have found the unreadable file that exceeded the limit: give the same
        # message here.
        self._stop_at_too_many_bad_files()
        raise TooManyBadFilesError(
            f"{_MAX_SUBSTITUTES} files in a row could not be read, the last one: {sample.path}. "
            "Check the data; the log names each file with its reason."
        )

    def sample_at(self, position: int) -> Sample:
        """Return the sample at a position of the endless stream, whether it can be read or not."""
        return self.samples[self._sample_index(position)]

    def draws_at(self, position: int) -> np.random.Generator:
        """Return what places and augments the clip at a position, in its first state."""
        return random_stream(self.seed, _CLIP_STREAM, position, 0)

    def paths(self, step: int) -> list[str]:
        """List the files of a step's global batch, with substitutes for those found unreadable."""
        positions = range(step * self.batch_size, (step + 1) * self.batch_size)
        return [
            next((s.path for s in self._candidates(p) if s.path not in self.bad_files), "")
            for p in positions
        ]

    def _candidates(self, position: int) -> Iterator[Sample]:
        """Yield the sample at a position, then those that would take its place, in their order."""
        yield self.sample_at(position)
        substitutes = random_stream(self.seed, _CLIP_STREAM, position, 1)
        for _ in range(_MAX_SUBSTITUTES - 1):
            place = int(substitutes.integers(self._epoch.length))
            yield self.samples[self._substitute(position, place)]

    def _substitute(self, position: int, place: int) -> int:
        """Return the index of the substitute at a place among all samples, or in an epoch."""
        return place

    def _sample_index(self, position: int) -> int:
        epoch, place = divmod(position, self._epoch.length)
        permutation = self._permutations.get(epoch)
        if permutation is None:
            permutation = self._epoch.draw(random_stream(self.seed, _SHUFFLE_STREAM, epoch))
            # A batch may lie across two epochs; the orders of older epochs are not needed again.
            self._permutations = {e: p for e, p in self._permutations.items() if e >= epoch - 1}
            self._permutations[epoch] = permutation
        return int(permutation[place])
