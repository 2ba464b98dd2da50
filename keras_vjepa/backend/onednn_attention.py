"""Compute attention by products of oneDNN on processors of AMD (§3.3); torch only.

torch's own kernel multiplies with MKL, see `onednn.py`. Here each head's queries are taken in parts
whose logits stay in the processor's cache, and are computed again in the backward pass. Measured on
one core of an AMD EPYC with AVX-512, own kernel and this one, forward and backward together: 1,568
tokens, 6 heads of 64, 146 and 96 ms; 16 heads of 24, 196 and 164 ms; 368 tokens, 6 heads of 64, 8.4
and 6.3 ms. With 197 tokens both take the same time.
"""

import functools
import math
from collections.abc import Iterator
from typing import Any

from keras_vjepa.backend import onednn
from keras_vjepa.backend.onednn import multiplied
from keras_vjepa.types import Tensor

# With fewer logits in a head, torch's own kernel is as fast.
_LEAST_LOGITS = 256 * 256
# More do not stay in the cache.
_MOST_LOGITS_AT_ONCE = 460_000
# Products with fewer rows are slow: among 9,216 tokens, they cost more than what the cache saves.
_LEAST_ROWS = 128


def suits(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Tell whether `attend` is right for these tensors, and faster than torch's own kernel.

    Shapes that do not fit are left to torch, which broadcasts them or says what is wrong.

    Args:
        query: as in `attend`, like the others.
        key: keys.
        value: values.
    """
    import torch

    return (
        onednn.takes(query, key, value)
        # Whoever switches this off (`torch.nn.attention.sdpa_kernel`) wants another kernel, such
        # as the one that has gradients of gradients.
        and torch.backends.cuda.flash_sdp_enabled()
        and query.ndim == key.ndim == value.ndim == 4
        and query.shape[1] * key.shape[1] >= _LEAST_LOGITS
        and query.shape[0] == key.shape[0]
        and query.shape[2:] == key.shape[2:]
        and value.shape[:3] == key.shape[:3]
        and query.shape[3] > 0
    )


def suits_bias(bias: Tensor | None, key: Tensor) -> bool:
    """Tell whether `attend` is right for a bias.

    Args:
        bias: as in `attend`.
        key: likewise.
    """
    return bias is None or (
        onednn.takes(bias) and bias.shape in ((1, key.shape[1]), tuple(key.shape[:2]))
    )


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """Compute softmax attention, with its gradients.

    Args:
        query: `(batch, queries, heads, head_dim)`, of torch.
        key: `(batch, keys, heads, head_dim)`.
        value: likewise.
        bias: `(batch or 1, keys)`, added to the logits of each key; None for zeros.

    Returns:
        `(batch, queries, heads, head_dim)`.
    """
    if bias is not None:
        bias = bias.expand(len(key), -1)
    heads = (x.transpose(1, 2) for x in (query, key, value))
    return _attention().apply(*heads, bias).transpose(1, 2)


@functools.cache
def _attention() -> Any:
    """Make the function of torch, of tensors `(batch, heads, tokens, head_dim)`."""
    import torch

    class Attention(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, *inputs: Tensor | None) -> Tensor:
            outputs, log_sums = _forward(*inputs)
            context.save_for_backward(*inputs, outputs, log_sums)
            return outputs

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(context: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
            # Several gradients at once are one tensor that only torch's own ops take apart.
            found = _backward if onednn.takes(upstream) else _backward_of_torch
            return *found(context.saved_tensors, upstream), None

    return Attention


def _forward(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the outputs, and the logarithm of each softmax's sum."""
    import torch

    query, key, value = _scaled(query), key.contiguous(), value.contiguous()
    outputs = query.new_empty((*query.shape[:3], value.shape[3]))
    log_sums = query.new_empty((*query.shape[:3], 1))
    for head, rows in _parts(query, key):
        logits = multiplied(query[rows], key[head], _of_sample(bias, head))
        top = logits.amax(-1, keepdim=True)
        weights = logits.sub_(top).exp_()
        total = weights.sum(-1, keepdim=True)
        torch.div(multiplied(weights, value[head].t()), total, out=outputs[rows])
        torch.add(top, total.log_(), out=log_sums[rows])
    return outputs, log_sums


def _backward(saved: tuple[Tensor, ...], upstream: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients of queries, keys and values, from what the forward pass kept."""
    import torch

    query, key, value, bias, outputs, log_sums = saved
    query, (key, value, upstream) = _scaled(query), (x.contiguous() for x in (key, value, upstream))
    shared = (outputs * upstream).sum(-1, keepdim=True)
    of_query = torch.empty_like(query)
    # These are transposed, so that no matrix of weights has to be.
    of_key, of_value = (x.new_zeros(x.mT.shape) for x in (key, value))
    for head, rows in _parts(query, key):
        logits = multiplied(query[rows], key[head], _of_sample(bias, head))
        weights = logits.sub_(log_sums[rows]).exp_()
        of_value[head] += multiplied(upstream[rows].t(), weights.t())
        of_logits = multiplied(upstream[rows], value[head]).sub_(shared[rows]).mul_(weights)
        of_query[rows] = multiplied(of_logits, key[head].t())
        of_key[head] += multiplied(query[rows].t(), of_logits.t())
    return of_query.mul_(_scale(query)), of_key.mT, of_value.mT


def _backward_of_torch(saved: tuple[Tensor, ...], upstream: Tensor) -> tuple[Tensor, ...]:
    """Do as `_backward`, by torch's own kernel."""
    import torch

    bias = None if saved[3] is None else saved[3][:, None, None]
    with torch.enable_grad():
        query, key, value = (one.detach().requires_grad_() for one in saved[:3])
        outputs = torch.nn.functional.scaled_dot_product_attention(query, key, value, bias)
    return torch.autograd.grad(outputs, (query, key, value), upstream)


def _scale(query: Tensor) -> float:
    return 1.0 / math.sqrt(query.shape[-1])


def _scaled(query: Tensor) -> Tensor:
    """Return the queries divided as the logits are to be, one row after the other in memory."""
    return (query * _scale(query)).contiguous()


def _of_sample(bias: Tensor | None, head: tuple[int, int]) -> Tensor | None:
    return None if bias is None else bias[head[0]]


def _parts(query: Tensor, key: Tensor) -> Iterator[tuple[tuple[int, int], tuple[Any, ...]]]:
    """Yield sample and head, and with them a slice of queries, until there are none left."""
    batch, heads, num_queries = query.shape[:3]
    count = math.ceil(num_queries * key.shape[2] / _MOST_LOGITS_AT_ONCE)
    count = min(count, math.ceil(num_queries / _LEAST_ROWS))
    size = math.ceil(num_queries / count)
    for sample in range(batch):
        for head in range(heads):
            for start in range(0, num_queries, size):
                yield (sample, head), (sample, head, slice(start, start + size))
