"""Take DINOv2 and CLIP of keras-hub as backbones, to compare with our own (Table 6; App. D.1).

keras-hub is never imported here: a model of it has come from there. Its models return the class
token, and registers, before the tokens of patches; a probe here reads the patches alone, as it does
of `DINOv2Backbone` and `OpenCLIPBackbone`. Given the same weights, both give the same features at
the size that the positions are stored for. At another size, keras-hub stretches DINOv2's positions
in another way than the official code.
"""

from typing import Any

import keras

from keras_vjepa.models.adapters import FunctionalBackbone, register_adapter
from keras_vjepa.types import Tensor

# Names under which Keras knows those of keras-hub's classes that put a class token first.
_WITH_CLASS_TOKEN = ("keras_hub>DINOV2Backbone", "keras_hub>CLIPVisionEncoder")


@register_adapter
class KerasHubBackbone(FunctionalBackbone):
    """Adapts keras-hub's `DINOV2Backbone` and `CLIPVisionEncoder`, without their first tokens.

    `as_token_encoder`, and so every task, finds it for them.

    Args:
        backbone: the model.

    Example:

    >>> import keras
    >>> from keras_vjepa.models import KerasHubBackbone
    >>> KerasHubBackbone.fits(keras.Sequential())
    False
    """

    @staticmethod
    def fits(backbone: keras.Model) -> bool:
        """Accept the two classes, by their names."""
        return keras.saving.get_registered_name(type(backbone)) in _WITH_CLASS_TOKEN

    def encode(self, inputs: Tensor, training: bool) -> Tensor:
        """Call the model, and leave class token and registers out."""
        model: Any = self.backbone
        tokens = super().encode(inputs, training)
        return tokens[:, 1 + (getattr(model, "num_register_tokens", 0) or 0) :]
