"""Crop, normalise and erase clips (App. C, Table 9; App. D.1, Table 10).

Frames are uint8 RGB of shape (time, height, width, 3); clips are float32 of the same layout. One
function draws the box of a crop, another crops. A box is (top, left, height, width) in pixels.

Departures (the authors' code is followed where the paper is silent): the training crop resizes
bilinearly without antialiasing; a moving crop (off in all the paper's settings) truncates its
coordinates to whole pixels.
"""

import functools
import math

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from keras_vjepa.data.reading.frame_memory import reused_array

Box = tuple[int, int, int, int]
Range = tuple[float, float]
Colour = tuple[float, float, float]

# Mean and standard deviation of ImageNet's red, green and blue, for pixels in [0, 1].
PIXEL_MEAN = (0.485, 0.456, 0.406)
PIXEL_STD = (0.229, 0.224, 0.225)

_NUM_TRIES = 10
# The number of rows that are normalised at once, if it divides the height.
_MOST_ROWS = 16


def random_resized_crop_box(
    height: int, width: int, scale: Range, ratio: Range, rng: np.random.Generator
) -> Box:
    """Draw a crop by its share of the area and its aspect ratio (Table 9).

    A uniform share and a log-uniform aspect ratio are drawn up to ten times; the first crop that
    fits is placed uniformly. If none fits, the largest central crop within `ratio` is taken.

    Args:
        height: height of the frames.
        width: width of the frames.
        scale: range of the crop's share of the frame's area.
        ratio: range of the crop's width / height.
        rng: source of the draws.

    Example:

    >>> random_resized_crop_box(100, 400, (1.0, 1.0), (0.75, 1.35), np.random.default_rng(0))
    (0, 132, 100, 135)
    """
    for _ in range(_NUM_TRIES):
        area = height * width * rng.uniform(*scale)
        aspect = _log_uniform(ratio, rng)
        crop_width = round(math.sqrt(area * aspect))
        crop_height = round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(rng.integers(height - crop_height, endpoint=True))
            left = int(rng.integers(width - crop_width, endpoint=True))
            return top, left, crop_height, crop_width
    crop_height, crop_width = height, width
    if width < ratio[0] * height:
        crop_height = max(1, round(width / ratio[0]))
    elif width > ratio[1] * height:
        crop_width = max(1, round(height * ratio[1]))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def moving_boxes(first: Box, last: Box, num_frames: int) -> NDArray[np.int64]:
    """Move a crop box linearly, from its place in the first frame to its place in the last.

    Returns:
        Shape (num_frames, 4); coordinates are truncated to whole pixels.

    Example:

    >>> moving_boxes((6, 25, 38, 39), (2, 4, 45, 60), 3).tolist()
    [[6, 25, 38, 39], [4, 14, 41, 49], [2, 4, 45, 60]]
    """
    # Computed in integers, because a float step may be slightly less than a whole pixel, which
    # truncation would lose.
    num_steps = max(1, num_frames - 1)
    steps = np.arange(num_frames)[:, np.newaxis]
    total = np.array(first, np.int64) * (num_steps - steps) + np.array(last, np.int64) * steps
    return total // num_steps


def resized_crop(
    frames: NDArray[np.uint8],
    boxes: ArrayLike,
    size: int | tuple[int, int],
    flip: bool = False,
    normalized: bool = False,
    mean: Colour = PIXEL_MEAN,
    std: Colour = PIXEL_STD,
) -> NDArray[np.float32]:
    """Crop and resize frames, bilinearly with half-pixel centres, without antialiasing.

    Args:
        frames: (time, height, width, 3).
        boxes: one box (4,) for all frames, or one per frame (time, 4).
        size: side, or (height, width), of the result.
        flip: mirror left and right.
        normalized: whether to normalise each frame, as `normalize` does, as soon as it is resized,
            which takes half the time of doing it afterwards.
        mean: as in `normalize`.
        std: as in `normalize`.

    Returns:
        (time, *size, 3), normalised or in [0, 255], not rounded.

    Raises:
        ValueError: if `frames` are not uint8 RGB or a box leaves them.

    Example:

    >>> frames = np.arange(48, dtype=np.uint8).reshape(1, 4, 4, 3)
    >>> resized_crop(frames, (0, 0, 2, 2), 1)[0, 0, 0].tolist()
    [7.5, 8.5, 9.5]
    """
    check_frames(frames)
    boxes = np.broadcast_to(np.asarray(boxes), (len(frames), 4))
    ends = boxes[:, :2] + boxes[:, 2:]
    if boxes[:, :2].min() < 0 or boxes[:, 2:].min() < 1 or (ends > frames.shape[1:3]).any():
        raise ValueError(
            f"`boxes` (top, left, height, width) must lie inside the frames of height x width "
            f"{frames.shape[1]}x{frames.shape[2]}. Received: {boxes.tolist()}"
        )
    out_height, out_width = (size, size) if isinstance(size, int) else size
    clip = reused_array((len(frames), out_height, out_width, 3), np.float32)
    for frame, (top, left, height, width), out in zip(frames, boxes.tolist(), clip, strict=True):
        crop = frame[top : top + height, left : left + width]
        if flip:
            crop = cv2.flip(crop, 1)
        # Computed in float32, because OpenCV rounds its 8-bit results to whole grey levels.
        cv2.resize(crop.astype(np.float32), (out_width, out_height), out)
        if normalized:
            _normalize(out, out, mean, std)
    return clip


