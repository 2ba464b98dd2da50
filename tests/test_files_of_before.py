"""Files written by older code load, and give what that code gave (tests/golden/*/README.md)."""

import hashlib
import json
import zipfile

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
from tests.support import BEFORE_THE_HOUSE, compiled, slow_but_on

PRESETS = BEFORE_THE_HOUSE / "presets"
KERAS_FILES = BEFORE_THE_HOUSE / "keras_files"
# The outputs of the old code differ between backends by up to 2.3e-6.
ACROSS_BACKENDS = 2e-5


def numpy(x):
    return ops.convert_to_numpy(ops.cast(x, "float32"))


@pytest.fixture(scope="module")
def expected():
    with np.load(BEFORE_THE_HOUSE / "expected.npz") as stored:
        return dict(stored)


@pytest.fixture(scope="module")
def inputs(expected):
    return {name[6:]: array for name, array in expected.items() if name.startswith("input/")}


def weights_of(model):
    """Path, shape, type and hash of each variable, in the model's order."""
    found = []
    for variable in model.variables:
        array = np.ascontiguousarray(ops.convert_to_numpy(variable))
        digest = hashlib.sha256(array.tobytes()).hexdigest()[:16]
        found.append((variable.path, [list(array.shape), str(array.dtype), digest]))
    return found


def assert_weights_are(model, name):
    stored = json.loads((BEFORE_THE_HOUSE / "weights.json").read_text())[name]
    assert weights_of(model) == list(stored.items())


def assert_outputs_are(expected, name, make_outputs):
    """Each output, and no output is forgotten."""
    outputs = compiled(make_outputs)()
    wanted = {key.split("/")[1] for key in expected if key.startswith(f"{name}/")}
    assert set(outputs) == wanted - {"preprocessed"}
    for key, value in outputs.items():
        value = numpy(value)
        assert value.shape == expected[f"{name}/{key}"].shape, key
        difference = np.abs(value - expected[f"{name}/{key}"]).max()
        assert difference <= ACROSS_BACKENDS, key


@pytest.mark.parametrize("name", ["backbone_sincos", "backbone_rotary_index"])
def test_a_backbone(name, expected, inputs):
    model = VJEPABackbone.from_preset(PRESETS / name)
    assert_weights_are(model, name)
    videos, indices = inputs["videos"], inputs["token_indices"]
    larger = inputs["videos_of_another_size"]
    fresh = None
    if name == "backbone_rotary_index":
        fresh = VJEPABackbone.from_preset(PRESETS / name, position_mode="fresh")

    def outputs():
        found = {
            "features": model(videos),
            "features_of_another_size": model(larger),
            "features_picked": model(videos, indices),
            "features_padded": model(videos, indices, inputs["padding_mask"]),
            "intermediate_0": model.intermediate_features(videos, [0])[0],
        }
        return found | ({"features_of_another_size_fresh": fresh(larger)} if fresh else {})

    assert_outputs_are(expected, name, outputs)


def test_a_predictor(expected, inputs):
    model = VJEPAPredictor.from_preset(PRESETS / "predictor")
    assert_weights_are(model, "predictor")
    arrays = inputs["context"], inputs["token_indices"], inputs["target_indices"]
    assert_outputs_are(
        expected,
        "predictor",
        lambda: {f"predictions_{i}": model(*arrays, mask_index=i) for i in range(2)},
    )


def test_a_pretrainer_with_a_teacher(expected, inputs):
    model = VJEPAPretrainer.from_preset(PRESETS / "pretrainer")
    assert_weights_are(model, "pretrainer")
    schedule = {"start": 0.9, "final": 1.0, "total_steps": 12.5}
    assert model.momentum.get_config() == schedule
    batch = {name[6:]: a for name, a in inputs.items() if name.startswith("masks/")}
    batch["videos"] = videos = inputs["videos"]

    def outputs():
        losses, variance_losses = model.sample_losses(batch)
        return {
            "targets": model.targets(videos),
            "encoder_features": model.encoder(videos),
            "target_encoder_features": model.target_encoder(videos),
            "teacher_features": model.teacher(videos),
            # Rows of padding have no meaning, so they are left out.
            "predictions_0": model.predictions(batch, 0)[:, :8],
            "predictions_1": model.predictions(batch, 1)[:, :8],
            "sample_losses": losses,
            "variance_losses": variance_losses,
            "call": model(batch),
        }

    assert_outputs_are(expected, "pretrainer", outputs)


