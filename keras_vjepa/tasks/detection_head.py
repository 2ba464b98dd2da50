"""Classify boxes by the largest values of their features and a linear layer (App. D.2).

The paper says "a linear classifier" on regions of interest. The rest is what others usually do: the
map is the mean over time, a region has 7 x 7 bins, and the largest value of each channel counts.
"""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_vjepa.arguments import check_choice, check_number, check_whole
from keras_vjepa.backend.step_functions import StepFunctions
from keras_vjepa.backend.torch_modules import TorchModule
from keras_vjepa.layers.dense import weight_initializer
from keras_vjepa.layers.dropout import drop_channels
from keras_vjepa.layers.layer_states import KeepsLayerStates
from keras_vjepa.layers.rematerialization import DrawsInTraining
from keras_vjepa.layers.roi_align import RoIAlign
from keras_vjepa.tasks.probe import MOST_CLASSES
from keras_vjepa.types import Tensor

POOLINGS = ("max", "average")


@keras.saving.register_keras_serializable("keras_vjepa")
class DetectionHead(DrawsInTraining, KeepsLayerStates, StepFunctions, TorchModule, keras.Model):
    """Classifies the boxes of a map of features (App. D.2).

    Args:
        num_classes: width of the logits.
        output_size, sampling_ratio, aligned: as in `RoIAlign`.
        pooling: how the bins of a box are pooled: `"max"` or `"average"`.
        dropout: share of the channels of a box that training leaves out.

    Call arguments:
        features: `(batch, height, width, channels)`.
        boxes: `(batch, boxes, 4)` with left, top, right and bottom in cells of the map.
        training: whether `dropout` is applied.

    Returns:
        Logits `(batch, boxes, num_classes)`, in the dtype of the weights also under mixed
        precision.

    Raises:
        ValueError: for arguments out of range.

    Example:

    >>> import numpy as np
    >>> from keras_vjepa.tasks.detection_head import DetectionHead
    >>> features, boxes = np.ones((1, 4, 4, 8), "float32"), np.array([[[0, 1, 2, 3]]], "float32")
    >>> tuple(DetectionHead(num_classes=5)(features, boxes).shape)
    (1, 1, 5)
    """

    def __init__(
        self,
        num_classes: int,
        output_size: int | Sequence[int] = 7,
        sampling_ratio: int = 0,
        aligned: bool = True,
        pooling: str = "max",
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(autocast=False, **kwargs)
        check_whole(1, MOST_CLASSES, num_classes=num_classes)
        check_choice(POOLINGS, pooling=pooling)
        check_number("[0, 1)", dropout=dropout)
        self.num_classes = num_classes
        self.pooling = pooling
        self.dropout = dropout
        # The layer checks its arguments itself.
        self.align = RoIAlign(
            output_size, 1.0, sampling_ratio, aligned, name="align", dtype=self.dtype_policy
        )

    @classmethod
    def number_of_weights(cls, dim: int, **arguments: Any) -> int:
        """Check constructor arguments, and count the numbers in the weights without making any.

        Args:
            dim: number of channels of the features.
            arguments: arguments of the constructor.

        Raises:
            ValueError: for values as the constructor does.
        """
        return (dim + 1) * cls(**arguments).num_classes

    def build(
        self, features_shape: Sequence[int | None], boxes_shape: Sequence[int | None]
    ) -> None:
        if self.built:
            return
        dim = features_shape[-1]
        if self.dropout:
            self.dropout_seed = keras.random.SeedGenerator(name="dropout_seed")
        self.linear = keras.layers.Dense(
            self.num_classes,
            kernel_initializer=weight_initializer(),
            name="linear",
            # Half precision would round the logits, and small differences would be lost to the
            # loss.
            dtype=self.dtype_policy.variable_dtype,
        )
        self.linear.build((None, None, dim))
        self.built = True
        self.restore_layer_states()

    def call(self, features: Tensor, boxes: Tensor, training: bool = False) -> Tensor:
        bins = self.align(features, boxes)
        pooled = ops.cast(self._pooled(bins), self.variable_dtype)
        if self.dropout and training:
            pooled = drop_channels(pooled, self.dropout, self.dropout_seed)
        return self.linear(pooled)

    def _pooled(self, bins: Tensor) -> Tensor:
        """Join the bins of each box."""
        if self.pooling == "average":
            return ops.mean(bins, axis=(2, 3))
        # Keras finds no largest of no numbers, not even along an axis that has some.
        return bins[:, :, 0, 0] if 0 in bins.shape[:2] else ops.max(bins, axis=(2, 3))

    def compute_output_shape(
        self, features_shape: Sequence[int | None], boxes_shape: Sequence[int | None]
    ) -> tuple[int | None, ...]:
        return (boxes_shape[0], boxes_shape[1], self.num_classes)

    def compute_output_spec(
        self, features: keras.KerasTensor, boxes: keras.KerasTensor, training: bool = False
    ) -> keras.KerasTensor:
        shape = self.compute_output_shape(features.shape, boxes.shape)
        return keras.KerasTensor(shape, dtype=self.variable_dtype)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "output_size": self.align.output_size,
            "sampling_ratio": self.align.sampling_ratio,
            "aligned": self.align.aligned,
            "pooling": self.pooling,
            "dropout": self.dropout,
        }
