"""Encoders compared by frozen probes on the built-in set (§4.3, App. D.1)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keras_vjepa.data.batches.clips import ClipSettings
from keras_vjepa.data.batches.features import Features
from keras_vjepa.data.batches.labelled import EvaluationBatches
from keras_vjepa.data.sources.samples import Sample
from keras_vjepa.data.transforms.views import center_view
from keras_vjepa.evaluation.features import FeatureExtractor
from keras_vjepa.evaluation.sweep import (
    DIGIT_MOTION_TASKS,
    ProbeSettings,
    ProbeSweep,
    evaluation_batches,
    feature_batches,
    labels_of,
    top_k,
)
from keras_vjepa.models.backbone import VJEPABackbone
from keras_vjepa.monitoring.statistics import FeatureStatistics, feature_statistics
from keras_vjepa.tasks.classifier import VJEPAVideoClassifier


@dataclass(frozen=True)
class Clips:
    """Evaluation clips of labelled videos, in memory.

    Attributes:
        samples: the videos with their labels.
        videos: float32 `(clips, frames, height, width, 3)`.
        unreadable: files without a clip, with the reason; theirs is black.
    """

    samples: list[Sample]
    videos: np.ndarray
    unreadable: dict[str, str]

    def single_frame(self) -> "Clips":
        """The same clips with their first frame standing still: no motion is left to see."""
        still = np.broadcast_to(self.videos[:, :1], self.videos.shape)
        return Clips(self.samples, still, self.unreadable)


def read_clips(
    samples: list[Sample], clip: ClipSettings, image_size: int, num_workers: int = 2
) -> Clips:
    """One clip of every video of the built-in set, not augmented."""
    batches = EvaluationBatches(
        samples,
        1,
        lambda frames: center_view(frames, image_size, image_size),
        clip=clip,
        num_classes=math.prod(DIGIT_MOTION_TASKS.values()),
        num_workers=num_workers,
        read_ahead=16,
    )
    videos = np.concatenate([videos for videos, _, _ in batches.stream()])
    return Clips(samples, videos, batches.bad_files)


@dataclass(frozen=True)
class ProbeResult:
    """What one encoder reaches.

    Attributes:
        accuracy: top-1 on the test clips, for each task.
        learning_rate: of the probe, the one that was best on the held-out training clips.
        statistics: spread of the test clips' features.
    """

    accuracy: dict[str, float]
    learning_rate: dict[str, float]
    statistics: FeatureStatistics


class FrozenProbe:
    """One probe a task, trained anew for every encoder; compiled once.

    The last tenth of the training clips chooses among the candidates.

    Args:
        encoder: any of the encoders to compare; all have its architecture.
        settings: how to train.
    """

    def __init__(self, encoder: VJEPABackbone, settings: ProbeSettings) -> None:
        self.settings = settings
        backbone = type(encoder).from_config(encoder.get_config())
        self.extractor = FeatureExtractor(VJEPAVideoClassifier(backbone, num_classes=1))
        self.sweep = ProbeSweep(settings, encoder.hidden_dim, encoder.num_heads)

    def __call__(self, encoder: VJEPABackbone, train: Clips, test: Clips) -> ProbeResult:
        """Train the probe on an encoder's features of `train`; accuracy on `test`."""
        settings = self.settings
        self.extractor.classifier.backbone.set_weights(encoder.get_weights())
        train_features, test_features = (
            Features(clips.samples, [self.extractor.encode_array(clips.videos)], clips.unreadable)
            for clips in (train, test)
        )
        held_out = train.samples[-max(1, len(train.samples) // 10) :]
        training = train.samples[: -len(held_out)]
        batches = feature_batches(train_features, training, settings)
        steps = settings.epochs * batches.steps_per_epoch
        self.sweep.restart(settings.seed, steps)
        self.sweep.train_on(batches, 0, steps)
        chosen = self._accuracy(train_features, held_out)
        reached = self._accuracy(test_features, test.samples)
        accuracy, learning_rate = {}, {}
        for task in settings.tasks:
            best = int(np.argmax(chosen[task]))
            accuracy[task] = float(reached[task][best])
            learning_rate[task] = settings.candidates[best][0]
        return ProbeResult(accuracy, learning_rate, feature_statistics(test_features.shards[0]))

    def _accuracy(
        self, features: Features, samples: Sequence[Sample]
    ) -> dict[str, NDArray[np.float64]]:
        """Of every candidate, for each task."""
        logits = self.sweep.logits(evaluation_batches(features, samples, self.settings))
        labels = labels_of(samples, self.settings)
        return {
            task: top_k(logits[task], labels[task], 1).mean(axis=0) for task in self.settings.tasks
        }


def table(results: dict[str, ProbeResult]) -> str:
    """The results as lines of text, one encoder a line."""
    tasks = list(DIGIT_MOTION_TASKS)
    rows: list[tuple[str, ...]] = [
        ("frozen attentive probe, test accuracy", *tasks, "feature std", "effective rank")
    ]
    for name, result in results.items():
        accuracies = [f"{result.accuracy[task]:.3f}" for task in tasks]
        statistics = result.statistics
        rows.append(
            (name, *accuracies, f"{statistics.std:.3f}", f"{statistics.effective_rank:.1f}")
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def as_dict(result: ProbeResult) -> dict[str, Any]:
    """For a results file."""
    return {
        **{f"{task}_accuracy": accuracy for task, accuracy in result.accuracy.items()},
        **{f"{task}_probe_learning_rate": rate for task, rate in result.learning_rate.items()},
        "feature_std": result.statistics.std,
        "effective_rank": result.statistics.effective_rank,
    }
