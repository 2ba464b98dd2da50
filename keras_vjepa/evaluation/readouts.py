"""Check pooled features quickly by nearest neighbours and by ridge regression (beside §4.3).

Neither needs training, a learning rate or a backend; each takes a second on thousands of samples.
They say less than an attentive probe, which sees every token, but they say it at once and without a
seed.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

_ROWS_AT_A_TIME = 1024


def nearest_neighbors(
    train: NDArray[np.floating],
    labels: NDArray[np.integer],
    test: NDArray[np.floating],
    num_classes: int,
    num_neighbors: int = 20,
    temperature: float = 0.07,
) -> NDArray[np.float64]:
    """Classify samples by the votes of the most similar training samples.

    Similarity is the cosine of features from which the mean of the training features, which all
    share, has been subtracted. A neighbour's vote weighs exp(similarity / temperature), as is usual
    for self-supervised models.

    Args:
        train: pooled features `(samples, dim)`.
        labels: int `(samples,)`, each in `[0, num_classes)`.
        test: pooled features `(test samples, dim)`.
        num_classes: number of classes.
        num_neighbors: how many training samples vote; all if there are fewer.
        temperature: the smaller it is, the faster a vote's weight falls with the similarity.

    Returns:
        The votes for each class `(test samples, num_classes)`; larger is likelier.

    Raises:
        ValueError: if sizes do not fit or a label is out of range.

    Example:

    >>> import numpy as np
    >>> from keras_vjepa.evaluation.readouts import nearest_neighbors
    >>> train, labels = np.array([[1.0, 0.1], [0.9, 0.0], [-1.0, 0.0]]), np.array([0, 0, 1])
    >>> nearest_neighbors(train, labels, np.array([[2.0, 0.1]]), 2, num_neighbors=1).argmax(axis=1)
    array([0])
    """
    train, test = _checked(train, labels, test, num_classes)
    if num_neighbors < 1:
        raise ValueError(f"`num_neighbors` must be at least 1. Received: {num_neighbors}")
    mean = train.mean(axis=0)
    train, test = _unit_length(train - mean), _unit_length(test - mean)
    one_hot = np.eye(num_classes)[labels]
    count = min(num_neighbors, len(train))
    votes = np.empty((len(test), num_classes))
    for start in range(0, len(test), _ROWS_AT_A_TIME):
        rows = slice(start, start + _ROWS_AT_A_TIME)
        similarity = test[rows] @ train.T
        nearest = np.argpartition(-similarity, count - 1, axis=1)[:, :count]
        weights = np.exp(np.take_along_axis(similarity, nearest, axis=1) / temperature)
        votes[rows] = np.einsum("bk,bkc->bc", weights, one_hot[nearest])
    return votes


def ridge_classifier(
    train: NDArray[np.floating],
    labels: NDArray[np.integer],
    test: NDArray[np.floating],
    num_classes: int,
    penalty: float = 1e-3,
) -> NDArray[np.float64]:
    """Fit a linear map to the classes by least squares, in closed form, and score with it.

    Args:
        train: pooled features `(samples, dim)`; every channel is scaled to mean 0, deviation 1.
        labels: int `(samples,)`, each in `[0, num_classes)`.
        test: pooled features `(test samples, dim)`.
        num_classes: number of classes.
        penalty: weight of the squared weights, per sample; with it, there is a solution also for
            more channels than samples.

    Returns:
        Scores `(test samples, num_classes)`; larger is likelier.

    Raises:
        ValueError: if sizes do not fit or a label is out of range.

    Example:

    >>> import numpy as np
    >>> from keras_vjepa.evaluation.readouts import ridge_classifier
    >>> train, labels = np.array([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0]]), np.array([0, 0, 1])
    >>> ridge_classifier(train, labels, np.array([[4.0, 5.0]]), 2).argmax(axis=1)
    array([1])
    """
    train, test = _checked(train, labels, test, num_classes)
    if penalty <= 0:
        raise ValueError(f"`penalty` must be positive. Received: {penalty}")
    mean, deviation = train.mean(axis=0), train.std(axis=0)
    # A channel that never changes holds no information, and is set to 0.
    scale = np.where(deviation > 0, 1 / np.where(deviation > 0, deviation, 1.0), 0.0)
    train, test = (train - mean) * scale, (test - mean) * scale
    share = np.bincount(labels, minlength=num_classes) / len(labels)
    target = np.eye(num_classes)[labels] - share
    covariance = train.T @ train + penalty * len(train) * np.eye(train.shape[1])
    return test @ np.linalg.solve(covariance, train.T @ target) + share


READOUTS: dict[str, Callable[..., NDArray[np.float64]]] = {
    "nearest_neighbors": nearest_neighbors,
    "ridge_classifier": ridge_classifier,
}


def _checked(
    train: NDArray[np.floating],
    labels: NDArray[np.integer],
    test: NDArray[np.floating],
    num_classes: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if train.ndim != 2 or test.ndim != 2 or train.shape[1] != test.shape[1]:
        raise ValueError(
            "`train` and `test` must be (samples, dim) of one width. "
            f"Received shapes: {train.shape} and {test.shape}"
        )
    if len(train) == 0 or labels.shape != (len(train),):
        raise ValueError(
            "`labels` must hold one label for each row of `train`. "
            f"Received shapes: {labels.shape} and {train.shape}"
        )
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"`labels` must be in [0, `num_classes`={num_classes}). "
            f"Received: {labels.min()} to {labels.max()}"
        )
    return np.asarray(train, np.float64), np.asarray(test, np.float64)


def _unit_length(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(length, np.finfo(np.float64).tiny)
