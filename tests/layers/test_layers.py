"""Layers and position tables."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_vjepa.backend import token_ops
from keras_vjepa.backend.attention import token_order
from keras_vjepa.backend.token_ops import gelu, linear, merge_heads, normalize, split_heads
from keras_vjepa.layers import transformer
from keras_vjepa.layers.embedding import TubeletEmbedding, gather_tokens
from keras_vjepa.layers.hiera_block import HieraBlock
from keras_vjepa.layers.pooling import AttentivePooler
from keras_vjepa.layers.positions import position_table, resample_position_table
from keras_vjepa.layers.transformer import (
    SelfAttention,
    TransformerBlock,
    apply_blocks,
    transformer_blocks,
)
from keras_vjepa.layers.vision_block import VisionBlock
from tests.support import golden


def numpy(x):
    return ops.convert_to_numpy(x)


def table_names():
    names = golden("pos_embed.npz").files
    return [name for name in names if not name.endswith("rowidx")]


def parsed(name):
    """Grid, width and kind of a table, from its name in pos_embed.npz."""
    parts = dict.fromkeys(name.split("_"))
    number = {
        p.rstrip("0123456789"): int(p.lstrip("abcdefghijklmnopqrstuvwxyz"))
        for p in parts
        if p[-1].isdigit() and p[0].isalpha()
    }
    uniform = "nonuniform" not in parts
    if "len" in number:
        return (number["len"],), number["dim"], uniform
    if "depth" in number:
        return (number["depth"], number["grid"], number["grid"]), number["dim"], uniform
    return (number["grid"], number["grid"]), number["dim"], uniform


@pytest.mark.parametrize("name", table_names())
def test_position_table_equals_the_reference(name):
    arrays = golden("pos_embed.npz")
    grid, dim, uniform = parsed(name)
    table = position_table(dim, grid, uniform)
    if name + "_rowidx" in arrays:
        table = table[arrays[name + "_rowidx"]]
    assert table.dtype == np.float32
    assert np.abs(table - arrays[name]).max() <= 1e-6


def test_position_table_rejects_a_width_it_cannot_split():
    with pytest.raises(ValueError, match="`hidden_dim` must be a multiple of 8 for a 3-D"):
        position_table(12, (2, 2, 2), uniform_power=False)


@pytest.mark.parametrize(
    "size,grid",
    [
        ("8x96x96", (4, 6, 6)),
        ("16x64x64", (8, 4, 4)),
        ("8x64x96", (4, 4, 6)),
        ("4x48x80", (2, 3, 5)),
    ],
)
def test_trilinear_resampling_equals_the_reference(size, grid):
    table = resample_position_table(
        ops.convert_to_tensor(position_table(72, (4, 4, 4))), (4, 4, 4), grid
    )
    expected = golden("interp.npz")[f"pos_embed_{size}"][0]
    assert np.abs(numpy(table) - expected).max() <= 2e-6


@pytest.mark.parametrize("side", [6, 8])
def test_bicubic_resampling_equals_the_reference(side):
    arrays = golden("interp.npz")
    table = ops.convert_to_tensor(arrays["image_model_pos_embed"][0])
    resampled = resample_position_table(table, (4, 4), (side, side))
    expected = arrays[f"image_model_pos_embed_bicubic_{16 * side}x{16 * side}"][0]
    assert np.abs(numpy(resampled) - expected).max() <= 2e-6


def test_gather_tokens_equals_numpy():
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(3, 7, 5)).astype("float32")
    indices = rng.integers(7, size=(3, 4)).astype("int32")
    expected = np.take_along_axis(tokens, indices[:, :, None], axis=1)
    np.testing.assert_array_equal(numpy(gather_tokens(tokens, indices)), expected)


def test_tubelet_embedding_is_a_strided_convolution():
    rng = np.random.default_rng(0)
    videos = rng.normal(size=(2, 4, 8, 12, 3)).astype("float32")
    layer = TubeletEmbedding(5, patch_size=4, tubelet_size=2)
    layer.build(videos.shape)
    layer.bias.assign(rng.normal(size=5))
    expected = ops.conv(videos, layer.kernel, strides=(2, 4, 4), padding="valid") + layer.bias
    expected = numpy(expected).reshape(2, -1, 5)
    np.testing.assert_allclose(numpy(layer(videos)), expected, atol=1e-5)
    indices = np.array([[3, 0], [11, 5]], "int32")
    picked = np.take_along_axis(expected, indices[:, :, None], axis=1)
    np.testing.assert_allclose(numpy(layer(videos, indices)), picked, atol=1e-5)


@pytest.mark.parametrize(
    "shape,name",
    [
        ((1, 3, 16, 16, 3), "num_frames"),
        ((1, 2, 15, 16, 3), "height"),
        ((1, 2, 16, 40, 3), "width"),
    ],
)
def test_sizes_that_do_not_divide_are_named(shape, name):
    with pytest.raises(ValueError, match=f"`{name}` must be a multiple of"):
        TubeletEmbedding(4)(np.zeros(shape, "float32"))


def test_heads_that_do_not_divide_are_named():
    with pytest.raises(ValueError, match="must be a multiple of `num_heads`=3"):
        SelfAttention(num_heads=3).build((None, None, 8))


def test_padded_keys_do_not_matter():
    rng = np.random.default_rng(0)
    block = TransformerBlock(num_heads=2, mlp_dim=16)
    short = rng.normal(size=(1, 5, 8)).astype("float32")
    padded = np.concatenate([short, 100 * rng.normal(size=(1, 3, 8))], axis=1).astype("float32")
    mask = np.arange(8)[None] < 5
    expected, actual = numpy(block(short)), numpy(block(padded, mask))[:, :5]
    np.testing.assert_allclose(actual, expected, atol=1e-6)
    assert np.abs(numpy(block(padded))[:, :5] - expected).max() > 1e-4


LAYERS = {
    "tubelet_embedding": (lambda **k: TubeletEmbedding(12, 4, 2, **k), (2, 4, 8, 8, 3)),
    "self_attention": (lambda **k: SelfAttention(2, **k), (2, 6, 8)),
    "transformer_block": (lambda **k: TransformerBlock(2, 24, 1e-5, **k), (2, 6, 8)),
    "vision_block": (
        lambda **k: VisionBlock(2, 24, 1e-5, "swiglu", False, True, **k),
        (2, 6, 8),
    ),
    "hiera_block": (lambda **k: HieraBlock(16, 2, 2, True, **k), (2, 32, 8)),
    "patches_without_bias": (lambda **k: TubeletEmbedding(12, 4, 1, False, **k), (2, 1, 8, 8, 3)),
    "attentive_pooler": (lambda **k: AttentivePooler(2, num_layers=3, **k), (2, 6, 8)),
}


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("num_rotations", [0, 1, 2])
def test_blocks_may_take_tokens_in_another_order(num_rotations, remat, monkeypatch):
    """Where a kernel skips keys that come last, they are brought there, and back."""
    rng = np.random.default_rng(0)
    tokens = ops.convert_to_tensor(rng.normal(size=(2, 7, 24)).astype("float32"))
    mask = np.array([[False, True, True, False, True, False, True], [True] * 5 + [False, True]])
    rotations = None
    if num_rotations:
        rotations = ops.convert_to_tensor(rng.normal(size=(num_rotations, 7, 24)).astype("float32"))
    policy = keras.config.dtype_policy()
    blocks = transformer_blocks(2, 24, 2, 48, 1e-6, policy)
    arguments = blocks, tokens, ops.convert_to_tensor(mask), rotations, remat
    expected = ops.convert_to_numpy(apply_blocks(*arguments))
    orders = []
    monkeypatch.setattr(transformer, "wants_leading_keys", lambda *_: True)
    monkeypatch.setattr(transformer, "token_order", lambda m: orders.append(m) or token_order(m))
    actual = ops.convert_to_numpy(apply_blocks(*arguments))
    assert len(orders) == 1
    np.testing.assert_allclose(actual[mask], expected[mask], atol=2e-6)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_layer_round_trip(name, dtype, tmp_path):
    """Config, symbolic shape, precision, saving and loading of every layer."""
    make, shape = LAYERS[name]
    inputs = np.random.default_rng(0).normal(size=shape).astype("float32")
    layer = make(dtype=dtype)
    outputs = layer(inputs)
    assert keras.backend.standardize_dtype(outputs.dtype) == layer.compute_dtype
    assert all(v.dtype == "float32" for v in layer.variables)
    symbolic = layer(keras.KerasTensor((None, *shape[1:])))
    assert symbolic.shape == (None, *outputs.shape[1:])

    copy = type(layer).from_config(layer.get_config())
    assert copy.get_config() == layer.get_config()
    model = keras.Sequential([keras.Input(shape[1:]), layer])
    model.save(tmp_path / "model.keras")
    restored = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(
        numpy(ops.cast(restored(inputs), "float32")), numpy(ops.cast(outputs, "float32"))
    )


@pytest.mark.parametrize("accelerated", [False, True])
@pytest.mark.parametrize("dtype,bound", [("float32", 1e-6), ("bfloat16", 0.02)])
def test_gelu_equals_keras_own(dtype, bound, accelerated, monkeypatch):
    """In value and type, whatever form a backend is given."""
    monkeypatch.setattr(token_ops, "has_accelerator", lambda: accelerated)
    x = ops.cast(np.linspace(-6, 6, 241, dtype="float32"), dtype)
    actual, expected = gelu(x), ops.gelu(ops.cast(x, "float32"), approximate=False)
    assert keras.backend.standardize_dtype(actual.dtype) == dtype
    difference = ops.subtract(ops.cast(actual, "float32"), expected)
    assert float(ops.max(ops.abs(difference))) <= bound


def test_linear_equals_numpy():
    rng = np.random.default_rng(0)
    tokens, kernel, bias = (rng.normal(size=s).astype("float32") for s in [(2, 3, 4), (4, 5), (5,)])
    for shape in [(2, 3, 4), (6, 4)]:
        actual = numpy(linear(*map(ops.convert_to_tensor, (tokens.reshape(shape), kernel, bias))))
        expected = tokens.reshape(shape) @ kernel + bias
        np.testing.assert_allclose(actual, expected, atol=1e-6)


@pytest.mark.parametrize("dtype,bound", [("float32", 1e-5), ("bfloat16", 0.02)])
def test_normalize_equals_numpy(dtype, bound):
    """Also far from zero, where statistics in half precision would be lost."""
    rng = np.random.default_rng(0)
    tokens = (rng.normal(size=(2, 3, 512)) + 20.0).astype("float32")
    tokens = numpy(ops.cast(ops.cast(tokens, dtype), "float32"))
    gamma, beta = rng.integers(1, 4, size=(2, 512)).astype("float32")
    actual = normalize(*(ops.cast(x, dtype) for x in (tokens, gamma, beta)), 1e-6)
    assert keras.backend.standardize_dtype(actual.dtype) == dtype
    centered = tokens.astype("float64") - tokens.mean(-1, keepdims=True, dtype="float64")
    expected = centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-6) * gamma + beta
    error = np.abs(numpy(ops.cast(actual, "float32")) - expected) / (1.0 + np.abs(expected))
    assert error.max() <= bound


def test_heads_are_split_as_the_reference_packs_them():
    packed = np.arange(2 * 3 * 24).reshape(2, 3, 24).astype("float32")
    parts = split_heads(ops.convert_to_tensor(packed), num_heads=2)
    for part, expected in zip(parts, np.split(packed, 3, axis=-1), strict=True):
        assert tuple(part.shape) == (2, 3, 2, 4)
        np.testing.assert_array_equal(numpy(merge_heads(part)), expected)
