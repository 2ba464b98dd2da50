"""Endless batches of clips and masks, for pretraining (§3.2, §3.4, App. C)."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from keras_vjepa.data.batches.clips import Clips, OfClips
from keras_vjepa.data.batches.indexed import ShuffledBatches
from keras_vjepa.data.sources.samples import Sample
from keras_vjepa.types import Batch


class MaskIndices(Protocol):
    """Makes the index arrays of a batch, as `MaskSampler` does."""

    def __call__(
        self, step: int, batch_size: int, start: int = 0
    ) -> dict[str, NDArray[np.int32]]: ...


@dataclass
class ClipBatches(OfClips, ShuffledBatches[Clips, Batch]):
    """Makes endless pretraining batches of clips and masks; see `IndexedBatches`.

    A batch holds `videos` (batch, frames, height, width, 3) and the index arrays of its masks.
    `transform` is called with the frames of a clip and a generator.

    Args:
        masks: index arrays of a batch, for example a `MaskSampler`.

    Raises:
        ValueError: for no samples, or sizes that do not fit.

    Example:

    >>> from keras_vjepa.data.batches.pretraining import ClipBatches
    >>> ClipBatches([], 8, transform=None, masks=None)
    Traceback (most recent call last):
    ...
    ValueError: `samples` must hold at least one video. Received: none
    """

    masks: MaskIndices

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.clip.num_clips != 1:
            raise ValueError(
                f"`num_clips` must be 1 in pretraining. Received: {self.clip.num_clips}"
            )

    def _content(self, sample: Sample, rng: np.random.Generator) -> Clips:
        return self._training_clips(sample, rng)

    def _assembled(self, step: int, items: list[tuple[Sample, Clips]]) -> Batch:
        start = self.process_index * len(items)
        videos = np.stack([clips.videos for _, clips in items])
        return {"videos": videos, **self.masks(step, len(items), start)}
