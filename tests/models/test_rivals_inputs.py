"""What the rivals' backbones take and refuse, and how their pixels are normalised."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_vjepa import VJEPABackbone, VJEPAVideoClassifier, VJEPAVideoPreprocessor
from keras_vjepa.backend.token_ops import reordered
from keras_vjepa.conversion import CheckpointError, export_hugging_face
from keras_vjepa.models import (
    DINOv2Backbone,
    IJEPABackbone,
    OpenCLIPBackbone,
)
from tests.models.test_rivals_in_tasks import MADE

SMALL = {"hidden_dim": 16, "num_layers": 1, "num_heads": 2, "patch_size": 8}
IMAGE_MODELS = {
    "dinov2": lambda size=32: DINOv2Backbone(size, **SMALL),
    "ijepa": lambda size=32: IJEPABackbone(size, **SMALL),
    "openclip": lambda size=32: OpenCLIPBackbone(size, **SMALL),
}


@pytest.mark.parametrize("size", [32, 8])
@pytest.mark.parametrize("family", IMAGE_MODELS)
def test_image_models_refuse_clips_in_one_line(family, size):
    # With a single patch, its position would be added to those of all frames.
    backbone = IMAGE_MODELS[family](size)
    clips = np.zeros((2, 4, size, size, 3), "float32")
    with pytest.raises(
        ValueError, match="must be images, or clips of one frame.*`clip_tokens`"
    ) as e:
        backbone(clips)
    assert "\n" not in str(e.value)
    num_patches = (size // 8) ** 2
    assert tuple(backbone.clip_tokens(clips).shape) == (2, 4 * num_patches, 16)
    assert tuple(backbone(clips[:, :1]).shape) == (2, num_patches, 16)


@pytest.mark.parametrize("family", ["ijepa", "mvd"])
def test_families_of_squares_refuse_rectangles_by_their_pixels(family):
    backbone = MADE[family]()
    axes = () if backbone.is_image_model else (4,)
    with pytest.raises(ValueError, match=r"must be a square in this family.*\(32, 64\)$") as e:
        backbone(np.zeros((1, *axes, 32, 64, 3), "float32"))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("family", MADE)
def test_a_preset_of_a_backbone_alone_has_its_familys_colours(family, tmp_path):
    backbone = MADE[family]()
    backbone.save_to_preset(tmp_path / "preset")
    expected = backbone.facts.mean, backbone.facts.std
    own = VJEPAVideoPreprocessor.from_preset(tmp_path / "preset")
    model = VJEPAVideoClassifier.from_preset(tmp_path / "preset", num_classes=2)
    for preprocessor in (own, model.preprocessor):
        assert (preprocessor.mean, preprocessor.std) == expected
        assert (preprocessor.image_size, preprocessor.num_frames) == (
            backbone.image_size,
            backbone.num_frames,
        )


@pytest.mark.data
@pytest.mark.parametrize("load_weights", [True, False])
def test_a_preset_of_a_rival_names_its_class(load_weights, tmp_path):
    MADE["dinov2"]().save_to_preset(tmp_path / "preset")
    with pytest.raises(ValueError, match=r"which is none: call DINOv2Backbone\.from_preset$") as e:
        VJEPABackbone.from_preset(tmp_path / "preset", load_weights)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("family", MADE)
def test_no_clips_have_no_features(family):
    backbone = MADE[family]()
    inputs = np.zeros((0, *backbone.video_shape[backbone.is_image_model :]), "float32")
    assert tuple(backbone(inputs).shape) == (
        0,
        *backbone(np.zeros((1, *inputs.shape[1:]))).shape[1:],
    )


def test_no_operation_changes_the_order_of_hieras_tokens_by_axes_that_are_not_there():
    # torch ignores such a "squeeze", an ONNX file cannot.
    tokens = np.arange(12, dtype="float32").reshape(2, 3, 2)
    order = np.array([2, 0, 1])
    assert np.array_equal(ops.convert_to_numpy(reordered(tokens, order)), tokens[:, order])
    if keras.config.backend() == "torch":
        import torch

        class Reorders(torch.nn.Module):
            def forward(self, x):
                return reordered(x, order)

        graph = str(torch.export.export(Reorders(), (torch.from_numpy(tokens),)).graph)
        assert "index_select" in graph
        assert "squeeze" not in graph


def test_a_classifier_of_a_rival_is_refused_by_the_layout_of_transformers(tmp_path):
    model = VJEPAVideoClassifier(MADE["videomae"](), 2, head="fine_tuning")
    with pytest.raises(CheckpointError, match="write its `backbone` alone.*a VideoMAEBackbone$"):
        export_hugging_face(model, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
