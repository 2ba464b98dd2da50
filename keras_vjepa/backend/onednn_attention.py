"""Compute attention by products of oneDNN on processors of AMD (§3.3); torch only.

torch's own kernel multiplies with MKL, see `onednn.py`. Here each head's queries are taken in parts
whose logits stay in the processor's cache, and are computed again in the backward pass. Measured on
one core of an AMD EPYC with AVX-512, own kernel and this one, forward and backward together: 1,568
tokens, 6 heads of 64, 144 and 76 ms; 16 heads of 24, 193 and 113 ms; 368 tokens, 6 heads of 64, 7.9
and 5.7 ms. With 197 tokens, or 288 and heads of 24, both take the same time.
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
# e is this power of 2. On these processors torch computes powers of 2 in a quarter of the time of
# those of e, which it gives to MKL.
_BASE = math.log2(math.e)
# From here on, rounding is more than a part of a logit; from 1.5 billion, a power of 2 overflows.
_LARGE = 2.0**24
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
        and min(query.shape[3], value.shape[3]) > 0
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
            outputs, tops, totals = _forward(*inputs)
            context.save_for_backward(*inputs, outputs, tops, totals)
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
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the outputs, and the largest logit and the sum of each softmax.

    Both are kept, and not the sum's logarithm: added to a logit of a billion, as of a key that
    takes no part, it would be lost by rounding, and the gradients were many times too large.
    """
    query, key, value = _scaled(query), key.contiguous(), value.contiguous()
    found = _forward_of_rows(query, key, value, bias, False)
    # This is hardly ever the case, and to ask for each part takes longer.
    return _forward_of_rows(query, key, value, bias, True) if _are_large(found[1]) else found


def _forward_of_rows(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, are_large: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Do as `_forward`, for queries that are scaled, and logits of which some may be large."""
    import torch

    outputs = query.new_empty((*query.shape[:3], value.shape[3]))
    tops, totals = (query.new_empty((*query.shape[:3], 1)) for _ in range(2))
    parts = _parts(bias, (key, value.mT), (query, outputs, tops, totals))
    for one_bias, one_key, transposed_value, rows, output, top, total in parts:
        logits = multiplied(rows, one_key, one_bias)
        torch.amax(logits, -1, keepdim=True, out=top)
        weights = _power(logits, top, are_large)
        torch.sum(weights, -1, keepdim=True, out=total)
        torch.div(multiplied(weights, transposed_value), total, out=output)
    return outputs, tops, totals


def _backward(saved: tuple[Tensor, ...], upstream: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients of queries, keys and values, from what the forward pass kept."""
    import torch

    query, key, value, bias, outputs, tops, totals = saved
    are_large = _are_large(tops)
    query, key, value = _scaled(query), key.contiguous(), value.contiguous()
    # The weights are not divided by their sum, but what is multiplied with them is: it is smaller.
    upstream = torch.div(upstream, totals, out=upstream.new_empty(upstream.shape))
    shared = (outputs * upstream).sum(-1, keepdim=True)
    of_query = torch.empty_like(query)
    # These are transposed, so that no matrix of weights has to be.
    of_key, of_value = (x.new_zeros(x.mT.shape) for x in (key, value))
    whole, by_rows = (key, value, of_key, of_value), (query, upstream, tops, shared, of_query)
    for one_bias, one_key, one_value, to_key, to_value, *of_rows in _parts(bias, whole, by_rows):
        rows, of_output, top, one_shared, to_query = of_rows
        weights = _power(multiplied(rows, one_key, one_bias), top, are_large)
        to_value += multiplied(of_output.t(), weights.t())
        of_logits = multiplied(of_output, one_value).sub_(one_shared).mul_(weights)
        to_query.copy_(multiplied(of_logits, one_key.t()))
        to_key += multiplied(rows.t(), of_logits.t())
    return of_query.mul_(_scale(query)), of_key.mT, of_value.mT


def _backward_of_torch(saved: tuple[Tensor, ...], upstream: Tensor) -> tuple[Tensor, ...]:
    """Do as `_backward`, by torch's own kernel."""
    import torch

    bias = None if saved[3] is None else saved[3][:, None, None]
    with torch.enable_grad():
        query, key, value = (one.detach().requires_grad_() for one in saved[:3])
        outputs = torch.nn.functional.scaled_dot_product_attention(query, key, value, bias)
    return torch.autograd.grad(outputs, (query, key, value), upstream)


def _are_large(tops: Tensor) -> bool:
    return bool((tops.abs() > _LARGE).any())


def _power(logits: Tensor, top: Tensor, are_large: bool) -> Tensor:
    """Return e to the power of logits minus the largest, times a factor of the row; overwrites."""
    import torch

    if are_large:
        logits, top = logits.sub_(top), torch.zeros_like(top)
    # Both are multiplied and added before they are rounded, so that nothing is lost of the
    # difference of large numbers. The factor is from what was rounded before.
    return torch.add(top * -_BASE, logits, alpha=_BASE, out=logits).exp2_()


def _scale(query: Tensor) -> float:
    return 1.0 / math.sqrt(query.shape[-1])


def _scaled(query: Tensor) -> Tensor:
    """Return the queries divided as the logits are to be, one row after the other in memory."""
    import torch

    return torch.mul(query, _scale(query), out=query.new_empty(query.shape))


def _parts(
    bias: Tensor | None, whole: tuple[Tensor, ...], by_rows: tuple[Tensor, ...]
) -> Iterator[tuple[Any, ...]]:
    """Yield what a product needs, for each part of the queries of each head.

    Args:
        bias: `(batch, keys)`, or None.
        whole: keys, and others `(batch, heads, ...)`, of which a part takes all of its head.
        by_rows: queries, and others with a row for each of them, of which a part takes its rows.

    Yields:
        The bias, the head's part of each in `whole`, and the rows' part of each in `by_rows`.
    """
    batch, heads, num_queries = by_rows[0].shape[:3]
    count = math.ceil(num_queries * whole[0].shape[2] / _MOST_LOGITS_AT_ONCE)
    count = min(count, math.ceil(num_queries / _LEAST_ROWS))
    size = math.ceil(num_queries / count)
    of_samples = [None] * batch if bias is None else bias.unbind()
    biases = [one for one in of_samples for _ in range(heads)]
    # All views are made here, because to index each head takes longer than a small product.
    by_head = (tensor.flatten(0, 1).unbind() for tensor in (*whole, *by_rows))
    for one_bias, *of_head in zip(biases, *by_head, strict=True):
        of_whole, of_rows = of_head[: len(whole)], of_head[len(whole) :]
        for rows in zip(*(one.split(size) for one in of_rows), strict=True):
            yield one_bias, *of_whole, *rows
