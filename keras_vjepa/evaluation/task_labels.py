"""Join and split the labels of several tasks as the digits of one number (§4.3, built-in set).

A sample has one label. With several tasks, it holds the labels of the tasks as the digits of one
number, with the first task's label first: with `{"digit": 10, "motion": 10}` the label 37 means
digit 3, motion 7.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keras_vjepa.data.sources.samples import Sample

# The number of classes of each task, by its name.
Tasks = Mapping[str, int]

DIGIT_MOTION_TASKS = {"digit": 10, "motion": 10}


def num_labels(tasks: Tasks) -> int:
    """Return the number of different values that a sample's label can have."""
    return math.prod(tasks.values())


def split_labels(labels: Any, tasks: Tasks) -> dict[str, Any]:
    """Split labels into a label for each task.

    Args:
        labels: an array or a tensor of integers.
        tasks: number of classes of each task.

    Example:

    >>> split_labels(37, DIGIT_MOTION_TASKS)
    {'digit': 3, 'motion': 7}
    """
    split, below = {}, num_labels(tasks)
    for task, num_classes in tasks.items():
        below //= num_classes
        split[task] = labels // below % num_classes
    return split


def labels_of(samples: Sequence[Sample], tasks: Tasks) -> dict[str, NDArray[np.int32]]:
    """Return the labels of samples for each task, as arrays `(samples,)`."""
    return split_labels(np.array([sample.label for sample in samples], np.int32), tasks)
