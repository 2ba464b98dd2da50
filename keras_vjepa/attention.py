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

# Heads with fewer logits than this are not worth a loop.
_MIN_LOGITS_FOR_LOOP = 128 * 128
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
    bias = None if key_mask is None else _bias(key_mask, query.dtype)[:, None, None, :]
    query, key, value = (ops.transpose(x, (0, 2, 1, 3)) for x in (query, key, value))
    return ops.transpose(_heads_first_attention(query, key, value, bias), (0, 2, 1, 3))


def attention_by_head(
    query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None = None
) -> Tensor:
    """Attention one head of one sample after the other, as products of plain matrices.

    The logits of a head stay in cache, and are computed again in the backward pass, so memory grows
    with N, not with N x M. Arguments and result as in `attention`; shapes must be known.
    """
    batch, num_queries, num_heads, head_dim = query.shape

    def one_head_a_row(x: Tensor) -> Tensor:
        x = ops.transpose(x, (0, 2, 1, 3))
        return ops.reshape(x, (batch * num_heads, x.shape[2], head_dim))

    inputs = [one_head_a_row(x) for x in (query, key, value)]
    if key_mask is not None:
        bias = ops.repeat(_bias(key_mask, query.dtype), num_heads, axis=0)
        inputs.append(ops.expand_dims(bias, 1))
    attend = keras.remat(_heads_first_attention)
    outputs = ops.map(lambda head: attend(*head), tuple(inputs))
    outputs = ops.reshape(outputs, (batch, num_heads, num_queries, head_dim))
    return ops.transpose(outputs, (0, 2, 1, 3))


def _bias(key_mask: Tensor, dtype: Any) -> Tensor:
    """What a mask adds to the logits."""
    return ops.where(key_mask, ops.cast(0.0, dtype), ops.cast(_MASKED_LOGIT, dtype))


def _heads_first_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Softmax attention over the last two axes, `(..., tokens, head_dim)`."""
    scale = 1.0 / math.sqrt(query.shape[-1])
    logits = ops.matmul(query * ops.cast(scale, query.dtype), ops.swapaxes(key, -1, -2))
    if bias is not None:
        logits = logits + bias
    # Softmax over half-precision logits would lose what the float32 accumulation of the matrix
    # product kept.
    weights = ops.softmax(ops.cast(logits, "float32"), axis=-1)
    return ops.matmul(ops.cast(weights, value.dtype), value)


# The fastest, forward and backward, where it is not the backend's own kernel. On 2 CPU cores at
# ViT-B's shape (1568 tokens, 12 heads of 64), milliseconds: JAX 520 own kernel, 580 plain, 250 by
# head; TensorFlow 190 own kernel, 170 plain; torch 170 own kernel (fused), 360 plain.
_PREFERRED: dict[tuple[str, str], Attention] = {
    ("jax", "cpu"): attention_by_head,
    ("tensorflow", "cpu"): plain_attention,
}


def attention(query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None = None) -> Tensor:
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
    if implementation is attention_by_head and not _worth_a_loop(query.shape, key.shape):
        implementation = plain_attention
    return implementation(query, key, value, key_mask)


def _device_type() -> str:
    if keras.config.backend() == "torch":
        return "any"
    return "cpu" if keras.distribution.list_devices()[0].startswith("cpu") else "accelerator"


def _worth_a_loop(query_shape: Any, key_shape: Any) -> bool:
    if None in (*query_shape, *key_shape):
        return False
    return query_shape[1] * key_shape[1] >= _MIN_LOGITS_FOR_LOOP
