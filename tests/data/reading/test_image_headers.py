"""Sizes are read from headers as they are, and before anything is decoded."""

import struct

import cv2
import numpy as np
import pytest
from PIL import Image

from keras_vjepa.data.reading.errors import UnreadableImageError
from keras_vjepa.data.reading.image import read_image
from keras_vjepa.data.reading.image_headers import image_header
from keras_vjepa.data.reading.limits import ReadingLimits

pytestmark = pytest.mark.data

RGB = np.random.default_rng(0).integers(256, size=(37, 53, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("a.png", {}),
        ("a.jpg", {"progressive": True, "exif": b"Exif\0\0" + bytes(9000)}),
        ("a.jpeg", {"quality": 50}),
        ("a.bmp", {}),
        ("a.webp", {}),
        ("a.webp", {"lossless": True}),
        ("a.webp", {"exif": b"Exif\0\0" + bytes(50)}),  # the extended header
        ("a.tif", {}),
        ("a.tiff", {"compression": "tiff_lzw"}),
        ("a.tiff", {"big_tiff": True}),
        ("a.gif", {}),
    ],
)
def test_sizes(tmp_path, name, settings):
    Image.fromarray(RGB).save(tmp_path / name, **settings)
    content = (tmp_path / name).read_bytes()
    assert image_header(content)[1:] == (37, 53)
    assert read_image(tmp_path / name).shape == RGB.shape
    # Any shorter content is damaged, or states the same size.
    for length in range(0, len(content), 7):
        try:
            assert image_header(content[:length])[1:] == (37, 53)
        except ValueError as error:
            assert "\n" not in str(error) and ("damaged" in str(error))


def bmp(width, height, header_size=40):
    if header_size == 12:
        rest = struct.pack("<IHHHH", 12, width, height, 1, 24)
    else:
        rest = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 14 + len(rest), 0, 0, 14 + len(rest)) + rest


def png(width, height):
    return b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (bmp(40000, 40000), "40000x40000 pixels are more than `max_frame_pixels`=67108864"),
        (bmp(5, -(2**31) + 1), "5x2147483647 pixels are more than"),
        (bmp(0, 7), "0x7 is no size"),
        (bmp(60000, 60000, 12), "60000x60000 pixels are more than"),
        (png(70000, 70000), "70000x70000 pixels are more than"),
        (png(2000000, 1), "2000000x1 pixels are more than 100 times as long as short"),
        (b"GIF89a" + struct.pack("<HH", 65535, 65535), "65535x65535 pixels are more than"),
        (b"\x00\x00\x00\x18ftypavif" + bytes(90), "no image is found in it"),
    ],
)
def test_claims_are_checked_before_decoding(tmp_path, monkeypatch, content, reason):
    def decode(*arguments):
        raise AssertionError("decoded before its size was checked")

    monkeypatch.setattr(cv2, "imdecode", decode)
    path = tmp_path / "a.bmp"
    path.write_bytes(content)
    with pytest.raises(UnreadableImageError, match=reason):
        read_image(path)


def test_limits_can_be_set(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(RGB).save(path)
    assert read_image(path, ReadingLimits(max_frame_pixels=37 * 53)).shape == RGB.shape
    with pytest.raises(UnreadableImageError, match="53x37 pixels are more than .*=1960"):
        read_image(path, ReadingLimits(max_frame_pixels=37 * 53 - 1))
    # Files whose header is not understood are limited too.
    path.write_bytes(bytes(1000))
    with pytest.raises(
        UnreadableImageError, match="larger than any image of `max_frame_pixels`=100"
    ):
        read_image(path, ReadingLimits(max_frame_pixels=100))


def test_the_larger_of_two_sizes_counts():
    """A decoder could take either."""
    entries = [(256, 3, 1, 10), (257, 3, 1, 10), (257, 4, 1, 5000)]
    content = b"II*\0" + struct.pack("<IH", 8, len(entries))
    content += b"".join(struct.pack("<HHII", *entry) for entry in entries)
    assert image_header(content) == ("TIFF", 5000, 10)
