"""Make endless batches of clips and masks, for pretraining (§3.2, §3.4, App. C)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from keras_vjepa.data.batches.clips import Clips, ClipSettings, OfClips
from keras_vjepa.data.batches.epochs import EpochOrder
from keras_vjepa.data.batches.indexed import ShuffledBatches
from keras_vjepa.data.batches.mask_sampler import paper_masks
from keras_vjepa.data.reading.frame_memory import stacked
from keras_vjepa.data.sources.samples import Sample
from keras_vjepa.data.transforms.training import PretrainTransform
from keras_vjepa.types import Batch


class MaskIndices(Protocol):
    """Makes the index arrays of a batch, as `MaskSampler` does."""

    def __call__(
        self, step: int, batch_size: int, start: int = 0
    ) -> dict[str, NDArray[np.int32]]: ...


@dataclass
class ClipBatches(OfClips, ShuffledBatches[Clips, Batch]):
    """Makes endless pretraining batches of clips and masks; see `IndexedBatches` for the rest.

    A batch holds `videos` (batch, frames, height, width, 3) and the index arrays of its masks. If
    the shapes of an encoder are given, everything else has the paper's settings for it (Table 9).

    `VJEPAPretrainer.fit` takes these batches as they are, and begins with the batch of the step at
    which its optimizer is.

    Args:
        transform: transforms a clip; it is called with the frames and a random generator. By
            default a `PretrainTransform` of the size in `video_shape`.
        masks: makes the index arrays of a batch, as a `MaskSampler` does; by default `paper_masks`
            on `grid_shape`.
        clip: how to choose frames; by default every fourth, as many as in `video_shape`.
        video_shape: the encoder's (frames, height, width, channels).
        grid_shape: the encoder's tokens per axis (Nt, Nh, Nw).
        label_weights: how often the samples of each label come in an epoch, by the number of the
            label, which in lists of `videomix` is that of the source. By default every sample
            comes once, whether it has a label or not.

    Raises:
        ValueError: for no samples, or sizes that do not fit or are missing.

    Example:

    >>> from keras_vjepa.data import ClipBatches, Sample
    >>> batches = ClipBatches([Sample("a.mp4")], 8, video_shape=(16, 64, 96, 3),
    ...                       grid_shape=(8, 4, 6))
    >>> batches.transform.crop_size, batches.clip.frames_per_clip, len(batches.masks.masks)
    ((64, 96), 16, 2)
    """

    transform: Callable[..., NDArray[np.float32]] = None  # type: ignore[assignment]
    masks: MaskIndices = None  # type: ignore[assignment]
    clip: ClipSettings = field(default=None, kw_only=True)  # type: ignore[assignment]
    video_shape: tuple[int, int, int, int] | None = field(default=None, kw_only=True)
    grid_shape: tuple[int, int, int] | None = field(default=None, kw_only=True)
    label_weights: tuple[float, ...] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.clip is None:
            self.clip = ClipSettings(self._shape("clip", self.video_shape)[0])
        if self.clip.num_clips != 1:
            raise ValueError(
                f"`num_clips` must be 1 in pretraining. Received: {self.clip.num_clips}"
            )
        if self.video_shape and self.clip.frames_per_clip != self.video_shape[0]:
            raise ValueError(
                f"`frames_per_clip` must be {self.video_shape[0]}, as in `video_shape`. "
                f"Received: {self.clip.frames_per_clip}"
            )
        if self.transform is None:
            height, width = self._shape("transform", self.video_shape)[1:3]
            self.transform = PretrainTransform((height, width))
        if self.masks is None:
            if self.grid_shape is None:
                raise ValueError("`grid_shape` must be given without `masks`. Received: None")
            self.masks = paper_masks(self.grid_shape, self.seed)

    def _epoch_order(self) -> EpochOrder:
        return EpochOrder([sample.label for sample in self.samples], self.label_weights)

    def _substitute(self, position: int, place: int) -> int:
        if self.label_weights is None:
            return place
        # The sample is taken from the order of the epoch, because a random one could have weight 0.
        first = position // self._epoch.length * self._epoch.length
        return self._sample_index(first + place)

    def __iter__(self) -> Iterator[Batch]:
        return self.stream()

    def first(self, count: int) -> NDArray[np.float32]:
        """Read the first clips, which do not depend on the size of the batches.

        Args:
            count: number of clips.
        """
        alone = replace(self, batch_size=count, process_index=0, process_count=1)
        return np.asarray(alone.batch(0)["videos"], "float32")

    def _content(self, sample: Sample, rng: np.random.Generator) -> Clips:
        return self._clips(sample.source, rng)

    def _assembled(self, step: int, items: list[tuple[Sample, Clips]]) -> Batch:
        start = self.process_index * len(items)
        videos = stacked([clips.videos for _, clips in items])
        return {"videos": videos, **self.masks(step, len(items), start)}

    @staticmethod
    def _shape(
        name: str, video_shape: tuple[int, int, int, int] | None
    ) -> tuple[int, int, int, int]:
        if video_shape is None:
            raise ValueError(f"`video_shape` must be given without `{name}`. Received: None")
        return video_shape
