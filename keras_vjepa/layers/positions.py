"""Make sine-cosine position tables of token grids, and stretch them to other grids (App. B)."""

import math
from collections.abc import Sequence

import numpy as np
from keras import ops

from keras_vjepa.types import Tensor


def position_table(
    hidden_dim: int, grid_shape: Sequence[int], uniform_power: bool = True
) -> np.ndarray:
    """Make the sine-cosine position table of a token grid (App. B).

    Args:
        hidden_dim: width of a row. Even; a multiple of 4 for a 2-D grid, and of 8 for a 3-D grid
            if not `uniform_power`.
        grid_shape: tokens along `(time, row, column)`, `(row, column)` or `(position,)`.
        uniform_power: give every axis of a 3-D grid the same width, `2 * ceil(hidden_dim / 6)`,
            and cut the concatenation to `hidden_dim`; if False, time takes one half of the width,
            and row and column a quarter each.

    Returns:
        float32 array of shape `(tokens, hidden_dim)`, computed in float64.

    Raises:
        ValueError: if `hidden_dim` is not such a multiple.

    Example:

    >>> from keras_vjepa.layers import position_table
    >>> position_table(384, (8, 14, 14)).shape
    (1568, 384)
    """
    widths = _axis_widths(hidden_dim, len(grid_shape), uniform_power)
    positions = np.meshgrid(*(np.arange(n, dtype="float64") for n in grid_shape), indexing="ij")
    columns = [sincos(p.reshape(-1), w) for p, w in zip(positions, widths, strict=True)]
    return np.concatenate(columns, axis=1)[:, :hidden_dim].astype("float32")


def _axis_widths(hidden_dim: int, num_axes: int, uniform_power: bool) -> list[int]:
    if num_axes == 3 and uniform_power:
        divisor, widths = 2, [2 * math.ceil(hidden_dim / 6)] * 3
    elif num_axes == 3:
        divisor, widths = 8, [hidden_dim // 2, hidden_dim // 4, hidden_dim // 4]
    else:
        divisor, widths = 2 * num_axes, [hidden_dim // num_axes] * num_axes
    if hidden_dim % divisor:
        raise ValueError(
            f"`hidden_dim` must be a multiple of {divisor} for a {num_axes}-D position table. "
            f"Received: {hidden_dim}"
        )
    return widths


def sincos(positions: np.ndarray, width: int) -> np.ndarray:
    """Encode positions `(n,)` in `width` channels, sines before cosines; float64."""
    omega = 10000.0 ** (-np.arange(width // 2, dtype="float64") / (width / 2))
    angles = positions[:, None] * omega
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def resample_position_table(
    table: Tensor, grid_shape: Sequence[int], new_grid_shape: Sequence[int]
) -> Tensor:
    """Stretch a position table to another token grid (official-behaviour §2).

    A table of three axes is interpolated linearly, one of two (image models) by cubic convolution
    with a = -0.75. In both, positions are the centres of cells, values at the edge are repeated,
    and there is no antialiasing.

    Args:
        table: `(tokens, hidden_dim)`, tokens of `grid_shape`.
        grid_shape: the grid that the table was made for.
        new_grid_shape: the grid wanted, with as many axes.

    Returns:
        `(new tokens, hidden_dim)`.
    """
    weights = _linear_weights if len(grid_shape) == 3 else cubic_weights
    hidden_dim = table.shape[-1]
    table = ops.reshape(table, (*grid_shape, hidden_dim))
    for axis, (old, new) in enumerate(zip(grid_shape, new_grid_shape, strict=True)):
        if old != new:
            matrix = ops.cast(weights(old, new), table.dtype)
            table = ops.moveaxis(ops.tensordot(matrix, table, axes=[[1], [axis]]), 0, axis)
    return ops.reshape(table, (math.prod(new_grid_shape), hidden_dim))


def _source_positions(old: int, new: int) -> np.ndarray:
    return (np.arange(new) + 0.5) * (old / new) - 0.5


def _linear_weights(old: int, new: int) -> np.ndarray:
    source = np.maximum(_source_positions(old, new), 0.0)
    below = np.minimum(np.floor(source).astype(int), old - 1)
    above = np.minimum(below + 1, old - 1)
    fraction = np.where(above > below, source - below, 0.0)
    matrix = np.zeros((new, old))
    np.add.at(matrix, (np.arange(new), below), 1.0 - fraction)
    np.add.at(matrix, (np.arange(new), above), fraction)
    return matrix


def cubic_weights(old: int, new: int, scale: float | None = None, a: float = -0.75) -> np.ndarray:
    """Make the matrix `(new, old)` of cubic convolution without antialiasing.

    Args:
        old: number of values that there are.
        new: number of values wanted.
        scale: what positions are scaled by; `new / old` if None.
        a: of the kernel.
    """
    source = _source_positions(old, new) if scale is None else (np.arange(new) + 0.5) / scale - 0.5
    base = np.floor(source).astype(int)
    matrix = np.zeros((new, old))
    for tap in (-1, 0, 1, 2):
        distance = np.abs(source - (base + tap))
        near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
        far = a * (((distance - 5) * distance + 8) * distance - 4)
        weight = np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))
        np.add.at(matrix, (np.arange(new), np.clip(base + tap, 0, old - 1)), weight)
    return matrix
