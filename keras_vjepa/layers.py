"""Tubelet embedding, positions, attention and transformer block (§3.3, App. B).

Shapes: B batch, N tokens, D hidden dim; a video is (B, frames, height, width, channels), its token
grid (frames / tubelet, height / patch, width / patch), flattened time first, then row, then column.

Departures from the paper's text, as in the authors' code: the weights of every linear layer start
from a normal distribution of deviation 0.02 at every depth; GELU is exact (erf).
"""

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops
from keras.src.backend.common.variables import get_autocast_scope

from keras_vjepa.attention import Tensor, attention, token_order, wants_leading_keys
from keras_vjepa.distribution import on_each_device
from keras_vjepa.rotary import rotate
from keras_vjepa.token_ops import (
    gelu,
    linear,
    merge_heads,
    normalize,
    runs_op_by_op,
    split_heads,
)

INITIALIZER_STDDEV = 0.02


def weight_initializer() -> keras.initializers.Initializer:
    """A normal distribution of deviation 0.02, for every linear layer (App. B)."""
    return keras.initializers.RandomNormal(stddev=INITIALIZER_STDDEV)


@keras.saving.register_keras_serializable("keras_vjepa")
class TokenDense(keras.layers.Dense):
    """`keras.layers.Dense` as each backend does it best, see `linear`; with bias, no activation."""

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        return linear(inputs, self.kernel, self.bias)

    def quantize(self, mode: Any = None, type_check: bool = True, config: Any = None) -> None:
        """As `Dense`, which would leave out its subclasses."""
        super().quantize(mode, type_check=False, config=config)


@keras.saving.register_keras_serializable("keras_vjepa")
class TokenNorm(keras.layers.LayerNormalization):
    """`keras.layers.LayerNormalization` over the last axis, scaled and shifted: see `normalize`."""

    def call(self, inputs: Tensor) -> Tensor:
        return normalize(inputs, self.gamma, self.beta, self.epsilon)


def call_within(parent: keras.layers.Layer, layer: keras.layers.Layer, *inputs: Any) -> Tensor:
    """`layer(*inputs)` as a part of `parent.call`, without what `parent` has seen to already.

    Keras' preparation of a call (types, checks, scopes) takes longer than many a layer itself,
    which counts where a backend runs op by op. A part with a type of its own, such as a quantized
    one, gets it, and one with hooks; and every part where `parent.call` runs without that
    preparation itself, as in `stateless_call`, which casts no weights.
    """
    if not runs_op_by_op() or layer.dtype_policy is not parent.dtype_policy:
        return layer(*inputs)
    if not _casts_weights(parent):
        return layer(*inputs)
    if layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks:
        return layer(*inputs)
    return layer.call(*inputs)


def _casts_weights(layer: keras.layers.Layer) -> bool:
    """Whether weights that are read now have the type that `layer` computes in."""
    scope = get_autocast_scope()
    read_as = layer.variable_dtype if scope is None else scope.dtype
    return read_as == layer.compute_dtype


def dense(units: int, name: str, dtype: Any) -> TokenDense:
    return TokenDense(units, kernel_initializer=weight_initializer(), name=name, dtype=dtype)


# --- Position tables -----------------------------------------------------------------------------


def position_table(
    hidden_dim: int, grid_shape: Sequence[int], uniform_power: bool = True
) -> np.ndarray:
    """Sine-cosine position table of a token grid (App. B).

    Args:
        hidden_dim: width of a row. Even; a multiple of 4 for a 2-D grid, and of 8 for a 3-D grid
            if not `uniform_power`.
        grid_shape: tokens along `(time, row, column)`, `(row, column)` or `(position,)`.
        uniform_power: give every axis of a 3-D grid the same width, `2 * ceil(hidden_dim / 6)`,
            and cut the concatenation to `hidden_dim`; otherwise time takes one half and row and
            column a quarter each.

    Returns:
        float32 array of shape `(tokens, hidden_dim)`, computed in float64.

    Raises:
        ValueError: if `hidden_dim` does not divide as said.

    Example:

    >>> from keras_vjepa.layers import position_table
    >>> position_table(384, (8, 14, 14)).shape
    (1568, 384)
    """
    widths = _axis_widths(hidden_dim, len(grid_shape), uniform_power)
    positions = np.meshgrid(*(np.arange(n, dtype="float64") for n in grid_shape), indexing="ij")
    columns = [_sincos(p.reshape(-1), w) for p, w in zip(positions, widths, strict=True)]
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


def _sincos(positions: np.ndarray, width: int) -> np.ndarray:
    omega = 10000.0 ** (-np.arange(width // 2, dtype="float64") / (width / 2))
    angles = positions[:, None] * omega
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def resample_position_table(
    table: Tensor, grid_shape: Sequence[int], new_grid_shape: Sequence[int]
) -> Tensor:
    """Stretch a position table to another token grid (official-behaviour §2).

    Three axes are interpolated linearly, two (image models) by cubic convolution with a = -0.75;
    half-pixel centres, edge values repeated, no antialiasing.

    Args:
        table: `(tokens, hidden_dim)`, tokens of `grid_shape`.
        grid_shape: the grid that the table was made for.
        new_grid_shape: the grid wanted, with as many axes.

    Returns:
        `(new tokens, hidden_dim)`.
    """
    weights = _linear_weights if len(grid_shape) == 3 else _cubic_weights
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


def _cubic_weights(old: int, new: int, a: float = -0.75) -> np.ndarray:
    source = _source_positions(old, new)
    base = np.floor(source).astype(int)
    matrix = np.zeros((new, old))
    for tap in (-1, 0, 1, 2):
        distance = np.abs(source - (base + tap))
        near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
        far = a * (((distance - 5) * distance + 8) * distance - 4)
        weight = np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))
        np.add.at(matrix, (np.arange(new), np.clip(base + tap, 0, old - 1)), weight)
    return matrix


