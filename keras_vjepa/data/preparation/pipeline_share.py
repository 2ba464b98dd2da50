"""Time what batches add to reading their clips one after the other (§3.4, App. C)."""

import itertools
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np

from keras_vjepa.data.batches.clips import ClipSettings
from keras_vjepa.data.batches.pretraining import ClipBatches
from keras_vjepa.data.sources.samples import Sample
from keras_vjepa.types import Batch

BATCH_SIZE = 4
LEAST_ROUNDS = 3

# Elapsed seconds, and seconds of processor time.
Seconds = tuple[float, float]


@dataclass(frozen=True)
class PipelineShare:
    """Says what reading some clips takes, in a plain loop and through `ClipBatches`.

    Attributes:
        plain: seconds of processor time for a clip, in a loop.
        batched: the same through batches, with one worker.
        added: share that batches add to the processor time.
        added_by_the_clock: share that they add to the time that passes.
    """

    plain: float
    batched: float
    added: float
    added_by_the_clock: float


def pipeline_share(
    paths: Sequence[str],
    clip: ClipSettings,
    crop_size: int,
    clips: int,
    rounds: int = LEAST_ROUNDS,
) -> PipelineShare:
    """Time the same clips in a plain loop and through `ClipBatches` with one worker, in turns.

    Args:
        paths: of videos, each of which is read once before.
        clip: how clips are taken from them.
        crop_size: of the pretraining transform.
        clips: how many in each turn; made a number of whole batches.
        rounds: how often both take their turn.

    Returns:
        The medians of all turns.

    Raises:
        TooManyBadFilesError: if a file cannot be read.
    """
    shape = (clip.frames_per_clip, crop_size, crop_size, 3)
    batches = ClipBatches(
        [Sample(path) for path in paths],
        BATCH_SIZE,
        masks=_without_masks,
        clip=clip,
        video_shape=shape,
        num_workers=1,
        max_bad_share=0.0,
    )
    steps = -(-clips // BATCH_SIZE)
    # Timing starts once reading ahead is as far as it will ever be, and every file has been opened.
    first = max(2 * batches.read_ahead, -(-len(paths) // BATCH_SIZE))
    rows = []
    for _ in range(rounds):
        loop, stream = _loop(batches), batches.stream(0, first + steps)
        rows.append([_timed(one, first, steps) for one in (loop, stream)])
    times = np.array(rows) / (steps * BATCH_SIZE)
    plain, batched = np.median(times[..., 1], axis=0).tolist()
    by_the_clock, added = np.median(times[:, 1] / times[:, 0] - 1, axis=0).tolist()
    return PipelineShare(plain, batched, added, by_the_clock)


def _without_masks(step: int, batch_size: int, start: int = 0) -> Batch:
    return {}


def _loop(batches: ClipBatches) -> Generator[None, None, None]:
    """Read what the batches hold, one clip after the other, and keep none."""
    read = batches.reader()
    for step in itertools.count():
        for position in range(step * BATCH_SIZE, (step + 1) * BATCH_SIZE):
            read((batches.sample_at(position).source, batches.draws_at(position)))
        yield


def _timed(work: Generator[object, None, None], first: int, steps: int) -> Seconds:
    for _ in range(first):
        next(work)
    clock, processor = time.perf_counter(), time.process_time()
    for _ in range(steps):
        next(work)
    seconds = time.perf_counter() - clock, time.process_time() - processor
    work.close()
    return seconds
