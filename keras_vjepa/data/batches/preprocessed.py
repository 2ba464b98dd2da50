"""Batch what a preprocessor makes of labelled files, an epoch at a time (App. D.1).

Departure from the authors' training of probes: unless told otherwise, clips are those of the
evaluation, the same in every epoch and not augmented, so that training sees what `classify` will
see.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from keras_vjepa.data.batches.indexed import IndexedBatches, ShuffledBatches
from keras_vjepa.data.reading.errors import UnreadableVideoError
from keras_vjepa.data.reading.media import Media
from keras_vjepa.data.sources.labels import check_labels
from keras_vjepa.data.sources.samples import Sample

Videos = NDArray[np.float32]
LabelledVideos = tuple[Videos, NDArray[np.int32]]


def _stacked(items: list[tuple[Sample, Videos]]) -> LabelledVideos:
    labels = np.array([sample.label for sample, _ in items], np.int32)
    return np.stack([videos for _, videos in items]), labels


@dataclass
class TrainingEpochs(ShuffledBatches[Videos, LabelledVideos]):
    """Makes batches of epochs; each epoch sees every sample, in an order of its own.

    All batches are full: the last of an epoch is filled up from the next epoch's order, and
    `batch_size` is lowered to the number of samples if there are fewer. A file that cannot be read
    is named in the log, and another sample takes its place.

    Args:
        read: makes the model's input out of a path, or of other media.
        num_classes: number of classes; labels are below it.
        shuffle: False leaves the samples in their order.
        augmented: makes the model's input in place of `read`, if it is given. It is called with
            the same and a random generator, which is another one in each epoch.
    """

    read: Callable[[str | Media], Videos] = field(kw_only=True)
    num_classes: int = field(kw_only=True)
    augmented: Callable[[str | Media, np.random.Generator], Videos] | None = field(
        default=None, kw_only=True
    )
    shuffle: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_labels(self.samples, self.num_classes)
        self.batch_size = min(self.batch_size, len(self.samples))

    @property
    def steps_per_epoch(self) -> int:
        """Return the number of batches in an epoch."""
        return -(-len(self.samples) // self.batch_size)

    def batch_of(self, epoch: int, index: int) -> LabelledVideos:
        """Make the batch at a place in an epoch, both counted from 0."""
        first = epoch * len(self.samples) + index * self.batch_size
        return _stacked([self._read(first + row) for row in range(self.batch_size)])

    def _content(self, sample: Sample, rng: np.random.Generator) -> Videos:
        if self.augmented is not None:
            return self.augmented(sample.source, rng)
        return self.read(sample.source)

    def _sample_index(self, position: int) -> int:
        in_order = position % len(self.samples)
        return super()._sample_index(position) if self.shuffle else in_order


@dataclass
class ValidationEpochs(IndexedBatches[Videos | None, LabelledVideos]):
    """Makes batches of every sample once and in order, the same in every epoch.

    A file that cannot be read is named in the log and left out, so its batch is smaller, as is the
    last one. A batch of which nothing can be read holds the next sample that can be read instead.

    Args:
        read: makes the model's input out of a path, or of other media.
        num_classes: number of classes; labels are below it.
    """

    read: Callable[[str | Media], Videos] = field(kw_only=True)
    num_classes: int = field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_labels(self.samples, self.num_classes)

    @property
    def steps_per_epoch(self) -> int:
        """Return the number of batches in an epoch."""
        return -(-len(self.samples) // self.batch_size)

    def batch_of(self, epoch: int, index: int) -> LabelledVideos:
        """Make the batch at a place, counted from 0, which is the same in every epoch."""
        count = len(self.samples)
        first = index * self.batch_size
        items: list[tuple[Sample, Videos]] = []
        for row in range(count):
            if row >= min(self.batch_size, count - first) and items:
                break
            sample = self.samples[(first + row) % count]
            videos = self._read((first + row) % count)
            if videos is not None:
                items.append((sample, videos))
        if not items:
            self._stop_at_too_many_bad_files()
        return _stacked(items)

    def _read(self, position: int) -> Videos | None:
        path = self.samples[position].path
        if path in self.bad_files:
            return None
        try:
            return self.read(self.samples[position].source)
        except UnreadableVideoError as error:
            self._note_bad_file(path, str(error), "Left out")
            return None
