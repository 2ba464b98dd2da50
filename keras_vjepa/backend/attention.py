"""Compute scaled dot-product attention, by one function for every backend (§3.3).

This module has three ways to compute the same numbers, and one table, `_PREFERRED_ON_CPU`, that
says which is used where. Measurements decided it (`tools/bench.py --attention` repeats them);
accelerators have kernels of their own.

Shapes: B batch, N queries, M keys, H heads, C channels of a head.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_vjepa.backend import onednn_attention
from keras_vjepa.backend.device import has_accelerator, on_each_device
from keras_vjepa.backend.keras_internals import flash_attention
from keras_vjepa.types import Tensor

Attention = Callable[..., Tensor]

# For heads with fewer logits than this, a loop is not worth its cost.
_MIN_LOGITS_FOR_LOOP = 128 * 128
_QUERIES_PER_CHUNK = 800
_MASKED_LOGIT = -1e9


class LeadingKeys(NamedTuple):
    """Holds a key mask in which the keys that take part come first.

    Attributes:
        mask: bool `(batch, keys)`, True where a key takes part; at least one in each sample.
        count: int32 `(batch,)`, how many keys take part.
        edges: int32 `(2 * batch + 1,)`: with all samples' keys in one row, the places where those
            that take part, and those that do not, begin and end.
    """

    mask: Tensor
    count: Tensor
    edges: Tensor


class TokenOrder(NamedTuple):
    """Holds an order in which the tokens that take part come first, and the way back.

    Attributes:
        order: int `(batch, tokens)`, the tokens that take part, then the others.
        inverse: int `(batch, tokens)`, the place of each token in that order.
        keys: the mask of the tokens in that order.
    """

    order: Tensor
    inverse: Tensor
    keys: LeadingKeys


def token_order(mask: Tensor) -> TokenOrder:
    """Compute the order that puts the tokens of a mask, bool `(batch, tokens)`, first.

    Example:

    >>> import numpy as np
    >>> from keras import ops
    >>> from keras_vjepa.backend.attention import token_order
    >>> found = token_order(ops.convert_to_tensor(np.array([[True, False, True]])))
    >>> ops.convert_to_numpy(found.order).tolist(), ops.convert_to_numpy(found.keys.edges).tolist()
    ([[0, 2, 1]], [0, 2, 3])
    """
    left_out = ops.logical_not(mask)
    order = ops.argsort(left_out, axis=1)
    # Keras' sum of bools is int32.
    count, rest = (ops.sum(x, axis=1) for x in (mask, left_out))
    ends = ops.cumsum(ops.reshape(ops.stack([count, rest], axis=1), (-1,)))
    edges = ops.pad(ends, ((1, 0),))
    keys = LeadingKeys(ops.take_along_axis(mask, order, axis=1), count, edges)
    return TokenOrder(order, ops.argsort(order, axis=1), keys)


def wants_leading_keys(dtype: Any, num_tokens: int, head_dim: int) -> bool:
    """Tell whether this device has a kernel that can skip masked keys if they come last.

    Other kernels need a mask for each query and key, and take twice the time: 2.3 ms instead of 1.2
    (JAX, 24 samples of 1120 tokens, 16 heads of 24, forward and backward, H200).
    """
    if not is_half(dtype) or head_dim % 8 or head_dim > 128:
        return False
    # The gradient of JAX's kernel needs an even number of tokens.
    is_even = keras.config.backend() != "jax" or num_tokens % 2 == 0
    return is_even and _has_kernel_for_leading_keys()


def is_half(dtype: Any) -> bool:
    """Tell whether a dtype is a float of 16 bits."""
    return keras.backend.standardize_dtype(dtype) in ("bfloat16", "float16")


def as_tensor(x: Any) -> Tensor:
    """Convert to a tensor; return a tensor as it is, faster than `ops.convert_to_tensor` does."""
    return x if ops.is_tensor(x) else ops.convert_to_tensor(x)


def fused_attention(
    query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | LeadingKeys | None = None
) -> Tensor:
    """Compute attention by the backend's own kernel; arguments and result as in `attention`."""
    mask: Any = key_mask
    if isinstance(key_mask, LeadingKeys):
        same_tokens = query.shape[1] == key.shape[1]
        if same_tokens and wants_leading_keys(query.dtype, query.shape[1], query.shape[-1]):
            return attention_to_leading_keys(query, key, value, key_mask)
        mask = key_mask.mask
    if keras.config.backend() == "torch":
        query, key, value = map(as_tensor, (query, key, value))
        if onednn_attention.suits(query, key, value):
            bias = None if mask is None else _bias(mask, query.dtype)
            if onednn_attention.suits_bias(bias, key):
                return onednn_attention.attend(query, key, value, bias)
    if mask is not None:
        mask = mask[:, None, None, :]
    if keras.config.backend() != "torch":
        return ops.dot_product_attention(query, key, value, mask=mask)
    from torch.nn.functional import scaled_dot_product_attention

    # torch's function is called directly, since Keras would first copy all three tensors.
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    return scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)


