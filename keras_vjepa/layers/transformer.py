"""Build transformer blocks from self-attention and an MLP, and stack them (§3.3, App. B).

Departure from the paper's text, as in the authors' code: GELU is exact (erf).
"""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vjepa.arguments import check_number, check_whole
from keras_vjepa.backend.attention import (
    attention,
    attention_weights,
    token_order,
    wants_leading_keys,
)
from keras_vjepa.backend.part_calls import call_part, part_of_a_block
from keras_vjepa.backend.scanned_blocks import in_turn
from keras_vjepa.backend.token_ops import gelu, merge_heads, split_heads
from keras_vjepa.layers.dense import TokenDense, dense, layer_norm
from keras_vjepa.layers.embedding import gather_tokens
from keras_vjepa.layers.rematerialization import (
    Rematerializable,
    computes_mlp_again,
    rematerialized,
)
from keras_vjepa.layers.rotary import rotate
from keras_vjepa.layers.stochastic_depth import scaled_branch
from keras_vjepa.types import Tensor


@part_of_a_block
@keras.saving.register_keras_serializable("keras_vjepa")
class SelfAttention(Rematerializable):
    """Lets each token attend to the others, in several heads, with one fused projection (§3.3).

    `query_key_value` and `output_projection` are `Dense` layers, so Keras' LoRA works on them:
    `attention.query_key_value.enable_lora(rank=8)`.

    Args:
        num_heads: number of heads; must divide the width of the tokens.

    Call arguments:
        inputs: `(batch, tokens, dim)`.
        padding_mask: optional bool `(batch, tokens)`; tokens that are False are not attended to.
        rotations: optional `(batch or 1, tokens, 2 * head_dim)`: rotary positions, as
            `make_rotations` gives them.

    Returns:
        `(batch, tokens, dim)`.

    Example:

    >>> import numpy as np
    >>> from keras_vjepa.layers import SelfAttention
    >>> tuple(SelfAttention(num_heads=2)(np.ones((1, 5, 8), "float32")).shape)
    (1, 5, 8)
    """

    def __init__(self, num_heads: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_whole(1, num_heads=num_heads)
        self.num_heads = num_heads

    def build(self, inputs_shape: Sequence[int | None]) -> None:
        dim = inputs_shape[-1]
        if dim is None or dim % self.num_heads:
            raise ValueError(
                f"The width of the tokens must be a multiple of `num_heads`={self.num_heads}. "
                f"Received: {dim}"
            )
        self.query_key_value = self.make_projection(3 * dim)
        self.query_key_value.build(inputs_shape)
        self.output_projection = dense(dim, "output_projection", self.dtype_policy)
        self.output_projection.build(inputs_shape)

    def call(
        self, inputs: Tensor, padding_mask: Tensor | None = None, rotations: Tensor | None = None
    ) -> Tensor:
        query, key, value = self._heads(inputs, rotations)
        outputs = attention(query, key, value, padding_mask)
        return call_part(self.output_projection, merge_heads(outputs))

    def make_projection(self, units: int) -> TokenDense:
        """Make the layer that projects to queries, keys and values."""
        return dense(units, "query_key_value", self.dtype_policy)

    def packed(self, inputs: Tensor) -> Tensor:
        """Map tokens to queries, keys and values side by side, `(batch, tokens, 3 * dim)`."""
        return call_part(self.query_key_value, inputs)

    def _heads(self, inputs: Tensor, rotations: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Compute queries, keys and values, each `(batch, tokens, heads, head_dim)`."""
        query, key, value = split_heads(self.packed(inputs), self.num_heads)
        if rotations is not None:
            query, key = rotate(query, rotations), rotate(key, rotations)
        return query, key, value

    def attention_weights(
        self,
        inputs: Tensor,
        padding_mask: Tensor | None = None,
        rotations: Tensor | None = None,
        queries: Sequence[int] | None = None,
    ) -> Tensor:
        """Compute by how much tokens attend to each other.

        Args:
            inputs: as in the call.
            padding_mask: as in the call.
            rotations: as in the call.
            queries: numbers of the tokens whose attention is wanted; None for all.

        Returns:
            float32 `(batch, heads, queries, tokens)`; over the tokens they sum to one.
        """
        query, key, _ = self._heads(inputs, rotations)
        if queries is not None:
            query = ops.take(query, np.array(queries, "int32"), axis=1)
        return attention_weights(query, key, padding_mask)

    def compute_output_shape(
        self,
        inputs_shape: Sequence[int | None],
        padding_mask_shape: Sequence[int | None] | None = None,
        rotations_shape: Sequence[int | None] | None = None,
    ) -> tuple[int | None, ...]:
        return tuple(inputs_shape)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "num_heads": self.num_heads}


@part_of_a_block
@keras.saving.register_keras_serializable("keras_vjepa")
class TransformerBlock(Rematerializable):
    """Passes tokens through attention, then an MLP with exact GELU, each after a norm (§3.3).

    Args:
        num_heads: attention heads.
        mlp_dim: width of the MLP's hidden layer.
        layer_norm_epsilon: epsilon of both norms.

    Call arguments:
        inputs: `(batch, tokens, dim)`.
        padding_mask: optional bool `(batch, tokens)`; tokens that are False are not attended to.
        rotations: optional `(batch or 1, tokens, 2 * head_dim)`: rotary positions, as
            `make_rotations` gives them.
        branch_scales: optional `(batch, 2)`: factors of each sample's attention and MLP before
            they are added to the tokens; a factor of 0 leaves one out (stochastic depth).

    Returns:
        `(batch, tokens, dim)`.

    Example:

    >>> import numpy as np
    >>> from keras_vjepa.layers import TransformerBlock
    >>> block = TransformerBlock(num_heads=2, mlp_dim=32)
    >>> tuple(block(np.ones((1, 5, 8), "float32")).shape)
    (1, 5, 8)
    """

    def __init__(
        self, num_heads: int, mlp_dim: int, layer_norm_epsilon: float = 1e-6, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        check_whole(1, num_heads=num_heads, mlp_dim=mlp_dim)
        check_number("[0, 1]", layer_norm_epsilon=layer_norm_epsilon)
        self.num_heads = num_heads
        self.mlp_dim = mlp_dim
        self.layer_norm_epsilon = layer_norm_epsilon

    def build(self, inputs_shape: Sequence[int | None]) -> None:
        dim, policy = inputs_shape[-1], self.dtype_policy
        self.attention_norm = layer_norm(self.layer_norm_epsilon, "attention_norm", policy)
        self.attention = self.attention_class(self.num_heads, name="attention", dtype=policy)
        self.mlp_norm = layer_norm(self.layer_norm_epsilon, "mlp_norm", policy)
        self.mlp_hidden = dense(self.mlp_hidden_width, "mlp_hidden", policy)
        self.mlp_output = dense(dim, "mlp_output", policy)  # type: ignore[arg-type]
        for layer in (self.attention_norm, self.attention, self.mlp_norm, self.mlp_hidden):
            layer.build(inputs_shape)
        self.mlp_output.build((*inputs_shape[:-1], self.mlp_dim))

    @property
    def attention_class(self) -> type[SelfAttention]:
        """Return the kind of the attention."""
        return SelfAttention

    @property
    def mlp_hidden_width(self) -> int:
        """Return the width of what the MLP's first layer makes."""
        return self.mlp_dim

    def attention_branch(
        self, inputs: Tensor, padding_mask: Tensor | None = None, rotations: Tensor | None = None
    ) -> Tensor:
        """Compute what the attention adds to the tokens, `(batch, tokens, dim)`."""
        normed = call_part(self.attention_norm, inputs)
        return call_part(self.attention, normed, padding_mask, rotations)

    def mlp_branch(self, inputs: Tensor) -> Tensor:
        """Compute what the MLP adds to the tokens, `(batch, tokens, dim)`."""
        normed = call_part(self.mlp_norm, inputs)
        hidden = gelu(call_part(self.mlp_hidden, normed))
        return call_part(self.mlp_output, hidden)

    def mlp_of(self, inputs: Tensor) -> Tensor:
        """Do as `mlp_branch`, and again in the backward pass if a `keras.RematScope` asks it."""
        if computes_mlp_again(self):
            return rematerialized(self, self.mlp_branch)(inputs)
        return self.mlp_branch(inputs)

    def attention_weights(
        self,
        inputs: Tensor,
        padding_mask: Tensor | None = None,
        rotations: Tensor | None = None,
        queries: Sequence[int] | None = None,
    ) -> Tensor:
        """Compute by how much tokens attend to each other; see `SelfAttention.attention_weights`.

        Args:
            inputs: as in the call, tokens before the norm.
            padding_mask: as in the call.
            rotations: as in the call.
            queries: numbers of the tokens whose attention is wanted; None for all.
        """
        normed = call_part(self.attention_norm, inputs)
        return self.attention.attention_weights(normed, padding_mask, rotations, queries)

    def call(
        self,
        inputs: Tensor,
        padding_mask: Tensor | None = None,
        rotations: Tensor | None = None,
        branch_scales: Tensor | None = None,
    ) -> Tensor:
        branch = self.attention_branch(inputs, padding_mask, rotations)
        x = _add(inputs, scaled_branch(branch, branch_scales, 0))
        return _add(x, scaled_branch(self.mlp_of(x), branch_scales, 1))

    def compute_output_shape(
        self,
        inputs_shape: Sequence[int | None],
        padding_mask_shape: Sequence[int | None] | None = None,
        rotations_shape: Sequence[int | None] | None = None,
        branch_scales_shape: Sequence[int | None] | None = None,
    ) -> tuple[int | None, ...]:
        return tuple(inputs_shape)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "mlp_dim": self.mlp_dim,
            "layer_norm_epsilon": self.layer_norm_epsilon,
        }


def _add(tokens: Tensor, branch: Tensor) -> Tensor:
    """Add a branch to the tokens, in the tokens' dtype: a part may have a dtype of its own."""
    return tokens + (branch if branch.dtype == tokens.dtype else ops.cast(branch, tokens.dtype))


def apply_blocks(
    blocks: Sequence[TransformerBlock],
    tokens: Tensor,
    padding_mask: Tensor | None = None,
    rotations: Tensor | None = None,
    remat: bool = False,
    branch_scales: Tensor | None = None,
) -> Tensor:
    """Pass tokens through blocks, one after the other.

    Some attention kernels can skip keys at the end. For such a kernel, tokens that are not attended
    to are moved to the end before the blocks, and back after them.

    Args:
        blocks: blocks with the same number of heads.
        tokens: `(batch, tokens, dim)`.
        padding_mask: as in the call of a block.
        rotations: as in the call of a block.
        remat: keep only the tokens between two blocks for the backward pass, which computes what
            happened inside a block again: less memory, the same numbers.
        branch_scales: `(blocks, batch, 2)`, those of each block; None for ones.

    Returns:
        `(batch, tokens, dim)`.
    """
    num_tokens, dim = tokens.shape[1:]
    order = None
    if padding_mask is not None and wants_leading_keys(
        tokens.dtype, num_tokens, dim // blocks[0].num_heads
    ):
        order = token_order(padding_mask)
        padding_mask = order.keys
        tokens, rotations = _reordered(order.order, tokens, rotations)

    def one(block: TransformerBlock, tokens: Tensor, scales: Tensor | None) -> Tensor:
        if remat:
            return _computed_again(block, padding_mask, rotations, scales)(tokens)
        more = () if scales is None else (scales,)
        return call_part(block, tokens, padding_mask, rotations, *more)

    tokens = in_turn(blocks, tokens, one, branch_scales)
    return tokens if order is None else gather_tokens(tokens, order.inverse)


def _computed_again(
    block: TransformerBlock,
    padding_mask: Tensor | None,
    rotations: Tensor | None,
    scales: Tensor | None,
) -> Callable[[Tensor], Tensor]:
    """Make a function of tokens that calls a block and keeps nothing else for its gradient."""
    # A full Keras call of the block, not `call_part`: the backward pass runs this function after
    # the model's own call has ended.
    return rematerialized(block, lambda tokens: block(tokens, padding_mask, rotations, scales))


def _reordered(order: Tensor, tokens: Tensor, rotations: Tensor | None) -> tuple[Tensor, Any]:
    """Reorder tokens and their rotations; the rotations may be of one sample, for all."""
    if rotations is not None:
        rotations = ops.broadcast_to(rotations, (*ops.shape(tokens)[:2], rotations.shape[-1]))
        rotations = gather_tokens(rotations, order)
    return gather_tokens(tokens, order), rotations


def transformer_blocks(
    num_layers: int,
    hidden_dim: int,
    num_heads: int,
    mlp_dim: int,
    layer_norm_epsilon: float,
    dtype: Any,
) -> list[TransformerBlock]:
    """Make a stack of blocks and their weights, named `block_0`, `block_1` and so on."""
    blocks = [
        TransformerBlock(num_heads, mlp_dim, layer_norm_epsilon, name=f"block_{i}", dtype=dtype)
        for i in range(num_layers)
    ]
    for block in blocks:
        block.build((None, None, hidden_dim))
    return blocks
