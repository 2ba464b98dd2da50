"""V-JEPA's rivals in the transformers package: the same numbers, and the way back."""

import copy
import json

import numpy as np
import pytest
from keras import ops

from keras_vjepa.conversion import CheckpointError, convert, export_hugging_face
from tests.support import ROOT, slow_but_on

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = slow_but_on("torch")

assert ROOT
VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES = {**VIT, "intermediate_size": 24, "layer_norm_eps": 1e-6}
IMAGES = {"image_size": 20, "patch_size": 4}
KINDS = {
    "videomae": ("VideoMAEModel", {"image_size": 8, "patch_size": 4, "num_frames": 4, **SIZES,
                                   "use_mean_pooling": False}, (4, 8, 8)),
    "dinov2": ("Dinov2Model", {**IMAGES, **VIT, "mlp_ratio": 2}, (20, 20)),
    "dinov2 swiglu": ("Dinov2Model", {**IMAGES, **VIT, "use_swiglu_ffn": True}, (20, 20)),
    "dinov2 registers": ("Dinov2WithRegistersModel", {**IMAGES, **VIT, "mlp_ratio": 2}, (12, 28)),
    "ijepa": ("IJepaModel", {**IMAGES, **SIZES}, (20, 20)),
}  # fmt: skip


def foreign(name, arguments):
    """Make a model of that package with large random weights."""
    from tests.conversion.oracle import transformers

    torch.manual_seed(0)
    cls = getattr(transformers, name)
    model = cls(cls.config_class(**arguments)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0, 0.5)
    return model


def of_both(model, folder, shape):
    """Tokens of a random input, by the package and by what is converted."""
    model.save_pretrained(folder)
    inputs = np.random.default_rng(0).normal(size=(2, *shape, 3)).astype("float32")
    backbone = convert(folder)
    with torch.no_grad():
        theirs = model(torch.tensor(np.moveaxis(inputs, -1, -3).copy())).last_hidden_state.numpy()
    ours = ops.convert_to_numpy(backbone(inputs))
    return backbone, ours, theirs[:, -ours.shape[1] :]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_numbers_and_back(kind, tmp_path):
    name, arguments, shape = KINDS[kind]
    model = foreign(name, arguments)
    backbone, ours, theirs = of_both(model, tmp_path / "there", shape)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    export_hugging_face(backbone, tmp_path / "back")
    again = type(model).from_pretrained(tmp_path / "back").state_dict()
    for key, weight in model.state_dict().items():
        if "mask_token" not in key:
            assert torch.equal(weight, again[key]), key


def test_without_registers_another_size_is_stretched_by_a_factor(tmp_path):
    """As in the official code, and not to a size as in that package."""
    name, arguments, _ = KINDS["dinov2"]
    _, ours, theirs = of_both(foreign(name, arguments), tmp_path / "there", (12, 12))
    assert np.abs(ours - theirs).max() > 1e-3


def test_clip_and_its_embedding(tmp_path):
    name = "CLIPVisionModelWithProjection"
    model = foreign(name, {**IMAGES, **SIZES, "projection_dim": 6, "layer_norm_eps": 1e-5})
    model.save_pretrained(tmp_path / "there")
    backbone = convert(tmp_path / "there")
    assert backbone.activation == "quick_gelu"
    images = np.random.default_rng(0).normal(size=(2, 20, 20, 3)).astype("float32")
    with torch.no_grad():
        expected = model(torch.tensor(np.moveaxis(images, -1, -3).copy())).image_embeds.numpy()
    actual = ops.convert_to_numpy(backbone.image_embeddings(images))
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    export_hugging_face(backbone, tmp_path / "back")
    again = type(model).from_pretrained(tmp_path / "back").state_dict()
    assert all(torch.equal(weight, again[key]) for key, weight in model.state_dict().items())


HIERA = {"image_size": [64, 32], "embed_dim": 8, "num_heads": [1, 2, 4, 8], "depths": [2, 1, 1, 2]}


def test_hiera_of_images_its_classifier_and_back(tmp_path):
    model = foreign("HieraModel", HIERA)
    model.save_pretrained(tmp_path / "there")
    backbone = convert(tmp_path / "there")
    images = np.random.default_rng(0).normal(size=(2, 64, 32, 3)).astype("float32")
    theirs = torch.tensor(np.moveaxis(images, -1, -3).copy())
    tokens = ops.convert_to_numpy(backbone(images, norm=False))
    pooled = backbone.norm(ops.mean(tokens, axis=1))
    with torch.no_grad():
        expected = model(theirs)
        exact = copy.deepcopy(model).double()(theirs.double()).last_hidden_state.numpy()
    # Tokens before the last norm are up to 70 large: on every backend, rounding of float32 alone is
    # up to 2e-5, and in theirs too. So both are compared with what float64 gives.
    errors = [np.abs(x - exact).mean() for x in (tokens, expected.last_hidden_state.numpy())]
    assert errors[0] < 1.5 * errors[1] < 1.5e-5
    np.testing.assert_allclose(tokens, exact, rtol=2e-5, atol=2e-5)
    tolerance = {"rtol": 1e-5, "atol": 1e-5}
    actual = ops.convert_to_numpy(pooled)
    np.testing.assert_allclose(actual, expected.pooler_output.numpy(), **tolerance)
    export_hugging_face(backbone, tmp_path / "back")
    again = type(model).from_pretrained(tmp_path / "back").state_dict()
    assert all(torch.equal(weight, again[key]) for key, weight in model.state_dict().items())
    classifier = foreign("HieraForImageClassification", {**HIERA, "num_labels": 5})
    classifier.save_pretrained(tmp_path / "tuned")
    actual = ops.convert_to_numpy(convert(tmp_path / "tuned")(images))
    with torch.no_grad():
        expected = classifier(theirs).logits.numpy()
    np.testing.assert_allclose(actual, expected, **tolerance)


def test_hiera_that_is_no_official_model_is_refused(tmp_path):
    foreign("HieraModel", HIERA).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for name, wrong in (
        ("masked_unit_size", [4, 4]),
        ("num_heads", [1, 1, 2, 2]),
        ("depths", [1, 1, 1, 1]),
        ("image_size", [32, 32]),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**config, name: wrong}))
        with pytest.raises(CheckpointError, match=f"`{name}` must") as caught:
            convert(tmp_path)
        assert "\n" not in str(caught.value)


def test_what_that_package_lacks_is_refused(tmp_path):
    from keras_vjepa.models import HieraBackbone, OmniMAEBackbone

    backbone = OmniMAEBackbone(8, 4, 4, hidden_dim=16, num_layers=1, num_heads=2)
    with pytest.raises(CheckpointError, match="transformers has no omnimae"):
        export_hugging_face(backbone, tmp_path / "back")
    clips = HieraBackbone(32, 2, embed_dim=4, embed_heads=1, depths=(1, 1, 1, 1))
    with pytest.raises(CheckpointError, match="Hiera of images alone"):
        export_hugging_face(clips, tmp_path / "back")
