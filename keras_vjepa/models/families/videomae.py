"""VideoMAE and VideoMAEv2: one network, fixed positions that number the tokens (App. D.1)."""

from typing import ClassVar

import keras
import numpy as np

from keras_vjepa.layers.image_positions import flat_table
from keras_vjepa.models.backbone import SIZES, EncoderSize
from keras_vjepa.models.families.vision_backbone import Facts, VisionBackbone


@keras.saving.register_keras_serializable("keras_vjepa")
class VideoMAEBackbone(VisionBackbone):
    """Encode clips as VideoMAE's encoder does (MCG-NJU/VideoMAE).

    Positions are in no file; clips of another size or length get a fresh table for their number of
    tokens, as in the authors' code. A fine-tuned model has no norm after its blocks
    (`final_norm=False`). Arguments: see `VisionBackbone`.

    Example:

    >>> import numpy as np
    >>> from keras_vjepa.models import VideoMAEBackbone
    >>> backbone = VideoMAEBackbone(32, 4, hidden_dim=24, num_layers=1, num_heads=2)
    >>> tuple(backbone(np.zeros((1, 4, 32, 32, 3), "float32")).shape)
    (1, 8, 24)
    """

    facts = Facts(key_bias=False, may_lack_norm=True, stores_table=False)
    sizes: ClassVar = {name: SIZES[name] for name in ("small", "base", "large", "huge")}

    def fresh_table(self, grid_shape: tuple[int, int, int]) -> np.ndarray:
        """Do as `VisionBackbone.fresh_table`."""
        return flat_table(int(np.prod(grid_shape)), self.hidden_dim)


@keras.saving.register_keras_serializable("keras_vjepa")
class VideoMAEv2Backbone(VideoMAEBackbone):
    """Encode clips as VideoMAEv2's encoder does (OpenGVLab/VideoMAEv2): VideoMAE's network, larger.

    The giant has patches of 14 pixels: `VideoMAEv2Backbone.from_size("giant", patch_size=14)`.
    Departure from the authors' code, whose loader fails or mixes up positions for other numbers of
    frames than 16: here they are fresh. Arguments: see `VisionBackbone`.

    Example:

    >>> from keras_vjepa.models import VideoMAEv2Backbone
    >>> VideoMAEv2Backbone.number_of_weights(
    ...     patch_size=14, **VideoMAEv2Backbone.arguments_of_size("giant")
    ... )
    1011610752
    """

    sizes: ClassVar = {
        **VideoMAEBackbone.sizes,
        "giant": EncoderSize(1408, 40, 16, mlp_ratio=48 / 11),
    }
