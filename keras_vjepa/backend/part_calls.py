"""Call the parts of a block without the preparation that Keras repeats for each (§3.3).

Before a layer's own `call`, Keras checks and converts its arguments, looks for masks and opens
scopes. That takes about 70 microseconds, as long as a small layer itself, and it matters if the
backend runs op by op (torch). Inside a block there is nothing left to prepare: the block itself was
called in full, so its tokens have the right dtype, and weights are read in theirs.

Measured on one CPU core with torch 2.13, for a training step of a VJEPAPretrainer, this way and in
full: 12 blocks of width 24 on 2 clips, 43 and 82 ms; 4 blocks of width 96, 4 clips, 105 and 119 ms;
32 clips, 0.70 and 0.73 s; ViT-Ti at 224 pixels, no difference.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import keras

from keras_vjepa.backend import keras_internals
from keras_vjepa.types import Tensor

LayerClass = TypeVar("LayerClass", bound=type[keras.layers.Layer])

# Layers that do not need Keras' preparation, each with the `__call__` that it had from Keras.
_PARTS: dict[type, Callable[..., Any]] = {}


def part_of_a_block(layer_class: LayerClass) -> LayerClass:
    """Let `call_part` call a layer without Keras' preparation, as a decorator of its class.

    The `call` of such a layer takes tensors by position, and reads neither `training` nor a mask of
    Keras. Subclasses are called in full, unless they have the decorator too.

    Example:

    >>> import keras
    >>> from keras_vjepa.backend.part_calls import part_of_a_block
    >>> @part_of_a_block
    ... class Scale(keras.layers.Layer):
    ...     def call(self, inputs):
    ...         return 2.0 * inputs
    """
    _PARTS[layer_class] = layer_class.__call__
    return layer_class


def call_part(part: keras.layers.Layer, *inputs: Tensor | None) -> Tensor:
    """Call a layer from the `call` of the layer that it is a part of.

    The result is `part(*inputs)`, and everything that a user may attach to a Keras layer takes
    effect: if it needs more than `call`, the layer is called in full. torch's hooks, `RematScope`
    and quantization act either way.

    Args:
        part: the layer.
        inputs: arguments of its `call`, of which the first is tokens.

    Example:

    >>> import keras
    >>> from keras_vjepa.backend.part_calls import call_part
    >>> tuple(call_part(keras.layers.Dense(3), keras.ops.ones((1, 2))).shape)
    (1, 3)
    """
    if keras.config.backend() != "torch" or not _has_nothing_to_prepare(part, inputs[0]):
        return part(*inputs)
    if part.quantization_mode is None and keras_internals.calls_nothing_else(part):
        return part.call(*inputs)
    import torch

    # From here on the call goes as in Keras itself: first torch's hooks, then rematerialization,
    # then `call` or its quantized form.
    return torch.nn.Module.__call__(part, *inputs)


def _has_nothing_to_prepare(part: keras.layers.Layer, tokens: Any) -> bool:
    """Tell whether Keras' work before and after `call` would change nothing."""
    import torch

    if _PARTS.get(type(part)) is not type(part).__call__:
        return False
    compute_dtype = part.compute_dtype
    return (
        tokens.dtype is getattr(torch, compute_dtype)
        and part.built
        and part.activity_regularizer is None
        and (not part.autocast or _read_dtype(part) == compute_dtype)
        and keras.distribution.distribution() is None
    )


def _read_dtype(part: keras.layers.Layer) -> str:
    """Return the dtype that weights of `part` have when they are read now."""
    return keras_internals.autocast_dtype() or str(part.variable_dtype)
