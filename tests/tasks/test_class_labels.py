"""Labels that cannot be right are refused before a step, on each backend in the same line."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_vjepa import VJEPABackbone, VJEPAVideoClassifier
from keras_vjepa.tasks.class_labels import check_class_labels

SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
CLIPS = np.zeros((4, 2, 16, 16, 3), "float32")


@pytest.mark.data
@pytest.mark.parametrize(
    "y,loss,message",
    [
        ([1, 2, 3, 1], SPARSE, r"in \[0, `num_classes`=3\). Received: 3 at position 2"),
        ([1, -1, 0, 1], "sparse_categorical_crossentropy", "Received: -1 at position 1"),
        ([[0], [1], [2], [5]], SPARSE, "Received: 5 at position 3"),
        ([0, 1.5, 2, 1], keras.losses.sparse_categorical_crossentropy, "1.5 at position 1"),
        ([0, np.nan, 2, 1], SPARSE, "`y` must hold numbers. Received: nan at position 1"),
        ([0, np.nan, 2, 1], "mse", "`y` must hold numbers. Received: nan at position 1"),
        ([0, 1, 2], SPARSE, "a label for each of 4 videos. Received: 3"),
        ([[0, 1, 0]] * 4, SPARSE, r"one-hot labels need .*Received shape: \(4, 3\)"),
        ([[0, 1]] * 4, "categorical_crossentropy", r"\(videos, `num_classes`=3\) .*\(4, 2\)"),
        ([0, 1, 2, 0], keras.losses.CategoricalCrossentropy(), r"Received shape: \(4,\)"),
        (
            ["a", "b", "c", "a"],
            SPARSE,
            "class numbers, integers from 0 to 2, .* Received: names",
        ),
    ],
)
def test_labels_that_cannot_be_right_are_named(y, loss, message):
    with pytest.raises(ValueError, match=message) as caught:
        check_class_labels(np.array(y), 3, loss, 4)
    assert "\n" not in str(caught.value)


@pytest.mark.data
@pytest.mark.parametrize(
    "y,loss",
    [
        (np.array([0, 1, 2, 0]), SPARSE),
        (np.array([0.0, 1.0, 2.0, 0.0]), SPARSE),
        (np.array([-1, 1, 2, 0]), keras.losses.SparseCategoricalCrossentropy(ignore_class=-1)),
        (np.full((4, 3), 1 / 3), "categorical_crossentropy"),
        (np.array([-4.5, 1, 2, 0]), "mse"),
        ([7, 7, 7, 7], SPARSE),
        (None, SPARSE),
    ],
)
def test_other_labels_are_left_to_keras(y, loss):
    check_class_labels(y, 3, loss, 4)


@pytest.fixture(scope="module")
def classifier():
    model = VJEPAVideoClassifier(VJEPABackbone(16, 2, hidden_dim=8, num_layers=1, num_heads=1), 3)
    model.compile("sgd", SPARSE)
    return model


def test_no_step_is_made_with_wrong_labels(classifier):
    before = classifier.probe.get_weights()
    wrong, right = np.array([1, 2, 3, 1]), np.array([1, 2, 0, 1])
    message = "Received: 3 at position 2"
    for y in (wrong, ops.convert_to_tensor(wrong), wrong.tolist()):
        with pytest.raises(ValueError, match=message):
            classifier.fit(CLIPS, y, verbose=0)
    with pytest.raises(ValueError, match=message):
        classifier.fit(CLIPS, right, validation_data=(CLIPS, wrong), verbose=0)
    with pytest.raises(ValueError, match="`y` must be given beside videos"):
        classifier.fit(CLIPS, verbose=0)
    for use in (classifier.evaluate, classifier.train_on_batch, classifier.test_on_batch):
        with pytest.raises(ValueError, match=message):
            use(CLIPS, wrong)
    for was, weight in zip(before, classifier.probe.get_weights(), strict=True):
        np.testing.assert_array_equal(was, weight)


def test_labels_may_be_a_list(classifier):
    assert classifier.evaluate(CLIPS, [0, 1, 2, 0], verbose=0) > 0


def test_labels_of_a_generator_are_checked_as_they_come(classifier):
    batches = ((CLIPS, np.array([1, 2, number, 1])) for number in (0, 3))
    with pytest.raises(ValueError, match="Received: 3 at position 2"):
        classifier.fit(batches, steps_per_epoch=2, verbose=0)
