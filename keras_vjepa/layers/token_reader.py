"""Let features that condition a decoder attend to each other before they are used (App. F).

The paper does not say how many predicted tokens become one condition. Predicted features are spread
over their tokens more than those of the target encoder, so that a decoder that looks at each where
it lies has to gather what they say together.
"""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_vjepa.arguments import check_whole
from keras_vjepa.layers.transformer import transformer_blocks
from keras_vjepa.types import Tensor

# The MLP of a block is this many times as wide as its tokens.
MLP_RATIO = 2
_NORM_EPSILON = 1e-6


@keras.saving.register_keras_serializable("keras_vjepa")
class TokenReader(keras.layers.Layer):
    """Adds learnt positions to tokens and passes them through blocks of attention (App. F).

    Args:
        num_blocks: transformer blocks.
        head_dim: width of an attention head; one head where it does not divide the tokens' width.

    Call arguments:
        inputs: `(batch, tokens, dim)`.

    Returns:
        The shape of the inputs.

    Raises:
        ValueError: for arguments out of range.

    Example:

    >>> import numpy as np
    >>> from keras_vjepa.layers.token_reader import TokenReader
    >>> TokenReader(num_blocks=1, head_dim=4)(np.zeros((2, 3, 8), "float32")).shape[1:] == (3, 8)
    True
    """

    def __init__(self, num_blocks: int = 2, head_dim: int = 32, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_whole(1, num_blocks=num_blocks, head_dim=head_dim)
        self.num_blocks = num_blocks
        self.head_dim = head_dim

    @staticmethod
    def number_of_weights(num_tokens: int, dim: int, num_blocks: int = 2) -> int:
        """Count the numbers in the weights, by the shape of the tokens.

        Args:
            num_tokens: tokens of a sample.
            dim: their width.
            num_blocks: as in the constructor.
        """
        attention = 3 * (dim + 1) * dim + (dim + 1) * dim
        mlp = (dim + 1) * MLP_RATIO * dim + (MLP_RATIO * dim + 1) * dim
        return num_tokens * dim + num_blocks * (attention + mlp + 4 * dim)

    def build(self, input_shape: Sequence[int | None]) -> None:
        _, num_tokens, dim = input_shape
        if dim is None:
            raise ValueError("`inputs` must have a width that is known. Received: None")
        heads = dim // self.head_dim if dim % self.head_dim == 0 else 1
        self.positions = self.add_weight(
            shape=(1, num_tokens, dim), initializer="zeros", name="positions"
        )
        self.blocks = transformer_blocks(
            self.num_blocks, dim, heads, MLP_RATIO * dim, _NORM_EPSILON, self.dtype_policy
        )

    def call(self, inputs: Tensor) -> Tensor:
        x = inputs + ops.cast(self.positions, inputs.dtype)
        for block in self.blocks:
            x = block(x)
        return x

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "num_blocks": self.num_blocks, "head_dim": self.head_dim}
