"""Scaled dot-product attention, one function for every backend (§3.3).

Three ways to compute the same numbers stand here, and one table that says which is used where. The
choice was made by measurement (`tools/bench.py --attention` repeats it), see `_PREFERRED_ON_CPU`;
accelerators have kernels of their own.

Shapes: B batch, N queries, M keys, H heads, C channels of a head.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_vjepa.distribution import has_accelerator, on_each_device

Tensor = Any
Attention = Callable[..., Tensor]

# Heads with fewer logits than this are not worth a loop.
_MIN_LOGITS_FOR_LOOP = 128 * 128
_QUERIES_PER_CHUNK = 800
_MASKED_LOGIT = -1e9


class OrderedKeys(NamedTuple):
    """A key mask, with an order in which the keys that are left out come last.

    Attributes:
        mask: bool `(batch, keys)`, True where a key takes part; in each sample at least one.
        order: int `(batch, keys)`, the keys that take part, then the others.
        count: int `(batch,)`, how many take part.
    """

    mask: Tensor
    order: Tensor
    count: Tensor


def ordered_keys(key_mask: Tensor) -> OrderedKeys:
    """The order that goes with a mask."""
    order = ops.argsort(ops.logical_not(key_mask), axis=1)
    return OrderedKeys(key_mask, order, ops.sum(ops.cast(key_mask, "int32"), axis=1))


def prepared(key_mask: Tensor | OrderedKeys | None) -> Tensor | OrderedKeys | None:
    """A mask in the form that `attention` is best at here, for many calls with the same one."""
    if key_mask is None or isinstance(key_mask, OrderedKeys) or not _has_cudnn():
        return key_mask
    return ordered_keys(key_mask)


def as_tensor(x: Any) -> Tensor:
    """`ops.convert_to_tensor`, faster for what is a tensor already."""
    return x if ops.is_tensor(x) else ops.convert_to_tensor(x)


def fused_attention(
    query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | OrderedKeys | None = None
) -> Tensor:
    """Attention by the backend's own kernel. Arguments and result as in `attention`."""
    key_mask = prepared(key_mask)
    if isinstance(key_mask, OrderedKeys):
        half = keras.backend.standardize_dtype(query.dtype) in ("bfloat16", "float16")
        if half and query.shape[-1] % 8 == 0 and query.shape[-1] <= 128:
            return attention_to_first_keys(query, key, value, key_mask, "cudnn")
        key_mask = key_mask.mask
    mask: Any = key_mask
    if mask is not None:
        mask = mask[:, None, None, :]
    if keras.config.backend() != "torch":
        return ops.dot_product_attention(query, key, value, mask=mask)
    from torch.nn.functional import scaled_dot_product_attention

    # Keras would copy the three first.
    query, key, value = (as_tensor(x).transpose(1, 2) for x in (query, key, value))
    return scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)


def attention_to_first_keys(
    query: Tensor, key: Tensor, value: Tensor, keys: OrderedKeys, implementation: Any
) -> Tensor:
    """Attention by a kernel of JAX that takes the number of keys in place of a mask.

    It skips keys that are left out; a mask it would have to be given for each query and key, and
    took 2.3 ms with one and 1.2 ms so (24 samples of 1120 tokens, 16 heads of 24, both ways, H200).
    Arguments and result as in `attention`; `implementation` is `"cudnn"` or `"xla"`.
    """
    import jax

    def attend(query: Tensor, key: Tensor, value: Tensor, order: Tensor, count: Tensor) -> Tensor:
        rows = ops.expand_dims(ops.arange(order.shape[0]), 1)
        key, value = (
            x.at[rows, order].get(mode="promise_in_bounds", unique_indices=True)
            for x in (key, value)
        )
        return jax.nn.dot_product_attention(
            query, key, value, key_value_seq_lengths=count, implementation=implementation
        )

    return on_each_device(attend, query, key, value, keys.order, keys.count)


