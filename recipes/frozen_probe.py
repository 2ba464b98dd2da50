"""Compare frozen encoders by a small attentive probe on the built-in set (§4.3, App. D.1).

One clip a video, no augmentation, features computed once. Every encoder gets the same probe: same
initial weights, same batches, same number of steps.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vjepa import AdamW, CosineSchedule, VJEPABackbone, VJEPAProbe, WarmupCosine
from keras_vjepa.data.digit_motion import split_label
from keras_vjepa.data.index import Sample
from keras_vjepa.data.pipeline import ClipSettings
from keras_vjepa.data.transforms import center_view
from keras_vjepa.data.video import clip_frame_indices, open_video
from keras_vjepa.monitoring import FeatureStatistics, feature_statistics

TASKS = ("digit", "motion")


@dataclass(frozen=True)
class ProbeSettings:
    """How the probe is trained.

    Batch size and learning rate were chosen on 400 held-out training videos with the untrained
    encoder, 8 epochs: 32 and 3e-3 read motion .71 and digit .37; 64 and 1e-3 only .39 and .12.
    """

    epochs: int = 8
    batch_size: int = 32
    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    seed: int = 0


@dataclass(frozen=True)
class Clips:
    """Evaluation clips and their labels.

    Attributes:
        videos: float32 `(clips, frames, height, width, 3)`.
        labels: int `(clips, 2)`, digit and motion.
    """

    videos: np.ndarray
    labels: np.ndarray

    def single_frame(self) -> "Clips":
        """The same clips with their first frame standing still: no motion is left to see."""
        still = np.broadcast_to(self.videos[:, :1], self.videos.shape)
        return Clips(np.ascontiguousarray(still), self.labels)


def read_clips(
    samples: list[Sample], clip: ClipSettings, image_size: int, num_workers: int = 2
) -> Clips:
    """The first clip of every video, not augmented."""
    unlabelled = [sample.path for sample in samples if sample.label is None]
    if unlabelled:
        raise ValueError(f"`samples` must have labels. Received none for {unlabelled[0]}")

    def read(sample: Sample) -> np.ndarray:
        with open_video(sample.path) as video:
            [indices] = clip_frame_indices(video.num_frames, clip.frames_per_clip, clip.frame_step)
            return center_view(video.read(indices), image_size, image_size)

    with ThreadPoolExecutor(num_workers) as pool:
        videos = list(pool.map(read, samples))
    labels = [split_label(sample.label) for sample in samples if sample.label is not None]
    return Clips(np.stack(videos), np.array(labels, "int32"))


@dataclass(frozen=True)
class ProbeResult:
    """What one encoder reaches.

    Attributes:
        accuracy: top-1 on the test clips, for each task.
        statistics: spread of the test clips' features.
    """

    accuracy: dict[str, float]
    statistics: FeatureStatistics


class FrozenProbe:
    """One probe, trained anew for every encoder.

    Args:
        encoder: any of the encoders to compare; gives the probe its width.
        settings: how to train.
    """

    def __init__(self, encoder: VJEPABackbone, settings: ProbeSettings) -> None:
        self.settings = settings
        keras.utils.set_random_seed(settings.seed)
        tokens = keras.Input((encoder.num_tokens, encoder.hidden_dim))
        outputs = {task: VJEPAProbe(10, encoder.num_heads, name=task)(tokens) for task in TASKS}
        self.model = keras.Model(tokens, outputs)
        self.initial_weights = self.model.get_weights()

    def __call__(self, encoder: VJEPABackbone, train: Clips, test: Clips) -> ProbeResult:
        """Train the probe on an encoder's features of `train`; accuracy on `test`."""
        settings, labels = self.settings, train.labels
        keras.utils.set_random_seed(settings.seed)
        self.model.set_weights(self.initial_weights)
        steps = settings.epochs * -(-len(labels) // settings.batch_size)
        self.model.compile(
            AdamW(
                WarmupCosine(settings.learning_rate, settings.learning_rate, 0.0, 0, steps),
                CosineSchedule(settings.weight_decay, 1e-6, steps),
                clip_norm=1.0,
            ),
            loss={task: keras.losses.SparseCategoricalCrossentropy(True) for task in TASKS},
        )
        self.model.fit(
            features(encoder, train.videos),
            {task: labels[:, i] for i, task in enumerate(TASKS)},
            batch_size=settings.batch_size,
            epochs=settings.epochs,
            verbose=0,
        )
        test_features = features(encoder, test.videos)
        logits = self.model.predict(test_features, settings.batch_size, verbose=0)
        accuracy = {
            task: float(np.mean(logits[task].argmax(axis=-1) == test.labels[:, i]))
            for i, task in enumerate(TASKS)
        }
        return ProbeResult(accuracy, feature_statistics(test_features))


def features(encoder: VJEPABackbone, videos: np.ndarray, batch_size: int = 64) -> np.ndarray:
    """Features of clips, float32 `(clips, tokens, hidden_dim)`."""
    parts = encoder.predict(videos, batch_size, verbose=0)
    return ops.convert_to_numpy(parts).astype("float32")


def table(results: dict[str, ProbeResult]) -> str:
    """The results as lines of text, one encoder a line."""
    rows: list[tuple[str, ...]] = [
        ("frozen attentive probe, test accuracy", *TASKS, "feature std", "effective rank")
    ]
    for name, result in results.items():
        accuracies = [f"{result.accuracy[task]:.3f}" for task in TASKS]
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
        **{f"{task}_accuracy": result.accuracy[task] for task in TASKS},
        "feature_std": result.statistics.std,
        "effective_rank": result.statistics.effective_rank,
    }
