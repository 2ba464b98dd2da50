"""Evaluate a frozen encoder by training probes on its features (§4.3, App. D.1)."""

import logging
import math
import os
import sys
from collections.abc import Sequence
from typing import Any, Self

import keras
import numpy as np
from numpy.typing import NDArray

from keras_vjepa import configuration
from keras_vjepa.backend.distribution import ALONE, DataParallel
from keras_vjepa.data.batches.labelled import TrainingBatches
from keras_vjepa.data.sources.samples import Sample
from keras_vjepa.evaluation.metrics import accuracies, top_k
from keras_vjepa.evaluation.probe_batches import ProbeBatches
from keras_vjepa.evaluation.readouts import READOUTS
from keras_vjepa.evaluation.settings import ProbeSettings
from keras_vjepa.evaluation.splits import Split, split_for
from keras_vjepa.evaluation.sweep import ProbeSweep, place_of_best
from keras_vjepa.evaluation.task_labels import labels_of
from keras_vjepa.models.adapters import as_token_encoder
from keras_vjepa.presets.preset import PresetName, load_backbone
from keras_vjepa.tasks.classifier import VJEPAVideoClassifier
from keras_vjepa.training.run_state import (
    Checkpoints,
    copy_training_state,
    restore_training_state,
)

_LOG = logging.getLogger(__name__)


