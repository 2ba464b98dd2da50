"""A preset written on one backend holds the same model on the others."""

import importlib.util
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import ops

from keras_vjepa import (
    VJEPABackbone,
    VJEPAPredictor,
    VJEPAPretrainer,
    VJEPAVideoClassifier,
    VJEPAVideoPreprocessor,
)
from tests.support import ROOT, random_batch, slow_but_on

# The backends form a ring, so that each writes once and reads once when the suite runs on all of
# them.
WRITER = {"jax": "torch", "torch": "tensorflow", "tensorflow": "jax"}


def save_everything(folder):
    """Presets of a pretrainer and a classifier, and what they hold and return."""
    rng = np.random.default_rng(0)
    encoder = VJEPABackbone(32, 4, hidden_dim=48, num_layers=1, num_heads=3)
    predictor = VJEPAPredictor(48, encoder.position_axes, 24, 1, 3)
    pretrainer = VJEPAPretrainer(encoder, predictor)
    for variable in pretrainer.variables:
        variable.assign(rng.normal(0, 0.1, variable.shape))
    classifier = VJEPAVideoClassifier(pretrainer.target_encoder, num_classes=7)
    pretrainer.save_to_preset(f"{folder}/pretrainer")
    classifier.save_to_preset(f"{folder}/classifier")
    VJEPAVideoPreprocessor(32, 4).save_to_preset(f"{folder}/pretrainer")
    np.savez(f"{folder}/saved.npz", **everything(pretrainer, classifier))


def everything(pretrainer, classifier):
    """Weights and outputs, by name."""
    videos = random_batch(0, pretrainer)["videos"]
    features = pretrainer.target_encoder(videos)
    outputs = {"features": features, "logits": classifier.probe(features)}
    arrays = {f"output_{name}": ops.convert_to_numpy(x) for name, x in outputs.items()}
    models = {"pretrainer": pretrainer, "classifier": classifier}
    for model, value in models.items():
        arrays |= {f"weight_{model}_{i}": w for i, w in enumerate(value.get_weights())}
    return arrays


@slow_but_on("torch")
def test_a_preset_of_another_backend_is_the_same_model(tmp_path):
    backend = WRITER[keras.config.backend()]
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    save = f"save_everything({str(tmp_path)!r})"
    code = f"from tests.presets.test_presets_across_backends import save_everything; {save}"
    environment = {"KERAS_BACKEND": backend, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], env={**os.environ, **environment}, check=True)
    preset = tmp_path / "pretrainer"
    assert f'"backend": "{backend}"' in (preset / "metadata.json").read_text()
    pretrainer = VJEPAPretrainer.from_preset(preset)
    classifier = VJEPAVideoClassifier.from_preset(tmp_path / "classifier")
    found = everything(pretrainer, classifier)
    with np.load(tmp_path / "saved.npz") as saved:
        assert set(saved) == set(found)
        for name, expected in saved.items():
            if name.startswith("weight_"):
                assert found[name].tobytes() == expected.tobytes(), name
            else:
                assert np.abs(found[name] - expected).max() <= 2e-5, name
    backbone = VJEPABackbone.from_preset(preset)
    videos = VJEPAVideoPreprocessor.from_preset(preset)(np.zeros((40, 36, 48, 3), np.uint8))
    features = ops.convert_to_numpy(backbone(videos))
    target = ops.convert_to_numpy(pretrainer.target_encoder(videos))
    np.testing.assert_array_equal(features, target)
