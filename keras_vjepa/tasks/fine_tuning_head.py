"""Classify by the mean of the tokens, a norm, dropout and a linear layer: fine-tuning (App. D.3).

The paper says "a linear layer on top". The layers before it are VideoMAE's, because the paper
follows VideoMAE.
"""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_vjepa.arguments import check_number, check_whole
from keras_vjepa.backend.step_functions import StepFunctions
from keras_vjepa.backend.torch_modules import TorchModule
from keras_vjepa.layers.dense import layer_norm
from keras_vjepa.layers.dropout import drop_channels
from keras_vjepa.layers.layer_states import KeepsLayerStates
from keras_vjepa.layers.rematerialization import DrawsInTraining
from keras_vjepa.tasks.probe import MOST_CLASSES, token_width
from keras_vjepa.types import Tensor

HEADS = ("probe", "fine_tuning")
# The logits begin close to 0, so that the first steps change the encoder little.
_FIRST_WEIGHTS = 0.001
_NORM_EPSILON = 1e-6


@keras.saving.register_keras_serializable("keras_vjepa")
class FineTuningHead(DrawsInTraining, KeepsLayerStates, StepFunctions, TorchModule, keras.Model):
    """Classifies tokens by their mean, for training together with the encoder (App. D.3).

    Args:
        num_classes: width of the logits.
        dropout: share of the mean's channels that training leaves out.

    Call arguments:
        tokens: `(batch, tokens, dim)`.
        training: whether `dropout` is applied.

    Returns:
        Logits `(batch, num_classes)`, in the dtype of the weights also under mixed precision.

    Raises:
        ValueError: for arguments out of range.

    Example:

    >>> import numpy as np
    >>> from keras_vjepa.tasks.fine_tuning_head import FineTuningHead
    >>> tuple(FineTuningHead(num_classes=4)(np.ones((3, 5, 8), "float32")).shape)
    (3, 4)
    """

    def __init__(self, num_classes: int, dropout: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_whole(1, MOST_CLASSES, num_classes=num_classes)
        check_number("[0, 1)", dropout=dropout)
        self.num_classes = num_classes
        self.dropout = dropout

    @classmethod
    def number_of_weights(cls, dim: int, num_classes: int, dropout: float = 0.0) -> int:
        """Check constructor arguments, and count the numbers in the weights without making any.

        Args:
            dim: width of the tokens.
            num_classes: as in the constructor.
            dropout: as in the constructor.

        Raises:
            ValueError: for values as the constructor does.
        """
        cls(num_classes, dropout)
        return 2 * dim + (dim + 1) * num_classes

    def build(self, tokens_shape: Sequence[int | None]) -> None:
        if self.built:
            return
        dim = token_width(tokens_shape)
        self.norm = layer_norm(_NORM_EPSILON, "norm", self.dtype_policy)
        self.norm.build((None, dim))
        if self.dropout:
            # Keras' own dropout layer is not used: on torch it draws random numbers from a state
            # that no checkpoint holds.
            self.dropout_seed = keras.random.SeedGenerator(name="dropout_seed")
        self.linear = keras.layers.Dense(
            self.num_classes,
            kernel_initializer=keras.initializers.TruncatedNormal(stddev=0.02 * _FIRST_WEIGHTS),
            name="linear",
            # Half precision would round the logits, and small differences would be lost to the
            # loss.
            dtype=self.dtype_policy.variable_dtype,
        )
        self.linear.build((None, dim))
        self.built = True
        self.restore_layer_states()

    def call(self, tokens: Tensor, training: bool = False) -> Tensor:
        pooled = self.norm(ops.mean(tokens, axis=1))
        if self.dropout and training:
            pooled = drop_channels(pooled, self.dropout, self.dropout_seed)
        return self.linear(pooled)

    def compute_output_shape(self, tokens_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        return (tokens_shape[0], self.num_classes)

    def compute_output_spec(
        self, tokens: keras.KerasTensor, training: bool = False
    ) -> keras.KerasTensor:
        # Logits have the dtype of the weights, as those of a probe.
        shape = self.compute_output_shape(tokens.shape)
        return keras.KerasTensor(shape, dtype=self.variable_dtype)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "dropout": self.dropout,
        }