class FrozenProbe:
    """Measures what a frozen encoder has learnt by training and testing probes on its features.

    `fit` may be called again, for another split or other samples: it begins with fresh probes, and
    compiles nothing again.

    Args:
        encoder: a backbone (see `keras_vjepa.models.adapters`), or a preset of one.
        settings: how to evaluate.
        cache: folder for features, where they are found again; None keeps them in memory.
        single_frame: whether every clip shows its first frame all the time; only if features are
            kept.
        sweep: the sweep of another `FrozenProbe` with the same classifier and optimizer, for an
            encoder of the same width: its probes are compiled already.
        parallel: the processes that share the work; they see the same disk.
        options: settings by name, in place of those in `settings`; see
            `keras_vjepa.configuration.options`.

    Raises:
        ValueError: if a setting is out of range, does not fit the encoder, or a batch cannot be
            divided among the devices.

    Example:

    >>> from keras_vjepa import VJEPABackbone
    >>> from keras_vjepa.evaluation.frozen_probe import FrozenProbe
    >>> encoder = VJEPABackbone(32, 4, hidden_dim=24, num_layers=1, num_heads=2)
    >>> probe = FrozenProbe(encoder, num_classes=(5,), learning_rates=(1e-3, 1e-2), num_layers=2)
    >>> len(probe.sweep.probes), probe.settings.image_size
    (2, 32)

    With lists of labelled samples, `probe.fit(train).score(test)["action"]["top1"]`.
    """

    def __init__(
        self,
        encoder: keras.Model | PresetName,
        settings: ProbeSettings | None = None,
        cache: str | os.PathLike[str] | None = None,
        single_frame: bool = False,
        sweep: ProbeSweep | None = None,
        parallel: DataParallel = ALONE,
        **options: Any,
    ) -> None:
        if isinstance(encoder, str | os.PathLike):
            encoder = load_backbone(encoder)
        settings = configuration.replace(settings or ProbeSettings(), **options)
        self.encoder = encoder
        self.settings = settings = settings.for_encoder(as_token_encoder(encoder))
        self.parallel = parallel
        classifier = self._fresh_classifier(settings.tasks[0])
        self.batches = ProbeBatches(settings, classifier, cache, single_frame, parallel)
        self.sweep = sweep or ProbeSweep(
            classifier.probe,
            settings.classes,
            settings.candidates,
            None if settings.keeps_features else classifier,
            settings.optimizer.make,
        )
        self._train: Sequence[Sample] = ()
        self._split = Split([], [])
        self._validation_accuracy: dict[str, NDArray[np.float64]] = {}
        self._finite: dict[str, NDArray[np.bool_]] = {}

    # --- Training --------------------------------------------------------------------------------

    def split(self, samples: Sequence[Sample], index: int = 0) -> Split:
        """Choose the samples to train on, and those by which the best probe is chosen.

        Args:
            samples: all labelled training samples.
            index: number of the split; it is added to the seed.

        Raises:
            ValueError: if a share is out of range, or a class has no sample to train on.
        """
        return split_for(self.settings, samples, index)

    def plan(self, samples: Sequence[Sample], splits: int) -> None:
        """Note which samples some splits use, so that features of no others are computed.

        Args:
            samples: all labelled training samples.
            splits: number of splits, from the first.

        Raises:
            ValueError: as `split` does.
        """
        made = [self.split(samples, index) for index in range(splits)]
        used = {sample.path for one in made for sample in (*one.training, *one.validation)}
        self.batches.used = used if len(used) < len(samples) else None

    def fit(
        self, samples: Sequence[Sample], index: int = 0, checkpoints: Checkpoints | None = None
    ) -> Self:
        """Train the probes, and find the best of each task by the validation samples.

        Args:
            samples: all labelled training samples.
            index: number of the split; it is added to the seed.
            checkpoints: where the training is saved after each epoch, and continued from, if
                features are not kept; they must belong to this encoder, settings, samples and
                index.

        Raises:
            ValueError: if a share is out of range, or a class has no sample to train on.
            NotFiniteError: if all probes of a task have diverged.
            OSError: if features or checkpoints cannot be written.
        """
        # This raises the error for a missing class now, before all features are computed.
        self._split, self._train = self.split(samples, index), samples
        self._forget_other_plan()
        settings, seed = self.settings, self.settings.seed + index
        batches = self.batches.training(self._split.training, samples, seed)
        # The number of steps is that for all labels, so that fewer samples are seen more often.
        num_samples = len(self._split.training) / settings.fraction
        steps = settings.epochs * math.ceil(num_samples / settings.batch_size)
        self.sweep.restart(seed, steps)
        if self.parallel.is_first:
            count = len(self.sweep.probes)
            which = "1 probe" if count == 1 else f"{count} probes side by side"
            print(f"Training {which}: {steps:,} steps.", file=sys.stderr, flush=True)
        if checkpoints is None or settings.keeps_features:
            self.sweep.train_on(batches, 0, steps, self.parallel)
        else:
            self._train_by_epochs(batches, steps, checkpoints)
        self._finite = self.sweep.which_are_finite(steps)
        self._validation_accuracy = self._validate()
        return self

    def _forget_other_plan(self) -> None:
        """Compute the features of all samples, if a plan was made without those of this split."""
        used, split = self.batches.used, (*self._split.training, *self._split.validation)
        if used is not None and any(sample.path not in used for sample in split):
            self.batches.used = None

    def _train_by_epochs(
        self, batches: TrainingBatches[Any], steps: int, checkpoints: Checkpoints
    ) -> None:
        done = 0
        try:
            found = checkpoints.latest()
        except OSError as error:
            _LOG.warning("This training begins anew: %s", error)
            found = None
        if found is not None:
            # Checkpoints hold no frozen weights: these are the encoder's, which is here already.
            restore_training_state(self.sweep, found.arrays, non_trainable=False)
            done = found.step
        while done < steps:
            stop = min(done + batches.steps_per_epoch, steps)
            self.sweep.train_on(batches, done, stop, self.parallel)
            done = stop
            if self.parallel.is_first:
                state = copy_training_state(self.sweep, non_trainable=False)
                try:
                    checkpoints.save(done, state, {"steps": steps})
                    checkpoints.wait()
                except FloatingPointError as error:
                    # One of the probes has diverged; the others may still learn.
                    _LOG.warning("%s", error)

    def _validate(self) -> dict[str, NDArray[np.float64]]:
        """Measure the accuracy of every probe on the validation samples, if there are any."""
        samples = self._split.validation
        if not samples:
            return {}
        logits = self.sweep.logits(self.batches.validation(samples, self._train))
        labels = labels_of(samples, self.settings.classes)
        return {
            task: top_k(logits[task], labels[task], 1).mean(axis=0) for task in self.settings.tasks
        }

    def best(self, task: str) -> int:
        """Return the position of a task's best probe among the candidates."""
        accuracy = self._validation_accuracy.get(task)
        if accuracy is None:
            return 0
        return place_of_best(accuracy, self._finite[task])

    def classifier(self, task: str) -> VJEPAVideoClassifier:
        """Make a classifier from the encoder and a task's best probe."""
        classifier = self._fresh_classifier(task)
        classifier.probe.set_weights(self.sweep.probes_of(task)[self.best(task)].get_weights())
        return classifier

    def _fresh_classifier(self, task: str) -> VJEPAVideoClassifier:
        num_classes = self.settings.classes[task]
        return self.settings.classifier.make(backbone=self.encoder, num_classes=num_classes)

    # --- Testing ---------------------------------------------------------------------------------

    def score(self, samples: Sequence[Sample]) -> dict[str, dict[str, Any]]:
        """Test the probes of the last `fit`.

        Args:
            samples: labelled test samples.

        Returns:
            For each task, what `accuracies` returns for its best probe, and

            - `best`: the position of that probe among the candidates;
            - `candidates`: for each candidate its `learning_rate`, its `weight_decay`, and its
              accuracy in `validation` and `test`; `validation` is None for a single candidate;
            - `readouts`: top-1 of the quick checks by their names, if they were asked for.
        """
        settings = self.settings
        logits = self.sweep.logits(self.batches.test(samples))
        num_counted = len(samples)
        if settings.skip_unreadable:
            num_counted -= int(np.isnan(logits[settings.tasks[0]][:, 0, 0]).sum())
        return {
            task: {
                **self._report(task, samples, logits[task], num_counted),
                "readouts": self._readouts(task, samples, num_counted),
            }
            for task in settings.tasks
        }

    def read_out(
        self, samples: Sequence[Sample], test_samples: Sequence[Sample]
    ) -> dict[str, dict[str, float]]:
        """Measure top-1 of the quick checks alone, without training a probe.

        Args:
            samples: labelled training samples.
            test_samples: labelled test samples.

        Returns:
            For each task, the share of test samples that each check classifies right, by the name
            of the check; empty unless the settings have `readouts`.
        """
        self._train, self._split = samples, Split([*samples], [])
        self._forget_other_plan()
        return {
            task: self._readouts(task, test_samples, len(test_samples))
            for task in self.settings.tasks
        }

    def _report(
        self,
        task: str,
        samples: Sequence[Sample],
        logits: NDArray[np.float32],
        num_counted: int,
    ) -> dict[str, Any]:
        settings, best = self.settings, self.best(task)
        labels = labels_of(samples, settings.classes)[task]
        test_accuracy = top_k(logits, labels, 1).sum(axis=0) / num_counted
        validation_accuracy = self._validation_accuracy.get(task)
        candidates = [
            {
                "learning_rate": learning_rate,
                "weight_decay": weight_decay,
                "validation": None if validation_accuracy is None else validation_accuracy[i],
                "test": test_accuracy[i],
            }
            for i, (learning_rate, weight_decay) in enumerate(settings.candidates)
        ]
        found = accuracies(logits[:, best], labels, settings.classes[task], num_counted)
        return {**found, "best": best, "candidates": candidates}

    def _readouts(
        self, task: str, test_samples: Sequence[Sample], num_counted: int
    ) -> dict[str, float]:
        """Measure top-1 of the quick checks, with all samples of the split.

        The validation samples are used too, because a quick check has nothing to be chosen by them.
        """
        if not self.settings.readouts or not self.settings.keeps_features:
            return {}
        classes = self.settings.classes
        train = self.batches.features(self._train)
        test = self.batches.features(test_samples, is_test=True)
        split = (*self._split.training, *self._split.validation)
        samples = [sample for sample in split if sample.path not in train.unreadable]
        pooled = train.pooled()[[train.row(sample) for sample in samples]]
        labels, test_labels = (labels_of(part, classes)[task] for part in (samples, test_samples))
        read = np.array([sample.path not in test.unreadable for sample in test_samples])
        found = {}
        for name, readout in READOUTS.items():
            scores = readout(pooled, labels, test.pooled(), classes[task])
            right = (scores.argmax(axis=1) == test_labels) & read
            found[name] = float(right.sum() / num_counted)
        return found
