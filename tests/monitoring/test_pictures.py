"""Pictures of what a model attends to."""

import cv2
import keras
import numpy as np
import pytest
from keras import ops

from keras_vjepa.monitoring.pictures import draw_attention


@pytest.mark.data
def test_frames_are_light_where_they_are_attended_to(tmp_path):
    weights = np.zeros((2, 2, 2))
    weights[0, 0, 1], weights[1, 1, 0] = 0.1, 0.05
    clip = np.full((4, 16, 16, 3), -2.0)
    clip[..., 0] = 2.0  # the clip is red
    draw_attention(weights, clip, tmp_path / "attention.png")
    image = cv2.imread(str(tmp_path / "attention.png"))
    assert image.shape == (16, 32, 3)
    red = np.full((16, 32), 51)  # a fifth of 255
    red[:8, 8:16], red[8:, 16:24] = 255, 153
    np.testing.assert_array_equal(image, np.stack([0 * red, 0 * red, red], axis=-1))


def test_tensors_as_the_model_gives_them(tmp_path):
    """Those of a model in training have a gradient on torch, and may be in half precision."""
    clip = np.random.default_rng(0).normal(size=(4, 16, 16, 3)).astype("float32")
    weights = keras.Variable(np.linspace(0, 1, 8).reshape(2, 2, 2))
    draw_attention(np.linspace(0, 1, 8).reshape(2, 2, 2), clip, tmp_path / "array.png")
    picture = cv2.imread(str(tmp_path / "array.png"))
    draw_attention(weights.value * 1.0, ops.convert_to_tensor(clip), tmp_path / "tensor.png")
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "tensor.png")), picture)
    draw_attention(ops.cast(weights, "bfloat16"), clip, str(tmp_path / "half.png"))
    halves = cv2.imread(str(tmp_path / "half.png")).astype(int)
    assert np.abs(halves - picture).max() <= 2


@pytest.mark.data
@pytest.mark.parametrize(
    "weights,clip,message",
    [
        (np.ones((3, 2, 2)), (4, 16, 16, 3), "`weights` must be .time, rows, columns.*4. Received"),
        (np.ones((2, 4)), (4, 16, 16, 3), "`weights` must be .*Received shape: .2, 4."),
        (np.ones((0, 2, 2)), (4, 16, 16, 3), "`weights` must be .*Received shape: .0, 2, 2."),
        (np.ones((2, 2, 2)), (1, 4, 16, 16, 3), "`clip` must be .frames, height, width, 3"),
        (np.ones((2, 2, 2)), (4, 16, 16, 1), "`clip` must be .*Received shape: .4, 16, 16, 1"),
        (np.full((2, 2, 2), -1), (4, 16, 16, 3), "must be numbers from 0. Received: -1"),
        (np.full((2, 2, 2), np.nan), (4, 16, 16, 3), "must be numbers from 0. Received: nan"),
    ],
)
def test_what_does_not_fit_is_named(weights, clip, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        draw_attention(weights, np.zeros(clip), tmp_path / "attention.png")
    assert not (tmp_path / "attention.png").exists()
