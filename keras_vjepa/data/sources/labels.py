"""Check class labels, and choose subsets for low-shot evaluation (App. D.1, Table 8)."""

from collections import Counter, defaultdict
from collections.abc import Sequence

from keras_vjepa.data.random_streams import random_stream
from keras_vjepa.data.sources.samples import Sample

# "lows" in ASCII: keeps these draws apart from others made from the same seed.
_LOW_SHOT_STREAM = 0x6C6F7773
# The share of each class that is held out if no test data is given. Which samples these are does
# not depend on the seed of a run.
HELD_OUT = 0.2


def check_labels(samples: Sequence[Sample], num_classes: int) -> None:
    """Check that every sample has a label in [0, num_classes).

    Args:
        samples: labelled samples.
        num_classes: number of classes.

    Raises:
        ValueError: if a label is missing or out of range.

    Example:

    >>> check_labels([Sample("a.mp4", 0), Sample("b.mp4", 2)], num_classes=2)
    Traceback (most recent call last):
    ...
    ValueError: `label` must be in [0, `num_classes`=2). Received: 2 for b.mp4
    """
    if num_classes < 1:
        raise ValueError(f"`num_classes` must be at least 1. Received: {num_classes}")
    unlabelled = [sample for sample in samples if sample.label is None]
    if unlabelled:
        raise ValueError(
            "Every sample must have a `label`: write rows `path label`, use one folder for each "
            "class, or name a table's column of labels by `label_column`. "
            f"Received: none for {unlabelled[0].path}{_and_more(unlabelled)}"
        )
    outside = [sample for sample in samples if not 0 <= (sample.label or 0) < num_classes]
    if outside:
        raise ValueError(
            f"`label` must be in [0, `num_classes`={num_classes}). "
            f"Received: {outside[0].label} for {outside[0].path}{_and_more(outside)}"
        )


def check_all_classes_occur(samples: Sequence[Sample], num_classes: int) -> None:
    """Check that each class has a sample, because a probe cannot learn a class without one.

    Args:
        samples: the training samples.
        num_classes: number of classes.

    Raises:
        ValueError: if a class has no sample.

    Example:

    >>> check_all_classes_occur([Sample("a.mp4", 0), Sample("b.mp4", 2)], num_classes=3)
    Traceback (most recent call last):
    ...
    ValueError: `samples` must hold at least one of each of the `num_classes`=3. Missing: 1
    """
    absent = sorted(set(range(num_classes)) - {sample.label for sample in samples})
    if absent:
        raise ValueError(
            f"`samples` must hold at least one of each of the `num_classes`={num_classes}. "
            f"Missing: {', '.join(map(str, absent[:5]))}{_and_more(absent[4:])}"
        )


def _and_more(found: Sequence[object]) -> str:
    return f" (and {len(found) - 1} more)" if len(found) > 1 else ""


def low_shot(samples: Sequence[Sample], fraction: float, seed: int = 0) -> list[Sample]:
    """Choose a share of the samples of each class, at least one of each (Table 8).

    The choice depends on the seed and on the order of `samples` alone, so it is the same on every
    machine; a smaller fraction with the same seed is a part of a larger one.

    Args:
        samples: labelled samples.
        fraction: share to keep, in (0, 1]; the number in a class is rounded.
        seed: seed of the choice; one for each split of the table.

    Returns:
        The samples that are kept, in the order of `samples`.

    Raises:
        ValueError: if `fraction` is out of range, or a label is missing.

    Example:

    >>> samples = [Sample(f"{i}.mp4", i % 2) for i in range(40)]
    >>> [sample.label for sample in low_shot(samples, 0.05)].count(0)
    1
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"`fraction` must be in (0, 1]. Received: {fraction}")
    places = defaultdict(list)
    for place, sample in enumerate(samples):
        if sample.label is None:
            raise ValueError(f"Every sample must have a `label`. Received: none for {sample.path}")
        places[sample.label].append(place)
    kept: list[int] = []
    for label, members in places.items():
        order = random_stream(seed, _LOW_SHOT_STREAM, label).permutation(len(members))
        count = max(1, round(fraction * len(members)))
        kept += [members[i] for i in order[:count]]
    return [samples[place] for place in sorted(kept)]


def without_test_data(samples: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
    """Divide samples into those to train on and those to test on, `HELD_OUT` of each class.

    Args:
        samples: labelled samples. Classes with a single one are for training.

    Returns:
        Samples to train on and samples to test on, which is empty if no class has two.

    Example:

    >>> samples = [Sample(f"{i}.mp4", i % 2) for i in range(10)]
    >>> [len(part) for part in without_test_data(samples)]
    [8, 2]
    """
    counts = Counter(sample.label for sample in samples)
    test = low_shot([sample for sample in samples if counts[sample.label] > 1], HELD_OUT)
    tested = {sample.path for sample in test}
    return [sample for sample in samples if sample.path not in tested], test
