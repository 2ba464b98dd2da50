"""Rotate queries and keys by their positions, as V-JEPA 2 does instead of the table of §3.3.

The details are in official-behaviour §12; V-JEPA 2.1 has a variant (vjepa21 §1).
"""

from collections.abc import Sequence

import numpy as np
from keras import ops

from keras_vjepa.backend.token_ops import turn_pairs
from keras_vjepa.types import Tensor


def make_rotations(
    token_indices: Tensor,
    grid_shape: Sequence[int],
    head_dim: int,
    pairs_together: bool = False,
    reach: float | None = None,
) -> Tensor:
    """Compute by how much each channel of a query or key is rotated (official-behaviour §12).

    Time, row and column rotate `2 * (head_dim // 6)` channels each, in this order; the other
    channels are not rotated. One oddity of V-JEPA 2 is kept: adjacent channels make a pair, but the
    frequencies are laid out once for the first half of an axis' channels and again for the second,
    so the two channels of a pair are rotated by different angles. V-JEPA 2.1 has no such oddity.

    Args:
        token_indices: int, any shape: numbers of tokens, counted by time, then row, then column.
        grid_shape: tokens along `(time, row, column)`, or `(row, column)` of an image.
        head_dim: width of a head; even.
        pairs_together: whether both channels of a pair are rotated by one angle, as in V-JEPA 2.1.
        reach: position of the last row and of the last column, whatever their number, as in
            V-JEPA 2.1; a single row or column has position 0. None counts them from 0 by 1.

    Returns:
        float32 `(*shape of token_indices, 2 * head_dim)`: the cosine of each channel's angle, then
        the sine, which is negative for the first channel of a pair, as `rotate` wants it.

    Raises:
        ValueError: if `head_dim` is odd.

    Example:

    >>> import numpy as np
    >>> from keras_vjepa.layers import make_rotations
    >>> tuple(make_rotations(np.arange(8), (2, 2, 2), head_dim=64).shape)
    (8, 128)
    """
    if head_dim % 2:
        raise ValueError(f"`head_dim` must be even for rotary positions. Received: {head_dim}")
    rows, columns = grid_shape[-2:]
    indices = ops.cast(token_indices, "int32")
    positions = (indices // (rows * columns), indices // columns % rows, indices % columns)
    angles: Tensor = 0.0
    # The numbers are multiplied elementwise, because some devices compute matrix products with
    # fewer bits.
    frequencies = _rotary_frequencies(head_dim, pairs_together)
    for position, frequency, length in zip(
        positions, frequencies, (None, rows, columns), strict=True
    ):
        steps = ops.expand_dims(ops.cast(position, "float32"), -1)
        if reach is not None and length is not None:
            # A single row or column already has the number 0, and 0 / 0 would be NaN.
            steps = ops.multiply(steps, np.float32(reach / max(length - 1, 1)))
        angles = angles + ops.multiply(steps, frequency)
    # Cosines and sines are returned instead of angles. A layer in half precision rounds its
    # arguments, and rounding large angles would change the result far more.
    return ops.concatenate([ops.cos(angles), ops.sin(angles)], axis=-1)


def _rotary_frequencies(head_dim: int, pairs_together: bool) -> np.ndarray:
    """Return the angle per step along each axis, `(3 axes, head_dim)`; 0 rotates nothing."""
    width = 2 * (head_dim // 6)
    frequencies = np.zeros((3, head_dim))
    for axis in range(3):
        omega = 10000.0 ** (-np.arange(width // 2) / (width / 2))
        laid_out = np.repeat(omega, 2) if pairs_together else np.tile(omega, 2)
        frequencies[axis, axis * width : (axis + 1) * width] = laid_out
    frequencies[:, ::2] *= -1.0
    return frequencies.astype("float32")


def rotate(heads: Tensor, rotations: Tensor) -> Tensor:
    """Rotate the channel pairs of queries or keys.

    Args:
        heads: `(batch, tokens, heads, head_dim)`.
        rotations: `(batch or 1, tokens, 2 * head_dim)`, as `make_rotations` gives them.

    Returns:
        The shape and dtype of `heads`.
    """
    rotations = ops.cast(ops.expand_dims(rotations, 2), heads.dtype)
    head_dim = heads.shape[-1]
    return turn_pairs(heads, rotations[..., :head_dim], rotations[..., head_dim:])
