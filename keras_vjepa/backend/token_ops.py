"""Apply linear maps, norms and exact GELU to tokens, fast on each backend (§3.3, App. B)."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vjepa.backend import onednn
from keras_vjepa.backend.attention import as_tensor, is_half
from keras_vjepa.backend.collectives import is_alone
from keras_vjepa.backend.device import has_accelerator
from keras_vjepa.backend.keras_internals import foreach, stored_value
from keras_vjepa.types import Tensor


def runs_op_by_op() -> bool:
    """Tell whether the backend runs each op by itself (torch), rather than a compiled step.

    If so, the time between two ops matters, and it pays to turn several ops into one.
    """
    return keras.config.backend() == "torch"


class WeightCopies:
    """Keeps copies of weights in the dtype of the computation, made at first use; torch only.

    A step uses a weight once for each kind of mask. Casting it again each time would take hundreds
    of calls, and as many in the backward pass.

    Example:

    >>> import keras
    >>> from keras_vjepa.backend.token_ops import WeightCopies
    >>> copies, weight = WeightCopies(), keras.Variable([1.0])
    >>> copies.of(weight) is copies.of(weight)
    True
    """

    def __init__(self) -> None:
        self._copies: dict[int, tuple[Tensor, Tensor]] = {}

    def of(self, variable: keras.Variable) -> Tensor:
        """Return `variable.value` as it was when it was first asked for."""
        entry = self._copies.get(id(variable))
        if entry is not None:
            return entry[1]
        weight, copy = stored_value(variable), variable.value
        if copy is not weight and is_alone():
            copy = copy.detach().requires_grad_(weight.requires_grad)
        # With several processes, a gradient goes on to its weight within the backward pass, where
        # it is summed; so a copy that was made without gradients serves only once.
        if copy.requires_grad == weight.requires_grad:
            self._copies[id(variable)] = weight, copy
        return copy

    def hand_over_gradients(self) -> None:
        """Add the gradients of the copies after a backward pass to those of the weights."""
        import torch

        found = [
            (weight, copy)
            for weight, copy in self._copies.values()
            if copy is not weight and copy.is_leaf and copy.grad is not None
        ]
        new = [(weight, copy) for weight, copy in found if weight.grad is None]
        old = [(weight, copy) for weight, copy in found if weight.grad is not None]
        for weight, _ in new:
            weight.grad = torch.empty_like(weight)
        for add, pairs in (("copy_", new), ("add_", old)):
            if pairs:
                foreach(add, [weight.grad for weight, _ in pairs], [c.grad for _, c in pairs])
        for _, copy in found:
            copy.grad = None


_copies: WeightCopies | None = None


@contextlib.contextmanager
def weight_copies() -> Iterator[WeightCopies]:
    """Let `linear` and `normalize` use copies of weights in a block, where no weight may change."""
    global _copies
    before, _copies = _copies, WeightCopies()
    try:
        yield _copies
    finally:
        _copies = before


def linear(tokens: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    """Compute `tokens @ kernel + bias`, as a product of two plain matrices.

    Leading axes are merged, because XLA on CPU takes up to three times as long for the gradient of
    a product with a batch axis (64 samples of 64 tokens, 128 to 512 channels: 48 ms against 16).

    Args:
        tokens: `(..., dim)`.
        kernel: `(dim, units)`.
        bias: `(units,)`, or None for zeros.

    Returns:
        `(..., units)`, in the dtype of `tokens`. The weights are cast to it here, because work that
        is repeated in the backward pass is outside the scope in which Keras casts them.

    Example:

    >>> import numpy as np
    >>> from keras_vjepa.backend.token_ops import linear
    >>> x = np.ones((3, 2), "float32")
    >>> float(linear(x, np.eye(2, dtype="float32"), np.ones(2, "float32"))[0, 0])
    2.0
    """
    if not runs_op_by_op():
        rows = ops.reshape(tokens, (-1, tokens.shape[-1]))
        rows = ops.matmul(rows, ops.cast(kernel, tokens.dtype))
        if bias is not None:
            rows = ops.add(rows, ops.cast(bias, tokens.dtype))
        return ops.reshape(rows, (*ops.shape(tokens)[:-1], rows.shape[-1]))
    import torch

    # One kernel does product and sum, and saves reshaping, which takes a call of Keras 0.1 ms.
    tokens = _as_tensor(tokens)
    kernel = _as_tensor(kernel).to(tokens.dtype)
    bias = None if bias is None else _as_tensor(bias).to(tokens.dtype)
    if onednn.suits(tokens, kernel, bias):
        return onednn.linear(tokens, kernel, bias)
    return torch.nn.functional.linear(tokens, kernel.t(), bias)


def split_heads(packed: Tensor, num_heads: int) -> tuple[Tensor, ...]:
    """Split `(batch, tokens, 3 * dim)` into query, key and value of several heads.

    Each of these is `(batch, tokens, heads, head_dim)`.

    Example:

    >>> from keras import ops
    >>> from keras_vjepa.backend.token_ops import split_heads
    >>> [tuple(part.shape) for part in split_heads(ops.ones((1, 5, 24)), num_heads=2)]
    [(1, 5, 2, 4), (1, 5, 2, 4), (1, 5, 2, 4)]
    """
    if runs_op_by_op():
        return packed.unflatten(-1, (3, num_heads, -1)).unbind(2)
    head_dim = packed.shape[-1] // (3 * num_heads)
    packed = ops.reshape(packed, (*ops.shape(packed)[:2], 3, num_heads, head_dim))
    return tuple(packed[:, :, i] for i in range(3))


def merge_heads(outputs: Tensor) -> Tensor:
    """Merge heads: `(batch, tokens, heads, head_dim)` to `(batch, tokens, heads * head_dim)`."""
    if runs_op_by_op():
        return outputs.flatten(2)
    dim = outputs.shape[2] * outputs.shape[3]
    return ops.reshape(outputs, (*ops.shape(outputs)[:2], dim))


def reordered(tokens: Tensor, order: np.ndarray) -> Tensor:
    """Put the tokens of each sample into another order.

    Args:
        tokens: `(batch, tokens, dim)`.
        order: `(tokens,)`: the number of the token that comes first, second and so on.

    Example:

    >>> import numpy as np
    >>> from keras_vjepa.backend.token_ops import reordered
    >>> tokens = np.array([[[1.0], [2.0], [3.0]]], "float32")
    >>> [float(x) for x in reordered(tokens, np.array([2, 0, 1]))[0, :, 0]]
    [3.0, 1.0, 2.0]
    """
    if keras.config.backend() != "torch":
        return ops.take(tokens, order.astype("int32"), axis=1)
    import torch

    # Keras also removes an axis that is not there, which an ONNX file cannot do.
    tokens = as_tensor(tokens)
    return tokens.index_select(1, torch.as_tensor(order.astype("int64"), device=tokens.device))


def turn_pairs(values: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Compute each value times its cosine plus its neighbour in the pair times its sine.

    Args:
        values: `(..., dim)`, of which two values next to each other make a pair; `dim` is known and
            even.
        cosines: like `values`, or of a shape that is broadcast to theirs.
        sines: likewise.

    Returns:
        The shape and type of `values`.

    Example:

    >>> import numpy as np
    >>> from keras import ops
    >>> from keras_vjepa.backend.token_ops import turn_pairs
    >>> zeros, ones = ops.zeros(4), ops.ones(4)
    >>> ops.convert_to_numpy(turn_pairs(ops.arange(4.0), zeros, ones)).tolist()
    [1.0, 0.0, 3.0, 2.0]
    """
    if runs_op_by_op():
        import torch

        # A flip and three more passes take 1.08 ms, and this way takes 0.64 (2 samples of 784
        # tokens, 6 heads of 64, one CPU core); with the backward pass 3.9 and 3.0 ms.
        first, second = values.unflatten(-1, (-1, 2)).unbind(-1)
        neighbours = torch.stack([second, first], -1).flatten(-2)
        return torch.addcmul(values * cosines, neighbours, sines)
    # The shape has -1 for the number of samples, to which an exported program would otherwise be
    # tied.
    shape = (-1, *ops.shape(values)[1:])
    pairs = ops.reshape(values, (*shape[:-1], values.shape[-1] // 2, 2))
    neighbours = ops.reshape(ops.flip(pairs, axis=-1), shape)
    return values * cosines + neighbours * sines


def normalize(tokens: Tensor, gamma: Tensor, beta: Tensor, epsilon: float) -> Tensor:
    """Apply layer norm over the last axis; statistics are float32 or finer in any dtype.

    Args:
        tokens: `(..., dim)`.
        gamma: scale, `(dim,)`.
        beta: offset, `(dim,)`.
        epsilon: added to the variance.

    Returns:
        The shape and type of `tokens`.

    Example:

    >>> import numpy as np
    >>> from keras_vjepa.backend.token_ops import normalize
    >>> x = np.array([[1.0, 3.0]], "float32")
    >>> float(normalize(x, np.ones(2, "float32"), np.zeros(2, "float32"), 0.0)[0, 1])
    1.0
    """
    if not runs_op_by_op():
        return ops.layer_normalization(tokens, gamma, beta, axis=-1, epsilon=epsilon)
    import torch

    # Keras would write all tokens to memory in float32, twice; the kernel casts inside.
    tokens, gamma, beta = map(_as_tensor, (tokens, gamma, beta))
    gamma, beta = gamma.to(tokens.dtype), beta.to(tokens.dtype)
    return torch.nn.functional.layer_norm(tokens, gamma.shape, gamma, beta, epsilon)


def normalize_groups(
    values: Tensor, gamma: Tensor, beta: Tensor, groups: int, epsilon: float
) -> Tensor:
    """Apply group norm over all axes but the first, channels last; statistics are float32 or finer.

    Args:
        values: `(batch, ..., channels)`.
        gamma: scale, `(channels,)`.
        beta: offset, `(channels,)`.
        groups: number of groups, which divides the channels.
        epsilon: added to the variance.

    Returns:
        The shape and type of `values`.

    Example:

    >>> import numpy as np
    >>> from keras_vjepa.backend.token_ops import normalize_groups
    >>> x, ones = np.array([[[1.0, 3.0, 7.0, 9.0]]], "float32"), np.ones(4, "float32")
    >>> [round(float(v)) for v in normalize_groups(x, ones, 0 * ones, 2, 0.0)[0, 0]]
    [-1, 1, -1, 1]
    """
    if runs_op_by_op():
        import torch

        # Keras makes ten passes through memory, and as many backward; the kernel makes two. It
        # reads channels that come last where they are.
        values, gamma, beta = map(_as_tensor, (values, gamma, beta))
        gamma, beta = gamma.to(values.dtype), beta.to(values.dtype)
        last = values.movedim(-1, 1)
        return torch.nn.functional.group_norm(last, groups, gamma, beta, epsilon).movedim(1, -1)
    shape, each = ops.shape(values), (groups, values.shape[-1] // groups)
    rows = ops.reshape(ops.cast(values, "float32"), (shape[0], -1, *each))
    mean, variance = ops.moments(rows, axes=(1, 3), keepdims=True)
    gamma, beta = (ops.reshape(ops.cast(one, "float32"), each) for one in (gamma, beta))
    scale = ops.rsqrt(variance + epsilon) * gamma
    found = rows * scale + (beta - mean * scale)
    return ops.cast(ops.reshape(found, shape), values.dtype)


def convolve_space_time(clips: Tensor, space: Any, time: Any) -> Tensor:
    """Convolve clips over space with kernels of 3 x 3, and then over time with kernels of 3.

    Time is folded into the batch for the first, and a frame's pixels are a row for the second,
    because 3-D convolutions of processors are much slower than two in two dimensions.

    Args:
        clips: `(batch, time, height, width, channels)`.
        space: kernel `(3, 3, channels, filters)` and bias.
        time: kernel `(3 * filters, filters)`, of the frame before, of the frame and of the next
            one, and bias.

    Returns:
        `(batch, time, height, width, filters)`.
    """
    _, count, height, width, channels = clips.shape
    filters = space[1].shape[0]
    if not runs_op_by_op():
        (kernel, bias), (taps, shift) = (
            [ops.cast(w, clips.dtype) for w in p] for p in (space, time)
        )
        x = ops.reshape(clips, (-1, height, width, channels))
        x = ops.conv(x, kernel, padding="same") + bias
        x = ops.reshape(x, (-1, count, height * width, filters))
        x = ops.conv(x, ops.reshape(taps, (3, 1, filters, filters)), padding="same") + shift
        return ops.reshape(x, (-1, count, height, width, filters))
    from torch.nn.functional import conv2d

    # Calls of Keras take longer than the arithmetic of small clips.
    kernel, bias, taps, shift = (_as_tensor(w).to(clips.dtype) for w in (*space, *time))
    x = clips.reshape(-1, height, width, channels).permute(0, 3, 1, 2)
    x = conv2d(x, kernel.permute(3, 2, 0, 1), bias, padding=1)
    x = x.permute(0, 2, 3, 1).reshape(-1, count, height * width, filters).permute(0, 3, 1, 2)
    taps = taps.reshape(3, 1, filters, filters).permute(3, 2, 0, 1)
    x = conv2d(x, taps, shift, padding=(1, 0))
    return x.permute(0, 2, 3, 1).reshape(-1, count, height, width, filters)


def standardize(tokens: Tensor, epsilon: float) -> Tensor:
    """Apply layer norm over the last axis, without scale and offset.

    Args:
        tokens: `(..., dim)`.
        epsilon: added to the variance.

    Returns:
        The shape and type of `tokens`.

    Example:

    >>> import numpy as np
    >>> from keras_vjepa.backend.token_ops import standardize
    >>> float(standardize(np.array([[1.0, 3.0]], "float32"), 0.0)[0, 1])
    1.0
    """
    if not runs_op_by_op():
        return ops.layer_normalization(tokens, axis=-1, epsilon=epsilon)
    import torch

    # The length is turned into a plain number. With a free number of samples, a recorded program
    # makes all of the shape depend on the input, and ONNX has no norm over an axis like that.
    tokens = _as_tensor(tokens)
    return torch.nn.functional.layer_norm(tokens, (int(tokens.shape[-1]),), eps=epsilon)


def gelu(inputs: Tensor) -> Tensor:
    """Compute exact GELU: x times the normal distribution's cumulative at x, not by tanh.

    Args:
        inputs: any shape.

    Returns:
        The same shape.

    Example:

    >>> import numpy as np
    >>> from keras_vjepa.backend.token_ops import gelu
    >>> round(float(gelu(np.ones(1, "float32"))[0]), 4)
    0.8413
    """
    if runs_op_by_op():
        import torch

        return torch.nn.functional.gelu(_as_tensor(inputs))
    if keras.config.backend() == "jax" and not (is_half(inputs.dtype) and has_accelerator()):
        return ops.gelu(inputs, approximate=False)
    # Keras' own GELU uses erfc, which formats that TensorFlow exports do not have, and which takes
    # a GPU longer than erf (JAX, H100, an MLP of ViT-L on 24 clips: 1.4 ms instead of 1.2). But
    # TensorFlow 2.21 cannot read the erf that JAX exports. The computation is in float32, because
    # half precision would lose the small values.
    x = ops.cast(inputs, "float32")
    return ops.cast(0.5 * x * (1.0 + ops.erf(x * math.sqrt(0.5))), inputs.dtype)


def _as_tensor(x: Any) -> Tensor:
    """Convert to a tensor; for a variable, use the copy that `weight_copies` keeps, if any."""
    if isinstance(x, keras.Variable):
        return x.value if _copies is None else _copies.of(x)
    return as_tensor(x)
