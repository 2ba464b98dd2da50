"""Antialiased resizing against Pillow."""

import numpy as np
import pytest
from PIL import Image

from keras_vjepa.data.transforms.resampling import resize_antialiased

pytestmark = pytest.mark.data

PILLOW = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@pytest.mark.parametrize("kernel", PILLOW)
@pytest.mark.parametrize(
    ("source", "size"),
    [
        ((48, 64), (32, 42)),
        ((17, 13), (40, 31)),
        ((33, 33), (33, 20)),
        ((200, 300), (7, 5)),
        ((1, 1), (4, 4)),
        ((375, 500), (256, 341)),
    ],
)
def test_to_the_bit(source, size, kernel):
    rng = np.random.default_rng(0)
    # Black and white pixels make the bicubic filter exceed [0, 255].
    for levels in (np.arange(256), np.array([0, 255])):
        image = rng.choice(levels, (*source, 3)).astype(np.uint8)
        expected = np.asarray(Image.fromarray(image).resize(size[::-1], PILLOW[kernel]))
        np.testing.assert_array_equal(resize_antialiased(image, size, kernel), expected)


@pytest.mark.parametrize(
    ("size", "kernel", "message"),
    [
        ((0, 4), "bilinear", "`size` must be at least 1 x 1. Received: (0, 4)"),
        ((4, 4), "box", '`kernel` must be "bilinear" or "bicubic". Received: \'box\''),
    ],
)
def test_bad_arguments_are_named(size, kernel, message):
    with pytest.raises(ValueError) as caught:
        resize_antialiased(np.zeros((4, 4, 3), np.uint8), size, kernel)
    assert str(caught.value) == message
