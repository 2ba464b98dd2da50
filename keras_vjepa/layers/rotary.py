"""Three-dimensional rotary positions of V-JEPA 2, which takes them for the table of §3.3.

Facts: official-behaviour §12.
"""

from collections.abc import Sequence

import numpy as np
from keras import ops

from keras_vjepa.types import Tensor


def rotary_angles(token_indices: Tensor, grid_shape: Sequence[int], head_dim: int) -> Tensor:
    """By which angle each channel of a query or key is rotated (official-behaviour §12).

    Time, row and column rotate `2 * (head_dim // 6)` channels each, in this order; the rest stand
    still. Kept from V-JEPA 2: adjacent channels make a pair, but the frequencies are laid out once
    for the first half of an axis' channels and again for the second, so that the two channels of a
    pair turn by different angles. The first of a pair has its angle negated, as `rotate` wants it.

    Args:
        token_indices: int, any shape: tokens counted by time, then row, then column.
        grid_shape: tokens along `(time, row, column)`, or `(row, column)` of an image.
        head_dim: width of a head; even.

    Returns:
        float32 `(*shape of token_indices, head_dim)`.

    Raises:
        ValueError: if `head_dim` is odd.

    Example:

    >>> import numpy as np
    >>> from keras_vjepa.layers.rotary import rotary_angles
    >>> tuple(rotary_angles(np.arange(8), (2, 2, 2), head_dim=64).shape)
    (8, 64)
    """
    if head_dim % 2:
        raise ValueError(f"`head_dim` must be even for rotary positions. Received: {head_dim}")
    rows, columns = grid_shape[-2:]
    indices = ops.cast(token_indices, "int32")
    positions = (indices // (rows * columns), indices // columns % rows, indices % columns)
    angles: Tensor = 0.0
    # Not a matrix product: some devices would round its factors to fewer bits.
    for position, frequency in zip(positions, _rotary_frequencies(head_dim), strict=True):
        steps = ops.expand_dims(ops.cast(position, "float32"), -1)
        angles = angles + ops.multiply(steps, frequency)
    return angles


def _rotary_frequencies(head_dim: int) -> np.ndarray:
    """`(3 axes, head_dim)`: angle per step along an axis, zero where it does not rotate."""
    width = 2 * (head_dim // 6)
    frequencies = np.zeros((3, head_dim))
    for axis in range(3):
        omega = 10000.0 ** (-np.arange(width // 2) / (width / 2))
        frequencies[axis, axis * width : (axis + 1) * width] = np.tile(omega, 2)
    frequencies[:, ::2] *= -1.0
    return frequencies.astype("float32")


def rotate(heads: Tensor, angles: Tensor) -> Tensor:
    """Rotate the channel pairs of queries or keys.

    Args:
        heads: `(batch, tokens, heads, head_dim)`.
        angles: `(batch or 1, tokens, head_dim)`, as `rotary_angles` makes them.

    Returns:
        The shape and dtype of `heads`.
    """
    angles = ops.expand_dims(angles, 2)
    cosine, sine = (ops.cast(f(angles), heads.dtype) for f in (ops.cos, ops.sin))
    pairs = ops.reshape(heads, (*ops.shape(heads)[:-1], -1, 2))
    partners = ops.reshape(ops.flip(pairs, axis=-1), ops.shape(heads))
    return heads * cosine + partners * sine
