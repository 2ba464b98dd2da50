"""The vision tower of OpenCLIP: a norm before the blocks, no bias of patches (App. D.1)."""

from typing import ClassVar

import keras
from keras import ops

from keras_vjepa.layers.image_positions import antialiased_cubic_weights, stretched
from keras_vjepa.models.backbone import EncoderSize
from keras_vjepa.models.families.vision_backbone import Facts, VisionBackbone
from keras_vjepa.types import Tensor


@keras.saving.register_keras_serializable("keras_vjepa")
class OpenCLIPBackbone(VisionBackbone):
    """Encode images as the vision tower of OpenCLIP does (mlfoundations/open_clip).

    What the probe gets are the tokens of patches after the last norm. No file tells the activation:
    `"gelu"` for models of LAION-2B, `"quick_gelu"` for those of OpenAI, MetaCLIP and DFN. Departure
    from the authors' code, which leaves the table as it is for another shape with as many patches:
    here it is stretched. Arguments: see `VisionBackbone`.

    Example:

    >>> import numpy as np
    >>> from keras_vjepa.models import OpenCLIPBackbone
    >>> backbone = OpenCLIPBackbone(
    ...     28, patch_size=14, hidden_dim=24, num_layers=1, num_heads=2, projection_dim=8
    ... )
    >>> tuple(backbone.image_embeddings(np.zeros((1, 28, 28, 3), "float32")).shape)
    (1, 8)
    """

    facts = Facts(
        is_image_model=True,
        activations=("gelu", "quick_gelu"),
        layer_norm_epsilon=1e-5,
        patch_bias=False,
        class_token=True,
        input_norm=True,
        trains_table=True,
        projects=True,
        mean=(0.48145466, 0.4578275, 0.40821073),
        std=(0.26862954, 0.26130258, 0.27577711),
    )
    sizes: ClassVar = {
        "base": EncoderSize(768, 12, 12),
        "large": EncoderSize(1024, 24, 16),
        "huge": EncoderSize(1280, 32, 16),
        "giant": EncoderSize(1408, 40, 16, mlp_ratio=6144 / 1408),
        "bigG": EncoderSize(1664, 48, 16, mlp_ratio=8192 / 1664),
    }

    def positions(self, grid_shape: tuple[int, int, int]) -> Tensor:
        """Do as `VisionBackbone.positions`."""
        table = ops.convert_to_tensor(self.position_table)
        if grid_shape == self.grid_shape:
            return table
        old, new = self.grid_shape[1:], grid_shape[1:]
        matrices = [antialiased_cubic_weights(*sides) for sides in zip(old, new, strict=True)]
        return ops.concatenate([table[:1], stretched(table[1:], old, matrices)], axis=0)

    def image_embeddings(self, images: Tensor) -> Tensor:
        """Map the class token to an embedding, as it is compared with texts.

        Args:
            images: as in the call.

        Returns:
            `(batch, projection_dim)`.

        Raises:
            ValueError: for a tower without `projection_dim`.
        """
        if self.projection_dim is None:
            raise ValueError("`projection_dim` must be given for image embeddings. Received: None")
        [tokens] = self.intermediate_features(images, [-1], all_tokens=True)
        return ops.matmul(tokens[:, 0], ops.cast(self.projection, tokens.dtype))
