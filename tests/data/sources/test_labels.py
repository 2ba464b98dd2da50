"""Checks of labels and low-shot subsets."""

from collections import Counter

import pytest

from keras_vjepa.data.sources.labels import check_all_classes_occur, check_labels, low_shot
from keras_vjepa.data.sources.samples import Sample

pytestmark = pytest.mark.data


def samples(*labels):
    return [Sample(f"{place}.mp4", label) for place, label in enumerate(labels)]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            (0, 7, 1, -1),
            "`label` must be in [0, `num_classes`=2). Received: 7 for 1.mp4 (and 1 more)",
        ),
        (
            (0, None),
            "Every sample must have a `label`: write rows `path label`, use one folder for each "
            "class, or name a table's column of labels by `label_column`. Received: none for 1.mp4",
        ),
    ],
)
def test_labels_out_of_range_and_missing(labels, message):
    check_labels(samples(0, 1, 1), 2)
    with pytest.raises(ValueError) as caught:
        check_labels(samples(*labels), 2)
    assert str(caught.value) == message


def test_classes_missing_from_training():
    check_all_classes_occur(samples(2, 0, 1), 3)
    with pytest.raises(ValueError) as caught:
        check_all_classes_occur(samples(1, 0, 3), 10)
    assert str(caught.value) == (
        "`samples` must hold at least one of each of the `num_classes`=10. "
        "Missing: 2, 4, 5, 6, 7 (and 2 more)"
    )


def test_low_shot_is_stratified_and_nested():
    everything = samples(*[0] * 100, *[1] * 30, *[2] * 3, 3)
    for fraction, expected in ((0.05, [5, 2, 1, 1]), (0.1, [10, 3, 1, 1]), (0.5, [50, 15, 2, 1])):
        for seed in range(3):
            kept = low_shot(everything, fraction, seed)
            assert [Counter(s.label for s in kept)[label] for label in range(4)] == expected
            assert kept == [s for s in everything if s in set(kept)]
            assert set(kept) <= set(low_shot(everything, min(1, 2 * fraction), seed))
    assert low_shot(everything, 1.0) == everything
    assert low_shot(everything, 0.05, seed=0) != low_shot(everything, 0.05, seed=1)


def test_low_shot_is_the_same_everywhere():
    kept = low_shot(samples(*[0] * 20, *[1] * 20), 0.15, seed=1)
    assert [sample.path for sample in kept] == [
        "1.mp4",
        "2.mp4",
        "9.mp4",
        "29.mp4",
        "31.mp4",
        "35.mp4",
    ]


@pytest.mark.parametrize("fraction", [0, 1.5])
def test_fraction_out_of_range(fraction):
    with pytest.raises(ValueError, match=r"`fraction` must be in \(0, 1\]. Received: "):
        low_shot(samples(0), fraction)
