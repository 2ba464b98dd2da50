"""Self-attention, the transformer block and stacks of them (§3.3, App. B).

Departure from the paper's text, as in the authors' code: GELU is exact (erf).
"""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_vjepa.backend.attention import attention, token_order, wants_leading_keys
from keras_vjepa.backend.token_ops import (
    gelu,
    merge_heads,
    split_heads,
)
from keras_vjepa.layers.dense import call_within, dense, layer_norm
from keras_vjepa.layers.embedding import gather_tokens
from keras_vjepa.layers.rotary import rotate
from keras_vjepa.types import Tensor

# --- Transformer ---------------------------------------------------------------------------------


@keras.saving.register_keras_serializable("keras_vjepa")
class SelfAttention(keras.layers.Layer):
    """Multi-head self-attention with one fused projection (§3.3).

    `query_key_value` and `output_projection` are plain `Dense` layers, so Keras' LoRA applies:
    `attention.query_key_value.enable_lora(rank=8)`.

    Args:
        num_heads: heads; must divide the width of the tokens.

    Call arguments:
        inputs: `(batch, tokens, dim)`.
        padding_mask: optional bool `(batch, tokens)`; tokens that are False are not attended to.
        angles: optional `(batch or 1, tokens, head_dim)`, rotary positions: see `rotary_angles`.

    Returns:
        `(batch, tokens, dim)`.

    Example:

    >>> import numpy as np
    >>> from keras_vjepa.layers.transformer import SelfAttention
    >>> tuple(SelfAttention(num_heads=2)(np.ones((1, 5, 8), "float32")).shape)
    (1, 5, 8)
    """

    def __init__(self, num_heads: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_heads = num_heads

    def build(self, input_shape: Sequence[int | None]) -> None:
        dim = input_shape[-1]
        if dim is None or dim % self.num_heads:
            raise ValueError(
                f"The width of the tokens must be a multiple of `num_heads`={self.num_heads}. "
                f"Received: {dim}"
            )
        self.query_key_value = dense(3 * dim, "query_key_value", self.dtype_policy)
        self.query_key_value.build(input_shape)
        self.output_projection = dense(dim, "output_projection", self.dtype_policy)
        self.output_projection.build(input_shape)

    def call(
        self, inputs: Tensor, padding_mask: Tensor | None = None, angles: Tensor | None = None
    ) -> Tensor:
        packed = call_within(self, self.query_key_value, inputs)
        query, key, value = split_heads(packed, self.num_heads)
        if angles is not None:
            query, key = rotate(query, angles), rotate(key, angles)
        outputs = attention(query, key, value, padding_mask)
        return call_within(self, self.output_projection, merge_heads(outputs))

    def compute_output_shape(
        self,
        inputs_shape: Sequence[int | None],
        padding_mask_shape: Sequence[int | None] | None = None,
        angles_shape: Sequence[int | None] | None = None,
    ) -> tuple[int | None, ...]:
        return tuple(inputs_shape)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "num_heads": self.num_heads}