def normalize(
    clip: NDArray[np.float32] | NDArray[np.uint8],
    mean: Colour = PIXEL_MEAN,
    std: Colour = PIXEL_STD,
) -> NDArray[np.float32]:
    """Subtract a mean of each channel and divide by a standard deviation.

    Args:
        clip: (..., height, width, 3), in [0, 255].
        mean: mean of red, green and blue, for pixels in [0, 1]; ImageNet's by default.
        std: standard deviation of each, likewise.

    Returns:
        float32 of the same shape.

    Example:

    >>> print(normalize(np.zeros((1, 1, 3), np.uint8)).round(2))
    [[[-2.12 -2.04 -1.8 ]]]
    """
    result = reused_array(clip.shape, np.float32)
    # Done frame by frame, because one frame stays in the processor's cache between the operations.
    for place in np.ndindex(clip.shape[:-3]):
        _normalize(clip[place], result[place], mean, std)
    return result


def _normalize(
    frame: NDArray[np.float32] | NDArray[np.uint8],
    result: NDArray[np.float32],
    mean: Colour = PIXEL_MEAN,
    std: Colour = PIXEL_STD,
) -> None:
    """Normalise one frame, (height, width, 3); `result` may be the frame itself."""
    height, width, _ = frame.shape
    scale, shift = _scale_and_shift(math.gcd(height, _MOST_ROWS) * width, mean, std)
    # Several rows are done at once, because NumPy is several times slower on an inner axis of three
    # channels, and still slower on an inner axis of a single row.
    rows = result.reshape(-1, len(scale))
    np.multiply(frame.reshape(rows.shape), scale, out=rows)
    rows -= shift


@functools.cache
def _scale_and_shift(
    num_pixels: int, mean: Colour, std: Colour
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Compute what a number of pixels are multiplied by, and what is then subtracted."""
    scale = np.tile(1 / (255 * np.array(std)), num_pixels).astype(np.float32)
    shift = np.tile(np.array(mean) / std, num_pixels).astype(np.float32)
    return scale, shift


def random_erasing(
    clip: NDArray[np.float32],
    rng: np.random.Generator,
    scale: Range = (0.02, 1 / 3),
    ratio: Range = (0.3, 1 / 0.3),
) -> None:
    """Fill one box, the same in all frames, with unit-normal noise, in place.

    A box is drawn up to ten times; if none is smaller than the frame, the clip stays as it is.

    Args:
        clip: (time, height, width, 3), normalised.
        rng: source of the box and the noise, fresh in each frame.
        scale: range of the box's share of the frame's area.
        ratio: range of the box's height / width, drawn log-uniformly.

    Example:

    >>> clip = np.zeros((2, 32, 32, 3), np.float32)
    >>> random_erasing(clip, np.random.default_rng(0))
    >>> bool(0 < np.mean(clip != 0) < 0.35)
    True
    """
    num_frames, height, width, num_channels = clip.shape
    for _ in range(_NUM_TRIES):
        area = height * width * rng.uniform(*scale)
        aspect = _log_uniform(ratio, rng)
        box_height = round(math.sqrt(area * aspect))
        box_width = round(math.sqrt(area / aspect))
        if 0 < box_height < height and 0 < box_width < width:
            top = rng.integers(height - box_height, endpoint=True)
            left = rng.integers(width - box_width, endpoint=True)
            shape = (num_frames, box_height, box_width, num_channels)
            noise = rng.standard_normal(shape, np.float32)
            clip[:, top : top + box_height, left : left + box_width] = noise
            return


def check_frames(frames: NDArray[np.uint8]) -> None:
    """Raise `ValueError` unless frames are uint8 of shape (time, height, width, 3)."""
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not frames.size:
        raise ValueError(
            "`frames` must be uint8 of shape (time, height, width, 3). "
            f"Received: {frames.dtype} of shape {frames.shape}"
        )


def _log_uniform(limits: Range, rng: np.random.Generator) -> float:
    return math.exp(rng.uniform(math.log(limits[0]), math.log(limits[1])))
