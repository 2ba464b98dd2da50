"""Compute the terms of the pretraining loss (§3.1 eq. 1, App. B eq. 2).

Departures from the paper's text, as in the authors' code: the loss is a mean over features too (the
paper's is the sum, larger by the width). `spread_losses` does not come from the paper but from
VICReg (Bardes, Ponce and LeCun, 2022). `nearest_target_distances` and `normalized_levels` are
V-JEPA 2.1's (vjepa21 §3).
"""

from collections.abc import Sequence

from keras import ops

from keras_vjepa.types import Tensor

VARIANCE_EPSILON = 1e-4
# More than the square of any distance within a grid.
_FAR = 1e12


def without_padding(indices: Tensor) -> Tensor:
    """Return indices with every -1, which marks padding, replaced by 0."""
    # `maximum(indices, 0)` would be slower where operations run one by one: the 0 is then copied to
    # the device in every step, and the device waits for it.
    return ops.maximum(indices, ops.zeros_like(indices))


def prediction_loss(
    predictions: Tensor, targets: Tensor, valid: Tensor, q: float, weights: Tensor | None = None
) -> Tensor:
    """Compute the error of the predictions of each sample (eq. 2, as a mean over features).

    Args:
        predictions: `(batch, targets, dim)`.
        targets: of the same shape.
        valid: float `(batch, targets, 1)`: 1.0 for a target, 0.0 for padding.
        q: exponent of the absolute error.
        weights: float `(batch, targets)`, by what each target's error is multiplied; None for ones.

    Returns:
        `(batch,)`: (1/MD) sum_k |s_hat_k - s_k|^q / q over the M valid targets of D features.
    """
    error = predictions - targets
    # A general power is slow: it would take 3 % of a small model's step.
    if q == 2.0:
        error = ops.square(error)
    else:
        error = ops.abs(error)
        error = error if q == 1.0 else ops.power(error, q)
    error = ops.mean(error, axis=-1, keepdims=True) / q
    if weights is not None:
        error = error * ops.expand_dims(weights, -1)
    return ops.sum(error * valid, axis=(1, 2)) / ops.sum(valid, axis=(1, 2))


def normalized_levels(features: Tensor, num_levels: int, epsilon: float) -> Tensor:
    """Normalize each level of each token by its own mean and deviation, without parameters.

    Args:
        features: `(batch, tokens, num_levels * dim)`, the levels side by side.
        num_levels: number of the levels.
        epsilon: what is added to the variance.

    Returns:
        The shape of `features`.
    """
    if num_levels == 1:
        return ops.layer_normalization(features, axis=-1, epsilon=epsilon)
    _, num_tokens, width = features.shape
    levels = ops.reshape(features, (-1, num_tokens, num_levels, width // num_levels))
    levels = ops.layer_normalization(levels, axis=-1, epsilon=epsilon)
    return ops.reshape(levels, (-1, num_tokens, width))


def nearest_target_distances(
    context_indices: Tensor,
    target_indices: Tensor,
    grid_shape: Sequence[int],
    unit: float = 1.0,
) -> Tensor:
    """Compute how far each context token is from the nearest target token (vjepa21 §3).

    Args:
        context_indices: int `(batch, context)`, tokens counted by time, then row, then column.
        target_indices: int `(batch, targets)`; -1 marks padding, which is no target.
        grid_shape: tokens along `(time, row, column)`.
        unit: length in tokens that counts as 1; the authors' option `offset_context_loss` divides
            by the number of columns // 16, which is 2 for clips of 512 pixels.

    Returns:
        float32 `(batch, context)`: Euclidean distances; a token that is a target itself has 1, as
        has one beside a target, so that dividing by a distance is always possible.

    Example:

    >>> import numpy as np
    >>> from keras_vjepa.tasks.objective import nearest_target_distances
    >>> context, targets = np.array([[0, 1]]), np.array([[3, 7]])
    >>> distances = np.asarray(nearest_target_distances(context, targets, (2, 2, 2)))
    >>> distances.astype("float64").round(3).tolist()
    [[1.414, 1.0]]
    """
    rows, columns = grid_shape[-2:]
    # An absent target (padding) gets a distance larger than any within the grid.
    absent = ops.cast(target_indices < 0, "float32") * _FAR
    squares: Tensor = ops.expand_dims(absent, 1)
    # The axes are added one by one, because some devices would round the factors of a matrix
    # product.
    for size, step in ((None, rows * columns), (rows, columns), (columns, 1)):
        places = [
            ops.cast(place if size is None else place % size, "float32")
            for place in (context_indices // step, target_indices // step)
        ]
        apart = ops.expand_dims(places[0], 2) - ops.expand_dims(places[1], 1)
        squares = squares + ops.square(apart)
    nearest = ops.min(squares, axis=2)
    return ops.sqrt(ops.maximum(nearest, ops.ones_like(nearest))) / unit


def deviation_of_features(predictions: Tensor, valid: Tensor) -> Tensor:
    """Compute the standard deviation of each feature over the valid tokens.

    Args:
        predictions: `(batch, tokens, dim)`.
        valid: float `(batch, tokens, 1)`: 1.0 for a token, 0.0 for padding.

    Returns:
        `(batch, dim)`.
    """
    count = ops.sum(valid, axis=1)
    mean = ops.sum(predictions * valid, axis=1) / count
    squares = ops.square(predictions - ops.expand_dims(mean, 1)) * valid
    variance = ops.sum(squares, axis=1) / ops.maximum(count - 1.0, ops.ones_like(count))
    return ops.sqrt(variance + VARIANCE_EPSILON)


def spread_losses(features: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Compute VICReg's variance and covariance terms of features, over the valid rows.

    Args:
        features: `(rows, dim)`.
        valid: float `(rows, 1)`: 1.0 for a row that counts, 0.0 for padding.

    Returns:
        The two terms, as scalars.
    """
    count = ops.sum(valid)
    centered = (features - ops.sum(features * valid, axis=0) / count) * valid
    covariance = ops.matmul(ops.transpose(centered), centered) / (count - 1.0)
    variances = ops.diagonal(covariance)
    deviations = ops.sqrt(variances + VARIANCE_EPSILON)
    others = ops.sum(ops.square(covariance)) - ops.sum(ops.square(variances))
    return ops.mean(ops.relu(1.0 - deviations)), others / features.shape[-1]
