"""Backbone and predictor: sizes, shapes, other inputs, saving."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_vjepa import VJEPABackbone, VJEPAPredictor
from keras_vjepa.models.backbone import SIZES
from tests.support import channels_last, golden


def numpy(x):
    return ops.convert_to_numpy(x)


def small_backbone(**arguments):
    defaults = {"image_size": 32, "num_frames": 4, "hidden_dim": 24, "num_layers": 2}
    return VJEPABackbone(**{**defaults, "num_heads": 2, **arguments})


def videos(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


@pytest.mark.parametrize("size", ["8x96x96", "4x48x80"])
def test_other_sizes_equal_the_reference(tiny_pretrainer, size):
    arrays = golden("interp.npz")
    features = tiny_pretrainer.target_encoder(channels_last(arrays[f"input_{size}"]))
    assert np.abs(numpy(features) - arrays[f"features_{size}"]).max() <= 2e-5


def test_fresh_positions_are_those_of_a_backbone_of_that_size():
    stretched = small_backbone()
    fresh = small_backbone(position_mode="fresh")
    fresh.set_weights(stretched.get_weights())
    large = small_backbone(image_size=48)
    for target, source in zip(large.trainable_variables, fresh.trainable_variables, strict=True):
        target.assign(source)
    clips = videos(1, 4, 48, 48, 3)
    np.testing.assert_allclose(numpy(fresh(clips)), numpy(large(clips)), atol=1e-5)
    assert np.abs(numpy(stretched(clips)) - numpy(large(clips))).max() > 1e-3


@pytest.mark.parametrize(
    "arguments,shape,tokens",
    [
        ({}, (2, 4, 32, 32, 3), 8),
        ({"image_size": (32, 48)}, (2, 4, 32, 48, 3), 12),
        ({"patch_size": 8, "tubelet_size": 4}, (1, 4, 32, 32, 3), 16),
        ({"num_channels": 1}, (1, 4, 32, 32, 1), 8),
        ({"num_frames": 1}, (1, 1, 32, 32, 3), 4),
        ({"num_frames": 1}, (1, 32, 32, 3), 4),
        ({"num_frames": 1}, (1, 64, 64, 3), 16),
        ({"mlp_ratio": 48 / 11, "uniform_power": False}, (1, 8, 32, 32, 3), 16),
    ],
)
def test_shapes(arguments, shape, tokens):
    backbone = small_backbone(**arguments)
    outputs = backbone(videos(*shape))
    assert tuple(outputs.shape) == (shape[0], tokens, 24)
    symbolic = backbone(keras.KerasTensor((None, *shape[1:])))
    assert symbolic.shape == (None, tokens, 24)


def test_masked_tokens_are_those_of_a_shorter_clip():
    """Encoding only the first tubelet's tokens is encoding the tokens, not the clip's features."""
    backbone = small_backbone()
    clips = videos(1, 4, 32, 32, 3)
    masked = numpy(backbone(clips, np.arange(4, dtype="int32")[None]))
    assert masked.shape == (1, 4, 24)
    assert np.abs(masked - numpy(backbone(clips))[:, :4]).max() > 1e-4
    short = small_backbone(num_frames=2, position_mode="fresh")
    for target, source in zip(short.trainable_variables, backbone.trainable_variables, strict=True):
        target.assign(source)
    np.testing.assert_allclose(masked, numpy(short(clips[:, :2])), atol=1e-5)


def test_intermediate_features():
    backbone = small_backbone()
    clips = videos(1, 4, 32, 32, 3)
    last, first = backbone.intermediate_features(clips, [1, 0])
    np.testing.assert_allclose(numpy(last), numpy(backbone(clips)), atol=1e-6)
    expected = backbone.norm(backbone.blocks[0](backbone.embed(clips)))
    np.testing.assert_allclose(numpy(first), numpy(expected), atol=1e-6)
    again, raw = backbone.intermediate_features(clips, [-2, -1], norm=False)
    np.testing.assert_allclose(numpy(backbone.norm(again)), numpy(first), atol=1e-6)
    assert np.abs(numpy(raw) - numpy(last)).max() > 1e-2
    for wrong in ([2], [0, -3]):
        with pytest.raises(ValueError, match="`layers` must be between -2 and 1. Received"):
            backbone.intermediate_features(clips, wrong)
    with pytest.raises(ValueError, match="`videos` must be normalised floats"):
        backbone.intermediate_features((clips * 255).astype("uint8"), [0])


@pytest.mark.parametrize("size", SIZES)
def test_named_sizes(size):
    backbone = VJEPABackbone.from_size(size, image_size=16, num_frames=2, num_layers=1)
    expected = SIZES[size]
    assert backbone.hidden_dim == expected.hidden_dim
    mlp_dim = backbone.blocks[0].mlp_hidden.units
    of_giants = {"giant": 6144, "giant_xformers": 6144, "gigantic": 8192}
    assert mlp_dim == of_giants.get(size, 4 * expected.hidden_dim)


def test_large_has_the_published_number_of_parameters():
    """303,885,312 trained and 1,605,632 in the table (official-behaviour §10)."""
    size = SIZES["large"]
    one, two = (
        VJEPABackbone.from_size("large", num_layers=n).count_params() - 1_605_632 for n in (1, 2)
    )
    assert one + (size.num_layers - 1) * (two - one) == 303_885_312


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"image_size": 33}, "`image_size` must be a multiple of `patch_size`=16. Received: 33"),
        ({"num_frames": 5}, "`num_frames` must be a multiple of `tubelet_size`=2. Received: 5"),
        ({"num_heads": 5}, "must be a multiple of `num_heads`=5"),
        ({"position_mode": "none"}, "`position_mode` must be 'resample' or 'fresh'"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        small_backbone(**arguments)


def test_wrong_videos_are_named():
    with pytest.raises(ValueError, match="`videos` must be"):
        small_backbone()(videos(1, 4, 32, 32, 1))
    with pytest.raises(ValueError, match="`size` must be one of tiny"):
        VJEPABackbone.from_size("enormous")


def small_predictor(**arguments):
    return VJEPAPredictor(24, (2, 2, 2), hidden_dim=12, num_layers=1, num_heads=2, **arguments)


@pytest.mark.parametrize("make", [small_backbone, small_predictor])
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_model_round_trip(make, dtype, tmp_path):
    model = make(dtype=dtype)
    inputs = [videos(1, 4, 32, 32, 3)]
    if make is small_predictor:
        inputs = [videos(1, 3, 24), np.array([[0, 1, 2]]), np.array([[5, 6, 7]])]
    outputs = model(*inputs)
    assert keras.backend.standardize_dtype(outputs.dtype) == model.compute_dtype
    assert type(model).from_config(model.get_config()).get_config() == model.get_config()
    model.save(tmp_path / "model.keras")
    restored = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(
        numpy(ops.cast(restored(*inputs), "float32")), numpy(ops.cast(outputs, "float32"))
    )


def test_symbolic_shape_of_predictor():
    indices = keras.KerasTensor((None, 3), "int32"), keras.KerasTensor((None, 4), "int32")
    assert small_predictor()(keras.KerasTensor((None, 3, 24)), *indices).shape == (None, 4, 24)


def test_mask_tokens_differ_by_kind_of_mask():
    predictor = small_predictor()
    for i, token in enumerate(predictor.mask_tokens):
        assert not numpy(token).any()
        token.assign(videos(*token.shape, seed=i))
    arguments = (videos(1, 3, 24), np.array([[0, 1, 2]]), np.array([[5, 6, 7]]))
    outputs = [numpy(predictor(*arguments, mask_index=i)) for i in range(3)]
    assert np.abs(outputs[0] - outputs[1]).max() > 1e-3
    np.testing.assert_array_equal(outputs[0], outputs[2])


def test_initial_weights_are_normal_at_every_depth():
    """Deviation 0.02 without depth scaling (official-behaviour §2)."""
    backbone = small_backbone(hidden_dim=96, num_layers=3)
    for block in backbone.blocks:
        for kernel in (block.mlp_output.kernel, block.attention.output_projection.kernel):
            assert np.std(numpy(kernel)) == pytest.approx(0.02, rel=0.05)
    assert np.abs(numpy(backbone.blocks[0].mlp_hidden.kernel)).max() > 0.06