def _has_cudnn() -> bool:
    """Whether this is JAX on a device of NVIDIA."""
    if keras.config.backend() != "jax":
        return False
    return keras.distribution.list_devices()[0].startswith(("gpu", "cuda"))


def plain_attention(
    query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None = None
) -> Tensor:
    """Attention as two matrix products around a softmax. Arguments and result as in `attention`."""
    bias = None if key_mask is None else _bias(key_mask, "float32")[:, None, None, :]
    query, key, value = (ops.transpose(x, (0, 2, 1, 3)) for x in (query, key, value))
    weights = ops.softmax(_logits(query, key, bias), axis=-1)
    return ops.transpose(ops.matmul(ops.cast(weights, value.dtype), value), (0, 2, 1, 3))


def attention_by_head(
    query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None = None
) -> Tensor:
    """Attention one head of one sample after the other, as products of plain matrices.

    The logits of a chunk of queries stay in cache, and are computed again in the backward pass, so
    memory grows with N, not with N x M. The gradient is written out: with the logarithm of each
    softmax's sum kept, one exponential gives the weights back, without a maximum or a sum.
    Arguments and result as in `attention`; shapes must be known.
    """
    return on_each_device(_attend_samples, query, key, value, key_mask)


def _attend_samples(query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None) -> Tensor:
    batch, num_queries, num_heads, head_dim = query.shape

    def one_head_a_row(x: Tensor) -> Tensor:
        x = ops.transpose(x, (0, 2, 1, 3))
        return ops.reshape(x, (batch * num_heads, x.shape[2], head_dim))

    if key_mask is None:
        bias = ops.zeros((batch * num_heads, 1, key.shape[1]), "float32")
    else:
        bias = ops.expand_dims(ops.repeat(_bias(key_mask, "float32"), num_heads, axis=0), 1)
    outputs = _attend_heads(*(one_head_a_row(x) for x in (query, key, value)), bias)
    outputs = ops.reshape(outputs, (batch, num_heads, num_queries, head_dim))
    return ops.transpose(outputs, (0, 2, 1, 3))


