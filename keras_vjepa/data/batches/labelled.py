"""Make labelled batches to train a probe and to evaluate it (App. D.1, Table 10).

The shape of `videos` follows from the settings:

    (batch, frames, height, width, 3)                one clip, one view
    (batch, clips, frames, height, width, 3)         several clips
    (batch, clips, views, frames, height, width, 3)  several views, whatever the number of clips

The paper's 16x8x3 is `ClipSettings(16, 4, 8, allow_clip_overlap=True)` and `three_views`, 16x2x3
has 2 clips, and 16x1x1 has 1 and `center_view`. Images are repeated to a clip (`is_image`).

Departures: the authors' code draws the clips' places again in each evaluation, while here they
follow from the seed and the place in the list. It pads the test set with duplicates that count,
while here rows that fill the last batch have no weight. It puts another video in the place of one
that cannot be read, while here the row has no weight.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from keras_vjepa.data.batches.clips import ClipReader, Clips, OfClips, Undrawn
from keras_vjepa.data.batches.indexed import ContentT, IndexedBatches, ShuffledBatches
from keras_vjepa.data.random_streams import random_stream
from keras_vjepa.data.reading.errors import UnreadableVideoError
from keras_vjepa.data.reading.frame_memory import stacked
from keras_vjepa.data.sources.labels import check_all_classes_occur, check_labels
from keras_vjepa.data.sources.samples import Sample
from keras_vjepa.types import Batch

Inputs = NDArray[np.float32] | Batch
Labels = NDArray[np.int32]
SampleWeight = NDArray[np.float32]

# "eval" in ASCII: keeps these draws apart from others made from the same seed.
_EVALUATION_STREAM = 0x6576616C


@dataclass(frozen=True)
class ClipPlaces:
    """Says where the clips of each sample lie, the same in every epoch.

    The places are those in `EvaluationBatches` of all these samples. So a training in which every
    epoch sees the same clips sees those of which features were computed.

    Args:
        samples: all samples; batches may hold a part of them.
        seed: seed of the places.
    """

    samples: Sequence[Sample]
    seed: int

    def __post_init__(self) -> None:
        positions = {sample.path: position for position, sample in enumerate(self.samples)}
        object.__setattr__(self, "_positions", positions)

    def generator(self, sample: Sample) -> np.random.Generator:
        """Return the random generator that places the clips of a sample, not used before."""
        position = self._positions[sample.path]  # type: ignore[attr-defined]
        return random_stream(self.seed, _EVALUATION_STREAM, position)


# --- What all labelled batches share -------------------------------------------------------------


@dataclass
class TrainingBatches(ShuffledBatches[ContentT, tuple[Inputs, Labels]]):
    """Makes endless training batches `(inputs, labels)`; a subclass says what the inputs are.

    They are shuffled, sharded and resumable as in pretraining. A file that cannot be read is named
    in the log, and another sample takes its place, with its own label.

    Args:
        num_classes: number of classes; labels, int32 (batch,), are below it.
        allow_absent_classes: train although a class has no sample.
    """

    num_classes: int = field(kw_only=True)
    allow_absent_classes: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_labels(self.samples, self.num_classes)
        if not self.allow_absent_classes:
            check_all_classes_occur(self.samples, self.num_classes)

    @property
    def steps_per_epoch(self) -> int:
        """Return the number of batches that hold every sample; the last may hold some again."""
        return -(-len(self.samples) // self.batch_size)

    def _inputs(self, contents: list[ContentT]) -> Inputs:
        """Make the inputs of a model out of the contents of several samples."""
        raise NotImplementedError

    def _assembled(self, step: int, items: list[tuple[Sample, ContentT]]) -> tuple[Inputs, Labels]:
        labels = np.array([sample.label for sample, _ in items], np.int32)
        return self._inputs([content for _, content in items]), labels


@dataclass
class OrderedBatches(IndexedBatches[ContentT | None, tuple[Inputs, Labels, SampleWeight]]):
    """Reads every sample once and in order: `(inputs, labels, sample_weight)`.

    All batches have the same shape and every process has the same number of them. Rows that fill
    the last batch, and those of files that cannot be read, are zeros with label 0 and weight 0; the
    others weigh 1. So over all processes

        accuracy = sum(sample_weight * correct) / num_counted

    with `num_counted` at the end. This accuracy counts unreadable files as wrong, unless
    `skip_unreadable` is set. A subclass says what the inputs are.

    Args:
        num_classes: number of classes; labels, int32 (batch,), are below it.
        skip_unreadable: leave files that cannot be read out of `num_counted`.
        read_ahead: batches prepared in advance; one sample of 16x8x3 at 224 pixels has 231 MB.
    """

    num_classes: int = field(kw_only=True)
    skip_unreadable: bool = field(default=False, kw_only=True)
    read_ahead: int = field(default=2, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_labels(self.samples, self.num_classes)

    @property
    def num_steps(self) -> int:
        """Return the number of batches, which is the same in every process."""
        return -(-len(self.samples) // self.batch_size)

    @property
    def num_counted(self) -> int:
        """Return the number of samples in the accuracy's denominator, over all processes.

        With `skip_unreadable`, those that this process has found unreadable so far are left out;
        with several processes, subtract those that the others found too.
        """
        if not self.skip_unreadable:
            return len(self.samples)
        return sum(sample.path not in self.bad_files for sample in self.samples)

    def stream(
        self, start: int = 0, stop: int | None = None
    ) -> Generator[tuple[Inputs, Labels, SampleWeight], None, None]:
        """Yield batches from step `start` to `stop`, or to the last, read ahead by threads."""
        return super().stream(start, self.num_steps if stop is None else min(stop, self.num_steps))

    def why_unreadable(self, position: int) -> str | None:
        """Return why the sample at a position cannot be read, or None if it can.

        With several processes, this can be asked of samples that another one was to read, too.
        """
        self._read(position)
        return self.bad_files.get(self.samples[position].path)

    def _content(self, position: int) -> ContentT:
        """Read the sample at a position, or raise `UnreadableVideoError` if it cannot be read."""
        raise NotImplementedError

    def _empty(self) -> ContentT:
        """Make the content of a row without a sample."""
        raise NotImplementedError

    def _inputs(self, contents: list[ContentT]) -> Inputs:
        """Make the inputs of a model out of the contents of several samples."""
        raise NotImplementedError

    def _read(self, position: int) -> ContentT | None:
        if position >= len(self.samples):
            return None
        path = self.samples[position].path
        if path in self.bad_files:
            return None
        try:
            return self._content(position)
        except UnreadableVideoError as error:
            verdict = "Not counted" if self.skip_unreadable else "Counted as wrong"
            self._note_bad_file(path, str(error), verdict)
            return None

    def _assembled(
        self, step: int, items: list[ContentT | None]
    ) -> tuple[Inputs, Labels, SampleWeight]:
        labels = np.zeros(len(items), np.int32)
        sample_weight = np.zeros(len(items), np.float32)
        for row, (position, content) in enumerate(zip(self._positions(step), items, strict=True)):
            if content is not None:
                labels[row] = self.samples[position].label or 0
                sample_weight[row] = 1
        contents = [self._empty() if content is None else content for content in items]
        return self._inputs(contents), labels, sample_weight


# --- Clips ---------------------------------------------------------------------------------------


@dataclass
class _LabelledClips(OfClips):
    """Adds what labelled batches of clips have in common.

    Args:
        with_frame_indices: `videos` becomes a dictionary of `videos` and `frame_indices`, int32
            (batch, clips, frames), the frames of the source that they are.
        places: where the clips lie; None lets the batches decide it.
    """

    with_frame_indices: bool = field(default=False, kw_only=True)
    places: ClipPlaces | None = field(default=None, kw_only=True)

    def _inputs(self, contents: list[Clips]) -> Inputs:
        videos = stacked([clips.videos for clips in contents])
        if not self.with_frame_indices:
            return videos
        frame_indices = np.stack([clips.frame_indices for clips in contents])
        return {"videos": videos, "frame_indices": frame_indices}


@dataclass
class LabelledBatches(_LabelledClips, TrainingBatches[Clips]):
    """Makes endless training batches `(videos, labels)`.

    They are shuffled, sharded and resumable as in pretraining. A file that cannot be read is named
    in the log, and another sample takes its place, with its own label. See `IndexedBatches` for
    the other arguments.

    Args:
        transform: makes one view; it is called with the frames of a clip and a random generator.
        clip: how to choose frames.
        num_classes: number of classes; labels, int32 (batch,), are below it.
        with_frame_indices: `videos` becomes a dictionary of `videos` and `frame_indices`, int32
            (batch, clips, frames), the frames of the source that they are.
        places: where the clips lie in every epoch; None places them again in each.
        allow_absent_classes: train although a class has no sample.

    Raises:
        ValueError: if a label is missing or out of range, a class has no sample, or sizes do not
            fit.

    Example:

    >>> from keras_vjepa.data.transforms.training import VideoProbeTransform
    >>> LabelledBatches([Sample("a.mp4", 3)], 8, VideoProbeTransform(224), num_classes=3)
    Traceback (most recent call last):
    ...
    ValueError: `label` must be in [0, `num_classes`=3). Received: 3 for a.mp4
    """

    def _content(self, sample: Sample, rng: np.random.Generator) -> Clips:
        rng = rng if self.places is None else self.places.generator(sample)
        return self._clips(sample.source, rng)


@dataclass
class EvaluationBatches(_LabelledClips, OrderedBatches[Clips]):
    """Reads every sample's clips once and in order: `(videos, labels, sample_weight)`.

    See `OrderedBatches` for what rows weigh and how they are counted, and `IndexedBatches` for the
    other arguments.

    Args:
        transform: makes the views; it is called with the frames of a clip. For example
            `functools.partial(three_views, crop_size=224)`.
        clip: how to choose frames.
        num_classes: number of classes; labels, int32 (batch,), are below it.
        with_frame_indices: as in `LabelledBatches`.
        places: where the clips lie; None lets it follow from the seed and the place in the list of
            samples.
        skip_unreadable: leave files that cannot be read out of `num_counted`.
        read_ahead: batches prepared in advance; one sample of 16x8x3 at 224 pixels has 231 MB.

    Raises:
        ValueError: if a label is missing or out of range, or sizes do not fit.

    Example:

    >>> samples = [Sample(f"{i}.mp4", 0) for i in range(10)]
    >>> batches = EvaluationBatches(samples, 4, transform=None, num_classes=5)
    >>> batches.num_steps, batches.num_counted
    (3, 10)
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self._shape: tuple[int, ...] | None = None

    def reader(self) -> ClipReader:
        """Return what reads the clips of a sample."""
        return replace(super().reader(), transform=Undrawn(self.transform))

    def _content(self, position: int) -> Clips:
        sample = self.samples[position]
        if self.places is None:
            rng = random_stream(self.seed, _EVALUATION_STREAM, position)
        else:
            rng = self.places.generator(sample)
        clips = self._clips(sample.source, rng)
        self._shape = clips.videos.shape
        return clips

    def _empty(self) -> Clips:
        indices = np.zeros((self.clip.num_clips, self.clip.frames_per_clip), np.int32)
        videos = np.broadcast_to(np.float32(0), self._shape or self._shape_of_black_video())
        return Clips(videos, indices)

    def _shape_of_black_video(self) -> tuple[int, ...]:
        """Find the shape that reading would give; the first batch may hold no readable file."""
        black = np.zeros((self.clip.frames_per_clip, 64, 64, 3), np.uint8)
        shape = self.transform(black).shape
        single = len(shape) < 5 and self.clip.num_clips == 1
        return shape if single else (self.clip.num_clips, *shape)
