"""Run the transformer's linear layers and norms fast on every backend (§3.3, App. B).

Departure from the paper's text, as in the authors' code: the weights of every linear layer start
from a normal distribution of standard deviation 0.02, whatever the depth of the layer.
"""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vjepa.backend.part_calls import part_of_a_block
from keras_vjepa.backend.token_ops import linear, normalize
from keras_vjepa.layers.rematerialization import Rematerializable
from keras_vjepa.types import Tensor

INITIALIZER_STDDEV = 0.02

_LORA_MATRICES, _LORA_ALPHA = ("lora_kernel_a", "lora_kernel_b"), "lora_alpha"


def weight_initializer() -> keras.initializers.Initializer:
    """Make what draws the first weights of linear layers: normal, deviation 0.02 (App. B)."""
    return keras.initializers.RandomNormal(stddev=INITIALIZER_STDDEV)


@part_of_a_block
@keras.saving.register_keras_serializable("keras_vjepa")
class TokenDense(Rematerializable, keras.layers.Dense):
    """Applies one linear map to each token: `keras.layers.Dense`, faster on every backend.

    Arguments, weights and quantization are those of `keras.layers.Dense`. So is LoRA, with two
    differences: files hold its matrices apart from the kernel, and the kernel stays frozen while
    LoRA is enabled, whatever `trainable` is set to.

    Example:

    >>> import numpy as np
    >>> from keras_vjepa.layers import TokenDense
    >>> tuple(TokenDense(6)(np.ones((2, 5, 4), "float32")).shape)
    (2, 5, 6)
    """

    lora_enabled: bool

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        if self.activation is not keras.activations.linear:
            return super().call(inputs, training)
        return linear(inputs, self.kernel, self.bias)

    def quantize(self, mode: Any = None, type_check: bool = True, config: Any = None) -> None:
        """Quantize the weights, as `keras.layers.Dense` does for itself but not for subclasses."""
        super().quantize(mode, type_check=False, config=config)

    # --- LoRA ------------------------------------------------------------------------------------

    @property
    def trainable(self) -> bool:
        """Return whether the layer learns; while LoRA is enabled, its kernel never does."""
        return super().trainable

    @trainable.setter
    def trainable(self, value: bool) -> None:
        keras.layers.Dense.trainable.fset(self, value)
        if self.lora_enabled:
            for variable in self.variables:
                if variable.name == "kernel":
                    variable.trainable = False

    def save_own_variables(self, store: Any) -> None:
        """Write the weights, with LoRA's matrices apart from the kernel.

        Keras would add the matrices to the kernel, and training could not continue from such a
        file.
        """
        if not self.lora_enabled:
            super().save_own_variables(store)
            return
        self.lora_enabled = False
        try:
            super().save_own_variables(store)
        finally:
            self.lora_enabled = True
        for name in _LORA_MATRICES:
            store[name] = getattr(self, name)
        store[_LORA_ALPHA] = np.float32(self.lora_alpha)

    def load_own_variables(self, store: Any) -> None:
        """Read the weights, and LoRA's matrices where the file has them.

        The file's matrices become those of the layer, or are added to the kernel of a layer without
        LoRA. A layer with LoRA whose file has no matrices starts LoRA from the beginning.

        Raises:
            ValueError: if the matrices cannot be added to the kernel, because it is quantized.
        """
        stored = {name: store[name] for name in store.keys()}
        matrices = [np.asarray(stored.pop(name)) for name in _LORA_MATRICES if name in stored]
        has_lora = len(matrices) == len(_LORA_MATRICES)
        alpha = float(np.asarray(stored.pop(_LORA_ALPHA, 1.0)))
        if not self.lora_enabled:
            super().load_own_variables(stored)
            if has_lora:
                self._merge(matrices[0], matrices[1], alpha)
            return
        # Keras sets both matrices to zero when it loads, and from zero they would never learn.
        fresh = np.array(ops.convert_to_numpy(self.lora_kernel_a))
        super().load_own_variables(stored)
        self.lora_kernel_a.assign(matrices[0] if has_lora else fresh)
        if has_lora:
            self.lora_kernel_b.assign(matrices[1])

    def _merge(self, down: np.ndarray, up: np.ndarray, alpha: float) -> None:
        """Add the product of a file's LoRA matrices to the kernel."""
        if self.quantization_mode is not None:
            raise ValueError(
                f"`{self.name}` is quantized, so that LoRA of the file cannot be added to its "
                f"kernel: call `enable_lora({down.shape[-1]})` first."
            )
        change = ops.matmul(ops.convert_to_tensor(down), ops.convert_to_tensor(up))
        self.kernel.assign_add(ops.cast(alpha / down.shape[-1] * change, self.kernel.dtype))


@part_of_a_block
@keras.saving.register_keras_serializable("keras_vjepa")
class TokenNorm(Rematerializable, keras.layers.LayerNormalization):
    """Normalizes each token to mean 0 and variance 1: `keras.layers.LayerNormalization`, faster.

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
    """Make a layer norm with a given epsilon."""
    return TokenNorm(epsilon=epsilon, name=name, dtype=dtype)


def scale_weights(network: keras.Model, stddev: float) -> None:
    """Scale the fresh weights of all linear layers to another standard deviation.

    Args:
        network: a model whose weights were drawn with a deviation of `INITIALIZER_STDDEV`.
        stddev: the standard deviation that they get.
    """
    for variable in network.trainable_variables:
        if len(variable.shape) > 1:
            variable.assign(variable * (stddev / INITIALIZER_STDDEV))
