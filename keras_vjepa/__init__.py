"""V-JEPA in Keras 3: one code for torch, JAX and TensorFlow."""

from keras_vjepa.backbone import VJEPABackbone
from keras_vjepa.classifier import VJEPAVideoClassifier
from keras_vjepa.optimization import AdamW, CosineSchedule, LinearSchedule, WarmupCosine
from keras_vjepa.predictor import VJEPAPredictor
from keras_vjepa.pretrainer import VJEPAPretrainer
from keras_vjepa.probe import AttentivePooler, VJEPAProbe

__version__ = "0.1.0"

__all__ = [
    "AdamW",
    "AttentivePooler",
    "CosineSchedule",
    "LinearSchedule",
    "VJEPABackbone",
    "VJEPAPredictor",
    "VJEPAPretrainer",
    "VJEPAProbe",
    "VJEPAVideoClassifier",
    "WarmupCosine",
    "__version__",
]
