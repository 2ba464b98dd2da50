"""Read still images (App. D.1: images as clips).

Departures: an image whose EXIF data say that it lies on its side is turned upright, as videos are;
the authors' reader leaves it lying.
"""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from keras_vjepa.data.reading.errors import UnreadableImageError
from keras_vjepa.data.reading.gate import check_file, through_gate
from keras_vjepa.data.reading.image_headers import FORMATS, image_header, with_plain_transparency
from keras_vjepa.data.reading.limits import DEFAULT_LIMITS, ReadingLimits

# Four channels of 16 bits: what is larger than its pixels can fill is not read into memory.
_MOST_BYTES_PER_PIXEL = 8


def read_image(path: str | Path, limits: ReadingLimits = DEFAULT_LIMITS) -> NDArray[np.uint8]:
    """Read an image in 8 bits; grey becomes RGB, transparency is left out.

    Args:
        path: the file, a PNG, JPEG, BMP, WebP, TIFF or GIF image (of a GIF, the first frame).
        limits: time and pixels that it may take; the size in its header is checked first.

    Returns:
        uint8 (height, width, 3), RGB.

    Raises:
        UnreadableImageError: if the file is missing, no image, damaged, or beyond the limits.

    Example:

    >>> read_image("nowhere.jpg")  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
    ...
    UnreadableImageError: Cannot read the image nowhere.jpg: no such file
    """
    action = lambda: _decoded(path, limits)  # noqa: E731
    return through_gate(path, UnreadableImageError, limits.max_file_seconds, action)


def _decoded(path: str | Path, limits: ReadingLimits) -> NDArray[np.uint8]:
    if check_file(path) > _MOST_BYTES_PER_PIXEL * limits.max_frame_pixels:
        raise ValueError(
            f"it is larger than any image of `max_frame_pixels`={limits.max_frame_pixels}"
        )
    content = Path(path).read_bytes()
    header = image_header(content)
    limits.check_size(header.height, header.width)
    stored = np.frombuffer(with_plain_transparency(content), np.uint8)
    image = cv2.imdecode(stored, cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError(f"no image is found in it (damaged, or none of {FORMATS})")
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)
