"""Split training samples into those to learn from and those to validate by (App. D.1, Table 8)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_vjepa.data.sources.labels import low_shot
from keras_vjepa.data.sources.samples import Sample
from keras_vjepa.evaluation.task_labels import Tasks, labels_of


@dataclass(frozen=True)
class Split:
    """Holds the samples of one training.

    Attributes:
        training: samples that the probes learn from.
        validation: samples by which the best of several probes is chosen; empty for a single probe.
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

    Validation samples are spread over the classes: samples are sorted by label and divided into
    groups of equal size, and one of each group is taken.

    Args:
        samples: all labelled training samples.
        tasks: number of classes of each task.
        seed: seed of the choice.
        fraction: share of each class to use; the rest is left out.
        validation_share: share of the used samples that is held out; None for none.

    Raises:
        ValueError: if a share is out of range or holds out nothing, or if a class has no training
            sample.

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
                f"`validation_share` must be at least one of the {len(kept)} samples, by which the "
                "best of several probes is chosen: take a larger share, or a single learning rate "
                f"and weight decay. Received: {validation_share}"
            )
    held_out = set(validation)
    training = [sample for i, sample in enumerate(kept) if i not in held_out]
    check_every_class(training, tasks)
    return Split(training, [kept[i] for i in sorted(validation)])


def split_for(settings: Any, samples: Sequence[Sample], index: int = 0) -> Split:
    """Choose the samples to train on, and those by which the best of several probes is chosen.

    Args:
        settings: settings of the evaluation, whose number of classes is known.
        samples: all labelled training samples.
        index: number of the split; it is added to the seed.

    Raises:
        ValueError: as `make_split` does.
    """
    share = settings.validation_share if len(settings.candidates) > 1 else None
    return make_split(samples, settings.classes, settings.seed + index, settings.fraction, share)


def check_every_class(samples: Sequence[Sample], tasks: Tasks, received: str = "") -> None:
    """Check that there is a training sample of each class of each task.

    Args:
        samples: labelled samples.
        tasks: number of classes of each task.
        received: words about what was given, and what could be given instead.

    Raises:
        ValueError: for the first task that lacks one.
    """
    for task, labels in labels_of(samples, tasks).items():
        absent = sorted(set(range(tasks[task])) - set(labels.tolist()))
        if absent:
            raise ValueError(
                f"The training samples must hold every class of `{task}`. Missing: {absent[0]}"
                f"{f' (and {len(absent) - 1} more)' if len(absent) > 1 else ''}"
                f"{received and f'. Received: {received}'}"
            )


def _spread_over_classes(samples: Sequence[Sample], share: float, seed: int) -> list[int]:
    """Draw the positions of a share of the samples, spread evenly over their labels."""
    rng = np.random.default_rng([seed, 1])
    shuffled = rng.permutation(len(samples)).tolist()
    by_label = sorted(shuffled, key=lambda i: samples[i].label or 0)
    every = max(2, round(1 / share))
    # The position within each group is drawn, because labels of several tasks repeat with a period,
    # and a fixed position could then miss some of them.
    groups = range(0, len(samples) - every + 1, every)
    return [by_label[start + int(rng.integers(every))] for start in groups]
