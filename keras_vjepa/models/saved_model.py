"""Use a feature extractor in a SavedModel folder as a backbone, on TensorFlow (App. D.1).

Models of tf-keras, TensorFlow Hub and TensorFlow itself are written as such folders. Nothing of
TensorFlow is imported before a backbone is made.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vjepa.arguments import MOST_LONG, check_size, check_whole
from keras_vjepa.models.adapters import Size, as_tokens
from keras_vjepa.models.dimensions import height_and_width
from keras_vjepa.named_errors import one_line
from keras_vjepa.types import Tensor


@keras.saving.register_keras_serializable("keras_vjepa")
class SavedModelBackbone(keras.Model):
    """Encode clips or images with a SavedModel, which is frozen.

    Classifiers and evaluations take it as any other backbone. A preset of such a classifier names
    the folder, and does not contain it.

    Args:
        folder: the SavedModel.
        image_size: height and width of its input, one int for squares.
        num_frames: frames of its clips; None for a model of images, which is applied to each frame.
        endpoint: name of the function that is called, which takes `(batch, frames, height, width,
            3)`, or `(batch, height, width, 3)`, and returns one tensor: tokens `(batch, tokens,
            dim)`, a map with one to three axes between `batch` and `dim`, or `(batch, dim)`.
        num_heads: attention heads of a probe on it.

    Call arguments:
        videos: as the function takes them, normalised as it wants.

    Returns:
        `(batch, tokens, hidden_dim)`.

    Raises:
        ValueError: on another backend than TensorFlow, for a folder that is none, and for a
            function that does not exist or returns something else.

    Example:

    >>> from keras_vjepa.models import SavedModelBackbone
    >>> SavedModelBackbone("there_is_none", num_frames=0)
    Traceback (most recent call last):
    ...
    ValueError: `num_frames` must be at least 1. Received: 0
    """

    def __init__(
        self,
        folder: str | Path,
        image_size: Size = 224,
        num_frames: int | None = None,
        endpoint: str = "serving_default",
        num_heads: int | None = None,
        **kwargs: Any,
    ) -> None:
        check_size(image_size=image_size)
        check_whole(1, MOST_LONG, optional=True, num_frames=num_frames, num_heads=num_heads)
        super().__init__(**kwargs)
        self.folder = str(folder)
        self.image_size = image_size if isinstance(image_size, int) else (*image_size,)
        self.is_image_model = num_frames is None
        self.num_frames = num_frames or 1
        self.endpoint = endpoint
        self.num_heads = num_heads
        self.extractor = self._extractor()
        self.trainable = False
        frames = () if self.is_image_model else (self.num_frames,)
        blank = np.zeros((1, *frames, *height_and_width(image_size), 3), "float32")
        self.hidden_dim = int(self(blank).shape[-1])

    def _extractor(self) -> Any:
        try:
            return keras.layers.TFSMLayer(self.folder, self.endpoint, trainable=False)
        except NotImplementedError as error:
            raise ValueError(
                f"a SavedModel needs TensorFlow as Keras' backend ({one_line(error)})"
            ) from error
        except (OSError, ValueError) as error:
            raise ValueError(
                f"`folder` must hold a SavedModel with the function `{self.endpoint}` "
                f"({one_line(error)}). Received: {self.folder}"
            ) from error

    def call(self, videos: Tensor, training: bool = False) -> Tensor:
        found = self.extractor(ops.cast(videos, "float32"))
        tensors = [*found.values()] if isinstance(found, dict) else [found]
        if len(tensors) != 1 or not hasattr(tensors[0], "shape"):
            raise ValueError(
                f"`endpoint` must return one tensor. Received: {self.endpoint}, with {len(tensors)}"
            )
        features = tensors[0]
        # Features of a whole input are its only token.
        is_pooled = len(features.shape) == 2
        tokens = ops.expand_dims(features, 1) if is_pooled else as_tokens(features)
        return ops.cast(tokens, self.compute_dtype)

    def compute_output_shape(self, videos_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        return videos_shape[0], None, self.hidden_dim

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "folder": self.folder,
            "image_size": self.image_size,
            "num_frames": None if self.is_image_model else self.num_frames,
            "endpoint": self.endpoint,
            "num_heads": self.num_heads,
        }
