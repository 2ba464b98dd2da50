"""keras-hub's DINOv2 and CLIP as a second opinion: the same weights, the same features."""

import re

import keras
import numpy as np
import pytest
from keras import ops

from keras_vjepa.conversion import export_hugging_face
from keras_vjepa.models import DINOv2Backbone, OpenCLIPBackbone
from keras_vjepa.models.adapters import as_token_encoder

SIZES = {"patch_size": 7, "hidden_dim": 32, "num_layers": 2, "num_heads": 4}


def random_weights(model, seed=0):
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        variable.assign(rng.normal(size=variable.shape) * 0.3)
    return model


def clips(side, seed=1):
    return np.random.default_rng(seed).normal(size=(2, 2, side, side, 3)).astype("float32")


def assert_same(ours, theirs, side):
    """The tokens of the patches of both, frame by frame."""
    given = ops.convert_to_tensor(clips(side))
    found, expected = (
        ops.convert_to_numpy(as_token_encoder(model).clip_tokens(given)) for model in (theirs, ours)
    )
    assert expected.shape == (2, 2 * (side // 7) ** 2, 32)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("registers", "class_name"), [(4, "DINOV2Backbone"), (0, "CLIPVision")])
def test_first_tokens_are_left_out_of_the_classes_that_have_them(
    registers, class_name, monkeypatch
):
    name = "CLIPVisionEncoder" if class_name == "CLIPVision" else class_name
    # A class like that of keras-hub, which need not be installed.
    kind = type("OfKerasHub", (keras.Model,), {"num_heads": 2})
    known = {kind: f"keras_hub>{name}"}
    monkeypatch.setattr(keras.saving, "get_registered_name", lambda one: known.get(one, ""))
    images = keras.Input((12, 12, 3), name="images")
    tokens = keras.layers.Reshape((18, 24))(images)
    model = kind(inputs={"images": images}, outputs=tokens)
    model.num_register_tokens = registers
    encoder = as_token_encoder(model)
    given = clips(12)
    found = ops.convert_to_numpy(encoder.clip_tokens(ops.convert_to_tensor(given)))
    expected = given.reshape(2, 2, 18, 24)[:, :, 1 + registers :].reshape(2, -1, 24)
    np.testing.assert_array_equal(found, expected)
    assert (encoder.hidden_dim, encoder.num_heads, encoder.image_size) == (24, 2, 12)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [{}, {"num_register_tokens": 4}, {"activation": "swiglu", "mlp_dim": 88}]
)
def test_dinov2_by_a_folder_of_transformers(changes, tmp_path):
    keras_hub = pytest.importorskip("keras_hub")
    ours = random_weights(DINOv2Backbone(35, **SIZES, **changes))
    export_hugging_face(ours, tmp_path / "folder")
    theirs = keras_hub.models.DINOV2Backbone.from_preset(str(tmp_path / "folder"))
    assert_same(ours, theirs, 35)


# Our names by those of keras-hub's CLIP; queries, keys and values are one matrix here.
RENAMED = {
    "embedding/class_embedding": "class_token",
    "embedding/position_embedding/embeddings": "position_table",
    "embedding/patch_embedding": "tubelet_embedding",
    "pre_layer_norm": "input_norm",
    "encoder_block": "block",
    "layer_norm_1": "attention_norm",
    "layer_norm_2": "mlp_norm",
    "layer_norm": "norm",
    "attention_output": "output_projection",
    "dense_1": "mlp_hidden",
    "dense_2": "mlp_output",
}


def value_of(name, given, shape):
    """Our weight for one of keras-hub's CLIP."""
    part = next((i for i, p in enumerate(("query", "key", "value")) if f"/{p}/" in name), None)
    for theirs, ours in RENAMED.items():
        name = name.replace(theirs, ours)
    name = re.sub("/(query|key|value)/", "/query_key_value/", name)
    value = given[name] if part is None else np.split(given[name], 3, axis=-1)[part]
    return value.reshape(shape)


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_clip(activation):
    keras_hub = pytest.importorskip("keras_hub")
    theirs = keras_hub.models.CLIPVisionEncoder(
        **SIZES, intermediate_dim=96, intermediate_activation=activation, image_shape=(28, 28, 3)
    )
    ours = OpenCLIPBackbone(28, **SIZES, mlp_dim=96, activation=activation)
    random_weights(ours)
    given = {
        variable.path.split("/", 1)[1]: ops.convert_to_numpy(variable) for variable in ours.weights
    }
    # Which row is whose is a weight of theirs, zeros at first.
    given["embedding/position_ids"] = np.arange(17)
    for variable in theirs.weights:
        variable.assign(value_of(variable.path, given, variable.shape))
    assert_same(ours, theirs, 28)
