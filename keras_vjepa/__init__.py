"""V-JEPA in Keras 3: one code for torch, JAX and TensorFlow."""

from keras_vjepa.backbone import VJEPABackbone
from keras_vjepa.predictor import VJEPAPredictor
from keras_vjepa.pretrainer import VJEPAPretrainer

__version__ = "0.1.0"

__all__ = ["VJEPABackbone", "VJEPAPredictor", "VJEPAPretrainer", "__version__"]
