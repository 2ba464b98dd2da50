"""Compute the terms of the pretraining loss (§3.1 eq. 1, App. B eq. 2).

Departures from the paper's text, as in the authors' code: the loss is a mean over features too (the
paper's is the sum, larger by the width). `spread_losses` does not come from the paper but from
VICReg (Bardes, Ponce and LeCun, 2022).
"""

from keras import ops

from keras_vjepa.types import Tensor

VARIANCE_EPSILON = 1e-4


def without_padding(indices: Tensor) -> Tensor:
    """Return indices with every -1, which marks padding, replaced by 0."""
    # `maximum(indices, 0)` would be slower where operations run one by one: the 0 is then copied to
    # the device in every step, and the device waits for it.
    return ops.maximum(indices, ops.zeros_like(indices))


def prediction_loss(predictions: Tensor, targets: Tensor, valid: Tensor, q: float) -> Tensor:
    """Compute the error of the predictions of each sample (eq. 2, as a mean over features).

    Args:
        predictions: `(batch, targets, dim)`.
        targets: of the same shape.
        valid: float `(batch, targets, 1)`: 1.0 for a target, 0.0 for padding.
        q: exponent of the absolute error.

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
    return ops.sum(error * valid, axis=(1, 2)) / ops.sum(valid, axis=(1, 2))


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
