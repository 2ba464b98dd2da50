"""Identify models by hashes of their contents, wherever their presets lie (App. C, App. D.1)."""

import hashlib
import json

import keras
import numpy as np

from keras_vjepa.backend import collectives

# Arguments that do not change an encoder's features. The last one matters only in training.
_OF_NO_FEATURE = {"name", "trainable", "drop_path_rate"}
# Arguments that came later, with the values that mean what encoders did before. At these they are
# left out, so that features which were kept before are still found.
_OF_BEFORE = {"position_reach": None, "level_layers": None, "modalities": False}


def fingerprint(encoder: keras.Model) -> str:
    """Hash everything that an encoder's features depend on; all processes must call it together."""
    config = {
        name: value
        for name, value in encoder.get_config().items()
        if name not in _OF_NO_FEATURE and not (name in _OF_BEFORE and value == _OF_BEFORE[name])
    }
    return _hash_of(json.dumps(config, sort_keys=True, default=str), encoder)


def fingerprint_of_weights(model: keras.Model) -> str:
    """Hash a model's weights and their shapes; all processes must call it together."""
    return _hash_of(str([tuple(variable.shape) for variable in model.weights]), model)


def _hash_of(described: str, model: keras.Model) -> str:
    digest = hashlib.blake2b(described.encode())
    for array in collectives.values(model.weights):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:32]
