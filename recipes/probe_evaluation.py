"""One frozen evaluation, from a config to its numbers (§4.3, App. D.1, Tables 8 and 10).

Departures: the authors' accuracy is a mean over batches, in which padding counts; here every test
sample counts once, and one that cannot be read is wrong unless asked otherwise.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from keras_vjepa import VJEPABackbone, VJEPAVideoClassifier, files
from keras_vjepa.backend.distribution import ALONE, DataParallel
from keras_vjepa.data.batches.clips import ClipSettings
from keras_vjepa.data.batches.features import Features
from keras_vjepa.data.batches.labelled import (
    ClipPlaces,
    EvaluationBatches,
    LabelledBatches,
    OrderedBatches,
    TrainingBatches,
)
from keras_vjepa.data.sources.digit_motion_rendering import SETS
from keras_vjepa.data.sources.labels import low_shot
from keras_vjepa.data.sources.samples import Sample
from keras_vjepa.data.transforms.augmentation import AutoAugment, RandAugment
from keras_vjepa.data.transforms.training import ImageProbeTransform, VideoProbeTransform
from keras_vjepa.data.transforms.views import center_view, three_views
from keras_vjepa.evaluation.features import FeatureExtractor, cached_features
from keras_vjepa.evaluation.readouts import nearest_neighbors, ridge_classifier
from keras_vjepa.evaluation.sweep import (
    ProbeSweep,
    evaluation_batches,
    feature_batches,
    labels_of,
    top_k,
)
from keras_vjepa.presets.preset import load_backbone
from keras_vjepa.recipes.probe_configs import ProbeConfig, probe_settings

UNTRAINED = "untrained"


def make_encoder(config: ProbeConfig) -> keras.Model:
    """The preset's backbone, or an untrained one."""
    if config.preset != UNTRAINED:
        encoder = load_backbone(config.preset, dtype=config.dtype)
        for name in ("image_size", "num_frames"):
            fitting = getattr(encoder, name, None) or getattr(config, name)
            if fitting != getattr(config, name):
                raise ValueError(
                    f"`{name}` must be {fitting}, as the encoder of {config.preset}. "
                    f"Received: {getattr(config, name)}"
                )
        return encoder
    keras.utils.set_random_seed(config.seed)
    return VJEPABackbone(
        config.image_size,
        config.num_frames,
        patch_size=8 if config.data in SETS else 16,
        hidden_dim=96,
        num_layers=4,
        num_heads=4,
        dtype=config.dtype,
    )


def make_classifier(config: ProbeConfig, encoder: keras.Model, task: str) -> VJEPAVideoClassifier:
    """Clips, views, encoder, and a fresh probe of a task."""
    return VJEPAVideoClassifier(
        encoder,
        dict(zip(config.tasks, config.num_classes, strict=True))[task],
        config.num_clips,
        config.num_views,
        config.pooling,
        config.num_heads or None,
        config.head_dim or None,
        config.num_layers,
        attend_across_clips=config.attend_across_clips,
    )


def clip_settings(config: ProbeConfig) -> ClipSettings:
    """The clips of Table 10; where a video is short they overlap."""
    return ClipSettings(config.num_frames, config.temporal_stride, config.num_clips, True)


def training_transform(config: ProbeConfig) -> Callable[..., NDArray[np.float32]]:
    """Augmentation, or the central view where the config has none."""
    if not config.augment:
        return lambda frames, rng: test_transform(config, 1)(frames)
    kind = ImageProbeTransform if config.images else VideoProbeTransform
    augmentation = AutoAugment() if config.images else RandAugment()
    return kind(
        config.image_size,
        scale=config.random_resize_scale,  # type: ignore[arg-type]
        ratio=config.random_resize_aspect_ratio,  # type: ignore[arg-type]
        horizontal_flip=config.horizontal_flip,
        erasing=config.erasing,
        augmentation=augmentation if config.auto_augment else None,
    )


def test_transform(config: ProbeConfig, num_views: int) -> Callable[..., NDArray[np.float32]]:
    """One central view, or three along the long side."""
    if num_views not in (1, 3):
        raise ValueError(f"`num_views` must be 1 or 3. Received: {num_views}")
    if num_views == 3:
        return functools.partial(three_views, crop_size=config.image_size)
    # The built-in videos fill the frame: nothing is cut away.
    short_side = config.image_size if config.data in SETS else None
    return functools.partial(
        center_view, crop_size=config.image_size, short_side=short_side, antialias=config.images
    )


