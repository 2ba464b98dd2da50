"""Which training samples a probe learns from, and which choose among probes (App. D.1, Table 8)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from keras_vjepa.data.sources.labels import low_shot
from keras_vjepa.data.sources.samples import Sample
from keras_vjepa.evaluation.task_labels import Tasks, labels_of


@dataclass(frozen=True)
class Split:
    """Holds the samples of one training.

    Attributes:
        training: what the probes learn from.
        validation: what chooses among several probes; empty for a single one.
    """

    training: list[Sample]
    validation: list[Sample]


def make_split(
    samples: Sequence[Sample],
    tasks: Tasks,
    seed: int,
    fraction: float = 1.0,
    validation_share: float | None = None,
) -> Split:
    """Choose a low-shot subset (Table 8) of the training samples, and a part of it for validation.

    Validation is spread over the classes: one sample of each group in an order by label.

    Args:
        samples: all labelled training samples.
        tasks: number of classes of each task.
        seed: of the choice.
        fraction: share of each class to take at all.
        validation_share: share of those that is held out; None for none.

    Raises:
        ValueError: if a share is out of range or holds out nothing, or no training sample is of
            some class.

    Example:

    >>> samples = [Sample(f"{i}.mp4", i % 2) for i in range(40)]
    >>> split = make_split(samples, {"action": 2}, seed=0, validation_share=0.1)
    >>> len(split.training), len(split.validation)
    (36, 4)
    """
    kept = low_shot(samples, fraction, seed)
    validation: list[int] = []
    if validation_share is not None:
        if not 0 < validation_share < 1:
            raise ValueError(f"`validation_share` must be in (0, 1). Received: {validation_share}")
        validation = _spread_over_classes(kept, validation_share, seed)
        if not validation:
            raise ValueError(
                f"`validation_share` must leave samples to choose among several probes by: of "
                f"{len(kept)} at least one. Take a larger share, or a single learning rate and "
                f"weight decay. Received: {validation_share}"
            )
    held_out = set(validation)
    training = [sample for i, sample in enumerate(kept) if i not in held_out]
    for task, labels in labels_of(training, tasks).items():
        absent = sorted(set(range(tasks[task])) - set(labels.tolist()))
        if absent:
            raise ValueError(
                f"The training samples must hold every class of `{task}`. Missing: {absent[0]}"
                f"{f' (and {len(absent) - 1} more)' if len(absent) > 1 else ''}"
            )
    return Split(training, [kept[i] for i in sorted(validation)])


def _spread_over_classes(samples: Sequence[Sample], share: float, seed: int) -> list[int]:
    """Draw the places of a share of the samples, evenly from an order by label."""
    rng = np.random.default_rng([seed, 1])
    shuffled = rng.permutation(len(samples)).tolist()
    by_label = sorted(shuffled, key=lambda i: samples[i].label or 0)
    every = max(2, round(1 / share))
    # Not the same place in every group: labels of several tasks repeat with a period.
    groups = range(0, len(samples) - every + 1, every)
    return [by_label[start + int(rng.integers(every))] for start in groups]