@keras.saving.register_keras_serializable("keras_vjepa")
class TransformerBlock(keras.layers.Layer):
    """Pre-norm transformer block: attention, then an MLP with exact GELU (§3.3).

    Args:
        num_heads: attention heads.
        mlp_dim: width of the MLP's hidden layer.
        layer_norm_epsilon: epsilon of both norms.

    Call arguments:
        inputs: `(batch, tokens, dim)`.
        padding_mask: optional bool `(batch, tokens)`; tokens that are False are not attended to.
        angles: optional `(batch or 1, tokens, head_dim)`, rotary positions: see `rotary_angles`.

    Returns:
        `(batch, tokens, dim)`.

    Example:

    >>> import numpy as np
    >>> from keras_vjepa.layers.transformer import TransformerBlock
    >>> block = TransformerBlock(num_heads=2, mlp_dim=32)
    >>> tuple(block(np.ones((1, 5, 8), "float32")).shape)
    (1, 5, 8)
    """

    def __init__(
        self, num_heads: int, mlp_dim: int, layer_norm_epsilon: float = 1e-6, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.mlp_dim = mlp_dim
        self.layer_norm_epsilon = layer_norm_epsilon

    def build(self, input_shape: Sequence[int | None]) -> None:
        dim, policy = input_shape[-1], self.dtype_policy
        self.attention_norm = layer_norm(self.layer_norm_epsilon, "attention_norm", policy)
        self.attention = SelfAttention(self.num_heads, name="attention", dtype=policy)
        self.mlp_norm = layer_norm(self.layer_norm_epsilon, "mlp_norm", policy)
        self.mlp_hidden = dense(self.mlp_dim, "mlp_hidden", policy)
        self.mlp_output = dense(dim, "mlp_output", policy)  # type: ignore[arg-type]
        for layer in (self.attention_norm, self.attention, self.mlp_norm, self.mlp_hidden):
            layer.build(input_shape)
        self.mlp_output.build((*input_shape[:-1], self.mlp_dim))

    def attention_branch(
        self, inputs: Tensor, padding_mask: Tensor | None = None, angles: Tensor | None = None
    ) -> Tensor:
        """What the attention adds to the residual stream, `(batch, tokens, dim)`."""
        normed = call_within(self, self.attention_norm, inputs)
        return call_within(self, self.attention, normed, padding_mask, angles)

    def call(
        self, inputs: Tensor, padding_mask: Tensor | None = None, angles: Tensor | None = None
    ) -> Tensor:
        x = inputs + self.attention_branch(inputs, padding_mask, angles)
        normed = call_within(self, self.mlp_norm, x)
        hidden = gelu(call_within(self, self.mlp_hidden, normed))
        return x + call_within(self, self.mlp_output, hidden)

    def compute_output_shape(
        self,
        inputs_shape: Sequence[int | None],
        padding_mask_shape: Sequence[int | None] | None = None,
        angles_shape: Sequence[int | None] | None = None,
    ) -> tuple[int | None, ...]:
        return tuple(inputs_shape)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "mlp_dim": self.mlp_dim,
            "layer_norm_epsilon": self.layer_norm_epsilon,
        }


def apply_blocks(
    parent: keras.layers.Layer,
    blocks: Sequence[TransformerBlock],
    tokens: Tensor,
    padding_mask: Tensor | None = None,
    angles: Tensor | None = None,
    remat: bool = False,
) -> Tensor:
    """`parent`'s blocks, one after the other, `(batch, tokens, dim)` to the same.

    Other arguments are as a block's.

    With `remat` only the tokens between two blocks are kept for the backward pass, which computes
    what happened inside a block again: less memory, the same numbers. For a kernel that skips keys
    at the end, the tokens are brought in that order before, and back after.
    """
    num_tokens, dim = tokens.shape[1:]
    order = None
    if padding_mask is not None and wants_leading_keys(
        tokens.dtype, num_tokens, dim // blocks[0].num_heads
    ):
        order = token_order(padding_mask)
        padding_mask = order.keys
        tokens, angles = _reordered(order.order, tokens, angles)
    for block in blocks:
        if remat:
            # Called in full: in the backward pass it is within nothing that `parent` has seen to.
            tokens = keras.remat(lambda x, block=block: block(x, padding_mask, angles))(tokens)
        else:
            tokens = call_within(parent, block, tokens, padding_mask, angles)
    return tokens if order is None else gather_tokens(tokens, order.inverse)


def _reordered(order: Tensor, tokens: Tensor, angles: Tensor | None) -> tuple[Tensor, Any]:
    """Both in an order of the tokens; `angles` may be one sample's, for all."""
    if angles is not None:
        angles = ops.broadcast_to(angles, (*ops.shape(tokens)[:2], angles.shape[-1]))
        angles = gather_tokens(angles, order)
    return gather_tokens(tokens, order), angles


def transformer_blocks(
    num_layers: int,
    hidden_dim: int,
    num_heads: int,
    mlp_dim: int,
    layer_norm_epsilon: float,
    dtype: Any,
) -> list[TransformerBlock]:
    """A stack of blocks, `block_0`, `block_1`, ..., with their weights made."""
    blocks = [
        TransformerBlock(num_heads, mlp_dim, layer_norm_epsilon, name=f"block_{i}", dtype=dtype)
        for i in range(num_layers)
    ]
    for block in blocks:
        block.build((None, None, hidden_dim))
    return blocks
