"""Users of torch and JAX need no TensorFlow; run with tests/without_tensorflow on the path."""

import os
import subprocess
import sys

import keras
import pytest

from tests.support import ROOT, WITHOUT_TENSORFLOW

SCRIPT = """
import sys
import keras_vjepa, keras, numpy as np
assert "tensorflow" not in sys.modules
encoder = keras_vjepa.VJEPABackbone(32, 4, hidden_dim=24, num_layers=1, num_heads=2)
predictor = keras_vjepa.VJEPAPredictor(24, (2, 2, 2), 12, 1, 2, num_mask_tokens=1)
pretrainer = keras_vjepa.VJEPAPretrainer(encoder, predictor)
pretrainer.compile(keras_vjepa.AdamW(1e-3))
batch = {
    "videos": np.zeros((2, 4, 32, 32, 3), "float32"),
    "context_indices_0": np.array([[0, 3], [1, 2]], "int32"),
    "target_indices_0": np.array([[4, 5, 6], [6, 7, -1]], "int32"),
}
history = pretrainer.fit(batch, batch_size=2, epochs=2, verbose=0)
assert np.isfinite(history.history["loss"]).all()
print("trained on", keras.config.backend())
"""


@pytest.mark.skipif(keras.config.backend() == "tensorflow", reason="of the other two")
def test_training_where_tensorflow_cannot_be_imported():
    backend = keras.config.backend()
    path = os.pathsep.join([str(WITHOUT_TENSORFLOW), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "KERAS_BACKEND": backend},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"trained on {backend}"
