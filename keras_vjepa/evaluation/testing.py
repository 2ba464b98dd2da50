"""Test a classifier on labelled videos, on all devices and processes (App. D.3, Table 12)."""

from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from keras_vjepa.backend.inference import DistributedInference
from keras_vjepa.data.batches.labelled import EvaluationBatches
from keras_vjepa.evaluation.metrics import accuracies


class ClassifierTest:
    """Counts how often a classifier is right; each video counts once, whatever its number of views.

    Args:
        batches: batches of the videos, of which this process makes its share.

    Call arguments:
        classifier: takes the clips and views that the batches have. All processes call it together.

    Returns:
        The metrics of `keras_vjepa.evaluation.metrics.accuracies`, and `loss`, the mean
        cross-entropy of the videos that could be read; None if none could be read.
    """

    def __init__(self, batches: EvaluationBatches) -> None:
        self.batches = batches
        self._inference: DistributedInference | None = None

    def __call__(self, classifier: keras.Model) -> dict[str, Any]:
        # The object is kept between calls, so that it is compiled only once.
        if self._inference is None or self._inference.model is not classifier:
            self._inference = DistributedInference(classifier)
        found = [self._inference(videos, weight) for videos, _, weight in self.batches.stream()]
        samples, num_classes = self.batches.samples, self.batches.num_classes
        logits = np.concatenate(found)[: len(samples)].astype("float32")
        labels = np.array([sample.label for sample in samples], np.int32)
        counted = accuracies(logits, labels, num_classes, self.batches.num_counted)
        return {**counted, "loss": _cross_entropy(logits, labels)}


def _cross_entropy(logits: NDArray[np.float32], labels: NDArray[np.int32]) -> float | None:
    read = ~np.isnan(logits).any(axis=1)
    if not read.any():
        return None
    own = logits[read, labels[read]].astype("float64")
    rest = logits[read].astype("float64") - own[:, None]
    return float(np.logaddexp.reduce(rest, axis=1).mean())
