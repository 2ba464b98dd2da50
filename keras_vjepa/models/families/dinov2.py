"""DINOv2: an image model with learned positions, stretched by a factor (Table 6; App. D.1)."""

from collections.abc import Mapping
from typing import Any, ClassVar

import keras
from keras import ops

from keras_vjepa.layers.image_positions import antialiased_cubic_weights, stretched
from keras_vjepa.layers.positions import cubic_weights
from keras_vjepa.models.backbone import SIZES, EncoderSize, Size
from keras_vjepa.models.dimensions import token_grid
from keras_vjepa.models.families.vision_arguments import check_square
from keras_vjepa.models.families.vision_backbone import Facts, VisionBackbone
from keras_vjepa.types import Tensor


@keras.saving.register_keras_serializable("keras_vjepa")
class DINOv2Backbone(VisionBackbone):
    """Encode images as DINOv2 does (facebookresearch/dinov2), with registers or without.

    The released models were trained at 518 pixels with patches of 14; images of any size and shape
    can be encoded. The giant has a `"swiglu"` MLP. Arguments: see `VisionBackbone`.

    Example:

    >>> import numpy as np
    >>> from keras_vjepa.models import DINOv2Backbone
    >>> backbone = DINOv2Backbone(70, patch_size=14, hidden_dim=24, num_layers=1, num_heads=2)
    >>> tuple(backbone(np.zeros((1, 28, 42, 3), "float32")).shape)
    (1, 6, 24)
    """

    facts = Facts(
        is_image_model=True,
        activations=("gelu", "swiglu"),
        class_token=True,
        registers=True,
        layer_scale=True,
        trains_table=True,
        interpolates=True,
    )
    sizes: ClassVar = {
        **{name: SIZES[name] for name in ("small", "base", "large")},
        "giant": EncoderSize(1536, 40, 24, mlp_ratio=4096 / 1536),
    }

    @classmethod
    def arguments_of_size(cls, size: str) -> dict[str, Any]:
        """Do as `VisionBackbone.arguments_of_size`."""
        activation = {"activation": "swiglu"} if size == "giant" else {}
        return {**super().arguments_of_size(size), **activation}

    @classmethod
    def check_grid(cls, arguments: Mapping[str, Any]) -> None:
        """Do as `VisionBackbone.check_grid`: the table is a square."""
        check_square(token_grid(arguments), arguments["image_size"])

    @property
    def input_size(self) -> Size:
        """Do as `VisionBackbone.input_size`: 224 for released models, which are made for 518."""
        return 224 if self.image_size == 518 else self.image_size

    def positions(self, grid_shape: tuple[int, int, int]) -> Tensor:
        """Do as `VisionBackbone.positions`."""
        table = ops.convert_to_tensor(self.position_table)
        if grid_shape == self.grid_shape:
            return table
        side = self.grid_shape[1]
        weights = antialiased_cubic_weights if self.interpolate_antialias else cubic_weights
        matrices = [
            weights(side, new, (new + self.interpolate_offset) / side) for new in grid_shape[1:]
        ]
        return ops.concatenate([table[:1], stretched(table[1:], (side, side), matrices)], axis=0)
