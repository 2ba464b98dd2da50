"""Mix batches of images into the batches of videos of a pretraining (vjepa21 §3, §4).

In V-JEPA 2.1's published runs half of the devices read images, with masks of their own, and the
others videos; the gradient is the mean over all devices. Images and videos never share a batch.

Departure: an image has as many sets of masks as a clip, all of one kind, where the published runs
have one. So every batch has arrays of the same names, as some engines ask.
"""

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import count
from typing import Any

from keras_vjepa.arguments import MOST_LONG, check_number, check_text, check_whole, counted
from keras_vjepa.data.batches.mask_kinds import MultiBlockMask, Range
from keras_vjepa.data.batches.mask_sampler import MaskSampler
from keras_vjepa.data.batches.pretraining import ClipBatches
from keras_vjepa.data.sources.samples import Sample
from keras_vjepa.types import Batch


@dataclass(frozen=True)
class ImageSettings:
    """Says which images are mixed with the videos, how many, and how they are masked.

    Args:
        data: images beside the videos: a folder, a list, a table, shards or a built-in set; empty
            for none. Of a video, one frame is taken. The encoder must have `modalities`.
        share: share of the steps that read images, between 0 and 1. On torch with several
            processes, it is the share of the processes instead.
        batch_size: number of images of a step, on all devices that read images together; by default
            as many as clips.
        num_blocks: number of blocks that hide an image.
        spatial_scale: share of the image that one block covers, in (0, 1], or a range of it.

    Raises:
        ValueError: if an argument is out of its range.
    """

    data: str = ""
    share: float = 0.5
    batch_size: int | None = None
    num_blocks: int = 10
    spatial_scale: float | Range = 0.15

    def __post_init__(self) -> None:
        check_text(data=self.data or "none")
        _check_share(self.share)
        check_whole(1, MOST_LONG, optional=True, batch_size=self.batch_size)
        self.mask()

    def mask(self) -> MultiBlockMask:
        """Make the kind of masks that images have."""
        return MultiBlockMask(self.num_blocks, self.spatial_scale)

    def beside(self, videos: ClipBatches, samples: Sequence[Sample]) -> "VideosAndImages":
        """Make batches of videos and of images, as these settings say.

        Args:
            videos: the batches of videos, whose masks are a `MaskSampler`.
            samples: the images.
        """
        masks = videos.masks
        if not isinstance(masks, MaskSampler):
            raise TypeError(f"`masks` must be a MaskSampler. Received: {type(masks).__name__}")
        images = replace(
            videos,
            samples=samples,
            batch_size=self.batch_size or videos.batch_size,
            clip=replace(videos.clip, frames_per_clip=1),
            video_shape=None,
            label_weights=None,
            masks=replace(
                masks,
                masks=[self.mask()] * len(masks.masks),
                grid=(1, *masks.grid[1:]),
                context_budgets=None,
                target_budgets=None,
            ),
        )
        return VideosAndImages(videos, images, self.share)


