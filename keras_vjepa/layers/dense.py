"""Linear layers and norms of the transformer, as each backend runs them best (§3.3, App. B).

Departures from the paper's text, as in the authors' code: the weights of every linear layer start
from a normal distribution of deviation 0.02 at every depth.
"""

from typing import Any

import keras
from keras.src.backend.common.variables import get_autocast_scope

from keras_vjepa.backend.token_ops import (
    linear,
    normalize,
    runs_op_by_op,
)
from keras_vjepa.types import Tensor

INITIALIZER_STDDEV = 0.02


def weight_initializer() -> keras.initializers.Initializer:
    """A normal distribution of deviation 0.02, for every linear layer (App. B)."""
    return keras.initializers.RandomNormal(stddev=INITIALIZER_STDDEV)


@keras.saving.register_keras_serializable("keras_vjepa")
class TokenDense(keras.layers.Dense):
    """`keras.layers.Dense` as each backend does it best, see `linear`; with bias, no activation."""

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        return linear(inputs, self.kernel, self.bias)

    def quantize(self, mode: Any = None, type_check: bool = True, config: Any = None) -> None:
        """As `Dense`, which would leave out its subclasses."""
        super().quantize(mode, type_check=False, config=config)


@keras.saving.register_keras_serializable("keras_vjepa")
class TokenNorm(keras.layers.LayerNormalization):
    """`keras.layers.LayerNormalization` over the last axis, scaled and shifted: see `normalize`."""

    def call(self, inputs: Tensor) -> Tensor:
        return normalize(inputs, self.gamma, self.beta, self.epsilon)


def call_within(parent: keras.layers.Layer, layer: keras.layers.Layer, *inputs: Any) -> Tensor:
    """`layer(*inputs)` as a part of `parent.call`, without what `parent` has seen to already.

    Keras' preparation of a call (types, checks, scopes) takes longer than many a layer itself,
    which counts where a backend runs op by op. A part with a type of its own, such as a quantized
    one, gets it, and one with hooks; and every part where `parent.call` runs without that
    preparation itself, as in `stateless_call`, which casts no weights.
    """
    if not runs_op_by_op() or layer.dtype_policy is not parent.dtype_policy:
        return layer(*inputs)
    if not _casts_weights(parent):
        return layer(*inputs)
    if layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks:
        return layer(*inputs)
    return layer.call(*inputs)


def _casts_weights(layer: keras.layers.Layer) -> bool:
    """Whether weights that are read now have the type that `layer` computes in."""
    scope = get_autocast_scope()
    read_as = layer.variable_dtype if scope is None else scope.dtype
    return read_as == layer.compute_dtype


def dense(units: int, name: str, dtype: Any) -> TokenDense:
    return TokenDense(units, kernel_initializer=weight_initializer(), name=name, dtype=dtype)


def layer_norm(epsilon: float, name: str, dtype: Any) -> TokenNorm:
    return TokenNorm(epsilon=epsilon, name=name, dtype=dtype)
