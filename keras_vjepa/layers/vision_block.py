"""The pre-norm block of the encoders that V-JEPA is compared with (Tables 5 and 6; App. D.1).

It is V-JEPA's with switches: no bias of the keys (VideoMAE, MVD), a learned scale of each branch
(DINOv2), and other MLPs (DINOv2's giant, CLIP).
"""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_vjepa.arguments import check_choice, check_flag
from keras_vjepa.backend.part_calls import call_part, part_of_a_block
from keras_vjepa.backend.token_ops import gelu
from keras_vjepa.layers.dense import TokenDense, weight_initializer
from keras_vjepa.layers.transformer import SelfAttention, TransformerBlock
from keras_vjepa.types import Tensor

ACTIVATIONS = ("gelu", "quick_gelu", "swiglu")


@part_of_a_block
@keras.saving.register_keras_serializable("keras_vjepa")
class KeyBiasFreeAttention(SelfAttention):
    """Let each token attend to the others, with biases of queries and values alone.

    The weights `query_bias` and `value_bias` are separate from `query_key_value`, which has no
    bias. Arguments, call arguments and results are those of `SelfAttention`.

    Example:

    >>> import numpy as np
    >>> from keras_vjepa.layers.vision_block import KeyBiasFreeAttention
    >>> tuple(KeyBiasFreeAttention(num_heads=2)(np.ones((1, 5, 8), "float32")).shape)
    (1, 5, 8)
    """

    def build(self, inputs_shape: Sequence[int | None]) -> None:
        super().build(inputs_shape)
        dim = inputs_shape[-1]
        self.query_bias = self.add_weight(shape=(dim,), initializer="zeros", name="query_bias")
        self.value_bias = self.add_weight(shape=(dim,), initializer="zeros", name="value_bias")

    def make_projection(self, units: int) -> TokenDense:
        """Do as `SelfAttention.make_projection`, without a bias."""
        return TokenDense(
            units,
            use_bias=False,
            kernel_initializer=weight_initializer(),
            name="query_key_value",
            dtype=self.dtype_policy,
        )

    def packed(self, inputs: Tensor) -> Tensor:
        """Do as `SelfAttention.packed`."""
        query, value = (
            ops.convert_to_tensor(self.query_bias),
            ops.convert_to_tensor(self.value_bias),
        )
        bias = ops.concatenate([query, ops.zeros_like(query), value])
        return call_part(self.query_key_value, inputs) + ops.cast(bias, inputs.dtype)


@part_of_a_block
@keras.saving.register_keras_serializable("keras_vjepa")
class VisionBlock(TransformerBlock):
    """Pass tokens through attention, then an MLP, each after a norm, with a family's switches.

    Args:
        num_heads: as in `TransformerBlock`.
        mlp_dim: width of the MLP's hidden layer; of `"swiglu"`, after its product.
        layer_norm_epsilon: as in `TransformerBlock`.
        activation: of the MLP: exact `"gelu"`; `"quick_gelu"`, x times the sigmoid of 1.702 x; or
            `"swiglu"`, a half of the hidden layer through SiLU times the other half.
        key_bias: whether the keys have a bias.
        layer_scale: whether each branch is multiplied by a learned scale of each channel.

    Call arguments and results are those of `TransformerBlock`.

    Example:

    >>> import numpy as np
    >>> from keras_vjepa.layers.vision_block import VisionBlock
    >>> block = VisionBlock(num_heads=2, mlp_dim=32, activation="swiglu", layer_scale=True)
    >>> tuple(block(np.ones((1, 5, 8), "float32")).shape)
    (1, 5, 8)
    """

    def __init__(
        self,
        num_heads: int,
        mlp_dim: int,
        layer_norm_epsilon: float = 1e-6,
        activation: str = "gelu",
        key_bias: bool = True,
        layer_scale: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_heads, mlp_dim, layer_norm_epsilon, **kwargs)
        check_choice(ACTIVATIONS, activation=activation)
        check_flag(key_bias=key_bias, layer_scale=layer_scale)
        self.activation = activation
        self.key_bias = key_bias
        self.layer_scale = layer_scale

    def build(self, inputs_shape: Sequence[int | None]) -> None:
        super().build(inputs_shape)
        if self.layer_scale:
            for name in ("attention_scale", "mlp_scale"):
                scale = self.add_weight(shape=inputs_shape[-1:], initializer="ones", name=name)
                setattr(self, name, scale)

    @property
    def attention_class(self) -> type[SelfAttention]:
        """Return the kind of the attention."""
        return SelfAttention if self.key_bias else KeyBiasFreeAttention

    @property
    def mlp_hidden_width(self) -> int:
        """Return the width of what the MLP's first layer makes."""
        return 2 * self.mlp_dim if self.activation == "swiglu" else self.mlp_dim

    def attention_branch(
        self, inputs: Tensor, padding_mask: Tensor | None = None, rotations: Tensor | None = None
    ) -> Tensor:
        """Compute what the attention adds to the tokens, `(batch, tokens, dim)`."""
        branch = super().attention_branch(inputs, padding_mask, rotations)
        return branch * ops.cast(self.attention_scale, branch.dtype) if self.layer_scale else branch

    def mlp_branch(self, inputs: Tensor) -> Tensor:
        """Compute what the MLP adds to the tokens, `(batch, tokens, dim)`."""
        hidden = call_part(self.mlp_hidden, call_part(self.mlp_norm, inputs))
        branch = call_part(self.mlp_output, activated(hidden, self.activation))
        return branch * ops.cast(self.mlp_scale, branch.dtype) if self.layer_scale else branch

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "activation": self.activation,
            "key_bias": self.key_bias,
            "layer_scale": self.layer_scale,
        }


def activated(hidden: Tensor, activation: str) -> Tensor:
    """Pass an MLP's hidden layer through one of `ACTIVATIONS`.

    Args:
        hidden: `(batch, tokens, mlp_dim)`, of `"swiglu"` twice as wide.
        activation: its name.

    Returns:
        `(batch, tokens, mlp_dim)`.
    """
    if activation == "gelu":
        return gelu(hidden)
    if activation == "quick_gelu":
        return hidden * ops.sigmoid(1.702 * hidden)
    width = hidden.shape[-1] // 2
    return ops.silu(hidden[..., :width]) * hidden[..., width:]
