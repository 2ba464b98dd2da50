"""What is counted, and how it is shown."""

import cv2
import numpy as np
import pytest

from keras_vjepa.evaluation.metrics import accuracies, confusion_matrix, top_k
from keras_vjepa.evaluation.report import draw_confusion, mean_and_deviation, summary

pytestmark = pytest.mark.data

LOGITS = np.array([[3, 2, 1], [3, 2, 1], [1, 2, 3], [np.nan] * 3, [0, 0, 0]], "float32")
LABELS = np.array([0, 1, 2, 1, 2])


def test_accuracies():
    found = accuracies(LOGITS, LABELS, 4, 5)
    # The unreadable sample counts as wrong, and so does one whose logits are all equal.
    assert found["top1"] == 2 / 5 and found["top5"] == 4 / 5
    assert found["per_class"] == [1.0, 0.0, 0.5, None]
    assert found["predictions"] == [0, 0, 2, None, 0]
    assert top_k(LOGITS, LABELS, 2).tolist() == [True, True, True, False, False]
    matrix = confusion_matrix(LABELS.tolist(), found["predictions"], 4, 10)
    assert matrix.tolist() == [[1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]
    coarse = confusion_matrix(LABELS.tolist(), found["predictions"], 4, 2)
    assert coarse.tolist() == [[2, 0], [1, 1]]


@pytest.mark.parametrize("num_classes", [4, 40])
def test_a_confusion_is_dark_where_it_is_often(num_classes, tmp_path):
    found = accuracies(LOGITS, LABELS, num_classes, 5)
    draw_confusion(found, tmp_path / "confusion.png", side=400)
    image = cv2.imread(str(tmp_path / "confusion.png"), cv2.IMREAD_GRAYSCALE)
    assert image.shape == (30 + 400 + 10, 40 + 400 + 10)
    cell = 400 // num_classes
    corner = lambda row, column: int(image[30 + row * cell + 2, 40 + column * cell + 2])  # noqa: E731
    assert [corner(0, 0), corner(1, 0), corner(2, 0), corner(2, 1)] == [0, 0, 127, 255]


def test_a_summary_says_the_mean_and_every_candidate():
    candidates = [
        {"learning_rate": 1e-3, "weight_decay": 0.01, "validation": 0.25, "test": 0.5},
        {"learning_rate": 3e-3, "weight_decay": 0.01, "validation": 0.5, "test": 0.4},
    ]
    one = {**accuracies(LOGITS, LABELS, 4, 5), "best": 1, "candidates": candidates}
    first = {"motion": {**one, "readouts": {"nearest_neighbors": 0.25}}}
    second = {"motion": {**one, "top1": 0.6, "readouts": {"nearest_neighbors": 0.75}}}
    assert summary([first, second]).splitlines() == [
        "motion: top-1 50.0 ± 14.1 %, top-5 80.0 ± 0.0 % of 5 samples",
        "  nearest_neighbors on pooled features: top-1 50.0 ± 35.4 %",
        "    learning rate 0.001, weight decay 0.01: validation 25.0 %, test 50.0 %",
        "  * learning rate 0.003, weight decay 0.01: validation 50.0 %, test 40.0 %",
    ]
    assert mean_and_deviation([0.123]) == "12.3"
