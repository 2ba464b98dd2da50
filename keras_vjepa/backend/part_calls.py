"""Calls of a block's parts without what Keras repeats for each of them (§3.3).

Before a layer's own `call` Keras checks and converts its arguments, looks for masks and opens
scopes. That takes about 70 microseconds, as long as a small layer itself, and counts where a
backend runs op by op (torch). Inside a block it finds nothing to do: tokens have their type, and
weights are read in theirs, since the block itself was called in full.

Measured on one CPU core with torch 2.13, a training step of a VJEPAPretrainer, this way and in
full: 12 blocks of width 24 on 2 clips, 43 and 82 ms; 4 blocks of width 96, 4 clips, 105 and 119 ms;
32 clips, 0.70 and 0.73 s; ViT-Ti at 224 pixels, no difference.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import keras

from keras_vjepa.backend import keras_internals
from keras_vjepa.types import Tensor

LayerClass = TypeVar("LayerClass", bound=type[keras.layers.Layer])

# Layers that ask nothing of Keras' preparation, each with the `__call__` that it had from Keras.
_PARTS: dict[type, Callable[..., Any]] = {}


def part_of_a_block(layer_class: LayerClass) -> LayerClass:
    """Let `call_part` call a layer without Keras' preparation. A class decorator.

    For a layer whose `call` takes tensors by position and reads no `training` and no mask of
    Keras'. Subclasses are called in full, unless they have the decorator too.

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

    The result is `part(*inputs)`, and everything that a user may hang on a Keras layer takes
    effect: it is called in full where that asks for more than `call`. torch's hooks, `RematScope`
    and quantization act either way.

    Args:
        part: the layer.
        inputs: arguments of its `call`; first of all tokens.

    Example:

    >>> import keras
    >>> from keras_vjepa.backend.part_calls import call_part
    >>> tuple(call_part(keras.layers.Dense(3), keras.ops.ones((1, 2))).shape)
    (1, 3)
    """
    if keras.config.backend() != "torch" or not _has_nothing_to_prepare(part, inputs[0]):
        return part(*inputs)
    import torch

    # From here on as Keras itself goes on: torch's hooks, then what is computed again in the
    # backward pass, then `call` or its quantized form.
    return torch.nn.Module.__call__(part, *inputs)


def _has_nothing_to_prepare(part: keras.layers.Layer, tokens: Any) -> bool:
    """Whether what Keras does before and after `call` would change nothing."""
    import torch

    return (
        _PARTS.get(type(part)) is type(part).__call__
        and part.built
        and part.activity_regularizer is None
        and tokens.dtype is getattr(torch, part.compute_dtype)
        and (not part.autocast or _reads_weights_to_compute_with(part))
        and keras.distribution.distribution() is None
    )


def _reads_weights_to_compute_with(part: keras.layers.Layer) -> bool:
    """Whether weights that are read now have the type that `part` computes in."""
    cast_to = keras_internals.autocast_dtype()
    return part.compute_dtype == (part.variable_dtype if cast_to is None else cast_to)
