"""I-JEPA: an image model with a fixed table, column first, read from the file (App. D.1)."""

from collections.abc import Mapping
from typing import Any, ClassVar

import keras
import numpy as np

from keras_vjepa.layers.image_positions import column_first_table
from keras_vjepa.models.backbone import SIZES, EncoderSize
from keras_vjepa.models.dimensions import token_grid
from keras_vjepa.models.families.vision_arguments import check_square
from keras_vjepa.models.families.vision_backbone import Facts, VisionBackbone


@keras.saving.register_keras_serializable("keras_vjepa")
class IJEPABackbone(VisionBackbone):
    """Encode images as I-JEPA's target encoder does (facebookresearch/ijepa).

    Images of another size get a fresh table, as a model that is built for that size has in the
    authors' code; squares only. Arguments: see `VisionBackbone`.

    Example:

    >>> import numpy as np
    >>> from keras_vjepa.models import IJEPABackbone
    >>> backbone = IJEPABackbone(32, hidden_dim=24, num_layers=1, num_heads=2)
    >>> tuple(backbone(np.zeros((1, 32, 32, 3), "float32")).shape)
    (1, 4, 24)
    """

    facts = Facts(is_image_model=True)
    input_shapes: ClassVar[str] = "squares"
    sizes: ClassVar = {
        **{name: SIZES[name] for name in ("base", "large", "huge")},
        "giant": EncoderSize(1408, 40, 16, mlp_ratio=48 / 11),
    }

    @classmethod
    def check_grid(cls, arguments: Mapping[str, Any]) -> None:
        """Do as `VisionBackbone.check_grid`."""
        check_square(token_grid(arguments), arguments["image_size"])
        column_first_table(arguments["hidden_dim"], (1, 1))

    def fresh_table(self, grid_shape: tuple[int, int, int]) -> np.ndarray:
        """Do as `VisionBackbone.fresh_table`."""
        check_square(grid_shape, grid_shape[1:])
        return column_first_table(self.hidden_dim, grid_shape[1:])
