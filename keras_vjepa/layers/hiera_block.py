"""Hiera's token order and block: attention within mask units, and pooling stages (App. D.1).

Tokens do not lie in spatial order within the network. Each stage that will be pooled puts the
offsets within its 2 x 2 cells in front, so that pooling is a maximum over the slowest axis, and the
tokens of a window are those with the same remainder.
"""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vjepa.arguments import check_flag, check_whole
from keras_vjepa.backend.attention import attention
from keras_vjepa.backend.part_calls import call_part, part_of_a_block
from keras_vjepa.backend.token_ops import split_heads
from keras_vjepa.layers.dense import dense, layer_norm
from keras_vjepa.layers.stochastic_depth import scaled_branch
from keras_vjepa.layers.transformer import TransformerBlock
from keras_vjepa.types import Tensor

# Cells of a pool, along row and column together.
POOLED = 4


def hiera_order(grid_shape: Sequence[int], num_levels: int) -> np.ndarray:
    """Compute which token of a grid, in spatial order, is at each place of the network's order.

    Args:
        grid_shape: tokens along time, row and column; the latter multiples of `2**num_levels`.
        num_levels: how often cells of 2 x 2 are split off.

    Returns:
        int32 `(tokens,)`: offsets of the first level are slowest, windows fastest.

    Example:

    >>> from keras_vjepa.layers.hiera_block import hiera_order
    >>> hiera_order((1, 2, 4), 1).tolist()
    [0, 2, 1, 3, 4, 6, 5, 7]
    """
    time, rows, columns = grid_shape
    numbers = np.arange(time * rows * columns).reshape(1, time, rows, columns)
    for _ in range(num_levels):
        rows, columns = rows // 2, columns // 2
        split = numbers.reshape(-1, time, rows, 2, columns, 2)
        numbers = split.transpose(0, 3, 5, 1, 2, 4).reshape(-1, time, rows, columns)
    return numbers.reshape(-1).astype("int32")


@part_of_a_block
@keras.saving.register_keras_serializable("keras_vjepa")
class HieraBlock(TransformerBlock):
    """Pass tokens through attention, of all or within windows, then an MLP; first may pool.

    Args:
        hidden_dim: width of the tokens that come out.
        num_heads: attention heads.
        num_windows: windows that attention stays within; 0 for attention of all tokens.
        pools: whether four tokens become one.
        layer_norm_epsilon: epsilon of both norms.

    Call arguments:
        inputs: `(batch, tokens, dim)`, in the network's order.
        branch_scales: as in `TransformerBlock`.

    Returns:
        `(batch, tokens or tokens / 4, hidden_dim)`.

    Example:

    >>> import numpy as np
    >>> from keras_vjepa.layers.hiera_block import HieraBlock
    >>> block = HieraBlock(16, num_heads=2, num_windows=2, pools=True)
    >>> tuple(block(np.ones((1, 32, 8), "float32")).shape)
    (1, 8, 16)
    """

    def __init__(
        self,
        hidden_dim: int,
        num_heads: int,
        num_windows: int = 0,
        pools: bool = False,
        layer_norm_epsilon: float = 1e-6,
        **kwargs: Any,
    ) -> None:
        check_whole(1, hidden_dim=hidden_dim)
        super().__init__(num_heads, 4 * hidden_dim, layer_norm_epsilon, **kwargs)
        check_whole(0, num_windows=num_windows)
        check_flag(pools=pools)
        self.hidden_dim = hidden_dim
        self.num_windows = num_windows
        self.pools = pools

    def build(self, inputs_shape: Sequence[int | None]) -> None:
        policy, inner = self.dtype_policy, (None, None, self.hidden_dim)
        self.attention_norm = layer_norm(self.layer_norm_epsilon, "attention_norm", policy)
        self.query_key_value = dense(3 * self.hidden_dim, "query_key_value", policy)
        self.output_projection = dense(self.hidden_dim, "output_projection", policy)
        self.mlp_norm = layer_norm(self.layer_norm_epsilon, "mlp_norm", policy)
        self.mlp_hidden = dense(self.mlp_dim, "mlp_hidden", policy)
        self.mlp_output = dense(self.hidden_dim, "mlp_output", policy)
        self.shortcut = None
        if inputs_shape[-1] != self.hidden_dim:
            self.shortcut = dense(self.hidden_dim, "shortcut", policy)
            self.shortcut.build(inputs_shape)
        self.attention_norm.build(inputs_shape)
        self.query_key_value.build(inputs_shape)
        for layer in (self.output_projection, self.mlp_norm, self.mlp_hidden):
            layer.build(inner)
        self.mlp_output.build((None, None, self.mlp_dim))

    def call(  # type: ignore[override]
        self, inputs: Tensor, branch_scales: Tensor | None = None
    ) -> Tensor:
        normed = call_part(self.attention_norm, inputs)
        shortcut = inputs
        if self.shortcut is not None:
            # Of the normed tokens, unlike where the width stays.
            shortcut = self._pooled(call_part(self.shortcut, normed), axis=1)
        branch = call_part(self.output_projection, self._attended(normed))
        x = shortcut + scaled_branch(branch, branch_scales, 0)
        return x + scaled_branch(self.mlp_of(x), branch_scales, 1)

    def _attended(self, normed: Tensor) -> Tensor:
        packed = call_part(self.query_key_value, normed)
        width, windows = packed.shape[-1], max(self.num_windows, 1)
        batch, num_tokens = ops.shape(packed)[0], packed.shape[1]
        if windows > 1:
            # The windows are the fastest axis of the tokens.
            packed = ops.reshape(packed, (batch, num_tokens // windows, windows, width))
            packed = ops.transpose(packed, (0, 2, 1, 3))
            packed = ops.reshape(packed, (batch * windows, num_tokens // windows, width))
        query, key, value = split_heads(packed, self.num_heads)
        outputs = attention(self._pooled(query, axis=1), key, value)
        # The number is not left to the engine, which cannot find it where there are no samples.
        num_outputs = outputs.shape[1]
        if windows > 1:
            outputs = ops.reshape(outputs, (batch, windows, num_outputs, self.hidden_dim))
            outputs = ops.transpose(outputs, (0, 2, 1, 3))
        return ops.reshape(outputs, (batch, num_outputs * windows, self.hidden_dim))

    def _pooled(self, x: Tensor, axis: int) -> Tensor:
        """Take the largest of four, which are the slowest part of the axis of tokens."""
        if not self.pools:
            return x
        shape = ops.shape(x)
        parts = (*shape[:axis], POOLED, x.shape[axis] // POOLED, *x.shape[axis + 1 :])
        x = ops.reshape(x, parts)
        # Keras finds no largest of no numbers, not even along an axis that has some.
        return ops.take(x, 0, axis=axis) if x.shape[0] == 0 else ops.max(x, axis=axis)

    def compute_output_shape(  # type: ignore[override]
        self,
        inputs_shape: Sequence[int | None],
        branch_scales_shape: Sequence[int | None] | None = None,
    ) -> tuple[int | None, ...]:
        batch, tokens = inputs_shape[:2]
        if tokens is not None and self.pools:
            tokens //= POOLED
        return batch, tokens, self.hidden_dim

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        del config["mlp_dim"]
        return {
            **config,
            "hidden_dim": self.hidden_dim,
            "num_windows": self.num_windows,
            "pools": self.pools,
        }
