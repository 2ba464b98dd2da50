"""Count top-k, the accuracy of each class and confusions (§4.3, App. D.1).

Departures: the authors' accuracy is a mean over batches, in which padding counts. Here every test
sample counts once, and a sample that cannot be read counts as wrong unless it is to be left out.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def top_k(logits: NDArray[np.float32], labels: NDArray[np.int32], k: int) -> NDArray[np.bool_]:
    """Tell whether the label is among the `k` largest logits.

    Args:
        logits: `(samples, ..., classes)`.
        labels: `(samples,)`.
        k: number of largest logits to look at.

    Returns:
        `(samples, ...)`; False if the logits are NaN.

    Example:

    >>> top_k(np.array([[1.0, 3.0, 2.0]]), np.array([2]), 1).tolist()
    [False]
    """
    labels = labels.reshape(-1, *[1] * (logits.ndim - 1))
    own = np.take_along_axis(logits, labels, axis=-1)
    # Equal logits count against the label, since a probe that gives all classes the same logit has
    # not recognised the right one.
    better_or_equal = np.sum(logits >= own, axis=-1)
    return (better_or_equal <= k) & ~np.isnan(own[..., 0])


def accuracies(
    logits: NDArray[np.float32], labels: NDArray[np.int32], num_classes: int, num_counted: int
) -> dict[str, Any]:
    """Count top-1, top-5 and the accuracy of each class, and list the prediction of every sample.

    Args:
        logits: `(samples, classes)`; NaN if a sample could not be read.
        labels: `(samples,)`.
        num_classes: number of classes.
        num_counted: samples in the denominator.

    Returns:
        `top1`, `top5`, `num_counted`, `per_class`, `labels` and `predictions`. `per_class` is None
        for classes without a readable sample, `predictions` for samples that could not be read.
    """
    read = np.logical_not(np.isnan(logits).any(axis=1))
    right = top_k(logits, labels, 1)
    correct, counts = (
        np.bincount(labels[which], minlength=num_classes) for which in (right & read, read)
    )
    return {
        "top1": float(right.sum() / num_counted),
        "top5": float(top_k(logits, labels, 5).sum() / num_counted),
        "num_counted": num_counted,
        "per_class": [float(c / n) if n else None for c, n in zip(correct, counts, strict=True)],
        "labels": labels.tolist(),
        "predictions": [
            int(row.argmax()) if known else None for row, known in zip(logits, read, strict=True)
        ],
    }


def confusion_matrix(
    labels: Sequence[int], predictions: Sequence[int | None], num_classes: int, size: int
) -> NDArray[np.int64]:
    """Count how often samples of a class (row) were predicted as another class (column).

    Args:
        labels: class number of each sample.
        predictions: predicted class of each sample; samples with None are left out.
        num_classes: number of classes.
        size: largest number of rows; with more classes, neighbouring classes share a row.

    Example:

    >>> confusion_matrix([0, 1, 1], [0, 1, 0], num_classes=2, size=10).tolist()
    [[1, 0], [1, 1]]
    """
    size = min(size, num_classes)
    matrix = np.zeros((size, size), np.int64)
    pairs = np.array([p for p in zip(labels, predictions, strict=True) if p[1] is not None], int)
    rows, columns = pairs.reshape(-1, 2).T * size // num_classes
    np.add.at(matrix, (rows, columns), 1)
    return matrix
