"""Probe the encoder of a run while it is trained, by an attentive probe on labels (§4.3).

The loss does not tell what features are good for, and nearest neighbours see only the mean over a
clip's tokens. A probe tells, with the same pooling as at the end of a run, but from fewer clips.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keras_vjepa.data.batches.pretraining import ClipBatches
from keras_vjepa.data.sources import labelled_sets
from keras_vjepa.data.sources.digit_motion_rendering import SETS
from keras_vjepa.data.sources.labels import without_test_data
from keras_vjepa.data.sources.samples import Sample
from keras_vjepa.evaluation.comparison import (
    EncoderComparison,
    LabelledClips,
    read_labelled_clips,
)
from keras_vjepa.evaluation.settings import ProbeSettings
from keras_vjepa.evaluation.task_labels import DIGIT_MOTION_TASKS, Tasks, num_labels
from keras_vjepa.models.backbone import VJEPABackbone
from keras_vjepa.training.loss_log import NotFiniteError

# Videos that have labels, and are not of a built-in set, have this one task.
TASK = "label"
# How the probe is trained: one learning rate, the best one of most of the probes at the end of runs
# on the built-in set, and few passes.
_LEARNING_RATE, _EPOCHS, _BATCH_SIZE = 1e-2, 8, 32
# The most videos that are for testing, as a share of those of the training.
_MOST_TESTED = 0.5
# Folders that hold the folders of classes.
_SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class ProbedClips:
    """Holds the labelled clips of an online probe.

    Attributes:
        tasks: number of classes of each task.
        train: clips to train the probe on.
        test: clips to test it on.
    """

    tasks: Tasks
    train: LabelledClips
    test: LabelledClips


def probed_clips(data: str, batches: ClipBatches, count: int) -> ProbedClips | None:
    """Read labelled clips for an online probe, in the middle of the frame and not augmented.

    Args:
        data: what the run is trained on, or the name of a built-in set, whose test set is used.
            Other data are a list with labels or a folder with a folder for each class, of which a
            fifth is for testing; the encoder is trained on these videos, but the probe is not.
        batches: batches of the training.
        count: number of clips to train the probe on, if there are so many; 2 at least.

    Returns:
        The clips; None if a video has no class, all have the same, or no class has two videos.

    Raises:
        TooManyBadFilesError: if too many files cannot be read, as in the training.
    """
    if data in SETS:
        tasks: Tasks = DIGIT_MOTION_TASKS
        train, test = labelled_sets.train_and_test(data)
    else:
        samples = _labelled(data, batches.samples)
        known = {sample.label for sample in samples if sample.label is not None}
        if len(known) < 2 or len(known) == len(samples):
            return None
        tasks = {TASK: 1 + max(known)}
        train, test = without_test_data(samples)
    read = functools.partial(_read, batches=batches, num_classes=num_labels(tasks))
    # A clip is set aside to choose among several probes, although there is only one.
    count = max(count, 2)
    return ProbedClips(
        tasks, read(_some(train, count)), read(_some(test, int(_MOST_TESTED * count)))
    )


def _labelled(data: str, samples: Sequence[Sample]) -> Sequence[Sample]:
    """Return samples with the labels that they have or that the folder of their class tells."""
    if all(sample.label is not None for sample in samples):
        return samples
    if not all(Path(sample.path).is_relative_to(data) for sample in samples):
        return []
    folders = [Path(sample.path).relative_to(data).parts[:-1] for sample in samples]
    if all(parts and parts[0] in _SPLITS for parts in folders):
        folders = [parts[1:] for parts in folders]
    if not all(folders):
        return []
    numbers = {name: i for i, name in enumerate(sorted({parts[0] for parts in folders}))}
    return [
        replace(sample, label=numbers[parts[0]])
        for sample, parts in zip(samples, folders, strict=True)
    ]


def _some(samples: Sequence[Sample], count: int) -> list[Sample]:
    """Choose samples at random, always the same, because lists are often sorted by class."""
    order = np.random.default_rng(0).permutation(len(samples))
    return [samples[i] for i in order[:count]]


def _read(samples: list[Sample], batches: ClipBatches, num_classes: int) -> LabelledClips:
    transform: Any = batches.transform
    height, width = np.broadcast_to(transform.crop_size, 2).tolist()
    return read_labelled_clips(
        samples,
        batches.clip,
        (height, width),
        num_classes,
        batches.num_workers,
        batches.limits,
        max_bad_share=batches.max_bad_share,
        mean=transform.mean,
        std=transform.std,
    )


class OnlineProbe:
    """Trains fresh attentive probes on the features of a target encoder, and tests them.

    It is compiled once. The networks of the run are not changed: an encoder of its own gets their
    weights.

    Args:
        clips: labelled clips.

    Call arguments:
        encoder: the target encoder that is probed, always the same.
        weights: the values of its weights, in their order.

    Returns:
        `probe_<task>` for each task, the share of test clips that the probe names right, or NaN if
        it diverges, as on features that are not finite; and `clips_of_probe`, the number of test
        clips.
    """

    def __init__(self, clips: ProbedClips) -> None:
        self.clips = clips
        self._comparison: EncoderComparison | None = None

    def __call__(
        self, encoder: VJEPABackbone, weights: Sequence[NDArray[Any]]
    ) -> dict[str, float | int]:
        self._comparison = self._comparison or self._made(encoder)
        try:
            accuracy: Mapping[str, float] = self._comparison.of_weights(weights).accuracy
        except NotFiniteError:
            accuracy = dict.fromkeys(self.clips.tasks, np.nan)
        found = {f"probe_{task}": accuracy[task] for task in self.clips.tasks}
        return {**found, "clips_of_probe": len(self.clips.test.samples)}

    def _made(self, encoder: VJEPABackbone) -> EncoderComparison:
        settings = ProbeSettings(
            tasks=tuple(self.clips.tasks),
            num_classes=tuple(self.clips.tasks.values()),
            learning_rates=(_LEARNING_RATE,),
            batch_size=_BATCH_SIZE,
            epochs=_EPOCHS,
        )
        return EncoderComparison(encoder, settings, self.clips.train, self.clips.test)
