"""Splits of the training samples, and labels of several tasks."""

import numpy as np
import pytest

from keras_vjepa.data.sources.samples import Sample
from keras_vjepa.evaluation.splits import make_split
from keras_vjepa.evaluation.task_labels import labels_of, num_labels, split_labels

pytestmark = pytest.mark.data

TASKS = {"digit": 10, "motion": 10}


def test_validation_is_spread_over_classes_and_disjoint():
    samples = [Sample(f"{i}.mp4", i % 100) for i in range(2000)]
    whole = make_split(samples, TASKS, 0, validation_share=0.1)
    assert len(whole.validation) == 200 and len(whole.training) == 1800
    assert not {s.path for s in whole.training} & {s.path for s in whole.validation}
    counts = np.bincount([s.label for s in whole.validation], minlength=100)
    assert counts.min() >= 1 and counts.max() <= 3
    few, again = (make_split(samples, TASKS, 0, 0.05, 0.1) for _ in range(2))
    assert len(few.training) + len(few.validation) == 100 and len(few.validation) == 10
    assert again == few != make_split(samples, TASKS, 1, 0.05, 0.1)
    alone = make_split(samples, TASKS, 0)
    assert alone.training == samples and not alone.validation


def test_a_class_without_training_samples_is_named():
    samples = [Sample(f"{i}.mp4", 10 * (i % 9) + i % 10) for i in range(400)]
    with pytest.raises(ValueError, match="every class of `digit`. Missing: 9"):
        make_split(samples, TASKS, 0)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1])
def test_shares_out_of_range_are_named(share):
    with pytest.raises(ValueError, match=r"`validation_share` must be in \(0, 1\). Received: "):
        make_split([Sample("a.mp4", 0)], {"a": 1}, 0, validation_share=share)


def test_too_few_samples_to_choose_by_are_named():
    """Or the first of several probes would be taken for the best, without a word."""
    samples = [Sample(f"{i}.mp4", i % 2) for i in range(8)]
    with pytest.raises(ValueError, match="`validation_share` must be at least one of the"):
        make_split(samples, {"action": 2}, 0, validation_share=0.1)
    assert len(make_split(samples, {"action": 2}, 0, validation_share=0.2).validation) == 1
    assert not make_split(samples, {"action": 2}, 0).validation


def test_labels_of_several_tasks():
    tasks = {"a": 3, "b": 4, "c": 2}
    found = split_labels(np.array([0, 1, 2, 23]), tasks)
    assert {task: labels.tolist() for task, labels in found.items()} == {
        "a": [0, 0, 0, 2],
        "b": [0, 0, 1, 3],
        "c": [0, 1, 0, 1],
    }
    assert num_labels(tasks) == 24
    samples = [Sample("a.mp4", 23), Sample("b.mp4", 2)]
    assert labels_of(samples, tasks)["b"].tolist() == [3, 1]
