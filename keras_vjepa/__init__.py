"""V-JEPA in Keras 3: one code for torch, JAX and TensorFlow."""

import keras_vjepa.zoo  # noqa: F401  (fills in the names of the presets)
from keras_vjepa.backbone import VJEPABackbone
from keras_vjepa.classifier import VJEPAVideoClassifier
from keras_vjepa.optimization import AdamW, CosineSchedule, LinearSchedule, WarmupCosine
from keras_vjepa.predictor import VJEPAPredictor
from keras_vjepa.preprocessor import VJEPAVideoPreprocessor
from keras_vjepa.presets import list_presets
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
    "VJEPAVideoPreprocessor",
    "WarmupCosine",
    "__version__",
    "list_presets",
]
