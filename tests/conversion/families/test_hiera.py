"""Hiera's official files give what the official code made of them, in both architectures."""

import numpy as np
import pytest
from keras import ops

from keras_vjepa.conversion import CheckpointError, convert, export_checkpoint
from keras_vjepa.conversion.families.official import find_family
from keras_vjepa.layers.hiera_block import hiera_order
from keras_vjepa.models import HieraBackbone
from tests.conversion.families.golden_cases import EPSILON_TOLERANCE, SHARED, TOLERANCE
from tests.support import slow_but_on

SMALL = {"image_size": 32, "num_frames": 2, "embed_dim": 4, "embed_heads": 1}
FOLDER = SHARED / "hiera"
needs_golden = pytest.mark.skipif(
    not SHARED.is_dir(), reason="the project's shared/reference is not there"
)


def compare(found, name, actual):
    expected = found[name]
    bound = EPSILON_TOLERANCE if name.startswith("epsilon") else TOLERANCE
    actual = ops.convert_to_numpy(actual)
    assert actual.shape == expected.shape, name
    assert np.abs(actual - expected).max() <= bound, name


@needs_golden
@slow_but_on("torch")
def test_a_masked_autoencoder_of_clips():
    found = np.load(FOLDER / "golden.npz")
    clip, tiny = (np.moveaxis(found[name], 1, -1) for name in ("clip", "epsilon_clip"))
    backbone = convert(FOLDER / "mae_video.pth", num_heads=1, image_size=(32, 64))
    compare(found, "clip_tokens", backbone.embed(clip))
    blocks = [*backbone.block_outputs(clip)]
    compare(found, "clip_block_1", blocks[0])
    compare(found, "clip_first_block_of_stage_2", blocks[2])
    compare(found, "clip_last_block", blocks[-1])
    for number, stage in enumerate(backbone.stage_outputs(clip)[1:], start=2):
        compare(found, f"clip_stage_{number}", stage)
    compare(found, "clip_fused", backbone(clip))
    compare(found, "epsilon_block_1", next(backbone.block_outputs(tiny)))
    [last] = backbone.intermediate_features(clip, [-1])
    compare(found, "clip_stage_4", last)
    with_three = convert(FOLDER / "mae_video.pth", num_heads=1, image_size=(32, 64), num_pools=3)
    compare(found, "clip_three_pools_stage_4", with_three(clip))


@needs_golden
@slow_but_on("torch")
def test_a_fine_tuned_model_of_images():
    found = np.load(FOLDER / "golden.npz")
    image = np.moveaxis(found["image"], 1, -1)
    classifier = convert(FOLDER / "finetuned_image.pth", num_heads=1, image_size=(64, 96))
    backbone = classifier.backbone
    compare(found, "image_tokens", backbone.embed(image))
    compare(found, "image_block_1", next(backbone.block_outputs(image)))
    for number, stage in enumerate(backbone.stage_outputs(image)[1:], start=2):
        compare(found, f"image_stage_{number}", stage)
    compare(found, "image_norm_tokens", backbone(image))
    pooled = classifier.probe.norm(ops.mean(backbone(image, norm=False), axis=1))
    compare(found, "image_pooled", pooled)
    logits = classifier(image)
    compare(found, "image_logits", logits)
    compare(found, "image_probabilities", ops.softmax(logits))


@pytest.mark.data
@pytest.mark.parametrize("fusion", [False, True])
def test_what_is_written_is_found_and_read(fusion, tmp_path):
    kind = {"num_pools": 2, "fusion": True, "features": "fused"} if fusion else {"final_norm": True}
    backbone = HieraBackbone(**SMALL, depths=(1, 2, 1, 1), **kind)
    path = tmp_path / "hiera.pth"
    export_checkpoint(backbone, path)
    assert find_family(path) == "hiera"
    again = convert(path, num_heads=1)
    assert all(map(np.array_equal, again.get_weights(), backbone.get_weights()))
    assert again.get_config() == {**backbone.get_config(), "name": again.name}
    backbone.save_to_preset(tmp_path / "preset")
    loaded = HieraBackbone.from_preset(tmp_path / "preset")
    assert all(map(np.array_equal, loaded.get_weights(), backbone.get_weights()))
    assert HieraBackbone.number_of_weights(**backbone.get_config()) == backbone.count_params()
    images = HieraBackbone(32, 1, embed_dim=4, embed_heads=1, depths=(1, 1, 1, 1), final_norm=True)
    export_checkpoint(images, tmp_path / "images.pth")
    assert find_family(tmp_path / "images.pth") == "hiera"
    with pytest.raises(CheckpointError, match="`image_size` must have 64 patches"):
        convert(path, num_heads=1, image_size=(32, 64))


@pytest.mark.data
def test_released_sizes_have_the_published_numbers_of_weights():
    for size, number in (("base", 50_783_424), ("large", 212_628_096), ("huge", 670_803_968)):
        arguments = HieraBackbone.arguments_of_size(size)
        assert HieraBackbone.number_of_weights(**arguments) == number


@pytest.mark.data
def test_order_of_the_last_stage_with_two_pools():
    """As measured on the official code: a (2, 2, 4) map comes in this order."""
    assert hiera_order((2, 2, 4), 1).tolist()[:8] == [0, 2, 8, 10, 1, 3, 9, 11]
    assert hiera_order((2, 8, 16), 0).tolist() == list(range(256))


@pytest.mark.data
def test_other_sizes_are_refused():
    backbone = HieraBackbone(**SMALL, depths=(1, 1, 1, 1))
    with pytest.raises(ValueError, match="the one size of this model"):
        backbone(np.zeros((1, 4, 32, 32, 3), "float32"))
    for wrong, name in (({"image_size": 48}, "image_size"), ({"num_frames": 3}, "num_frames")):
        with pytest.raises(ValueError, match=f"`{name}`"):
            HieraBackbone(**{**SMALL, **wrong})
    with pytest.raises(ValueError, match="`features` must be 'last'"):
        HieraBackbone(**SMALL, features="fused")
