"""Compute the features of a frozen encoder in memory (§4.3, App. D.1)."""

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from keras_vjepa.backend.inference import DistributedInference
from keras_vjepa.data.batches.features import Features
from keras_vjepa.data.batches.labelled import EvaluationBatches
from keras_vjepa.tasks.classifier import VJEPAVideoClassifier


class FeatureExtractor(keras.Model):
    """Computes the features that the probe of a classifier would see.

    Args:
        classifier: determines how clips and views are put together; only its backbone is used.

    Call arguments:
        inputs: as `VJEPAVideoClassifier` takes them.

    Returns:
        float32 `(batch, predictions, tokens, dim)`.
    """

    def __init__(self, classifier: VJEPAVideoClassifier) -> None:
        super().__init__()
        self.classifier = classifier
        self.built = True
        self.inference = DistributedInference(self)

    def call(self, inputs: Any) -> Any:
        inputs = inputs if isinstance(inputs, dict) else {"videos": inputs}
        return ops.cast(self.classifier.features(**inputs), "float32")

    def encode(self, batches: EvaluationBatches, start: int, stop: int) -> Iterator[NDArray[Any]]:
        """Compute the features of each batch, without the rows that only fill the last one.

        Samples that could not be read have NaN. Each of several processes computes its share of the
        features and returns all of them.
        """
        for step, (inputs, _, weight) in enumerate(batches.stream(start, stop), start=start):
            left = len(batches.samples) - step * batches.batch_size
            yield self.inference(inputs, weight)[:left]

    def encode_array(self, videos: NDArray[np.float32], batch_size: int = 64) -> NDArray[Any]:
        """Compute the features of an array of videos, batch by batch."""
        parts = []
        for start in range(0, len(videos), batch_size):
            batch = videos[start : start + batch_size]
            missing = batch_size - len(batch)
            # All batches have one shape, so that the model is compiled only once.
            padded = np.pad(batch, [(0, missing)] + [(0, 0)] * (batch.ndim - 1))
            parts.append(self.predict_on_batch(padded)[: len(batch)])
        return np.concatenate(parts)


def why_unreadable(batches: EvaluationBatches, position: int) -> str:
    """Say why the sample at a position has no features."""
    path = batches.samples[position].path
    other = f"another process could not read {path}, or the encoder's features of it are NaN"
    return batches.why_unreadable(position) or other


def features_in_memory(extractor: FeatureExtractor, batches: EvaluationBatches) -> Features:
    """Compute the features of all samples of batches, and keep them in memory.

    Args:
        extractor: computes the features.
        batches: the samples, and how their clips are read.
    """
    features = np.concatenate(list(extractor.encode(batches, 0, batches.num_steps)))
    unread = np.flatnonzero(np.isnan(features[:, 0, 0, 0])).tolist()
    features[unread] = 0
    unreadable = {batches.samples[i].path: why_unreadable(batches, i) for i in unread}
    return Features(batches.samples, [features], unreadable)