# --- Tokens --------------------------------------------------------------------------------------


def gather_tokens(tokens: Tensor, indices: Tensor) -> Tensor:
    """Pick tokens of every sample.

    Args:
        tokens: `(batch, tokens, dim)`.
        indices: int `(batch, picked)`, each in `[0, tokens)`.

    Returns:
        `(batch, picked, dim)`.
    """
    return on_each_device(_gather_rows, tokens, indices)


def _gather_rows(tokens: Tensor, indices: Tensor) -> Tensor:
    batch, num_tokens, dim = ops.shape(tokens)
    indices = ops.cast(indices, "int32")
    # One flat gather of whole rows: every backend does this as a copy of rows, whereas a gather
    # along an axis is one look-up per number on TensorFlow and torch.
    offsets = ops.expand_dims(ops.arange(batch, dtype="int32") * num_tokens, 1)
    flat = ops.reshape(tokens, (batch * num_tokens, dim))
    picked = ops.take(flat, ops.reshape(indices + offsets, (-1,)), axis=0)
    return ops.reshape(picked, (batch, -1, dim))


@keras.saving.register_keras_serializable("keras_vjepa")
class TubeletEmbedding(keras.layers.Layer):
    """Linear embedding of non-overlapping space-time patches (§3.3, App. B).

    The same map as a 3-D convolution whose kernel equals its stride, computed as one matrix
    product. With `token_indices` only the patches asked for are embedded.

    Args:
        hidden_dim: width of a token.
        patch_size: height and width of a patch, in pixels.
        tubelet_size: frames in a patch; 1 for image models.

    Call arguments:
        videos: `(batch, frames, height, width, channels)`.
        token_indices: optional int `(batch, picked)`.

    Returns:
        `(batch, tokens, hidden_dim)`, or `(batch, picked, hidden_dim)`.

    Raises:
        ValueError: if frames, height or width are not multiples of the patch.

    Example:

    >>> import numpy as np
    >>> from keras_vjepa.layers import TubeletEmbedding
    >>> tuple(TubeletEmbedding(hidden_dim=12)(np.zeros((1, 4, 32, 48, 3), "float32")).shape)
    (1, 12, 12)
    """

    def __init__(
        self, hidden_dim: int, patch_size: int = 16, tubelet_size: int = 2, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.hidden_dim = hidden_dim
        self.patch_size = patch_size
        self.tubelet_size = tubelet_size

    def build(self, input_shape: Sequence[int | None]) -> None:
        kernel_shape = (self.tubelet_size, self.patch_size, self.patch_size, input_shape[-1])
        self.kernel = self.add_weight(
            shape=(*kernel_shape, self.hidden_dim), initializer=weight_initializer(), name="kernel"
        )
        self.bias = self.add_weight(shape=(self.hidden_dim,), initializer="zeros", name="bias")

    def grid_shape(self, video_shape: Sequence[int | None]) -> tuple[int, int, int]:
        """Token grid `(time, row, column)` of videos of this shape (batch axis included)."""
        names = ("num_frames", "height", "width")
        sizes = (self.tubelet_size, self.patch_size, self.patch_size)
        for name, size, step in zip(names, video_shape[1:4], sizes, strict=True):
            if size is None or size <= 0 or size % step:
                what = "tubelet_size" if name == "num_frames" else "patch_size"
                raise ValueError(
                    f"`{name}` must be a multiple of `{what}`={step}. Received: {size}"
                )
        time, row, column = (n // s for n, s in zip(video_shape[1:4], sizes, strict=True))  # type: ignore[operator]
        return time, row, column

    def patches(self, videos: Tensor) -> Tensor:
        """Flattened patches `(batch, tokens, tubelet * patch * patch * channels)`."""
        if len(videos.shape) != 5 or videos.shape[-1] != self.kernel.shape[3]:
            raise ValueError(
                "`videos` must be (batch, frames, height, width, "
                f"{self.kernel.shape[3]} channels). Received shape: {tuple(videos.shape)}"
            )
        grid = self.grid_shape(videos.shape)
        tubelet, patch, _, channels, _ = self.kernel.shape
        # Axes that stay neighbours go as one: LiteRT transposes no more than six.
        x = ops.reshape(videos, (-1, tubelet, grid[1], patch, grid[2], patch * channels))
        x = ops.transpose(x, (0, 2, 4, 1, 3, 5))
        return ops.reshape(x, (-1, math.prod(grid), tubelet * patch * patch * channels))

    def call(self, videos: Tensor, token_indices: Tensor | None = None) -> Tensor:
        patches = self.patches(videos)
        if token_indices is not None:
            patches = gather_tokens(patches, token_indices)
        kernel = ops.reshape(self.kernel, (patches.shape[-1], self.hidden_dim))
        return linear(patches, kernel, self.bias)

    def compute_output_shape(
        self,
        videos_shape: Sequence[int | None],
        token_indices_shape: Sequence[int | None] | None = None,
    ) -> tuple[int | None, ...]:
        tokens: int | None = math.prod(self.grid_shape(videos_shape))
        if token_indices_shape is not None:
            tokens = token_indices_shape[1]
        return (videos_shape[0], tokens, self.hidden_dim)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "hidden_dim": self.hidden_dim,
            "patch_size": self.patch_size,
            "tubelet_size": self.tubelet_size,
        }


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
    >>> from keras_vjepa.layers import SelfAttention
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
    >>> from keras_vjepa.layers import TransformerBlock
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


def layer_norm(epsilon: float, name: str, dtype: Any) -> TokenNorm:
    return TokenNorm(epsilon=epsilon, name=name, dtype=dtype)


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