def clip_batches(
    config: ProbeConfig, samples: Sequence[Sample], num_views: int, batch_size: int
) -> EvaluationBatches:
    """Every sample's clips once, not augmented."""
    return EvaluationBatches(
        samples,
        batch_size,
        test_transform(config, num_views),
        clip=clip_settings(config),
        num_classes=probe_settings(config).num_labels,
        skip_unreadable=config.skip_unreadable,
        seed=config.seed,
        num_workers=config.num_workers,
        max_bad_share=config.max_bad_share,
    )


def still(transform: Callable[..., NDArray[np.float32]]) -> Callable[..., NDArray[np.float32]]:
    """A transform that shows the first frame for all: no motion is left to see."""
    return lambda frames: transform(np.broadcast_to(frames[:1], frames.shape).copy())


def features_of(
    config: ProbeConfig,
    extractor: FeatureExtractor,
    samples: Sequence[Sample],
    name: str,
    folder: Path,
    single_frame: bool = False,
    parallel: DataParallel = ALONE,
) -> Features:
    """Features of samples, computed now or found on the disk; `num_views` views for "test"."""
    num_views = config.num_views if name == "test" else 1
    batches = clip_batches(config, samples, num_views, config.feature_batch_size)
    if single_frame:
        batches.transform = still(batches.transform)
    description = {
        "image_size": config.image_size,
        "num_views": num_views,
        "images": config.images,
        "short_side": "crop" if config.data in SETS else "256/224",
        "single_frame": single_frame,
    }
    return cached_features(
        folder, name, extractor, parallel.share(batches), description, config.feature_dtype
    )


# --- One evaluation ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Split:
    """Samples of one training: with a sweep, some of them choose among its probes."""

    training: list[Sample]
    validation: list[Sample]


def make_split(config: ProbeConfig, samples: Sequence[Sample], seed: int) -> Split:
    """A low-shot subset (Table 8) of the training samples, and what it leaves for validation.

    Validation is spread over the classes: one sample of each group in an order by label.
    """
    kept = low_shot(samples, config.fraction, seed)
    settings = probe_settings(config)
    if len(settings.candidates) == 1:
        validation: list[int] = []
    else:
        if not 0 < config.validation_share < 1:
            raise ValueError(
                f"`validation_share` must be in (0, 1). Received: {config.validation_share}"
            )
        rng = np.random.default_rng([seed, 1])
        shuffled = rng.permutation(len(kept)).tolist()
        by_label = sorted(shuffled, key=lambda i: kept[i].label or 0)
        every = max(2, round(1 / config.validation_share))
        # Not the same place in every group: labels of several tasks repeat with a period.
        groups = range(0, len(kept) - every + 1, every)
        validation = [by_label[start + int(rng.integers(every))] for start in groups]
    held_out = set(validation)
    training = [sample for i, sample in enumerate(kept) if i not in held_out]
    for task, labels in labels_of(training, settings).items():
        absent = sorted(set(range(settings.tasks[task])) - set(labels.tolist()))
        if absent:
            raise ValueError(
                f"The training samples must hold every class of `{task}`. Missing: {absent[0]}"
                f"{f' (and {len(absent) - 1} more)' if len(absent) > 1 else ''}"
            )
    return Split(training, [kept[i] for i in sorted(validation)])


