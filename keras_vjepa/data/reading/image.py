"""Read still images (App. D.1: images as clips).

Departures: an image whose EXIF data say that it lies on its side is turned upright, as videos are;
the authors' reader leaves it lying.
"""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from keras_vjepa.data.reading.errors import UnreadableImageError


def read_image(path: str | Path) -> NDArray[np.uint8]:
    """Read an image in 8 bits; grey becomes RGB, transparency is left out.

    Args:
        path: the file, of any format that OpenCV reads.

    Returns:
        uint8 (height, width, 3), RGB.

    Raises:
        UnreadableImageError: if the file is missing or no image.

    Example:

    >>> read_image("nowhere.jpg")  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
    ...
    UnreadableImageError: Cannot read the image nowhere.jpg: no such file
    """
    try:
        content = np.fromfile(path, np.uint8)
    except FileNotFoundError as error:
        raise UnreadableImageError(path, "no such file") from error
    except OSError as error:
        raise UnreadableImageError(path, error.strerror or str(error)) from error
    if not content.size:
        raise UnreadableImageError(path, "the file is empty")
    image = cv2.imdecode(content, cv2.IMREAD_COLOR)
    if image is None:
        raise UnreadableImageError(path, "no image is found in it (damaged or unknown format)")
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)
