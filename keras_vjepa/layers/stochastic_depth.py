"""Leave out branches of blocks at random in training: stochastic depth (App. D.3, Table 12).

Departure from common code, which draws within each block: all draws of a forward pass are made at
once, before the blocks. So a block that is computed again in the backward pass (`remat`) leaves out
the same branches as in the forward pass.
"""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vjepa.arguments import check_number, check_whole
from keras_vjepa.backend import collectives
from keras_vjepa.backend.keras_internals import names_computed_again
from keras_vjepa.layers.rematerialization import Rematerializable
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


class SkipsBranches(Rematerializable):
    """Makes an encoder leave branches of its blocks out in training, by its `drop_path_rate`.

    A constructor sets `drop_path_rate` before it builds. From then on it is fixed: what it draws
    with belongs to the state of the model, and programs are compiled for the rate.

    Attributes:
        drop_path_seed: what the draws are made with; None if the rate is 0.
    """

    _drop_path_rate = 0.0
    drop_path_seed: keras.random.SeedGenerator | None = None

    @property
    def drop_path_rate(self) -> float:
        """Return the rate of the last block."""
        return self._drop_path_rate

    @drop_path_rate.setter
    def drop_path_rate(self, rate: float) -> None:
        if self.built:
            raise AttributeError(
                "`drop_path_rate` cannot change after the model is made: give it to the "
                f"constructor or to `from_preset`. Received: {rate!r}"
            )
        self._drop_path_rate = rate
        if rate:
            self.drop_path_seed = keras.random.SeedGenerator(name="drop_path_seed")

    def branch_scales(self, num_layers: int, batch_size: Any, training: bool) -> Tensor | None:
        """Draw which branches of which blocks are left out, as `draw_branch_scales` does.

        Args:
            num_layers: number of blocks.
            batch_size: number of samples.
            training: whether the encoder is being trained.

        Returns:
            The scales; None if nothing is left out.
        """
        if not training or self.drop_path_seed is None:
            return None
        return draw_branch_scales(self.drop_path_rate, num_layers, batch_size, self.drop_path_seed)

    def rematerialized_call(
        self, layer_call: Callable[..., Tensor], *args: Any, **kwargs: Any
    ) -> Callable[..., Tensor]:
        """Make `layer_call` compute again in the backward pass, as `Rematerializable` does.

        Drop path is refused where the encoder is computed again as a whole: the backward pass would
        draw again which branches are left out. Its blocks, and parts of them, are given the draws.
        """
        names = names_computed_again(self)
        if self.drop_path_rate and (names is None or self.name in names):
            raise ValueError(
                "`drop_path_rate` must be 0 for a backbone that is made within a "
                "`keras.RematScope`: take its own `remat=True`. "
                f"Received: {self.drop_path_rate}"
            )
        return super().rematerialized_call(layer_call, *args, **kwargs)


def draw_branch_scales(
    drop_path_rate: float, num_layers: int, batch_size: Any, seed: Any
) -> Tensor:
    """Draw for each sample which branches of which blocks are left out.

    Args:
        drop_path_rate: the rate of the last block, from which those of the others follow as in
            `drop_path_rates`.
        num_layers: number of blocks.
        batch_size: number of samples.
        seed: a `keras.random.SeedGenerator`, which advances by one draw.

    Returns:
        float32 `(blocks, batch, 2)`, for attention and MLP: 0 where the branch is left out, else
        1 / (1 - rate), so that the mean is 1.
    """
    # The rates are computed on the device: a step that copies numbers to it waits for it.
    step = drop_path_rate / max(1, num_layers - 1)
    kept = 1.0 - step * ops.reshape(ops.arange(num_layers, dtype="float32"), (-1, 1, 1))

    def draw(rows: Any) -> Tensor:
        return keras.random.uniform((rows, num_layers, 2), dtype="float32", seed=seed)

    drawn = ops.swapaxes(collectives.draw_rows(draw, batch_size), 0, 1)
    return ops.cast(drawn < kept, "float32") / kept


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
