"""Make evaluation views: the frame's middle, or three squares along its longer side (App. D.1).

Frames are uint8 RGB of shape (time, height, width, 3); views are float32 of the same layout.

Departure (the authors' code is followed where the paper is silent): views are resized in 8 bits and
so rounded to whole grey levels. The processor of the transformers package, for V-JEPA 2, makes the
same view with antialiasing, and rounds a margin of half a pixel down.
"""

from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from keras_vjepa.arguments import MOST_LONG, check_whole
from keras_vjepa.data.transforms.crops import (
    PIXEL_MEAN,
    PIXEL_STD,
    Colour,
    check_frames,
    normalize,
)
from keras_vjepa.data.transforms.resampling import Kernel, resize_antialiased

Rounding = Literal["even", "down"]
_OPENCV = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}


def resize_short_side(
    frames: NDArray[np.uint8],
    short_side: int,
    antialias: bool = False,
    interpolation: Kernel = "bilinear",
) -> NDArray[np.uint8]:
    """Resize so that the shorter side has `short_side` pixels, in 8 bits.

    Args:
        frames: (time, height, width, 3).
        short_side: at least 1. The longer side keeps the proportions, rounded down.
        antialias: resize as Pillow does (images) instead of OpenCV (videos).
        interpolation: `"bilinear"` or `"bicubic"`.

    Raises:
        ValueError: if `frames` are not uint8 RGB or `short_side` is out of range.

    Example:

    >>> resize_short_side(np.zeros((2, 48, 64, 3), np.uint8), 32).shape
    (2, 32, 42, 3)
    """
    check_frames(frames)
    check_whole(1, MOST_LONG, short_side=short_side)
    height, width = frames.shape[1:3]
    short = min(height, width)
    if short == short_side:
        return frames
    size = (short_side * height // short, short_side * width // short)
    if antialias:
        return np.stack([resize_antialiased(frame, size, interpolation) for frame in frames])
    resized = np.empty((len(frames), *size, 3), np.uint8)
    for frame, out in zip(frames, resized, strict=True):
        cv2.resize(frame, size[::-1], out, interpolation=_OPENCV[interpolation])
    return resized


def center_view(
    frames: NDArray[np.uint8],
    crop_size: int | tuple[int, int],
    short_side: int | None = None,
    antialias: bool = False,
    interpolation: Kernel = "bilinear",
    crop_rounding: Rounding = "even",
    mean: Colour = PIXEL_MEAN,
    std: Colour = PIXEL_STD,
) -> NDArray[np.float32]:
    """Make the single evaluation view of a clip: resize, crop the centre, normalise (App. D).

    Args:
        frames: (time, height, width, 3).
        crop_size: side, or (height, width), of the crop.
        short_side: shorter side of the resized frames, which must hold the crop. By default the
            least with which they hold 256 / 224 of the crop's sides, rounded down.
        antialias: whether to resize as Pillow does; `True` is the transform of the image tasks.
        interpolation: how to resize, `"bilinear"` or `"bicubic"`.
        crop_rounding: where to begin a crop that would begin at half a pixel: at the even one of
            the two next to it, or with `"down"` at the one before.
        mean: as in `normalize`.
        std: as in `normalize`.

    Returns:
        (time, *crop_size, 3), normalised.

    Raises:
        ValueError: if an argument is out of range.

    Example:

    >>> center_view(np.zeros((2, 48, 64, 3), np.uint8), crop_size=28).shape
    (2, 28, 28, 3)
    """
    height, width = (crop_size, crop_size) if isinstance(crop_size, int) else crop_size
    check_frames(frames)
    if short_side is None:
        short = min(frames.shape[1:3])
        sides = zip((height, width), frames.shape[1:3], strict=True)
        short_side = max(-(-(side * 256 // 224) * short // have) for side, have in sides)
    if not 1 <= min(height, width) <= short_side:
        raise ValueError(
            f"`crop_size` must be in [1, `short_side`={short_side}]. Received: {crop_size}"
        )
    frames = resize_short_side(frames, short_side, antialias, interpolation)
    if height > frames.shape[1] or width > frames.shape[2]:
        raise ValueError(
            f"`short_side`={short_side} must give frames that hold `crop_size`={crop_size}. "
            f"Received frames of {frames.shape[1]}x{frames.shape[2]}"
        )
    top, left = (
        margin // 2 if crop_rounding == "down" else round(margin / 2)
        for margin in (frames.shape[1] - height, frames.shape[2] - width)
    )
    return normalize(frames[:, top : top + height, left : left + width], mean, std)


def three_views(
    frames: NDArray[np.uint8],
    crop_size: int,
    antialias: bool = False,
    interpolation: Kernel = "bilinear",
    mean: Colour = PIXEL_MEAN,
    std: Colour = PIXEL_STD,
) -> NDArray[np.float32]:
    """Make three evaluation views of a clip: the ends and the middle of the longer side.

    Args:
        frames: (time, height, width, 3).
        crop_size: side of the square crops, and shorter side of the resized frames.
        antialias: as in `center_view`.
        interpolation: as in `center_view`.
        mean: as in `normalize`.
        std: as in `normalize`.

    Returns:
        (3, time, crop_size, crop_size, 3), normalised; left to right, or top to bottom.

    Raises:
        ValueError: if an argument is out of range.

    Example:

    >>> three_views(np.zeros((2, 48, 64, 3), np.uint8), crop_size=28).shape
    (3, 2, 28, 28, 3)
    """
    frames = resize_short_side(frames, crop_size, antialias, interpolation)
    height, width = frames.shape[1:3]
    stride = (max(height, width) - crop_size) // 2
    long_axis = 1 if height > width else 2
    crops = [
        frames.take(range(start, start + crop_size), long_axis) for start in (0, stride, 2 * stride)
    ]
    return normalize(np.stack(crops), mean, std)
