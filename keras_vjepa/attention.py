"""Scaled dot-product attention, one function for every backend (§3.3).

Three ways to compute the same numbers stand here, and one table that says which is used where. The
choice was made by measurement (`tools/bench.py --attention` repeats it); see `_PREFERRED`.

Shapes: B batch, N queries, M keys, H heads, C channels of a head.
"""

import math
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

Tensor = Any
Attention = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]

# Logits of one group of heads in `attention_by_head`: 10 MB in float32, which stays in cache.
_LOGITS_PER_GROUP = 2_500_000
_MASKED_LOGIT = -1e9


def fused_attention(
    query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None = None
) -> Tensor:
    """Attention by the backend's own kernel. Arguments and result as in `attention`."""
    mask = None if key_mask is None else key_mask[:, None, None, :]
    return ops.dot_product_attention(query, key, value, mask=mask)


def plain_attention(
    query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None = None
) -> Tensor:
    """Attention as two matrix products around a softmax. Arguments and result as in `attention`."""
    query, key, value = (ops.transpose(x, (0, 2, 1, 3)) for x in (query, key, value))
    mask = None if key_mask is None else key_mask[:, None, None, :]
    return ops.transpose(_heads_first_attention(query, key, value, mask), (0, 2, 1, 3))


def attention_by_head(
    query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None = None
) -> Tensor:
    """Attention over a few heads at a time, whose N x M logits stay in cache.

    The logits are computed again in the backward pass, so memory grows with N, not with N x M.
    Shapes must be known. Arguments and result as in `attention`.
    """
    batch, num_queries, num_heads, head_dim = query.shape
    num_keys = key.shape[1]
    group = _largest_divisor(batch * num_heads, _LOGITS_PER_GROUP // (num_queries * num_keys))
    if group == batch * num_heads:
        return plain_attention(query, key, value, key_mask)

    def grouped(x: Tensor) -> Tensor:
        x = ops.transpose(x, (0, 2, 1, 3))
        return ops.reshape(x, (batch * num_heads // group, group, x.shape[2], head_dim))

    inputs = [grouped(query), grouped(key), grouped(value)]
    if key_mask is not None:
        mask = ops.repeat(key_mask, num_heads, axis=0)
        inputs.append(ops.reshape(mask, (batch * num_heads // group, group, 1, num_keys)))

    attend = keras.remat(lambda *args: _heads_first_attention(*args))
    outputs = ops.map(lambda args: attend(*args), tuple(inputs))
    outputs = ops.reshape(outputs, (batch, num_heads, num_queries, head_dim))
    return ops.transpose(outputs, (0, 2, 1, 3))


def _heads_first_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
) -> Tensor:
    scale = 1.0 / math.sqrt(query.shape[-1])
    logits = ops.matmul(query * ops.cast(scale, query.dtype), ops.swapaxes(key, -1, -2))
    if mask is not None:
        logits = ops.where(mask, logits, ops.cast(_MASKED_LOGIT, logits.dtype))
    # Softmax over half-precision logits would lose what the float32 accumulation of the matrix
    # product kept.
    weights = ops.softmax(ops.cast(logits, "float32"), axis=-1)
    return ops.matmul(ops.cast(weights, value.dtype), value)


def _largest_divisor(number: int, limit: int) -> int:
    return max(d for d in range(1, number + 1) if number % d == 0 and d <= max(limit, 1))


# The fastest, forward and backward, where it is not the backend's own kernel. ViT-B's shape (1568
# tokens, 12 heads of 64) on 2 CPU cores, milliseconds: JAX 600 own kernel, 460 plain, 220 by head;
# TensorFlow 190 own kernel, 170 plain; torch 170 own kernel (fused), 360 plain.
_PREFERRED: dict[tuple[str, str], Attention] = {
    ("jax", "cpu"): attention_by_head,
    ("tensorflow", "cpu"): plain_attention,
}


def attention(
    query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None = None
) -> Tensor:
    """Multi-head softmax attention, in the way that is fastest on this backend and device.

    Args:
        query: `(batch, queries, heads, head_dim)`.
        key: `(batch, keys, heads, head_dim)`.
        value: `(batch, keys, heads, head_dim)`.
        key_mask: optional bool `(batch, keys)`; keys that are False take no part.

    Returns:
        `(batch, queries, heads, head_dim)`.

    Example:

    >>> import numpy as np
    >>> from keras_vjepa.attention import attention
    >>> x = np.ones((1, 5, 2, 4), "float32")
    >>> tuple(attention(x, x, x).shape)
    (1, 5, 2, 4)
    """
    implementation = _PREFERRED.get((keras.config.backend(), _device_type()), fused_attention)
    if implementation is attention_by_head and None in tuple(query.shape) + tuple(key.shape):
        implementation = plain_attention
    return implementation(query, key, value, key_mask)


def _device_type() -> str:
    if keras.config.backend() == "torch":
        return "any"
    return "cpu" if keras.distribution.list_devices()[0].startswith("cpu") else "accelerator"
