"""Run V-JEPA in Keras 3: one code for torch, JAX and TensorFlow.

If no backend of Keras has been chosen and only one is installed, importing this package chooses it.
"""

from keras_vjepa.backend import choice

# `keras-vjepa --help` needs no backend. Other commands import the rest once they have chosen one.
if not choice.is_deferred:
    choice.prepare()
    import keras_vjepa.presets.shipped  # noqa: F401  (adds names of presets)
    import keras_vjepa.tasks.checkpoint_presets  # noqa: F401  (adds names of presets)
    import keras_vjepa.zoo  # noqa: F401  (adds names of presets)
    import keras_vjepa.zoo_rivals  # noqa: F401  (adds names too)
    from keras_vjepa import data, evaluation, training
    from keras_vjepa.layers.pooling import AttentivePooler
    from keras_vjepa.models.backbone import VJEPABackbone
    from keras_vjepa.models.predictor import VJEPAPredictor
    from keras_vjepa.preprocessor import VJEPAVideoPreprocessor
    from keras_vjepa.presets.preset import list_presets
    from keras_vjepa.presets.upload import upload_preset
    from keras_vjepa.tasks.classifier import VJEPAVideoClassifier
    from keras_vjepa.tasks.decoder import FeatureDecoder
    from keras_vjepa.tasks.detector import VJEPAActionDetector
    from keras_vjepa.tasks.pretrainer import VJEPAPretrainer
    from keras_vjepa.tasks.probe import VJEPAProbe
    from keras_vjepa.training.optimizer import AdamW
    from keras_vjepa.training.schedules import (
        CosineSchedule,
        FineTuningSchedule,
        LinearSchedule,
        WarmupCosine,
    )

__version__ = "0.1.0"

__all__ = [
    "AdamW",
    "AttentivePooler",
    "CosineSchedule",
    "FeatureDecoder",
    "FineTuningSchedule",
    "LinearSchedule",
    "VJEPAActionDetector",
    "VJEPABackbone",
    "VJEPAPredictor",
    "VJEPAPretrainer",
    "VJEPAProbe",
    "VJEPAVideoClassifier",
    "VJEPAVideoPreprocessor",
    "WarmupCosine",
    "__version__",
    "data",
    "evaluation",
    "list_presets",
    "training",
    "upload_preset",
]