def attention_to_leading_keys(
    query: Tensor, key: Tensor, value: Tensor, keys: LeadingKeys, implementation: Any = "cudnn"
) -> Tensor:
    """Compute attention among tokens by a kernel that skips the tokens that take no part.

    Arguments and result are as in `attention`; the outputs of tokens that take no part are
    meaningless. `implementation` is an argument for JAX: `"cudnn"` or `"xla"`.
    """
    if keras.config.backend() == "torch":
        return _attention_in_one_row(query, key, value, keys.edges)
    import jax

    def attend(query: Tensor, key: Tensor, value: Tensor, count: Tensor) -> Tensor:
        return jax.nn.dot_product_attention(
            query, key, value, key_value_seq_lengths=count, implementation=implementation
        )

    return on_each_device(attend, query, key, value, keys.count)


def _attention_in_one_row(query: Tensor, key: Tensor, value: Tensor, edges: Tensor) -> Tensor:
    """Put all samples' tokens in one row, and compute attention within parts of it; torch only.

    Each sample makes two parts, one of the tokens that take part and one of the others, so that
    shapes do not depend on the mask.
    """
    batch, num_tokens = query.shape[:2]
    rows = [x.flatten(0, 1) for x in (query, key, value)]
    return flash_attention(rows, edges, num_tokens).unflatten(0, (batch, num_tokens))


@functools.cache
def _has_kernel_for_leading_keys() -> bool:
    if keras.config.backend() == "jax":
        return keras.distribution.list_devices()[0].startswith(("gpu", "cuda"))
    if keras.config.backend() != "torch" or not has_accelerator():
        return False
    import torch

    # Tested only on NVIDIA's devices, where the kernels need Ampere or newer.
    is_ampere = torch.version.cuda is not None and torch.cuda.get_device_capability() >= (8, 0)
    return is_ampere and torch.backends.cuda.is_flash_attention_available()


def plain_attention(
    query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None = None
) -> Tensor:
    """Compute attention by two matrix products around a softmax; arguments as in `attention`."""
    weights = attention_weights(query, key, key_mask)
    value = ops.transpose(value, (0, 2, 1, 3))
    return ops.transpose(ops.matmul(ops.cast(weights, value.dtype), value), (0, 2, 1, 3))


def attention_weights(
    query: Tensor, key: Tensor, key_mask: Tensor | LeadingKeys | None = None
) -> Tensor:
    """Compute by how much each query attends to each key.

    Args:
        query: as in `attention`.
        key: as in `attention`.
        key_mask: as in `attention`.

    Returns:
        float32 `(batch, heads, queries, keys)`; over the keys they sum to one.

    Example:

    >>> import numpy as np
    >>> from keras_vjepa.backend.attention import attention_weights
    >>> x = np.ones((1, 4, 2, 8), "float32")
    >>> float(attention_weights(x, x)[0, 0, 0, 0])
    0.25
    """
    bias = None if key_mask is None else _bias(key_mask, "float32")[:, None, None, :]
    query, key = (ops.transpose(x, (0, 2, 1, 3)) for x in (query, key))
    return ops.softmax(_logits(query, key, bias), axis=-1)


