"""Terms of the pretraining loss (§3.1 eq. 1, App. B eq. 2).

Departures from the paper's text, as in the authors' code: the loss is a mean over features too (the
paper's is the sum, larger by the width). `spread_losses` is not the paper's but VICReg's (Bardes,
Ponce and LeCun, 2022).
"""

from keras import ops

from keras_vjepa.types import Tensor

VARIANCE_EPSILON = 1e-4


def without_padding(indices: Tensor) -> Tensor:
    # Not `maximum(indices, 0)`: op by op, that number is copied to the device in every step, which
    # waits for it.
    return ops.maximum(indices, ops.zeros_like(indices))


def prediction_loss(predictions: Tensor, targets: Tensor, valid: Tensor, q: float) -> Tensor:
    # eq. 2, with the mean over features: (1/MD) sum_k |s_hat_k - s_k|^q / q
    error = predictions - targets
    # A power of a whole array is slow: 3 % of a small model's step.
    if q == 2.0:
        error = ops.square(error)
    else:
        error = ops.abs(error)
        error = error if q == 1.0 else ops.power(error, q)
    error = ops.mean(error, axis=-1, keepdims=True) / q
    return ops.sum(error * valid, axis=(1, 2)) / ops.sum(valid, axis=(1, 2))


def deviation_of_features(predictions: Tensor, valid: Tensor) -> Tensor:
    """Standard deviation of each feature over the valid tokens, `(batch, dim)`."""
    count = ops.sum(valid, axis=1)
    mean = ops.sum(predictions * valid, axis=1) / count
    squares = ops.square(predictions - ops.expand_dims(mean, 1)) * valid
    variance = ops.sum(squares, axis=1) / ops.maximum(count - 1.0, ops.ones_like(count))
    return ops.sqrt(variance + VARIANCE_EPSILON)


def spread_losses(features: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """VICReg's variance and covariance terms of features `(rows, dim)`, of the valid rows."""
    count = ops.sum(valid)
    centered = (features - ops.sum(features * valid, axis=0) / count) * valid
    covariance = ops.matmul(ops.transpose(centered), centered) / (count - 1.0)
    variances = ops.diagonal(covariance)
    deviations = ops.sqrt(variances + VARIANCE_EPSILON)
    others = ops.sum(ops.square(covariance)) - ops.sum(ops.square(variances))
    return ops.mean(ops.relu(1.0 - deviations)), others / features.shape[-1]
