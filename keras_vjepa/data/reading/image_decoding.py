"""Decode an image that is in memory (App. D.1: images as clips).

Departure: an image that its EXIF data describe as rotated is turned upright, as videos are;
the authors' reader leaves it on its side.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from keras_vjepa.data.reading.image_headers import FORMATS, image_header, with_plain_transparency
from keras_vjepa.data.reading.limits import ReadingLimits

# The bytes of a pixel with four channels of 16 bits. A file with more bytes than its pixels can
# need is not read into memory.
_MOST_BYTES_PER_PIXEL = 8


def check_bytes_of_image(num_bytes: int, limits: ReadingLimits) -> None:
    """Check that an image is no larger than its pixels can be, before it is read into memory.

    Args:
        num_bytes: size of the file.
        limits: pixels that it may have.

    Raises:
        ValueError: if it is larger.
    """
    if num_bytes > _MOST_BYTES_PER_PIXEL * limits.max_frame_pixels:
        raise ValueError(
            f"it is larger than any image of `max_frame_pixels`={limits.max_frame_pixels}"
        )


def decoded_image(content: bytes, limits: ReadingLimits) -> NDArray[np.uint8]:
    """Decode an image in 8 bits; grey becomes RGB, transparency is left out.

    Args:
        content: the bytes of the file.
        limits: pixels that it may have; the size in its header is checked first.

    Returns:
        uint8 (height, width, 3), RGB.

    Raises:
        ValueError: if it is no image, damaged, or beyond the limits.
    """
    header = image_header(content)
    limits.check_size(header.height, header.width)
    stored = np.frombuffer(with_plain_transparency(content), np.uint8)
    image = cv2.imdecode(stored, cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError(f"no image is found in it (damaged, or none of {FORMATS})")
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)
