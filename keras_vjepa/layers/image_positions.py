"""Positions of the encoders that V-JEPA is compared with (Tables 5 and 6; App. D.1).

Each family makes its table in its own way, and stretches a learned one by a kernel of its own: sums
are written as matrices, since no two engines agree on what "bicubic" is.
"""

from collections.abc import Sequence

import numpy as np
from keras import ops

from keras_vjepa.layers.positions import sincos
from keras_vjepa.types import Tensor


def flat_table(num_tokens: int, hidden_dim: int) -> np.ndarray:
    """Make VideoMAE's table, which numbers the tokens of a clip and knows no grid.

    Args:
        num_tokens: of a clip, ordered by time, row and column.
        hidden_dim: width of a row; sines at its even places, cosines at its odd ones.

    Returns:
        float32 `(num_tokens, hidden_dim)`, computed in float64.

    Example:

    >>> from keras_vjepa.layers.image_positions import flat_table
    >>> flat_table(1568, 384)[0, :4].tolist()
    [0.0, 1.0, 0.0, 1.0]
    """
    channels = np.arange(hidden_dim)
    waves = 10000.0 ** (2.0 * (channels // 2) / hidden_dim)
    angles = np.arange(num_tokens, dtype="float64")[:, None] / waves
    return np.where(channels % 2 == 0, np.sin(angles), np.cos(angles)).astype("float32")


def shared_table(hidden_dim: int, grid_shape: Sequence[int]) -> np.ndarray:
    """Make MVD's table: a quarter of the channels for time, then 3/8 for column and 3/8 for row.

    Args:
        hidden_dim: width of a row, a multiple of 16.
        grid_shape: tokens along time, row and column.

    Returns:
        float32 `(tokens, hidden_dim)`, computed in float64.

    Raises:
        ValueError: if `hidden_dim` does not divide as said.

    Example:

    >>> from keras_vjepa.layers.image_positions import shared_table
    >>> shared_table(384, (8, 14, 14)).shape
    (1568, 384)
    """
    if hidden_dim % 16:
        raise ValueError(
            f"`hidden_dim` must be a multiple of 16 for shares of 1/4, 3/8 and 3/8. "
            f"Received: {hidden_dim}"
        )
    time, row, column = _positions(grid_shape)
    shares = ((time, 4), (column, 6), (row, 6))
    parts = [sincos(axis, hidden_dim * share // 16) for axis, share in shares]
    return np.concatenate(parts, axis=1).astype("float32")


def column_first_table(hidden_dim: int, grid_shape: Sequence[int]) -> np.ndarray:
    """Make I-JEPA's table: half of the channels for the column, then half for the row.

    Args:
        hidden_dim: width of a row, a multiple of 4.
        grid_shape: tokens along row and column.

    Returns:
        float32 `(tokens, hidden_dim)`, computed in float64.

    Raises:
        ValueError: if `hidden_dim` does not divide as said.

    Example:

    >>> from keras_vjepa.layers.image_positions import column_first_table
    >>> column_first_table(8, (1, 2)).shape
    (2, 8)
    """
    if hidden_dim % 4:
        raise ValueError(f"`hidden_dim` must be a multiple of 4. Received: {hidden_dim}")
    row, column = _positions(grid_shape)
    parts = [sincos(axis, hidden_dim // 2) for axis in (column, row)]
    return np.concatenate(parts, axis=1).astype("float32")


def _positions(grid_shape: Sequence[int]) -> list[np.ndarray]:
    axes = np.meshgrid(*(np.arange(n, dtype="float64") for n in grid_shape), indexing="ij")
    return [axis.reshape(-1) for axis in axes]


def antialiased_cubic_weights(old: int, new: int, scale: float | None = None) -> np.ndarray:
    """Make the matrix `(new, old)` of a cubic kernel (a = -0.5) that widens where it makes less.

    Args:
        old: number of values that there are.
        new: number of values wanted.
        scale: what positions are scaled by; `new / old` if None.

    Returns:
        float64; each row sums to one.

    Example:

    >>> from keras_vjepa.layers.image_positions import antialiased_cubic_weights
    >>> antialiased_cubic_weights(4, 2).sum(axis=1).round(6).tolist()
    [1.0, 1.0]
    """
    step = old / new if scale is None else 1.0 / scale
    width = max(step, 1.0)
    matrix = np.zeros((new, old))
    for i in range(new):
        center = (i + 0.5) * step
        first = max(int(center - 2 * width + 0.5), 0)
        taps = np.arange(first, min(int(center + 2 * width + 0.5), old))
        weights = _cubic(np.abs((taps + 0.5 - center) / width))
        matrix[i, taps] = weights / weights.sum()
    return matrix


def _cubic(distance: np.ndarray, a: float = -0.5) -> np.ndarray:
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = a * (((distance - 5) * distance + 8) * distance - 4)
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))


def stretched(table: Tensor, grid_shape: Sequence[int], matrices: Sequence[np.ndarray]) -> Tensor:
    """Stretch a table along row and column.

    Args:
        table: `(rows * columns, dim)`.
        grid_shape: rows and columns of it.
        matrices: `(new rows, rows)` and `(new columns, columns)`.

    Returns:
        `(new rows * new columns, dim)`, float32 as it is computed.
    """
    rows, columns = (ops.convert_to_tensor(m.astype("float32")) for m in matrices)
    dim = table.shape[-1]
    table = ops.reshape(ops.cast(table, "float32"), (grid_shape[0], grid_shape[1] * dim))
    table = ops.reshape(ops.matmul(rows, table), (-1, grid_shape[1], dim))
    return ops.reshape(ops.matmul(columns, table), (-1, dim))
