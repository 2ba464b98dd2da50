"""Images of several kinds, and files that are none."""

import cv2
import numpy as np
import pytest
from PIL import Image

from keras_vjepa.data.reading.errors import UnreadableImageError, UnreadableVideoError
from keras_vjepa.data.reading.image import read_image
from keras_vjepa.data.reading.image_headers import with_plain_transparency

pytestmark = pytest.mark.data

RGB = np.random.default_rng(0).integers(256, size=(6, 9, 3), dtype=np.uint8)


@pytest.mark.parametrize("extension", ["png", "bmp", "tif"])
def test_lossless_formats(tmp_path, extension):
    path = tmp_path / f"ü 1.{extension}"
    Image.fromarray(RGB).save(path)
    image = read_image(path)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, RGB)


def test_jpeg_as_pillow_decodes_it(tmp_path):
    smooth = cv2.resize(RGB, (90, 60), interpolation=cv2.INTER_CUBIC)
    Image.fromarray(smooth).save(tmp_path / "a.jpg", quality=90)
    theirs = np.asarray(Image.open(tmp_path / "a.jpg").convert("RGB")).astype(int)
    # The pixels are the same up to the rounding of two builds of one codec.
    assert np.abs(read_image(tmp_path / "a.jpg") - theirs).max() <= 2


def test_grey_and_transparent(tmp_path):
    Image.fromarray(RGB[..., 0]).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), RGB[..., :1].repeat(3, -1))
    Image.fromarray(RGB).convert("RGBA").save(tmp_path / "alpha.png")
    np.testing.assert_array_equal(read_image(tmp_path / "alpha.png"), RGB)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_deflate"])
@pytest.mark.parametrize("big", [False, True])
def test_colours_of_a_transparent_tiff_are_not_multiplied(tmp_path, compression, big):
    """Its tag says that they have not been; libtiff would."""
    alpha = np.random.default_rng(1).integers(256, size=(*RGB.shape[:2], 1), dtype=np.uint8)
    image = Image.fromarray(np.concatenate([RGB, alpha], axis=2))
    image.save(tmp_path / "a.tif", compression=compression, big_tiff=big)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), RGB)
    png = tmp_path / "a.png"
    image.save(png)
    assert with_plain_transparency(png.read_bytes()) == png.read_bytes()


def test_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the picture must be turned clockwise by 90 degrees
    Image.fromarray(np.full((40, 80, 3), 128, np.uint8)).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").shape == (80, 40, 3)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "no such file"), (b"", "the file is empty"), (b"text", "no image is found in it")],
)
def test_unreadable(tmp_path, content, reason):
    path = tmp_path / "a.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UnreadableImageError, match=f"Cannot read the image .*a.png: {reason}"):
        read_image(path)
    assert issubclass(UnreadableImageError, UnreadableVideoError)


def test_a_folder_is_no_image(tmp_path):
    with pytest.raises(UnreadableImageError, match="it is a folder, not a file"):
        read_image(tmp_path)
