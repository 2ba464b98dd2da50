"""Labelled batches to train a probe and to evaluate it (App. D.1, Table 10).

The shape of `videos` follows from the settings:

    (batch, frames, height, width, 3)                one clip, one view
    (batch, clips, frames, height, width, 3)         several clips
    (batch, clips, views, frames, height, width, 3)  several views, whatever the number of clips

The paper's 16x8x3 is `ClipSettings(16, 4, 8, allow_clip_overlap=True)` and `three_views`, 16x2x3
has 2 clips, and 16x1x1 has 1 and `center_view`. Images are repeated to a clip (`is_image`).

Departures: the authors draw the clips' places anew in each evaluation, here the seed and the
place in the list name them; theirs pads the test set with duplicates that count, here rows that
fill the last batch have no weight; theirs puts another video where one cannot be read.
"""

from collections.abc import Generator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from keras_vjepa.data.batches.indexed import (
    Batch,
    Clips,
    IndexedBatches,
    ShuffledBatches,
)
from keras_vjepa.data.random_streams import random_stream
from keras_vjepa.data.reading.decoders import UnreadableVideoError
from keras_vjepa.data.sources.labels import check_all_classes_occur, check_labels
from keras_vjepa.data.sources.samples import Sample

Inputs = NDArray[np.float32] | Batch
Labels = NDArray[np.int32]

# "eval" in ASCII: keeps these draws apart from others made from the same seed.
_EVALUATION_STREAM = 0x6576616C


def evaluation_stream(seed: int, position: int) -> np.random.Generator:
    """What places the clips of the sample at a position of `EvaluationBatches`."""
    return random_stream(seed, _EVALUATION_STREAM, position)


def _inputs(
    videos: NDArray[np.float32], frame_indices: NDArray[np.int32], with_frame_indices: bool
) -> Inputs:
    if with_frame_indices:
        return {"videos": videos, "frame_indices": frame_indices}
    return videos


@dataclass
class LabelledBatches(ShuffledBatches[tuple[Inputs, Labels]]):
    """Endless training batches `(videos, labels)`; see `IndexedBatches` for the other arguments.

    Shuffled, sharded and resumable as in pretraining. A file that cannot be read is named, and
    another sample takes its place, with its own label.

    Args:
        num_classes: number of classes; labels, int32 (batch,), are below it.
        with_frame_indices: `videos` becomes a dictionary of `videos` and `frame_indices`, int32
            (batch, clips, frames), the frames of the source that they are.
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

    num_classes: int
    with_frame_indices: bool = field(default=False, kw_only=True)
    allow_absent_classes: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_labels(self.samples, self.num_classes)
        if not self.allow_absent_classes:
            check_all_classes_occur(self.samples, self.num_classes)

    @property
    def steps_per_epoch(self) -> int:
        """Batches in which every sample has been seen once, the last one reaching beyond."""
        return -(-len(self.samples) // self.batch_size)

    def _assembled(self, step: int, items: list[tuple[Sample, Clips]]) -> tuple[Inputs, Labels]:
        videos = np.stack([clips.videos for _, clips in items])
        frame_indices = np.stack([clips.frame_indices for _, clips in items])
        labels = np.array([sample.label for sample, _ in items], np.int32)
        return _inputs(videos, frame_indices, self.with_frame_indices), labels


@dataclass
class EvaluationBatches(IndexedBatches[Clips | None, tuple[Inputs, Labels, NDArray[np.float32]]]):
    """Every sample once and in order: `(videos, labels, sample_weight)`.

    All batches have the same shape and every process has the same number of them. Rows that fill
    the last batch, and those of files that cannot be read, are zeros with label 0 and weight 0; the
    others weigh 1. So over all processes

        accuracy = sum(sample_weight * correct) / num_counted

    with `num_counted` at the end. It counts unreadable files as wrong, unless `skip_unreadable`.

    Args:
        num_classes: number of classes; labels, int32 (batch,), are below it.
        with_frame_indices: as in `LabelledBatches`.
        skip_unreadable: leave files that cannot be read out of `num_counted`.
        read_ahead: batches prepared in advance; one sample of 16x8x3 at 224 pixels has 231 MB.

    `transform` is called with the frames of a clip, for example
    `functools.partial(three_views, crop_size=224)`. See `IndexedBatches` for the other arguments.

    Raises:
        ValueError: if a label is missing or out of range, or sizes do not fit.

    Example:

    >>> samples = [Sample(f"{i}.mp4", 0) for i in range(10)]
    >>> batches = EvaluationBatches(samples, 4, transform=None, num_classes=5)
    >>> batches.num_steps, batches.num_counted
    (3, 10)
    """

    num_classes: int
    with_frame_indices: bool = field(default=False, kw_only=True)
    skip_unreadable: bool = field(default=False, kw_only=True)
    read_ahead: int = field(default=2, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_labels(self.samples, self.num_classes)
        self._shape: tuple[int, ...] | None = None

    @property
    def num_steps(self) -> int:
        """Number of batches, in every process."""
        return -(-len(self.samples) // self.batch_size)

    @property
    def num_counted(self) -> int:
        """Samples in the accuracy's denominator, over all processes.

        With `skip_unreadable`, less those that this process found unreadable so far: with several
        processes, subtract those that the others found too.
        """
        if not self.skip_unreadable:
            return len(self.samples)
        return sum(sample.path not in self.bad_files for sample in self.samples)

    def stream(
        self, start: int = 0, stop: int | None = None
    ) -> Generator[tuple[Inputs, Labels, NDArray[np.float32]], None, None]:
        """Batches from step `start` to `stop`, or to the last, read ahead by threads."""
        return super().stream(start, self.num_steps if stop is None else min(stop, self.num_steps))

    def _read(self, position: int) -> Clips | None:
        if position >= len(self.samples):
            return None
        rng = evaluation_stream(self.seed, position)
        path = self.samples[position].path
        if path in self.bad_files:
            return None
        try:
            return self.reader(path, self.clip, self.transform, rng)
        except UnreadableVideoError as error:
            verdict = "Not counted" if self.skip_unreadable else "Counted as wrong"
            self._note_bad_file(path, str(error), verdict)
            return None

    def _assembled(
        self, step: int, items: list[Clips | None]
    ) -> tuple[Inputs, Labels, NDArray[np.float32]]:
        videos = np.zeros((len(items), *self._shape_of_videos(items)), np.float32)
        indices_shape = (len(items), self.clip.num_clips, self.clip.frames_per_clip)
        frame_indices = np.zeros(indices_shape, np.int32)
        labels = np.zeros(len(items), np.int32)
        sample_weight = np.zeros(len(items), np.float32)
        for row, (position, clips) in enumerate(zip(self._positions(step), items, strict=True)):
            if clips is not None:
                videos[row] = clips.videos
                frame_indices[row] = clips.frame_indices
                labels[row] = self.samples[position].label or 0
                sample_weight[row] = 1
        inputs = _inputs(videos, frame_indices, self.with_frame_indices)
        return inputs, labels, sample_weight

    def _shape_of_videos(self, items: list[Clips | None]) -> tuple[int, ...]:
        if self._shape is None:
            found = next((clips.videos.shape for clips in items if clips is not None), None)
            self._shape = found or self._shape_of_black_video()
        return self._shape

    def _shape_of_black_video(self) -> tuple[int, ...]:
        """What reading would give: a process may have no readable file in its first batch."""
        black = np.zeros((self.clip.frames_per_clip, 64, 64, 3), np.uint8)
        shape = self.transform(black).shape
        single = len(shape) < 5 and self.clip.num_clips == 1
        return shape if single else (self.clip.num_clips, *shape)
