"""Batch the features of samples in the place of the samples' clips (§4.3, App. D.1).

Samples, order, labels and unreadable files are treated as in `labelled.py`, so that a probe sees
the same whether its features were computed once or in every step.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from keras_vjepa.data.batches.labelled import Inputs, OrderedBatches, TrainingBatches
from keras_vjepa.data.reading.errors import UnreadableVideoError
from keras_vjepa.data.sources.samples import Sample

FeatureArray = NDArray[np.float32]


@dataclass(frozen=True)
class Features:
    """Holds the features of samples, in memory or mapped from files.

    Args:
        samples: the samples whose features these are.
        shards: arrays `(samples, predictions, tokens, dim)`, all of one length but the last.
        unreadable: paths that could not be read, with the reason; their rows hold nothing.

    Example:

    >>> features = Features([Sample("a.mp4", 0)], [np.ones((1, 1, 5, 8), "float32")], {})
    >>> features.of(Sample("a.mp4", 0)).shape, features.pooled().shape
    ((1, 5, 8), (1, 8))
    """

    samples: Sequence[Sample]
    shards: Sequence[NDArray[np.floating]]
    unreadable: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rows = {sample.path: row for row, sample in enumerate(self.samples)}
        object.__setattr__(self, "_rows", rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of one sample's features, `(predictions, tokens, dim)`."""
        return self.shards[0].shape[1:]

    def row(self, sample: Sample) -> int:
        """Return the place of a sample among all samples."""
        return self._rows[sample.path]  # type: ignore[attr-defined]

    def of(self, sample: Sample) -> FeatureArray:
        """Return the features of a sample, float32 `(predictions, tokens, dim)`.

        Raises:
            UnreadableVideoError: if the sample has none because its file could not be read.
        """
        path = sample.path
        if path in self.unreadable:
            beginning = str(UnreadableVideoError(path, ""))
            raise UnreadableVideoError(path, self.unreadable[path].removeprefix(beginning))
        shard, row = divmod(self.row(sample), len(self.shards[0]))
        return np.asarray(self.shards[shard][row], np.float32)

    def pooled(self) -> FeatureArray:
        """Return the mean over predictions and tokens of each sample, `(samples, dim)`."""
        means = [np.asarray(shard, np.float32).mean(axis=(1, 2)) for shard in self.shards]
        return np.concatenate(means)


@dataclass
class _OfFeatures:
    """Adds to indexed batches the features that they hold.

    Args:
        features: features of all samples of the batches, and perhaps of others.
        max_bad_share: stop when more than this share of the samples has no features. By default
            nothing stops, because the share was checked when the features were made.
    """

    features: Features
    max_bad_share: float = field(default=1.0, kw_only=True)

    def _inputs(self, contents: list[FeatureArray]) -> Inputs:
        return np.stack(contents)


@dataclass
class LabelledFeatureBatches(_OfFeatures, TrainingBatches[FeatureArray]):
    """Makes endless training batches `(features, labels)`, in the order that clips would have.

    See `TrainingBatches` and `IndexedBatches` for the other arguments.

    Args:
        features: float32 `(batch, predictions, tokens, dim)` in a batch.

    Example:

    >>> features = Features([Sample("a.mp4", 0)], [np.ones((1, 1, 5, 8), "float32")])
    >>> batches = LabelledFeatureBatches(features.samples, 2, features, num_classes=1)
    >>> batches.batch(0)[0].shape
    (2, 1, 5, 8)
    """

    def _content(self, sample: Sample, rng: np.random.Generator) -> FeatureArray:
        return self.features.of(sample)


@dataclass
class EvaluationFeatureBatches(_OfFeatures, OrderedBatches[FeatureArray]):
    """Reads every sample's features once and in order: `(features, labels, sample_weight)`.

    See `OrderedBatches` and `IndexedBatches` for the other arguments.

    Args:
        features: float32 `(batch, predictions, tokens, dim)` in a batch.

    Example:

    >>> features = Features([Sample("a.mp4", 0)], [np.ones((1, 1, 5, 8), "float32")])
    >>> batches = EvaluationFeatureBatches(features.samples, 2, features, num_classes=1)
    >>> batches.batch(0)[2].tolist()
    [1.0, 0.0]
    """

    def _content(self, position: int) -> FeatureArray:
        return self.features.of(self.samples[position])

    def _empty(self) -> FeatureArray:
        return np.zeros(self.features.shape, np.float32)