@pytest.mark.parametrize(
    "name,videos",
    [("attentive", "clips_and_views"), ("tokens", "clips"), ("average", "clips")],
)
def test_a_classifier(name, videos, expected, inputs):
    name, given = f"classifier_{name}", inputs[videos]
    model = VJEPAVideoClassifier.from_preset(PRESETS / name)
    assert_weights_are(model, name)
    if name == "classifier_average":
        given = {"videos": given, "frame_indices": inputs["frame_indices"]}

    def outputs():
        found = {"logits": model(given), "logits_training": model(given, training=True)}
        if name == "classifier_attentive":
            found["logits_of_one_view"] = model(inputs["clips"])
        if name == "classifier_tokens":
            found["features"] = model.features(inputs["clips"])[:, :, :4]
        return found

    assert_outputs_are(expected, name, outputs)


@pytest.mark.parametrize(
    "name", ["backbone_sincos", "pretrainer", "classifier_attentive", "classifier_average"]
)
def test_a_preprocessor(name, expected, inputs):
    found = VJEPAVideoPreprocessor.from_preset(PRESETS / name)([inputs["raw_frames"]])
    np.testing.assert_allclose(found, expected[f"{name}/preprocessed"], rtol=0, atol=1e-6)


# --- Compiled models, saved after two steps ------------------------------------------------------


@pytest.fixture(scope="module")
def batches():
    with np.load(KERAS_FILES / "inputs.npz") as stored:
        return dict(stored)


def loss_of_step(model, batches, i):
    model.reset_metrics()
    if isinstance(model, VJEPAPretrainer):
        batch = {key[8:]: a for key, a in batches.items() if key.startswith(f"batch_{i}/")}
        return float(model.train_on_batch(batch, return_dict=True)["step_loss"])
    logs = model.train_on_batch(batches["clips"][i], batches["labels"][i], return_dict=True)
    return float(logs["loss"])


@pytest.mark.parametrize(
    "name",
    ["pretrainer", pytest.param("classifier", marks=slow_but_on("torch", "tensorflow"))],
)
def test_a_compiled_model_goes_on(name, batches):
    stored = json.loads((BEFORE_THE_HOUSE / "numbers.json").read_text())
    expected = stored["keras_files"][keras.config.backend()][name]
    described = json.loads((KERAS_FILES / f"{name}.json").read_text())
    model = keras.saving.load_model(KERAS_FILES / f"{name}.keras")
    assert weights_of(model) == list(described["weights"].items())
    optimizer = model.optimizer
    assert int(optimizer.iterations) == expected["iterations"] == 2
    for rate in ("learning_rate", "weight_decay"):
        assert float(getattr(optimizer, rate)) == pytest.approx(expected[rate], abs=1e-7)
    paths = [variable.path for variable in optimizer.variables]
    assert paths == expected.get("optimizer_variables", described["optimizer_variables"])
    given = batches["clips"][0]
    if name == "pretrainer":
        given = {key[8:]: a for key, a in batches.items() if key.startswith("batch_0/")}
    found = numpy(compiled(model)(given))
    np.testing.assert_allclose(found, expected["call_on_batch_0"], rtol=0, atol=1e-6)
    losses = [loss_of_step(model, batches, i) for i in (2, 3)]
    np.testing.assert_allclose(losses, expected["losses_of_steps_3_4"], rtol=0, atol=1e-6)


def test_weights_of_a_training_checkpoint(batches, tmp_path):
    """`model.weights.h5` in the archive is what `save_weights` wrote; it has the optimizer's."""
    described = json.loads((KERAS_FILES / "pretrainer.json").read_text())
    with zipfile.ZipFile(KERAS_FILES / "pretrainer.keras") as archive:
        archive.extract("model.weights.h5", tmp_path)
    fresh = keras.saving.load_model(KERAS_FILES / "pretrainer.keras")
    for variable in [*fresh.variables, *fresh.optimizer.variables]:
        variable.assign(np.zeros(variable.shape))
    fresh.load_weights(tmp_path / "model.weights.h5")
    hashes = [value for _, value in weights_of(fresh)]
    assert hashes == list(described["weights"].values())
    assert int(fresh.optimizer.iterations) == 2
    assert all(numpy(v).any() for v in fresh.optimizer.variables)
