"""List the videos that a classifier is trained and tested on, and their classes (App. D.3)."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from keras_vjepa.arguments import counted
from keras_vjepa.data.sources.digit_motion_rendering import MOTIONS, SETS
from keras_vjepa.data.sources.labelled_sets import class_names
from keras_vjepa.data.sources.labels import check_labels, low_shot
from keras_vjepa.data.sources.samples import Sample
from keras_vjepa.evaluation.splits import check_every_class, split_for
from keras_vjepa.evaluation.task_labels import DIGIT_MOTION_TASKS, labels_of, num_labels

# The names of the classes of each task of the built-in sets.
TASK_NAMES = {"digit": [str(digit) for digit in range(10)], "motion": [*MOTIONS]}


@dataclass(frozen=True)
class LabelledVideos:
    """Holds the labelled videos of a training and of its test.

    Attributes:
        train: videos to train on.
        test: videos to test on.
        num_classes: number of classes.
        class_names: names of the classes in the order of their numbers; None if they have none.
    """

    train: Sequence[Sample]
    test: Sequence[Sample]
    num_classes: int
    class_names: list[str] | None = None

    def described(self) -> dict[str, Any]:
        """Describe the classes and the labels of the training videos, which define a run."""
        labels = ",".join(str(sample.label) for sample in self.train)
        return {
            "class_names": self.class_names,
            "num_classes": self.num_classes,
            "labels": hashlib.sha256(labels.encode()).hexdigest()[:16],
        }

    def in_words(self) -> str:
        """Say how many videos and classes there are."""
        return (
            f"{counted(len(self.train), 'video')} of "
            f"{counted(self.num_classes, 'class', 'classes')}, {len(self.test):,} to test on"
        )


def labelled_videos(config: Any) -> LabelledVideos:
    """List the videos that a config of fine-tuning names.

    Args:
        config: config of the recipe.

    Raises:
        FileNotFoundError: if a file or folder does not exist.
        ValueError: if a label is missing, or a file has wrong contents.
    """
    train, test = config.data.make()
    names = config.data.make(class_names)
    if config.task:
        train, test = (of_task(samples, config.task) for samples in (train, test))
        names = TASK_NAMES[config.task]
    num_classes = len(names or ()) or 1 + max(sample.label or 0 for sample in [*train, *test])
    for samples in (train, test):
        check_labels(samples, num_classes)
    if num_classes < 2:
        raise ValueError(f"`data` must hold two classes or more. Received: {num_classes}")
    return LabelledVideos(low_shot(train, config.fraction, config.seed), test, num_classes, names)


def check_classes(config: Any, train: Sequence[Sample]) -> None:
    """Check that videos of a user's own have the classes of a table of one frozen encoder.

    Args:
        config: config of the recipe.
        train: the training videos.

    Raises:
        ValueError: if a label is missing or out of range, or a class has no video.
    """
    if config.data.data not in SETS:
        check_labels(train, num_labels(config.classes))
        own = (
            "labels of `data` that are its own; with `presets` instead of `preset`, they are taken"
        )
        check_every_class(train, config.classes, own)


def check_rows(configs: Iterable[Any], train: Sequence[Sample]) -> None:
    """Check that there are enough videos for each row of a table, before the first is computed.

    Args:
        configs: config of each row.
        train: the training videos.

    Raises:
        ValueError: if a class has no video in a split of a row, or none is left to validate by.
    """
    for config in configs:
        for index in range(config.splits):
            split_for(config, train, index)


def check_rows_of_one(configs: Sequence[Any], train: Sequence[Sample]) -> None:
    """Check a table of one encoder as `check_rows` and `check_classes` do.

    Args:
        configs, train: as in `check_rows`.
    """
    check_classes(configs[0], train)
    check_rows(configs, train)


def names_by_task(config: Any) -> dict[str, list[str]]:
    """Name the classes of each task of a frozen evaluation, where its data do.

    Args:
        config: config of the recipe, whose number of classes is known.

    Returns:
        By task, the names in the order of their numbers. A task is left out if its labels are
        numbers, or if there are more classes than names.
    """
    if config.data.data in SETS:
        found = {task: TASK_NAMES.get(task) for task in config.tasks}
    else:
        kind = "image" if config.images else "video"
        found = {task: config.data.make(class_names, kind=kind) for task in config.tasks[:1]}
    counts = config.classes
    return {t: names for t, names in found.items() if names and len(names) == counts[t]}


def of_task(samples: Sequence[Sample], task: str) -> list[Sample]:
    """Label videos of a built-in set by only one of its tasks.

    Args:
        samples: videos of the set.
        task: `"digit"` or `"motion"`.
    """
    labels = labels_of(samples, DIGIT_MOTION_TASKS)[task].tolist()
    return [replace(sample, label=label) for sample, label in zip(samples, labels, strict=True)]
