"""Limit how much time and memory a file may take (§3.4)."""

import math
import numbers
from dataclasses import dataclass

from keras_vjepa.arguments import check_number, check_whole

# The largest ratio of the longer to the shorter side of a frame. A more elongated frame is not a
# picture, and resizing its shorter side to 256 pixels would need gigabytes.
MAX_ASPECT = 100
# A month. A thread can wait for centuries at most, which this stays below.
_MOST_SECONDS = 2_592_000
_MOST_PIXELS = 2**40


@dataclass(frozen=True)
class ReadingLimits:
    """Sets limits within which a file must be read; one that passes them counts as unreadable.

    Args:
        max_file_seconds: longest time for opening a file, and for each call that reads frames of
            it.
        max_frame_pixels: most pixels of one frame or image. 67,108,864 are 8192 x 8192, or 192 MiB
            in memory.

    Raises:
        ValueError: if a limit is out of its range.

    Example:

    >>> ReadingLimits(max_frame_pixels=10_000).check_size(height=90, width=160)
    Traceback (most recent call last):
    ...
    ValueError: 160x90 pixels are more than `max_frame_pixels`=10000
    """

    max_file_seconds: float = 60.0
    max_frame_pixels: int = 2**26

    def __post_init__(self) -> None:
        for name in ("max_file_seconds", "max_frame_pixels"):
            value = getattr(self, name)
            is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
            if not is_number or not 0 < value < math.inf:
                raise ValueError(f"`{name}` must be positive and finite. Received: {value}")
        check_number(f"(0, {_MOST_SECONDS}]", max_file_seconds=self.max_file_seconds)
        check_whole(1, _MOST_PIXELS, max_frame_pixels=self.max_frame_pixels)

    def check_size(self, height: int, width: int) -> None:
        """Check the size of a frame before it is decoded.

        Args:
            height: height in pixels.
            width: width in pixels.

        Raises:
            ValueError: if the frame has too many pixels or none, or is far too oblong.
        """
        if min(height, width) < 1:
            raise ValueError(f"{width}x{height} is no size of a picture")
        if height * width > self.max_frame_pixels:
            raise ValueError(
                f"{width}x{height} pixels are more than `max_frame_pixels`={self.max_frame_pixels}"
            )
        if max(height, width) > MAX_ASPECT * min(height, width):
            raise ValueError(
                f"{width}x{height} pixels are more than {MAX_ASPECT} times as long as short"
            )


DEFAULT_LIMITS = ReadingLimits()
