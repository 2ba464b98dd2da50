"""Pool all tokens into one vector, by a learnable query that attends to them (§4.3, App. D.1).

Departures from the paper's text, as in the authors' code: queries, keys and values are projected
with a bias; attention has as many heads as the encoder (the paper's 12 heads of width 12 are
`num_heads=12, head_dim=12`); the MLP has its norm before it; the cross-attention has no output
projection, unless `head_dim` makes one necessary.

V-JEPA 2's pooler is `num_layers=4, self_attention="tokens"` (official-behaviour §12).
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_vjepa.arguments import MOST_LONG, check_choice, check_number, check_whole
from keras_vjepa.backend.token_ops import gelu, standardize
from keras_vjepa.layers.dense import (
    INITIALIZER_STDDEV,
    TokenDense,
    dense,
    layer_norm,
    weight_initializer,
)
from keras_vjepa.layers.rematerialization import Rematerializable
from keras_vjepa.layers.transformer import TransformerBlock
from keras_vjepa.types import Tensor


@keras.saving.register_keras_serializable("keras_vjepa")
class AttentivePooler(Rematerializable):
    """Pools tokens into one vector by a learnable query (App. D.1).

    q = q0 + cross_attention(q0, norm(tokens)); q = q + MLP(norm(q)). If `num_layers` > 1, there are
    `num_layers - 1` ordinary transformer blocks too, on the query after this or on all tokens
    before it.

    The pooler computes with the weights of its parts `tokens_norm` and `key_value` but does not
    call these two layers (see `attend_together`), so hooks and activity regularizers on them do
    nothing.

    Args:
        num_heads: attention heads; the reference takes as many as the encoder has.
        num_layers: 1 for the cross-attention alone.
        mlp_ratio: width of the MLP's hidden layer over the tokens' width.
        layer_norm_epsilon: epsilon of every norm; larger than the encoder's, as in the reference.
        head_dim: width of a head of the cross-attention. None shares the tokens' width among the
            heads; a number adds an output projection, which brings the heads back to that width.
        self_attention: what the further layers work on: `"query"`, the query after the
            cross-attention (V-JEPA), or `"tokens"`, all tokens before it (V-JEPA 2).

    Call arguments:
        tokens: `(batch, tokens, dim)`.

    Returns:
        `(batch, dim)`.

    Raises:
        ValueError: if `num_heads` does not divide the tokens' width, and `head_dim` is None.

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
        head_dim: int | None = None,
        self_attention: str = "query",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_whole(1, MOST_LONG, num_heads=num_heads, num_layers=num_layers)
        check_whole(1, MOST_LONG, optional=True, head_dim=head_dim)
        check_number("(0, 64]", mlp_ratio=mlp_ratio)
        check_number("(0, 1]", layer_norm_epsilon=layer_norm_epsilon)
        check_choice(("query", "tokens"), self_attention=self_attention)
        self.num_heads = num_heads
        self.num_layers = num_layers
        self.mlp_ratio = mlp_ratio
        self.layer_norm_epsilon = layer_norm_epsilon
        self.head_dim = head_dim
        self.self_attention = self_attention

    def build(self, tokens_shape: Sequence[int | None]) -> None:
        dim, policy, epsilon = tokens_shape[-1], self.dtype_policy, self.layer_norm_epsilon
        if dim is None or (self.head_dim is None and dim % self.num_heads):
            raise ValueError(
                f"The width of the tokens must be a multiple of `num_heads`={self.num_heads}. "
                f"Received: {dim}"
            )
        one, mlp_dim = (None, 1, dim), int(dim * self.mlp_ratio)
        attention_dim = dim if self.head_dim is None else self.num_heads * self.head_dim
        self.query_token = self.add_weight(
            shape=(1, 1, dim),
            initializer=keras.initializers.RandomNormal(stddev=INITIALIZER_STDDEV),
            name="query_token",
        )
        self.tokens_norm = layer_norm(epsilon, "tokens_norm", policy)
        self.query = dense(attention_dim, "query", policy)
        self.key_value = _SplitDense(
            2 * attention_dim,
            kernel_initializer=weight_initializer(),
            name="key_value",
            dtype=policy,
        )
        self.mlp_norm = layer_norm(epsilon, "mlp_norm", policy)
        self.mlp_hidden = dense(mlp_dim, "mlp_hidden", policy)
        self.mlp_output = _residual_dense(dim, "mlp_output", policy)
        self.tokens_norm.build(tokens_shape)
        self.key_value.build(tokens_shape)
        for layer in (self.query, self.mlp_norm, self.mlp_hidden):
            layer.build(one)
        self.mlp_output.build((None, 1, mlp_dim))
        if self.head_dim is not None:
            self.output_projection = _residual_dense(dim, "output_projection", policy)
            self.output_projection.build((None, 1, attention_dim))
        self._build_blocks(dim, mlp_dim)

    def _build_blocks(self, dim: int, mlp_dim: int) -> None:
        self.blocks = []
        for i in range(1, self.num_layers):
            block = TransformerBlock(
                self.num_heads,
                mlp_dim,
                self.layer_norm_epsilon,
                name=f"block_{i}",
                dtype=self.dtype_policy,
            )
            block.build((None, 1 if self.self_attention == "query" else None, dim))
            for kernel in (block.attention.output_projection.kernel, block.mlp_output.kernel):
                kernel.assign(kernel / math.sqrt(2 * (i + 1)))
            self.blocks.append(block)

    def folded_query(self) -> Tensor:
        """Compute the query of each head, with the projection of the keys in it, `(heads, dim)`.

        With a single query no keys need to be computed: q (W_k s + b_k) = (W_k' q) s + q b_k, and
        the last term cancels in the softmax. The scale of the norm is moved to the query likewise.
        """
        query = ops.reshape(self.query(self._cast(self.query_token)), (self.num_heads, -1))
        folded = ops.einsum("dhc,hc->hd", self._kernel("key"), query)
        return folded * self._cast(self.tokens_norm.gamma) / math.sqrt(query.shape[-1])

    def project(self, pooled: Tensor) -> Tensor:
        """Compute what the cross-attention adds to the query, `(batch, 1, dim)`.

        The attention weights of a head sum to one. So the normed tokens can be pooled first, to
        `pooled`, `(batch, heads, dim)`, and projected afterwards; the norm's scale and offset are
        applied in between.
        """
        norm, attention_dim = self.tokens_norm, self.query.units
        pooled = pooled * self._cast(norm.gamma) + self._cast(norm.beta)
        values = ops.einsum("bhd,dhc->bhc", pooled, self._kernel("value"))
        values = ops.reshape(values, (-1, 1, attention_dim))
        values = ops.add(values, self._cast(self.key_value.bias[attention_dim:]))
        return values if self.head_dim is None else self.output_projection(values)

    def finish(self, branch: Tensor) -> Tensor:
        """Compute the result, `(batch, dim)`, from what the cross-attention adds to the query."""
        x = self._cast(self.query_token) + branch
        x = x + self.mlp_output(gelu(self.mlp_hidden(self.mlp_norm(x))))
        if self.self_attention == "query":
            for block in self.blocks:
                x = block(x)
        return ops.squeeze(x, axis=1)

    def cross_attention(self, tokens: Tensor) -> Tensor:
        """Compute what the query receives from the tokens, `(batch, 1, dim)`."""
        return self.project(attend_together([self], tokens)[0])

    def _kernel(self, part: str) -> Tensor:
        """Return the kernel of the keys or of the values, `(dim, heads, head_dim)`."""
        attention_dim = self.query.units
        columns = slice(attention_dim) if part == "key" else slice(attention_dim, None)
        kernel = self._cast(self.key_value.kernel[:, columns])
        return ops.reshape(kernel, (kernel.shape[0], self.num_heads, -1))

    def _cast(self, weight: Any) -> Tensor:
        return ops.cast(weight, self.compute_dtype)

    def attention_weights(self, tokens: Tensor) -> Tensor:
        """Compute by how much the query attends to each token.

        Args:
            tokens: as in the call.

        Returns:
            float32 `(batch, heads, tokens)`; over the tokens they sum to one.

        Example:

        >>> import numpy as np
        >>> from keras_vjepa import AttentivePooler
        >>> pooler, tokens = AttentivePooler(num_heads=2), np.ones((1, 4, 8), "float32")
        >>> tuple(pooler(tokens).shape), float(pooler.attention_weights(tokens)[0, 0, 0])
        ((1, 8), 0.25)
        """
        tokens = self._cast(tokens)
        weights, _ = _attention_to([self], self._with_blocks(tokens))
        return weights

    def _with_blocks(self, tokens: Tensor) -> Tensor:
        """Return the tokens that the query attends to, which may have passed the blocks before."""
        if self.self_attention == "tokens":
            for block in self.blocks:
                tokens = block(tokens)
        return tokens

    def call(self, tokens: Tensor) -> Tensor:
        return self.finish(self.cross_attention(self._with_blocks(tokens)))

    def compute_output_shape(self, tokens_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        return (tokens_shape[0], tokens_shape[-1])

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "num_layers": self.num_layers,
            "mlp_ratio": self.mlp_ratio,
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "head_dim": self.head_dim,
            "self_attention": self.self_attention,
        }