@dataclass
class VideosAndImages:
    """Makes endless pretraining batches, each of videos or of images, as `ClipBatches` makes them.

    One process, or several that run one program, reads a batch of images now and then, so that the
    share of these steps is `share`. Processes that are `apart` read one kind each: the last ones
    images, all others videos, at every step. A batch of images is one of clips of one frame.

    Args:
        videos: the batches of videos.
        images: the batches of images, with arrays of the same names.
        share: share of the steps, or of the processes, that read images, between 0 and 1.
        apart: whether each process reads one kind alone, if there are several.
        process_index, process_count: this process's place among all.

    Raises:
        ValueError: if `share` is out of range, or the numbers of sets of masks differ.

    Example:

    >>> from keras_vjepa.data import ClipBatches, Sample, VideosAndImages
    >>> from keras_vjepa.data.batches.videos_and_images import ImageSettings
    >>> videos = ClipBatches([Sample("a.mp4")], 8, video_shape=(16, 64, 96, 3),
    ...                      grid_shape=(8, 4, 6))
    >>> mixed = ImageSettings(share=0.25).beside(videos, [Sample("a.png")])
    >>> [mixed.reads_images(step) for step in range(5)]
    [False, False, False, True, False]
    >>> mixed.images.clip.frames_per_clip, mixed.images.masks.grid
    (1, (1, 4, 6))
    """

    videos: ClipBatches
    images: ClipBatches
    share: float = 0.5
    apart: bool = field(default=False, kw_only=True)
    process_index: int = field(default=0, kw_only=True)
    process_count: int = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        _check_share(self.share)
        check_whole(1, process_count=self.process_count)
        sets = [len(getattr(one.masks, "masks", ())) for one in (self.videos, self.images)]
        if sets[0] != sets[1]:
            raise ValueError(
                f"`images` must have as many sets of masks as `videos`, {sets[0]}. "
                f"Received: {sets[1]}"
            )
        index, whole = self.process_index, self.process_count
        own = self.image_processes(whole)
        first, of_videos, of_images = 0, whole, whole
        if self.reads_one_kind:
            first, of_videos, of_images = whole - own, whole - own, own
        self._videos: ClipBatches | None = None
        self._images: ClipBatches | None = None
        if not self.reads_one_kind or index < first:
            self._videos = _slice(self.videos, index, of_videos)
        if not self.reads_one_kind or index >= first:
            self._images = _slice(self.images, index - first, of_images)

    @property
    def reads_one_kind(self) -> bool:
        """Return whether this process reads one kind alone."""
        return self.apart and self.process_count > 1

    def image_processes(self, process_count: int) -> int:
        """Return how many of several processes read images if they are apart: not none, not all."""
        return min(max(round(self.share * process_count), 1), process_count - 1)

    @property
    def samples(self) -> list[Sample]:
        """Return all videos, then all images."""
        return [*self.videos.samples, *self.images.samples]

    @property
    def batch_size(self) -> int:
        """Return the number of clips and images of a step, its mean where steps differ."""
        sizes = self.videos.batch_size, self.images.batch_size
        return (
            sum(sizes)
            if self.reads_one_kind
            else round(sizes[0] + self.share * (sizes[1] - sizes[0]))
        )

    @property
    def error(self) -> Exception | None:
        """Return the error that ended a stream; None if there was none."""
        own = [one.error for one in (self._videos, self._images) if one is not None]
        return next(filter(None, own), None)

    @property
    def threads(self) -> int:
        """Return the number of threads that decode."""
        return self.videos.threads

    @property
    def read_ahead(self) -> int:
        """Return the number of batches of each kind that are prepared in advance."""
        return self.videos.read_ahead

    def reads_images(self, step: int) -> bool:
        """Tell whether this process reads images at a step (0-based)."""
        if self.reads_one_kind:
            return self._images is not None
        return self._images_before(step + 1) > self._images_before(step)

    def batch(self, step: int) -> Batch:
        """Make this process's batch of a step (0-based)."""
        source, own = self._place(step)
        return source.batch(own)

    def stream(self, start: int = 0, stop: int | None = None) -> Generator[Batch, None, None]:
        """Yield batches from step `start` to `stop`, or for ever, read ahead by threads."""
        end = None if stop is None else self._images_before(stop)
        if self.reads_one_kind:
            yield from self._place(start)[0].stream(start, stop)
            return
        assert self._videos is not None and self._images is not None
        first = self._images_before(start)
        last = None if stop is None or end is None else stop - end
        with (
            closing(self._videos.stream(start - first, last)) as videos,
            closing(self._images.stream(first, end)) as images,
        ):
            for step in count(start) if stop is None else range(start, stop):
                yield next(images if self.reads_images(step) else videos)

    def paths(self, step: int) -> list[str]:
        """List the files of a step's global batch."""
        if self.reads_one_kind:
            return [*self.videos.paths(step), *self.images.paths(step)]
        source, own = self._place(step)
        return source.paths(own)

    def in_words(self) -> str:
        """Say how images and videos share the steps or the processes."""
        head = f"Images: {counted(len(self.images.samples), 'file')}, batches of "
        head += f"{self.images.batch_size:,}"
        if self.reads_one_kind:
            own = self.image_processes(self.process_count)
            return f"{head}, in {own} of {self.process_count} processes"
        return f"{head}, in {self.share:.0%} of the steps, the videos in the others"

    def _images_before(self, step: int) -> int:
        # Exact: a product of floats would move the steps of images of a long run.
        return int(Fraction(str(self.share)) * step)

    def _place(self, step: int) -> tuple[ClipBatches, int]:
        """Return the batches that a step is taken from, and its number among these."""
        before = self._images_before(step)
        own = step if self.reads_one_kind else before if self.reads_images(step) else step - before
        source: Any = self._images if self.reads_images(step) else self._videos
        return source, own


def _slice(batches: ClipBatches, index: int, whole: int) -> ClipBatches:
    return replace(batches, process_index=index, process_count=whole)


def _check_share(share: float) -> None:
    check_number("(0, 1)", share=share)
