"""Read still images (App. D.1: images as clips)."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from keras_vjepa.data.reading.decoders import Decoder
from keras_vjepa.data.reading.errors import UnreadableImageError
from keras_vjepa.data.reading.gate import through_gate
from keras_vjepa.data.reading.image_decoding import check_bytes_of_image, decoded_image
from keras_vjepa.data.reading.limits import DEFAULT_LIMITS, ReadingLimits
from keras_vjepa.data.reading.locating import media_at, name_of
from keras_vjepa.data.reading.media import EncodedMedia, FrameMedia, Media


def read_image(
    source: str | Path | Media, limits: ReadingLimits = DEFAULT_LIMITS
) -> NDArray[np.uint8]:
    """Read an image in 8 bits; grey becomes RGB, transparency is left out.

    Args:
        source: the path of a PNG, JPEG, BMP, WebP, TIFF or GIF file (of a GIF, the first frame is
            read), or anything else that `media_at` takes.
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
    action = lambda: _decoded(media_at(source), limits)  # noqa: E731
    return through_gate(name_of(source), UnreadableImageError, limits.max_file_seconds, action)


def _decoded(media: Media, limits: ReadingLimits) -> NDArray[np.uint8]:
    if isinstance(media, FrameMedia) and media.is_image:
        return _picture(media.decoder(limits), limits)
    if not isinstance(media, EncodedMedia):
        raise ValueError(f"it is {media.what}, not a file")
    with media.content() as content:
        check_bytes_of_image(content.size, limits)
        return decoded_image(content.read_at(0, content.size), limits)


def _picture(decoder: Decoder, limits: ReadingLimits) -> NDArray[np.uint8]:
    decoder.advance()
    height, width = decoder.size()
    limits.check_size(height, width)
    picture = np.empty((height, width, 3), np.uint8)
    decoder.write_frame(picture)
    return picture
