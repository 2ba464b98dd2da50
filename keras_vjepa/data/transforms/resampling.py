"""Resize still images with antialiasing (App. D.1).

OpenCV's bilinear and bicubic filters skip pixels where they shrink an image. Pillow's widen with
the scale, and the authors resize images, unlike videos, with Pillow. This module computes what
Pillow does, to the bit: fixed-point weights of 22 bits, first along the width, rounded to 8 bits,
then along the height. It does not call Pillow, whose versions differ: 10.3 gives the same bytes,
but 13.0 begins with the height for some sizes, and then differs by one grey level.
"""

import functools
import math
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

Kernel = Literal["bilinear", "bicubic"]

_PRECISION = 22  # fractional bits of a weight


def resize_antialiased(
    image: NDArray[np.uint8], size: tuple[int, int], kernel: Kernel = "bilinear"
) -> NDArray[np.uint8]:
    """Resize an image as Pillow does.

    Args:
        image: uint8 (height, width, 3).
        size: (height, width) of the result.
        kernel: `"bilinear"` or `"bicubic"` (slope -0.5).

    Returns:
        uint8 (*size, 3).

    Raises:
        ValueError: if `size` or `kernel` is out of range.

    Example:

    >>> resize_antialiased(np.arange(48, dtype=np.uint8).reshape(4, 4, 3), (1, 1))[0, 0].tolist()
    [23, 24, 25]
    """
    if kernel not in ("bilinear", "bicubic"):
        raise ValueError(f'`kernel` must be "bilinear" or "bicubic". Received: {kernel!r}')
    if min(size) < 1:
        raise ValueError(f"`size` must be at least 1 x 1. Received: {size}")
    height, width = size
    if width != image.shape[1]:
        image = _transpose(_resize_rows(_transpose(image), width, kernel))
    return image if height == image.shape[0] else _resize_rows(image, height, kernel)


def _transpose(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(cv2.transpose(image), np.uint8)  # several times as fast as NumPy's


def _resize_rows(image: NDArray[np.uint8], size: int, kernel: Kernel) -> NDArray[np.uint8]:
    """Resize along the first axis."""
    indices, weights = _taps(len(image), size, kernel)
    total = np.full((size, *image.shape[1:]), 1 << (_PRECISION - 1), np.int32)
    for index, weight in zip(indices.T, weights.T, strict=True):
        total += image[index] * weight[:, None, None]
    return (total >> _PRECISION).clip(0, 255).astype(np.uint8)


@functools.lru_cache(maxsize=64)
def _taps(length: int, size: int, kernel: Kernel) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Choose the pixels that make each pixel of the result, and weigh them: (size, taps) each."""
    scale = length / size
    stretch = max(scale, 1.0)
    reach = stretch * (1 if kernel == "bilinear" else 2)
    centers = (np.arange(size) + 0.5) * scale
    first = np.maximum((centers - reach + 0.5).astype(np.int64), 0)
    last = np.minimum((centers + reach + 0.5).astype(np.int64), length)
    indices = first[:, None] + np.arange(2 * math.ceil(reach) + 1)
    weights = _falloff((indices - centers[:, None] + 0.5) / stretch, kernel)
    weights[indices >= last[:, None]] = 0
    weights /= weights.sum(axis=1, keepdims=True)
    fixed = np.trunc(weights * (1 << _PRECISION) + np.copysign(0.5, weights))
    return indices.clip(0, length - 1), fixed.astype(np.int32)


def _falloff(distance: NDArray[np.float64], kernel: Kernel) -> NDArray[np.float64]:
    x = np.abs(distance)
    if kernel == "bilinear":
        return np.maximum(1 - x, 0)
    # Cubic convolution with slope -0.5.
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