def attention_by_head(
    query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None = None
) -> Tensor:
    """Compute attention head by head, for each sample, by products of plain matrices.

    The logits of a chunk of queries stay in cache, and are computed again in the backward pass, so
    memory grows with N and not with N x M. The gradient is written out here: the logarithm of each
    softmax's sum is kept, so one exponential gives the weights again, without a maximum or a sum.
    Arguments and result are as in `attention`; shapes must be known.
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
    """Compute attention of arrays `(rows, tokens, head_dim)`, with one head in each row."""
    inputs = (query, key, value, bias)
    outputs, tops, log_sums = ops.map(lambda head: _attend_head(*head), inputs)

    def gradient(*arguments: Tensor, upstream: Tensor | None = None) -> tuple[Tensor, ...]:
        # Keras passes `upstream` by name if it passes the inputs too, and alone if it does not.
        if upstream is None:
            (upstream,) = arguments
        rows = (*inputs, outputs, tops, log_sums, upstream)
        gradients = ops.map(lambda head: _attend_head_gradient(*head), rows)
        return (*gradients, ops.zeros_like(bias))

    return outputs, gradient


def _attend_head(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    """Return one head's output `(queries, head_dim)`, and what gives its weights again.

    That is the largest logit of each query, and the logarithm of its softmax's sum, `(queries, 1)`.
    As one number, the logarithm would be lost beside a logit of a billion.
    """
    outputs, tops, log_sums = [], [], []
    for chunk in _query_chunks(query):
        logits = _logits(query[chunk], key, bias)
        top = ops.max(logits, axis=-1, keepdims=True)
        weights = ops.exp(logits - top)
        total = ops.sum(weights, axis=-1, keepdims=True)
        pooled = ops.matmul(ops.cast(weights, value.dtype), value)
        outputs.append(ops.cast(pooled / ops.cast(total, pooled.dtype), value.dtype))
        tops.append(top)
        log_sums.append(ops.log(total))
    return tuple(map(ops.concatenate, (outputs, tops, log_sums)))


def _attend_head_gradient(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor,
    output: Tensor,
    top: Tensor,
    log_sum: Tensor,
    upstream: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of one head with respect to its query, key and value."""
    dtype = query.dtype
    shared = ops.sum(ops.cast(output * upstream, "float32"), axis=-1, keepdims=True)
    scale = ops.cast(_scale(query), dtype)
    query_gradients: list[Tensor] = []
    key_gradient, value_gradient = ops.zeros_like(key), ops.zeros_like(value)
    for chunk in _query_chunks(query):
        weights = ops.exp(_logits(query[chunk], key, bias) - top[chunk] - log_sum[chunk])
        of_weights = ops.cast(ops.matmul(upstream[chunk], ops.transpose(value)), "float32")
        of_logits = ops.cast(weights * (of_weights - shared[chunk]), dtype)
        query_gradients.append(ops.matmul(of_logits, key) * scale)
        key_gradient += ops.matmul(ops.transpose(of_logits), query[chunk] * scale)
        value_gradient += ops.matmul(ops.transpose(ops.cast(weights, dtype)), upstream[chunk])
    return ops.concatenate(query_gradients), key_gradient, value_gradient


def _query_chunks(query: Tensor) -> list[slice]:
    """Divide a head's queries into nearly equal parts whose logits fit into the CPU's cache."""
    num_queries = query.shape[0]
    parts = max(1, round(num_queries / _QUERIES_PER_CHUNK))
    edges = [num_queries * i // parts for i in range(parts + 1)]
    return [slice(*pair) for pair in itertools.pairwise(edges)]


def _scale(query: Tensor) -> float:
    return 1.0 / math.sqrt(query.shape[-1])


def _logits(query: Tensor, key: Tensor, bias: Tensor | None) -> Tensor:
    """Compute scaled and masked logits, in float32 whatever the inputs are."""
    query = query * ops.cast(_scale(query), query.dtype)
    # The matrix product adds up in float32, and a softmax over half-precision logits would lose
    # that precision again.
    logits = ops.cast(ops.matmul(query, ops.swapaxes(key, -1, -2)), "float32")
    return logits if bias is None else logits + bias


def _bias(key_mask: Tensor | LeadingKeys, dtype: Any) -> Tensor:
    """Return what a mask adds to the logits: 0, or a large negative number."""
    if isinstance(key_mask, LeadingKeys):
        key_mask = key_mask.mask
    return ops.where(key_mask, ops.cast(0.0, dtype), ops.cast(_MASKED_LOGIT, dtype))


# The fastest way, forward and backward, for each backend whose own kernel is not the fastest. On 2
# CPU cores at ViT-B's shape (1568 tokens, 12 heads of 64), in milliseconds: JAX 520 with its own
# kernel, 580 plain, 250 by head; TensorFlow 190 own, 170 plain; torch 170 own (fused), 360 plain.
_PREFERRED_ON_CPU: dict[str, Attention] = {
    "jax": attention_by_head,
    "tensorflow": plain_attention,
}


def attention(
    query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | LeadingKeys | None = None
) -> Tensor:
    """Compute multi-head softmax attention in the way fastest on this backend and device.

    Args:
        query: `(batch, queries, heads, head_dim)`.
        key: `(batch, keys, heads, head_dim)`.
        value: `(batch, keys, heads, head_dim)`.
        key_mask: optional bool `(batch, keys)`; keys that are False take no part. It may be a
            `LeadingKeys` if queries and keys come from the same tokens.

    Returns:
        `(batch, queries, heads, head_dim)`.

    Example:

    >>> import numpy as np
    >>> from keras_vjepa.backend.attention import attention
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
