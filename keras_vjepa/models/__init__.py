"""Provide V-JEPA's encoder and predictor, and adapters for other backbones (§3.3, App. D.1)."""

from keras_vjepa.models.adapters import (
    DeclaredBackbone,
    FunctionalBackbone,
    TokenEncoder,
    as_token_encoder,
    register_adapter,
)
from keras_vjepa.models.backbone import SIZES, EncoderSize, VJEPABackbone
from keras_vjepa.models.families import (
    DINOv2Backbone,
    HieraBackbone,
    IJEPABackbone,
    MVDBackbone,
    OmniMAEBackbone,
    OpenCLIPBackbone,
    VideoMAEBackbone,
    VideoMAEv2Backbone,
    VisionBackbone,
)
from keras_vjepa.models.keras_hub import KerasHubBackbone
from keras_vjepa.models.predictor import VJEPAPredictor
from keras_vjepa.models.saved_model import SavedModelBackbone

__all__ = [
    "SIZES",
    "DINOv2Backbone",
    "DeclaredBackbone",
    "EncoderSize",
    "FunctionalBackbone",
    "HieraBackbone",
    "IJEPABackbone",
    "KerasHubBackbone",
    "MVDBackbone",
    "OmniMAEBackbone",
    "OpenCLIPBackbone",
    "SavedModelBackbone",
    "TokenEncoder",
    "VJEPABackbone",
    "VJEPAPredictor",
    "VideoMAEBackbone",
    "VideoMAEv2Backbone",
    "VisionBackbone",
    "as_token_encoder",
    "register_adapter",
]
