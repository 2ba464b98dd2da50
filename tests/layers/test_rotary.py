"""Rotary positions: the rotation, and the networks that have it (V-JEPA 2)."""

import math

import keras
import numpy as np
import pytest
from keras import ops

from keras_vjepa import VJEPABackbone, VJEPAPredictor, VJEPAPretrainer
from keras_vjepa.layers.rotary import make_rotations, rotate
from tests.gradients import loss_and_gradients
from tests.support import compiled, random_batch, slow_but_on


def numpy(x):
    return ops.convert_to_numpy(x)


@pytest.mark.parametrize("head_dim,grid", [(64, (2, 3, 4)), (80, (3, 2, 2)), (8, (2, 2, 1))])
def test_rotation_channel_by_channel(head_dim, grid):
    """Straight from official-behaviour §12: pairs are adjacent, frequencies are tiled."""
    rng = np.random.default_rng(0)
    tokens = [
        (time, row, column)
        for time in range(grid[0])
        for row in range(grid[1])
        for column in range(grid[2])
    ]
    heads = rng.normal(size=(1, len(tokens), 3, head_dim)).astype("float32")
    expected, width = heads.copy(), 2 * ((head_dim // 3) // 2)
    for n, position in enumerate(tokens):
        for axis in range(3):
            for channel in range(width):
                theta = position[axis] / 10000 ** ((channel % (width // 2)) / (width / 2))
                i = axis * width + channel
                partner = -heads[0, n, :, i + 1] if channel % 2 == 0 else heads[0, n, :, i - 1]
                expected[0, n, :, i] = heads[0, n, :, i] * math.cos(theta) + partner * math.sin(
                    theta
                )
    rotations = make_rotations(np.arange(len(tokens))[None], grid, head_dim)
    assert np.abs(numpy(rotate(ops.convert_to_tensor(heads), rotations)) - expected).max() <= 1e-6
    np.testing.assert_array_equal(expected[..., 3 * width :], heads[..., 3 * width :])


class RotatedWeight(keras.layers.Layer):
    """Rotates a weight of its own."""

    def build(self, _):
        self.heads = self.add_weight(name="heads", shape=(1, 8, 1, 8), initializer="normal")

    def call(self, rotations):
        return rotate(ops.convert_to_tensor(self.heads), rotations)


def test_gradients_turn_back():
    """A rotation is a product with an orthogonal matrix; its gradient, with the transposed one."""
    rotations = numpy(make_rotations(np.arange(8)[None], (2, 2, 2), 8))
    layer = RotatedWeight()
    layer.build(None)
    _, [gradient], _ = loss_and_gradients(layer, ops.convert_to_tensor(rotations))
    weight = numpy(layer.heads)
    upstream = 2 * (numpy(rotate(ops.convert_to_tensor(weight), rotations)) - 0.3) / weight.size
    back = np.concatenate([rotations[..., :8], -rotations[..., 8:]], axis=-1)
    expected = numpy(rotate(ops.convert_to_tensor(upstream), back))
    np.testing.assert_allclose(gradient, expected, atol=1e-7)


def rotary_backbone(**arguments):
    defaults = {"image_size": 32, "num_frames": 4, "hidden_dim": 24, "num_layers": 2}
    return VJEPABackbone(
        **{**defaults, "num_heads": 2, "position_embedding": "rotary", **arguments}
    )


def rotary_pretrainer(**arguments):
    encoder = rotary_backbone(**arguments)
    predictor = VJEPAPredictor(
        24, encoder.position_axes, 12, 1, 1, position_embedding="rotary", num_mask_tokens=2
    )
    return VJEPAPretrainer(encoder, predictor)


def test_no_table_is_stored():
    paths = [variable.path for variable in rotary_pretrainer().variables]
    assert not any("position_table" in path for path in paths)


def test_positions_of_clips_of_another_size():
    """In its own grid a clip has the positions of a backbone of that size."""
    made_for_it, other = rotary_backbone(image_size=(16, 48)), rotary_backbone()
    by_index = rotary_backbone(position_mode="index")
    for model in (made_for_it, by_index):
        model.set_weights([5 * w for w in other.get_weights()])
    other.set_weights(made_for_it.get_weights())
    clips = np.random.default_rng(0).normal(size=(1, 4, 16, 48, 3)).astype("float32")
    expected = numpy(made_for_it(clips))
    np.testing.assert_allclose(numpy(other(clips)), expected, atol=1e-5)
    assert np.abs(numpy(by_index(clips)) - expected).max() > 1e-4


def test_images():
    backbone = rotary_backbone(num_frames=1)
    image = np.random.default_rng(0).normal(size=(1, 32, 32, 3)).astype("float32")
    np.testing.assert_allclose(numpy(backbone(image)), numpy(backbone(image[:, None])), atol=1e-6)
    assert backbone(keras.KerasTensor((None, 32, 32, 3))).shape == (None, 4, 24)


@slow_but_on("torch")
def test_training_and_preset(tmp_path):
    pretrainer = rotary_pretrainer()
    pretrainer.compile(keras.optimizers.Adam(1e-2))
    batch = random_batch(0, pretrainer)
    batch["target_indices_0"][0, -1] = -1
    before = pretrainer.get_weights()
    losses = pretrainer.fit(batch, batch_size=2, epochs=12, verbose=0).history["step_loss"]
    assert np.isfinite(losses).all() and losses[-1] < 0.95 * losses[0]
    changed = [
        (new != old).any() for new, old in zip(pretrainer.get_weights(), before, strict=True)
    ]
    assert all(changed)

    pretrainer.save_to_preset(tmp_path / "preset")
    restored = VJEPAPretrainer.from_preset(tmp_path / "preset")
    assert restored.predictor.position_embedding == "rotary"
    outputs = [numpy(compiled(model)(batch)) for model in (restored, pretrainer)]
    np.testing.assert_array_equal(*outputs)


def test_mixed_precision_stays_half():
    outputs = rotary_backbone(dtype="mixed_bfloat16")(np.zeros((1, 4, 32, 32, 3), "float32"))
    assert keras.backend.standardize_dtype(outputs.dtype) == "bfloat16"


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"position_embedding": "rope"}, "`position_embedding` must be 'sincos', 'rotary' or"),
        ({"position_mode": "resample"}, "`position_mode` must be 'fresh' or 'index' for"),
        (
            {"position_embedding": "sincos", "position_mode": "index"},
            "`position_mode` must be 'resample' or 'fresh' for",
        ),
        ({"hidden_dim": 18}, "`hidden_dim` must give each of `num_heads`=2 an even width"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        rotary_backbone(**arguments)
    if "position_mode" not in arguments:
        own = {"position_embedding": "rotary", "hidden_dim": 24, "num_heads": 2, **arguments}
        with pytest.raises(ValueError, match=message):
            VJEPAPredictor(24, (2, 2, 2), **own)
