"""Multiply float32 matrices with oneDNN on processors of AMD, for the linear layers (§3.3, App. B).

torch gives such products to MKL, which uses AVX-512 on Intel's processors only. Measured on one
core of an AMD EPYC with AVX-512 and torch 2.13, MKL and oneDNN: 197 tokens from 384 to 1536
channels, 2.12 and 0.91 ms, with the backward pass 6.90 and 2.93 ms; 1,568 tokens from 768 to 3072,
67.6 and 34.0 ms, 203 and 106 ms. Below about two million multiplications, or with one row, MKL is
as fast or faster. In half precision torch uses oneDNN itself.
"""

import functools
import platform
from pathlib import Path
from typing import Any

from keras_vjepa.backend.host_values import has_storage
from keras_vjepa.backend.keras_internals import follows_ops, onednn_linear
from keras_vjepa.types import Tensor

# For smaller products, MKL is as fast, and for gradients of kernels with fewer weights.
_LEAST_MULTIPLICATIONS = 2**21
_LEAST_ROWS = 16
_LEAST_WEIGHTS = 2**10
_CPU_INFO = Path("/proc/cpuinfo")


def suits(tokens: Tensor, kernel: Tensor, bias: Tensor | None = None) -> bool:
    """Tell whether `linear` is right for a product, and faster than torch's own.

    Shapes that do not fit are left to torch, which broadcasts them or says what is wrong.

    Args:
        tokens: `(..., dim)`, of torch.
        kernel: `(dim, units)`.
        bias: `(units,)`, or None.
    """
    # Sizes come last: while a program is recorded, to ask for them would fix them.
    return (
        takes(tokens, kernel, *(() if bias is None else (bias,)))
        and kernel.ndim == 2
        and tokens.shape[-1:] == kernel.shape[:1]
        and (bias is None or bias.shape == kernel.shape[1:])
        and tokens.numel() * kernel.shape[1] >= _LEAST_MULTIPLICATIONS
        and tokens.numel() >= _LEAST_ROWS * kernel.shape[0]
    )


def takes(*tensors: Tensor) -> bool:
    """Tell whether oneDNN may compute with tensors, and is faster than torch's own products.

    It may not while torch records or transforms a program, whose ops have to be torch's own.

    Args:
        tensors: of torch.
    """
    import torch

    # A compiler reads this too, and must not come to what it cannot read.
    return (
        not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and is_faster_here()
        and not follows_ops()
        and all(map(_is_plain, tensors))
        and bool(torch.backends.mkldnn.enabled)
        and not torch.is_autocast_enabled("cpu")
    )


def linear(tokens: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    """Compute `tokens @ kernel + bias`, with its gradients.

    Args:
        tokens: `(..., dim)`, of torch.
        kernel: `(dim, units)`.
        bias: `(units,)`, or None.

    Returns:
        `(..., units)`.
    """
    import torch

    if torch.is_grad_enabled():
        return _product().apply(tokens, kernel, bias)
    return multiplied(tokens, kernel.t(), bias)


@functools.cache
def is_faster_here() -> bool:
    """Tell whether this machine's processor is one on which MKL lacks its fastest products."""
    import torch

    return (
        onednn_linear() is not None
        and torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and "AuthenticAMD" in _processor()
    )


def _processor() -> str:
    """Return the system's words for the processor, in which its maker is named."""
    if _CPU_INFO.exists():
        return _CPU_INFO.read_text()
    return platform.processor()


def _is_plain(tensor: Any) -> bool:
    """Tell whether a tensor holds numbers in float32 in the machine's memory.

    Subclasses of tensors stand for something else, but for `Parameter`.
    """
    import torch

    return (
        type(tensor) in (torch.Tensor, torch.nn.Parameter)
        and tensor.dtype is torch.float32
        and tensor.device.type == "cpu"
        and not tensor.is_nested
        and has_storage(tensor)
    )


def multiplied(rows: Tensor, transposed: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute `rows @ transposed.T + bias`, without gradients.

    Args:
        rows: `(..., dim)`; where these lie one after the other in memory, they are not copied.
        transposed: `(units, dim)`, in any layout; unless all its numbers lie one after the other,
            by rows or by columns, they are copied.
        bias: `(units,)`, in any layout, or None.

    Returns:
        `(..., units)`.
    """
    # oneDNN would read numbers that lie one after the other in memory, whatever the layout is.
    bias = None if bias is None else bias.contiguous()
    # It has no fast way for another layout, such as that of a slice: 1,024 rows from 64 to 192
    # channels take 254 ms instead of 0.11.
    if not (transposed.is_contiguous() or transposed.t().is_contiguous()):
        transposed = transposed.contiguous()
    return onednn_linear()(rows, transposed, bias, "none", [], "")


def kernel_gradient(tokens: Tensor, upstream: Tensor) -> Tensor:
    """Compute the gradient of a kernel, `tokens.T @ upstream`.

    Args:
        tokens: `(rows, dim)`, what the kernel was multiplied with.
        upstream: `(rows, units)`, the gradient of the product.

    Returns:
        `(dim, units)`.
    """
    if tokens.shape[1] * upstream.shape[1] <= _LEAST_WEIGHTS:
        return tokens.t() @ upstream
    return multiplied(tokens.t(), upstream.t())


@functools.cache
def _product() -> Any:
    """Make the function of torch that has gradients."""
    import torch

    class Product(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, tokens: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
            # As in torch's own product, the tokens of a frozen kernel are not kept.
            of_tokens, of_kernel, *_ = context.needs_input_grad
            context.save_for_backward(tokens if of_kernel else None, kernel if of_tokens else None)
            # This may be a view of its rows, which torch would not let anyone change in place.
            return multiplied(tokens, kernel.t(), bias).data

        @staticmethod
        def backward(context: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
            (tokens, kernel), needed = context.saved_tensors, context.needs_input_grad
            given = (one for one in (tokens, kernel, upstream) if one is not None)
            # Within a gradient of a gradient, each op needs a gradient of its own. Several
            # gradients at once are one tensor that only torch's own ops take apart.
            is_usual = not torch.is_grad_enabled() and takes(*given)
            product, of_kernel = _GRADIENTS if is_usual else _DIFFERENTIABLE
            columns = _rows(upstream)
            return (
                product(upstream, kernel) if needed[0] else None,
                of_kernel(_rows(tokens), columns) if needed[1] else None,
                columns.sum(0) if needed[2] else None,
            )

    return Product


def _rows(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, tensor.shape[-1])


# The gradients of tokens and kernel; and by ops that torch can differentiate.
_GRADIENTS = (multiplied, kernel_gradient)
_DIFFERENTIABLE = (
    lambda rows, transposed: rows @ transposed.t(),
    lambda tokens, upstream: tokens.t() @ upstream,
)