@dataclass(frozen=True)
class Evaluator:
    """Trains and tests the probes of a config; compiled once for any number of trainings.

    Attributes:
        train, test: all labelled samples.
        sweep: the probes, on features or, with a classifier, on videos.
        train_features, test_features: None with a classifier.
        parallel: the processes that share the work.
    """

    config: ProbeConfig
    train: Sequence[Sample]
    test: Sequence[Sample]
    sweep: ProbeSweep
    train_features: Features | None = None
    test_features: Features | None = None
    parallel: DataParallel = ALONE

    def training_batches(self, samples: Sequence[Sample]) -> TrainingBatches[Any]:
        """Batches of features, or of augmented clips."""
        config, settings = self.config, self.sweep.settings
        if self.train_features is not None:
            return self.parallel.share(feature_batches(self.train_features, samples, settings))
        batches = LabelledBatches(
            samples,
            settings.batch_size,
            training_transform(config),
            clip=clip_settings(config),
            num_classes=settings.num_labels,
            allow_absent_classes=True,
            seed=config.seed,
            num_workers=config.num_workers,
            max_bad_share=config.max_bad_share,
            places=None if config.augment else ClipPlaces(self.train, config.seed),
        )
        return self.parallel.share(batches)

    def evaluation_batches(self, samples: Sequence[Sample], is_test: bool) -> OrderedBatches[Any]:
        """Every sample once, in as many views as it is tested with."""
        config, features = self.config, self.test_features if is_test else self.train_features
        if features is not None:
            stored = evaluation_batches(features, samples, self.sweep.settings)
            return self.parallel.share(replace(stored, skip_unreadable=config.skip_unreadable))
        num_views = config.num_views if is_test else 1
        # As many rows for each device, and not many more than samples.
        devices = self.parallel.device_count
        size = min(config.batch_size, -(-len(samples) // devices) * devices)
        batches = clip_batches(config, samples, num_views, size)
        if not is_test:
            batches = replace(batches, places=ClipPlaces(self.train, config.seed))
        return self.parallel.share(batches)

    def __call__(self, index: int, progress: Path | None = None) -> dict[str, Any]:
        """Train on the split of that number and test.

        Args:
            index: of the split; it is added to the seed.
            progress: file in which an online training is kept from epoch to epoch.

        Returns:
            For each task what `measures` gives, and all `candidates`.
        """
        config, sweep, seed = self.config, self.sweep, self.config.seed + index
        split = make_split(config, self.train, seed)
        batches = replace(self.training_batches(split.training), seed=seed)
        # As many steps as with all labels: fewer samples are seen more often.
        num_samples = len(split.training) / config.fraction
        steps = config.epochs * math.ceil(num_samples / config.batch_size)
        sweep.restart(seed, steps)
        if self.train_features is not None or progress is None:
            sweep.train_on(batches, 0, steps, self.parallel)
        else:
            train_with_progress(sweep, batches, steps, progress, self.parallel)
        tests = self.evaluation_batches(self.test, is_test=True)
        test_logits, validation_logits = sweep.logits(tests), {}
        num_counted = len(self.test)
        if config.skip_unreadable:
            num_counted -= int(np.isnan(test_logits[config.tasks[0]][:, 0, 0]).sum())
        if split.validation:
            validation_logits = sweep.logits(self.evaluation_batches(split.validation, False))
        return {
            task: {
                **self._report(
                    task, split, test_logits[task], validation_logits.get(task), num_counted
                ),
                "readouts": self._readouts(task, split, num_counted),
            }
            for task in sweep.settings.tasks
        }

    def _readouts(self, task: str, split: Split, num_counted: int) -> dict[str, float]:
        """Top-1 of the quick checks, on all labels of the split: none of them chooses anything."""
        train, test = self.train_features, self.test_features
        if not self.config.readouts or train is None or test is None:
            return {}
        settings = self.sweep.settings
        places = {sample.path: place for place, sample in enumerate(train.samples)}
        samples = [
            s for s in (*split.training, *split.validation) if s.path not in train.unreadable
        ]
        pooled = train.pooled()[[places[sample.path] for sample in samples]]
        labels, test_labels = (labels_of(part, settings)[task] for part in (samples, self.test))
        read = np.array([sample.path not in test.unreadable for sample in self.test])
        found = {}
        for readout in (nearest_neighbors, ridge_classifier):
            scores = readout(pooled, labels, test.pooled(), settings.tasks[task])
            right = (scores.argmax(axis=1) == test_labels) & read
            found[readout.__name__] = float(right.sum() / num_counted)
        return found

    def _report(
        self,
        task: str,
        split: Split,
        test_logits: NDArray[np.float32],
        validation_logits: NDArray[np.float32] | None,
        num_counted: int,
    ) -> dict[str, Any]:
        settings = self.sweep.settings
        labels = labels_of(self.test, settings)[task]
        test_accuracy = top_k(test_logits, labels, 1).sum(axis=0) / num_counted
        best, validation_accuracy = 0, None
        if validation_logits is not None:
            held_out = labels_of(split.validation, settings)[task]
            validation_accuracy = top_k(validation_logits, held_out, 1).mean(axis=0)
            best = int(np.argmax(validation_accuracy))
        candidates = [
            {
                "learning_rate": learning_rate,
                "weight_decay": weight_decay,
                "validation": None if validation_accuracy is None else validation_accuracy[i],
                "test": test_accuracy[i],
            }
            for i, (learning_rate, weight_decay) in enumerate(settings.candidates)
        ]
        found = measures(test_logits[:, best], labels, settings.tasks[task], num_counted)
        return {**found, "best": best, "candidates": candidates}


def measures(
    logits: NDArray[np.float32], labels: NDArray[np.int32], num_classes: int, num_counted: int
) -> dict[str, Any]:
    """Top-1, top-5, accuracy of each class, and what every sample was called.

    Args:
        logits: `(samples, classes)`; NaN where a sample could not be read.
        labels: `(samples,)`.
        num_classes: number of classes.
        num_counted: samples in the denominator.

    Returns:
        `per_class` is None for classes without a readable sample, `predictions` for samples that
        could not be read.
    """
    read = np.logical_not(np.isnan(logits).any(axis=1))
    right = top_k(logits, labels, 1)
    correct, counts = (
        np.bincount(labels[which], minlength=num_classes) for which in (right & read, read)
    )
    return {
        "top1": float(right.sum() / num_counted),
        "top5": float(top_k(logits, labels, 5).sum() / num_counted),
        "num_counted": num_counted,
        "per_class": [float(c / n) if n else None for c, n in zip(correct, counts, strict=True)],
        "labels": labels.tolist(),
        "predictions": [
            int(row.argmax()) if known else None for row, known in zip(logits, read, strict=True)
        ],
    }


def confusion_matrix(
    labels: Sequence[int], predictions: Sequence[int | None], num_classes: int, size: int
) -> NDArray[np.int64]:
    """How often a class (row) was called another (column).

    Args:
        labels: of each sample.
        predictions: of each sample; None is left out.
        num_classes: number of classes.
        size: largest number of rows; with more classes, neighbouring ones share a row.
    """
    size = min(size, num_classes)
    matrix = np.zeros((size, size), np.int64)
    pairs = np.array([p for p in zip(labels, predictions, strict=True) if p[1] is not None], int)
    rows, columns = pairs.reshape(-1, 2).T * size // num_classes
    np.add.at(matrix, (rows, columns), 1)
    return matrix


def train_with_progress(
    sweep: ProbeSweep,
    batches: TrainingBatches[Any],
    steps: int,
    path: Path,
    parallel: DataParallel = ALONE,
) -> None:
    """Train epoch by epoch, and go on after the last epoch that is in `path`."""
    variables = [*sweep.trainable_variables, *sweep.optimizer.variables]
    done = 0
    if path.exists():
        with np.load(path) as stored:
            done = int(stored["done"])
            for i, variable in enumerate(variables):
                variable.assign(stored[str(i)])
    while done < steps:
        stop = min(done + batches.steps_per_epoch, steps)
        sweep.train_on(batches, done, stop, parallel)
        done = stop
        if not parallel.is_first:
            continue
        arrays = {str(i): keras.ops.convert_to_numpy(v) for i, v in enumerate(variables)}
        with files.unfinished_file(path) as unfinished:
            np.savez(unfinished, done=done, **arrays)


def make_evaluator(
    config: ProbeConfig,
    encoder: keras.Model,
    samples: tuple[Sequence[Sample], Sequence[Sample]],
    cache: Path,
    single_frame: bool = False,
    sweep: ProbeSweep | None = None,
    parallel: DataParallel = ALONE,
) -> Evaluator:
    """Probes on features from the disk or, with augmentation, on videos.

    Args:
        config: of the evaluation.
        encoder: the backbone.
        samples: of training and testing.
        cache: folder for features.
        single_frame: show the first frame of each clip for all; only with features.
        sweep: compiled probes on features, to be used again.
        parallel: the processes that share the work; they see the same disk.

    Raises:
        ValueError: if the batches cannot be divided among the devices, or a class is missing.
    """
    train, test = samples
    for name in ("batch_size", "feature_batch_size"):
        parallel.check_batch_size(getattr(config, name), name=name)
    settings = probe_settings(config)
    for index in range(config.splits):
        # Says now which class is missing, and not when all features have been computed.
        make_split(config, train, config.seed + index)
    classifier = make_classifier(config, encoder, config.tasks[0])
    dim, heads = classifier.probe.linear.kernel.shape[0], classifier.probe.num_heads
    if config.augment or config.online:
        sweep = ProbeSweep(settings, dim, heads, classifier)
        return Evaluator(config, train, test, sweep, parallel=parallel)
    extractor = FeatureExtractor(classifier)
    features = {
        f"{name}_features": features_of(
            config, extractor, part, name, cache, single_frame, parallel
        )
        for part, name in ((train, "train"), (test, "test"))
    }
    sweep = sweep or ProbeSweep(settings, dim, heads)
    return Evaluator(config, train, test, sweep, parallel=parallel, **features)
