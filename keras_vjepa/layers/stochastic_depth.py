"""Leave out branches of blocks at random in training: stochastic depth (App. D.3, Table 12).

Departure from common code, which draws within each block: all draws of a forward pass are made at
once, before the blocks. So a block that is computed again in the backward pass (`remat`) leaves out
the same branches as in the forward pass.
"""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vjepa.arguments import check_number, check_whole
from keras_vjepa.backend import collectives
from keras_vjepa.types import Tensor


def drop_path_rates(drop_path_rate: float, num_layers: int) -> list[float]:
    """Tell how often each block leaves a branch out: from 0 in the first, along a line.

    Args:
        drop_path_rate: the rate of the last block.
        num_layers: number of blocks.

    Raises:
        ValueError: for a number out of range.

    Example:

    >>> from keras_vjepa.layers.stochastic_depth import drop_path_rates
    >>> drop_path_rates(0.2, 5)
    [0.0, 0.05, 0.1, 0.15, 0.2]
    """
    check_number("[0, 1)", drop_path_rate=drop_path_rate)
    check_whole(1, num_layers=num_layers)
    return [round(float(rate), 12) for rate in np.linspace(0.0, drop_path_rate, num_layers)]


def draw_branch_scales(rates: Sequence[float], batch_size: Any, seed: Any) -> Tensor:
    """Draw for each sample which branches of which blocks are left out.

    Args:
        rates: the rate of each block, as `drop_path_rates` gives them.
        batch_size: number of samples.
        seed: a `keras.random.SeedGenerator`, which advances by one draw.

    Returns:
        float32 `(blocks, batch, 2)`, for attention and MLP: 0 where the branch is left out, else
        1 / (1 - rate), so that the mean is 1.
    """
    kept = 1.0 - np.array(rates, "float32").reshape((-1, 1, 1))

    def draw(rows: Any) -> Tensor:
        return keras.random.uniform((rows, len(rates), 2), dtype="float32", seed=seed)

    drawn = ops.swapaxes(collectives.draw_rows(draw, batch_size), 0, 1)
    return ops.where(ops.less(drawn, kept), ops.convert_to_tensor(1.0 / kept), 0.0)


def scaled_branch(branch: Tensor, branch_scales: Tensor | None, number: int) -> Tensor:
    """Multiply a branch of a block by each sample's scale.

    Args:
        branch: `(batch, tokens, dim)`.
        branch_scales: `(batch, 2)`; None for ones.
        number: 0 for attention, 1 for the MLP.

    Returns:
        The shape and dtype of `branch`.
    """
    if branch_scales is None:
        return branch
    scale = ops.cast(branch_scales[:, number], branch.dtype)
    return branch * ops.reshape(scale, (-1, 1, 1))
