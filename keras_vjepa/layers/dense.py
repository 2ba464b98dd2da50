"""Linear layers and norms of the transformer, as each backend runs them best (§3.3, App. B).

Departures from the paper's text, as in the authors' code: the weights of every linear layer start
from a normal distribution of deviation 0.02 at every depth.
"""

from typing import Any

import keras

from keras_vjepa.backend.part_calls import part_of_a_block
from keras_vjepa.backend.token_ops import linear, normalize
from keras_vjepa.layers.rematerialization import Rematerializable
from keras_vjepa.types import Tensor

INITIALIZER_STDDEV = 0.02


def weight_initializer() -> keras.initializers.Initializer:
    """Make the initial weights of every linear layer: normal, of deviation 0.02 (App. B)."""
    return keras.initializers.RandomNormal(stddev=INITIALIZER_STDDEV)


@part_of_a_block
@keras.saving.register_keras_serializable("keras_vjepa")
class TokenDense(Rematerializable, keras.layers.Dense):
    """Apply one linear map to each token: `keras.layers.Dense`, faster on every backend.

    Arguments, weights, quantization and LoRA are those of `keras.layers.Dense`.

    Example:

    >>> import numpy as np
    >>> from keras_vjepa.layers import TokenDense
    >>> tuple(TokenDense(6)(np.ones((2, 5, 4), "float32")).shape)
    (2, 5, 6)
    """

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        if self.bias is None or self.activation is not keras.activations.linear:
            return super().call(inputs, training)
        return linear(inputs, self.kernel, self.bias)

    def quantize(self, mode: Any = None, type_check: bool = True, config: Any = None) -> None:
        """Quantize the weights, as `keras.layers.Dense` does for itself but not for subclasses."""
        super().quantize(mode, type_check=False, config=config)


@part_of_a_block
@keras.saving.register_keras_serializable("keras_vjepa")
class TokenNorm(Rematerializable, keras.layers.LayerNormalization):
    """Normalize each token to mean 0 and variance 1: `keras.layers.LayerNormalization`, faster.

    Arguments and weights are those of `keras.layers.LayerNormalization`, whose `axis` must be -1.

    Raises:
        ValueError: for another `axis`.

    Example:

    >>> import numpy as np
    >>> from keras_vjepa.layers import TokenNorm
    >>> tuple(TokenNorm()(np.ones((2, 5, 4), "float32")).shape)
    (2, 5, 4)
    """

    def __init__(self, axis: Any = -1, **kwargs: Any) -> None:
        if axis not in (-1, [-1], (-1,)):
            raise ValueError(
                "`axis` must be -1, a token's width (see `keras.layers.LayerNormalization` for "
                f"others). Received: {axis}"
            )
        super().__init__(axis=axis, **kwargs)

    def call(self, inputs: Tensor) -> Tensor:
        is_usual = self.center and self.scale and not self.rms_scaling
        if not is_usual or keras.backend.standardize_dtype(inputs.dtype) != self.compute_dtype:
            return super().call(inputs)
        return normalize(inputs, self.gamma, self.beta, self.epsilon)


def dense(units: int, name: str, dtype: Any) -> TokenDense:
    """Make a linear layer with the transformer's initial weights."""
    return TokenDense(units, kernel_initializer=weight_initializer(), name=name, dtype=dtype)


def layer_norm(epsilon: float, name: str, dtype: Any) -> TokenNorm:
    """Make a norm with the transformer's epsilon."""
    return TokenNorm(epsilon=epsilon, name=name, dtype=dtype)
