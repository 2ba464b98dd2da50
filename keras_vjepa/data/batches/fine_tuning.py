"""Make mixed batches of augmented clips, to train an encoder with its head (App. D.3, Table 12).

Departures from the usual code: all draws follow from the seed and the step, so that a run that
resumes sees what it would have seen. In the usual code each process mixes its own clips by its own
share; here the batch does not depend on the number of processes: they use the same share, and the
two clips that are mixed with each other are always in the same process.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from keras_vjepa.arguments import check_whole
from keras_vjepa.data.batches.clips import ClipReader, Clips
from keras_vjepa.data.batches.labelled import Inputs, LabelledBatches
from keras_vjepa.data.batches.mixing import Mixing
from keras_vjepa.data.random_streams import random_stream
from keras_vjepa.data.sources.samples import Sample

# "mix" in ASCII: keeps these draws apart from others made from the same seed.
_MIX_STREAM = 0x6D6978


@dataclass(frozen=True)
class Repeated:
    """Augments the same frames several times, `(repeats, frames, height, width, 3)`.

    Args:
        transform: called with the frames of a clip and a generator.
        num_repeats: how often.
    """

    transform: Callable[..., NDArray[np.float32]]
    num_repeats: int

    def __call__(self, frames: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.float32]:
        """Augment the frames of a clip."""
        return np.stack([self.transform(frames, rng) for _ in range(self.num_repeats)])


@dataclass
class FineTuningBatches(LabelledBatches):
    """Makes endless training batches `(videos, targets)`; targets are float32 `(clips, classes)`.

    They are shuffled, sharded and resumable as `LabelledBatches`, whose other arguments they have.

    Args:
        mixing: how clips and labels are mixed.
        num_repeats: how often the clip of a video is augmented; these clips are adjacent, and
            a batch holds that many times more clips than videos.

    Raises:
        ValueError: if the clips of a process cannot be paired, and as in `LabelledBatches`.

    Example:

    >>> from keras_vjepa.data.transforms.training import VideoProbeTransform
    >>> samples, transform = [Sample("a.mp4", 0)], VideoProbeTransform(224)
    >>> FineTuningBatches(samples, 3, transform, num_classes=1)
    Traceback (most recent call last):
    ...
    ValueError: `batch_size` must give each process an even number of clips, mixed in pairs. \
Received: 3
    """

    mixing: Mixing = field(default=Mixing(), kw_only=True)
    num_repeats: int = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(1, num_repeats=self.num_repeats)
        if self.clip.num_clips != 1 or self.with_frame_indices:
            raise ValueError(
                "`clip` must have `num_clips`=1 in fine-tuning, and `with_frame_indices` be False. "
                f"Received: {self.clip}"
            )
        if not self.mixing.mixes:
            return
        own = self.batch_size // self.process_count
        if own * self.num_repeats % 2 or self.process_count > 1 and own % 2:
            what = "videos" if self.process_count > 1 else "clips"
            raise ValueError(
                f"`batch_size` must give each process an even number of {what}, mixed in pairs. "
                f"Received: {self.batch_size}{_of_processes(self.process_count)}"
            )

    def _positions(self, step: int) -> Sequence[int]:  # type: ignore[override]
        own = super()._positions(step)
        if self.process_count == 1 or not self.mixing.mixes:
            return own
        # A clip at the beginning of the batch is mixed with the one at the same distance from its
        # end. This process takes as many from both sides, so that it has both clips of each pair.
        half, first = len(own) // 2, step * self.batch_size
        front = [first + self.process_index * half + i for i in range(half)]
        back = [2 * first + self.batch_size - 1 - position for position in reversed(front)]
        return [*front, *back]

    def reader(self) -> ClipReader:
        """Return what reads the clips of a sample."""
        reader = super().reader()
        return replace(reader, transform=Repeated(self.transform, self.num_repeats))

    def _assembled(  # type: ignore[override]
        self, step: int, items: list[tuple[Sample, Clips]]
    ) -> tuple[Inputs, NDArray[np.float32]]:
        videos = np.concatenate([clips.videos[0] for _, clips in items])
        labels = np.repeat([sample.label or 0 for sample, _ in items], self.num_repeats)
        rng = random_stream(self.seed, _MIX_STREAM, step, 0)
        return self.mixing(videos, labels, self.num_classes, rng)


def _of_processes(count: int) -> str:
    return f", of {count} processes" if count > 1 else ""
