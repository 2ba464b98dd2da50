"""Pictures of what a model attends to."""

import cv2
import numpy as np
import pytest

from keras_vjepa.monitoring.pictures import draw_attention

pytestmark = pytest.mark.data


def test_frames_are_light_where_they_are_attended_to(tmp_path):
    weights = np.zeros((2, 2, 2))
    weights[0, 0, 1], weights[1, 1, 0] = 0.1, 0.05
    clip = np.full((4, 16, 16, 3), -2.0)
    clip[..., 0] = 2.0  # red
    draw_attention(weights, clip, tmp_path / "attention.png")
    image = cv2.imread(str(tmp_path / "attention.png"))
    assert image.shape == (16, 32, 3)
    red = np.full((16, 32), 51)  # a fifth
    red[:8, 8:16], red[8:, 16:24] = 255, 153
    np.testing.assert_array_equal(image, np.stack([0 * red, 0 * red, red], axis=-1))


def test_weights_that_do_not_fit_are_named(tmp_path):
    clip = np.zeros((4, 16, 16, 3))
    for shape in ((3, 2, 2), (2, 4)):
        with pytest.raises(ValueError, match="`weights` must be .time, rows, columns.*4. Received"):
            draw_attention(np.ones(shape), clip, tmp_path / "attention.png")
    assert not (tmp_path / "attention.png").exists()
