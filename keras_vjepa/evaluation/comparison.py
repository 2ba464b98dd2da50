"""Compare encoders of one architecture by frozen probes on the same clips (§4.3, App. D.1)."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from keras_vjepa import files
from keras_vjepa.data.batches.clips import ClipSettings
from keras_vjepa.data.batches.features import (
    EvaluationFeatureBatches,
    Features,
    LabelledFeatureBatches,
)
from keras_vjepa.data.batches.labelled import EvaluationBatches
from keras_vjepa.data.reading.limits import DEFAULT_LIMITS, ReadingLimits
from keras_vjepa.data.sources.samples import Sample
from keras_vjepa.data.transforms.crops import PIXEL_MEAN, PIXEL_STD, Colour
from keras_vjepa.data.transforms.views import center_view
from keras_vjepa.evaluation.features import FeatureExtractor
from keras_vjepa.evaluation.metrics import top_k
from keras_vjepa.evaluation.settings import ProbeSettings
from keras_vjepa.evaluation.sweep import ProbeSweep, place_of_best
from keras_vjepa.evaluation.task_labels import labels_of, num_labels
from keras_vjepa.models.adapters import Size
from keras_vjepa.monitoring.statistics import FeatureStatistics, feature_statistics
from keras_vjepa.presets.preset import load_backbone


@dataclass(frozen=True)
class LabelledClips:
    """Holds one clip of each of several labelled videos in memory.

    Attributes:
        samples: the videos with their labels.
        videos: float32 `(clips, frames, height, width, 3)`.
        unreadable: files that could not be read, with the reason; their clips are black.
    """

    samples: list[Sample]
    videos: NDArray[np.float32]
    unreadable: dict[str, str]

    def single_frame(self) -> "LabelledClips":
        """Return clips that show their first frame all the time, so that no motion is left."""
        still = np.broadcast_to(self.videos[:, :1], self.videos.shape)
        return LabelledClips(self.samples, still, self.unreadable)


def read_labelled_clips(
    samples: list[Sample],
    clip: ClipSettings,
    image_size: Size,
    num_classes: int,
    num_workers: int | None = None,
    limits: ReadingLimits = DEFAULT_LIMITS,
    max_bad_share: float = 0.05,
    mean: Colour = PIXEL_MEAN,
    std: Colour = PIXEL_STD,
) -> LabelledClips:
    """Read one clip of every video, whose frames are shown whole and not augmented.

    Args:
        samples: the videos.
        clip: how to choose frames.
        image_size: height and width of the clips.
        num_classes: number of values that a label can have.
        num_workers: threads that decode; by default one for each core, from 2 to 32.
        limits: time and pixels that a file may take.
        max_bad_share: reading stops if more than this share of the files cannot be read.
        mean: of red, green and blue, which is subtracted from pixels in [0, 1].
        std: of red, green and blue, by which they are divided then.
    """
    short_side = image_size if isinstance(image_size, int) else max(image_size)
    batches = EvaluationBatches(
        samples,
        1,
        lambda frames: center_view(frames, image_size, short_side, mean=mean, std=std),
        clip=clip,
        num_classes=num_classes,
        num_workers=num_workers,
        limits=limits,
        max_bad_share=max_bad_share,
        read_ahead=16,
    )
    videos = np.concatenate([videos for videos, _, _ in batches.stream()])
    return LabelledClips(samples, videos, batches.bad_files)


@dataclass(frozen=True)
class ComparedEncoder:
    """Holds the results of one encoder.

    Attributes:
        accuracy: top-1 on the test clips, for each task.
        learning_rate: learning rate of the probe that was best on the held-out training clips, for
            each task.
        statistics: spread of the test clips' features.
    """

    accuracy: dict[str, float]
    learning_rate: dict[str, float]
    statistics: FeatureStatistics

    def as_dict(self) -> dict[str, Any]:
        """Return all results by name, to be written to a file."""
        return {
            **{f"{task}_accuracy": accuracy for task, accuracy in self.accuracy.items()},
            **{f"{task}_probe_learning_rate": rate for task, rate in self.learning_rate.items()},
            "feature_std": self.statistics.std,
            "effective_rank": self.statistics.effective_rank,
        }


class EncoderComparison:
    """Probes encoders of one architecture, one after the other, and compiles only once.

    Each call trains fresh probes for every task. The last tenth of the training clips decides which
    of the candidates is best.

    Args:
        encoder: any of the encoders.
        settings: how to train; clips, views and augmentation in them are not used.
        train: clips to train on, and to choose the best candidate by.
        test: clips to test on.

    Call arguments:
        encoder: the encoder to probe.
        single_frame: whether every clip shows its first frame all the time.

    Returns:
        A `ComparedEncoder`.

    Raises:
        NotFiniteError: if all probes of a task diverge.
    """

    def __init__(
        self,
        encoder: keras.Model,
        settings: ProbeSettings,
        train: LabelledClips,
        test: LabelledClips,
    ) -> None:
        self.settings = settings
        self.train = train
        self.test = test
        backbone = type(encoder).from_config(encoder.get_config())
        arguments = {"backbone": backbone, "num_classes": 1}
        self.extractor = FeatureExtractor(settings.classifier.make(**arguments))
        self.sweep = ProbeSweep(
            self.extractor.classifier.probe,
            settings.classes,
            settings.candidates,
            make_optimizer=settings.optimizer.make,
        )

    def __call__(self, encoder: keras.Model, single_frame: bool = False) -> ComparedEncoder:
        return self.of_weights(encoder.get_weights(), single_frame)

    def of_weights(
        self, weights: Sequence[NDArray[Any]], single_frame: bool = False
    ) -> ComparedEncoder:
        """Probe the encoder that has these weights.

        Args:
            weights: values in the order of the encoder's weights.
            single_frame: as in the call.
        """
        settings = self.settings
        self.extractor.classifier.backbone.set_weights(weights)
        train, test = (self._features(clips, single_frame) for clips in (self.train, self.test))
        held_out = train.samples[-max(1, len(train.samples) // 10) :]
        batches = LabelledFeatureBatches(
            train.samples[: -len(held_out)],
            settings.batch_size,
            train,
            num_classes=num_labels(settings.classes),
            # With several tasks, some combinations of classes may be missing.
            allow_absent_classes=True,
            seed=settings.seed,
        )
        steps = settings.epochs * batches.steps_per_epoch
        self.sweep.restart(settings.seed, steps)
        self.sweep.train_on(batches, 0, steps)
        finite = self.sweep.which_are_finite(steps)
        chosen = self._accuracy(train, held_out)
        reached = self._accuracy(test, self.test.samples)
        best = {task: place_of_best(chosen[task], finite[task]) for task in settings.tasks}
        return ComparedEncoder(
            {task: float(reached[task][i]) for task, i in best.items()},
            {task: settings.candidates[i][0] for task, i in best.items()},
            feature_statistics(test.shards[0]),
        )

    def _features(self, clips: LabelledClips, single_frame: bool) -> Features:
        clips = clips.single_frame() if single_frame else clips
        features = self.extractor.encode_array(clips.videos)
        return Features(clips.samples, [features], clips.unreadable)

    def _accuracy(
        self, features: Features, samples: Sequence[Sample]
    ) -> dict[str, NDArray[np.float64]]:
        """Measure the accuracy of every candidate, for each task."""
        settings = self.settings
        batches = EvaluationFeatureBatches(
            samples, settings.batch_size, features, num_classes=num_labels(settings.classes)
        )
        logits = self.sweep.logits(batches)
        labels = labels_of(samples, settings.classes)
        return {task: top_k(logits[task], labels[task], 1).mean(axis=0) for task in settings.tasks}


def write_results(path: Path, results: Mapping[str, ComparedEncoder]) -> None:
    """Write the results of encoders into a file, as `probe.json` of a run holds them.

    Args:
        path: the file.
        results: results by the names of the encoders.
    """
    summary = {name: result.as_dict() for name, result in results.items()}
    files.write_text(path, json.dumps(summary, indent=2))


def comparison_table(results: Mapping[str, ComparedEncoder]) -> str:
    """Write the results of encoders as lines of text, one line for each encoder.

    Args:
        results: results by the names of the encoders.
    """
    tasks = list(next(iter(results.values())).accuracy)
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


def make_untrained(config: Any, encoder: keras.Model) -> keras.Model:
    """Load the encoder as it was before its training, or make another one like it.

    The config of a narrow encoder does not hold the deviation of its initial weights. Therefore
    `recipes/pretrain.py` saves the encoder that it began with.

    Args:
        config: config of an evaluation, with `preset`, `dtype` and `seed`.
        encoder: the preset's encoder.
    """
    left = Path(config.preset).parent / "untrained"
    # Presets of a hub have no folders beside them.
    if Path(config.preset).is_dir() and left.is_dir():
        return load_backbone(str(left), dtype=config.dtype)
    keras.utils.set_random_seed(config.seed)
    return type(encoder).from_config(encoder.get_config())