@ops.custom_gradient
def _attend_heads(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Any:
    """Attention with one head in a row of each `(rows, tokens, head_dim)`."""
    inputs = (query, key, value, bias)
    outputs, log_sums = ops.map(lambda head: _attend_head(*head), inputs)

    def gradient(*arguments: Tensor, upstream: Tensor | None = None) -> tuple[Tensor, ...]:
        # Keras hands it over by name where it passes the inputs too, alone otherwise.
        if upstream is None:
            (upstream,) = arguments
        rows = (*inputs, outputs, log_sums, upstream)
        gradients = ops.map(lambda head: _attend_head_gradient(*head), rows)
        return (*gradients, ops.zeros_like(bias))

    return outputs, gradient


def _attend_head(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """One head's output `(queries, head_dim)` and log-sums of its softmax `(queries, 1)`."""
    outputs, log_sums = [], []
    for chunk in _query_chunks(query):
        logits = _logits(query[chunk], key, bias)
        top = ops.max(logits, axis=-1, keepdims=True)
        weights = ops.exp(logits - top)
        total = ops.sum(weights, axis=-1, keepdims=True)
        pooled = ops.matmul(ops.cast(weights, value.dtype), value)
        outputs.append(ops.cast(pooled / ops.cast(total, pooled.dtype), value.dtype))
        log_sums.append(top + ops.log(total))
    return ops.concatenate(outputs), ops.concatenate(log_sums)


def _attend_head_gradient(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor,
    output: Tensor,
    log_sum: Tensor,
    upstream: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of one head with respect to its query, key and value."""
    dtype = query.dtype
    shared = ops.sum(ops.cast(output * upstream, "float32"), axis=-1, keepdims=True)
    scale = ops.cast(_scale(query), dtype)
    query_gradients: list[Tensor] = []
    key_gradient, value_gradient = ops.zeros_like(key), ops.zeros_like(value)
    for chunk in _query_chunks(query):
        weights = ops.exp(_logits(query[chunk], key, bias) - log_sum[chunk])
        of_weights = ops.cast(ops.matmul(upstream[chunk], ops.transpose(value)), "float32")
        of_logits = ops.cast(weights * (of_weights - shared[chunk]), dtype)
        query_gradients.append(ops.matmul(of_logits, key) * scale)
        key_gradient += ops.matmul(ops.transpose(of_logits), query[chunk] * scale)
        value_gradient += ops.matmul(ops.transpose(ops.cast(weights, dtype)), upstream[chunk])
    return ops.concatenate(query_gradients), key_gradient, value_gradient


def _query_chunks(query: Tensor) -> list[slice]:
    """Nearly equal parts of a head's queries whose logits fit into the processor's cache."""
    num_queries = query.shape[0]
    parts = max(1, round(num_queries / _QUERIES_PER_CHUNK))
    edges = [num_queries * i // parts for i in range(parts + 1)]
    return [slice(*pair) for pair in itertools.pairwise(edges)]


def _scale(query: Tensor) -> float:
    return 1.0 / math.sqrt(query.shape[-1])


def _logits(query: Tensor, key: Tensor, bias: Tensor | None) -> Tensor:
    """Scaled and masked logits, float32 whatever the inputs are."""
    query = query * ops.cast(_scale(query), query.dtype)
    # Softmax over half-precision logits would lose what the float32 accumulation of the matrix
    # product kept.
    logits = ops.cast(ops.matmul(query, ops.swapaxes(key, -1, -2)), "float32")
    return logits if bias is None else logits + bias


def _bias(key_mask: Tensor | OrderedKeys, dtype: Any) -> Tensor:
    """What a mask adds to the logits."""
    if isinstance(key_mask, OrderedKeys):
        key_mask = key_mask.mask
    return ops.where(key_mask, ops.cast(0.0, dtype), ops.cast(_MASKED_LOGIT, dtype))


# The fastest, forward and backward, where it is not the backend's own kernel. On 2 CPU cores at
# ViT-B's shape (1568 tokens, 12 heads of 64), milliseconds: JAX 520 own kernel, 580 plain, 250 by
# head; TensorFlow 190 own kernel, 170 plain; torch 170 own kernel (fused), 360 plain.
_PREFERRED_ON_CPU: dict[str, Attention] = {
    "jax": attention_by_head,
    "tensorflow": plain_attention,
}


def attention(
    query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | OrderedKeys | None = None
) -> Tensor:
    """Multi-head softmax attention, in the way that is fastest on this backend and device.

    Args:
        query: `(batch, queries, heads, head_dim)`.
        key: `(batch, keys, heads, head_dim)`.
        value: `(batch, keys, heads, head_dim)`.
        key_mask: optional bool `(batch, keys)`; keys that are False take no part. Or what
            `prepared` makes of it.

    Returns:
        `(batch, queries, heads, head_dim)`.

    Example:

    >>> import numpy as np
    >>> from keras_vjepa.attention import attention
    >>> x = np.ones((1, 5, 2, 4), "float32")
    >>> tuple(attention(x, x, x).shape)
    (1, 5, 2, 4)
    """
    implementation = _PREFERRED_ON_CPU.get(keras.config.backend(), fused_attention)
    if implementation is not fused_attention and has_accelerator():
        implementation = fused_attention
    if implementation is attention_by_head and not _worth_a_loop(query.shape, key.shape):
        implementation = plain_attention
    return implementation(query, key, value, key_mask)


def _worth_a_loop(query_shape: Any, key_shape: Any) -> bool:
    if None in (*query_shape, *key_shape):
        return False
    return query_shape[1] * key_shape[1] >= _MIN_LOGITS_FOR_LOOP