class _SplitDense(TokenDense):
    """Holds the weights of keys and values, which the pooler reads without calling the layer.

    That is why they stay in floating point when a model is quantized.
    """

    def quantize(self, mode: Any = None, type_check: bool = True, config: Any = None) -> None:
        """Leave the weights as they are."""


def attend_together(poolers: Sequence[AttentivePooler], tokens: Tensor) -> list[Tensor]:
    """Pool the normed tokens for each head of several poolers, `(batch, heads, dim)` per pooler.

    This takes `tokens * dim * heads` multiplications, where computing keys and values would take
    `tokens * dim * 2 dim`; and for frozen tokens no gradient is computed. The tokens are normed and
    read once for all poolers, which must have the same epsilon of the norm and the same precision.
    """
    weights, normed = _attention_to(poolers, tokens)
    pooled = ops.matmul(ops.cast(weights, normed.dtype), normed)
    ends = itertools.accumulate(pooler.num_heads for pooler in poolers)
    return [
        pooled[:, end - pooler.num_heads : end] for pooler, end in zip(poolers, ends, strict=True)
    ]


def _attention_to(poolers: Sequence[AttentivePooler], tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Return the attention of each head of the poolers, and the normed tokens.

    The attention is float32 `(batch, heads of all poolers, tokens)`.
    """
    normed = standardize(tokens, poolers[0].layer_norm_epsilon)
    normed = ops.cast(normed, poolers[0].compute_dtype)
    queries = ops.concatenate([pooler.folded_query() for pooler in poolers])
    logits = ops.cast(ops.matmul(queries, ops.swapaxes(normed, 1, 2)), "float32")
    return ops.softmax(logits, axis=-1), normed


def _residual_dense(units: int, name: str, dtype: Any) -> keras.layers.Dense:
    """Make the last layer of a branch, its weights scaled by depth, unlike in pretraining."""
    initializer = keras.initializers.RandomNormal(stddev=INITIALIZER_STDDEV / math.sqrt(2))
    return keras.layers.Dense(units, kernel_initializer=initializer, name=name, dtype=dtype)
