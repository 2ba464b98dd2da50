"""Attentive probe: cross-attention pooling and a linear classifier (§4.3, App. D.1).

Departures from the paper's text, as in the authors' code: queries, keys and values are projected,
with bias, and attention has several heads; the MLP is pre-norm and nothing stands between it and
the linear layer; the cross-attention has no output projection.
"""

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_vjepa.attention import Tensor, attention
from keras_vjepa.layers import INITIALIZER_STDDEV, TransformerBlock, dense, layer_norm


@keras.saving.register_keras_serializable("keras_vjepa")
class AttentivePooler(keras.layers.Layer):
    """Pool tokens into one vector by a learnable query (App. D.1).

    q = q0 + cross_attention(q0, norm(tokens)); q = q + MLP(norm(q)); then, if `num_layers` > 1,
    ordinary transformer blocks on the query.

    Args:
        num_heads: attention heads; the encoder's in the reference.
        num_layers: 1 for the cross-attention alone.
        mlp_ratio: width of the MLP's hidden layer over the tokens' width.
        layer_norm_epsilon: epsilon of every norm; larger than the encoder's, as in the reference.

    Call arguments:
        tokens: `(batch, tokens, dim)`.

    Returns:
        `(batch, dim)`.

    Example:

    >>> import numpy as np
    >>> from keras_vjepa import AttentivePooler
    >>> tuple(AttentivePooler(num_heads=2)(np.ones((3, 5, 8), "float32")).shape)
    (3, 8)
    """

    def __init__(
        self,
        num_heads: int,
        num_layers: int = 1,
        mlp_ratio: float = 4.0,
        layer_norm_epsilon: float = 1e-5,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.num_layers = num_layers
        self.mlp_ratio = mlp_ratio
        self.layer_norm_epsilon = layer_norm_epsilon

    def build(self, tokens_shape: Sequence[int | None]) -> None:
        dim, policy, epsilon = tokens_shape[-1], self.dtype_policy, self.layer_norm_epsilon
        if dim is None or dim % self.num_heads:
            raise ValueError(
                f"The width of the tokens must be a multiple of `num_heads`={self.num_heads}. "
                f"Received: {dim}"
            )
        one, mlp_dim = (None, 1, dim), int(dim * self.mlp_ratio)
        self.query_token = self.add_weight(
            shape=(1, 1, dim),
            initializer=keras.initializers.RandomNormal(stddev=INITIALIZER_STDDEV),
            name="query_token",
        )
        self.tokens_norm = layer_norm(epsilon, "tokens_norm", policy)
        self.query = dense(dim, "query", policy)
        self.key_value = dense(2 * dim, "key_value", policy)
        self.mlp_norm = layer_norm(epsilon, "mlp_norm", policy)
        self.mlp_hidden = dense(mlp_dim, "mlp_hidden", policy)
        self.mlp_output = keras.layers.Dense(
            dim,
            # Depth scaling takes effect here, unlike in pretraining (official-behaviour §8).
            kernel_initializer=keras.initializers.RandomNormal(
                stddev=INITIALIZER_STDDEV / math.sqrt(2)
            ),
            name="mlp_output",
            dtype=policy,
        )
        self.tokens_norm.build(tokens_shape)
        self.key_value.build(tokens_shape)
        for layer in (self.query, self.mlp_norm, self.mlp_hidden):
            layer.build(one)
        self.mlp_output.build((None, 1, mlp_dim))
        self.blocks = []
        for i in range(1, self.num_layers):
            block = TransformerBlock(
                self.num_heads, mlp_dim, epsilon, name=f"block_{i}", dtype=policy
            )
            block.build(one)
            for kernel in (block.attention.output_projection.kernel, block.mlp_output.kernel):
                kernel.assign(kernel / math.sqrt(2 * (i + 1)))
            self.blocks.append(block)

    def cross_attention(self, tokens: Tensor) -> Tensor:
        """What the cross-attention adds to the query, `(batch, 1, dim)`."""
        batch, num_tokens, dim = ops.shape(tokens)
        heads, head_dim = self.num_heads, dim // self.num_heads
        query = self.query(ops.cast(self.query_token, self.compute_dtype))
        query = ops.broadcast_to(
            ops.reshape(query, (1, 1, heads, head_dim)), (batch, 1, heads, head_dim)
        )
        packed = self.key_value(self.tokens_norm(tokens))
        packed = ops.reshape(packed, (batch, num_tokens, 2, heads, head_dim))
        pooled = attention(query, packed[:, :, 0], packed[:, :, 1])
        return ops.reshape(pooled, (batch, 1, dim))

    def call(self, tokens: Tensor) -> Tensor:
        query = ops.cast(self.query_token, self.compute_dtype)
        x = ops.add(query, self.cross_attention(tokens))
        hidden = ops.gelu(self.mlp_hidden(self.mlp_norm(x)), approximate=False)
        x = ops.add(x, self.mlp_output(hidden))
        for block in self.blocks:
            x = block(x)
        return ops.squeeze(x, axis=1)

    def compute_output_shape(self, tokens_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        return (tokens_shape[0], tokens_shape[-1])

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "num_layers": self.num_layers,
            "mlp_ratio": self.mlp_ratio,
            "layer_norm_epsilon": self.layer_norm_epsilon,
        }


def classifier_layer(num_classes: int, dim: int, name: str = "logits") -> keras.layers.Dense:
    """The linear layer behind the pooler; weights and biases start within +-1/sqrt(dim)."""
    uniform = keras.initializers.RandomUniform(-1 / math.sqrt(dim), 1 / math.sqrt(dim))
    return keras.layers.Dense(
        num_classes, kernel_initializer=uniform, bias_initializer=uniform.clone(), name=name
    )
