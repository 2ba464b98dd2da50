"""MVD: VideoMAE's block under a table with shares for time, column and row (Table 6; App. D.1)."""

from collections.abc import Mapping
from typing import Any, ClassVar

import keras
import numpy as np

from keras_vjepa.layers.image_positions import shared_table
from keras_vjepa.models.dimensions import token_grid
from keras_vjepa.models.families.videomae import VideoMAEBackbone
from keras_vjepa.models.families.vision_arguments import check_square
from keras_vjepa.models.families.vision_backbone import Facts, VisionBackbone


@keras.saving.register_keras_serializable("keras_vjepa")
class MVDBackbone(VisionBackbone):
    """Encode clips as MVD's student does (ruiwang2021/mvd).

    Clips of another size or length get a fresh table; squares only, as in the authors' code. A
    fine-tuned model has no norm after its blocks (`final_norm=False`). Arguments: see
    `VisionBackbone`.

    Example:

    >>> import numpy as np
    >>> from keras_vjepa.models import MVDBackbone
    >>> backbone = MVDBackbone(32, 4, hidden_dim=32, num_layers=1, num_heads=2)
    >>> tuple(backbone(np.zeros((1, 4, 32, 32, 3), "float32")).shape)
    (1, 8, 32)
    """

    facts = Facts(key_bias=False, may_lack_norm=True)
    input_shapes: ClassVar[str] = "squares"
    sizes: ClassVar = VideoMAEBackbone.sizes

    @classmethod
    def check_grid(cls, arguments: Mapping[str, Any]) -> None:
        """Do as `VisionBackbone.check_grid`."""
        check_square(token_grid(arguments), arguments["image_size"])
        shared_table(arguments["hidden_dim"], (1, 1, 1))

    def fresh_table(self, grid_shape: tuple[int, int, int]) -> np.ndarray:
        """Do as `VisionBackbone.fresh_table`."""
        check_square(grid_shape, grid_shape[1:])
        return shared_table(self.hidden_dim, grid_shape)
