"""Check what a video file claims of itself, before a decoder believes it (§3.4).

While OpenCV opens a file, it decodes the first frame, however large. And FFmpeg, in both libraries,
makes an entry for every frame that the tables of an MP4 file claim, which can take 2 GiB for a file
of a kilobyte. So the claims are read here first. Claims that are found only in the frames are
left to the decoders: PyAV takes a limit for them.
"""

import os

from keras_vjepa.data.reading.avi_chunks import frame_sizes_of_avi
from keras_vjepa.data.reading.image_headers import image_format, image_header
from keras_vjepa.data.reading.limits import ReadingLimits
from keras_vjepa.data.reading.matroska_elements import frame_sizes_of_matroska
from keras_vjepa.data.reading.mp4_boxes import mp4_claims

# The header of an image is searched in this many bytes of any file, because some images are also
# videos, or may be taken for one.
_START_OF_IMAGE = 2**16


def check_claims(path: str, limits: ReadingLimits) -> None:
    """Check the sizes and the number of frames that the header of a file claims.

    Args:
        path: the file.
        limits: pixels that a frame may have.

    Raises:
        ValueError: if a frame is too large, or there are more frames than bytes.
    """
    sizes, num_samples = mp4_claims(path)
    num_bytes = os.path.getsize(path)
    if num_samples > num_bytes:
        raise ValueError(f"it claims to hold {num_samples} frames in {num_bytes} bytes")
    sizes += frame_sizes_of_avi(path) + frame_sizes_of_matroska(path) + _size_of_image(path)
    for height, width in sizes:
        # A size of zero is ignored, because the frames may state a real one.
        if height * width > limits.max_frame_pixels:
            limits.check_size(height, width)


def _size_of_image(path: str) -> list[tuple[int, int]]:
    with open(path, "rb") as file:
        head = file.read(_START_OF_IMAGE)
    if image_format(head) is None:
        return []
    try:
        header = image_header(head)
    except ValueError:
        return []
    return [(header.height, header.width)]
