"""Apply picture operations of RandAugment and AutoAugment to uint8 clips (App. D.1, Table 10).

All frames of a clip get the same operations with the same arguments. Values that depend on the
picture (the histogram of `equalize`, the mean of `contrast`) are measured in each frame.

The operations are those of Pillow, for which both policies were written. Measured against it,
`color`, `shear_*` and `translate_*` are one grey level off in at most 0.2 % of the values, `rotate`
differs more, and the others give the same pixels. `rotate` is OpenCV's bicubic, which has a softer
kernel (slope -0.75, Pillow's is -1) and rounds where Pillow cuts fractions off: in smooth pictures
it differs by 0.4 grey levels on average, 2 at most.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]
Colour = tuple[int, int, int]

# A policy's magnitudes run from 0 to this.
MAX_MAGNITUDE = 10.0

_IDENTITY = np.arange(256)
# This is added where OpenCV rounds, so that fractions are cut off as in Pillow. It is a little less
# than a half, because float arithmetic may give a value just below a whole number, which must still
# be rounded up to it.
_CUT_OFF = -0.499


@dataclass(frozen=True)
class Operation:
    """Holds an operation and the argument that was drawn for it.

    Attributes:
        name: a key of `OPERATIONS`.
        argument: its strength in its own unit; ignored by operations that have none.
    """

    name: str
    argument: float = 0.0


def apply_operations(
    frames: Frames, operations: Sequence[Operation], fill: Colour = (128, 128, 128)
) -> Frames:
    """Apply operations to a clip, one after the other.

    Args:
        frames: uint8 (time, height, width, 3), RGB. Not changed.
        operations: what to do; see `OPERATIONS` for names and units.
        fill: colour of what rotation, shear and translation bring into view.

    Returns:
        A clip of the same shape.

    Raises:
        ValueError: if a name is unknown.

    Example:

    >>> clip = np.full((2, 4, 4, 3), 100, np.uint8)
    >>> apply_operations(clip, [Operation("brightness", 0.5), Operation("invert")])[0, 0, 0]
    array([205, 205, 205], dtype=uint8)
    """
    for operation in operations:
        if operation.name not in OPERATIONS:
            raise ValueError(
                f"`name` of an operation must be one of {', '.join(OPERATIONS)}. "
                f"Received: {operation.name!r}"
            )
        frames = OPERATIONS[operation.name](frames, operation.argument, fill)
    return frames


# ---------------------------------------------------------------------- tables of grey levels


def _look_up(frames: Frames, table: NDArray[np.integer]) -> Frames:
    """Replace grey levels by those of one table (256,) for the whole clip."""
    rows = frames.reshape(-1, *frames.shape[2:])
    return np.asarray(cv2.LUT(rows, table.astype(np.uint8)), np.uint8).reshape(frames.shape)


def _look_up_each(frames: Frames, tables: NDArray[np.integer]) -> Frames:
    """Replace grey levels by a table for each frame (time, 256), or each channel (time, 256, 3)."""
    tables = tables.astype(np.uint8).reshape(len(frames), 256, 1, -1)
    return np.stack(
        [cv2.LUT(frame, table) for frame, table in zip(frames, tables, strict=True)], dtype=np.uint8
    )


def _histograms(frames: Frames) -> NDArray[np.int64]:
    """Count the pixels of each grey level in each frame and channel: (time, 256, 3)."""
    counts = [
        [cv2.calcHist([frame], [channel], None, [256], [0, 256]).ravel() for channel in range(3)]
        for frame in frames
    ]
    return np.moveaxis(np.array(counts), 1, 2).astype(np.int64)


def _auto_contrast(frames: Frames, argument: float, fill: Colour) -> Frames:
    occurs = _histograms(frames) > 0
    low = occurs.argmax(axis=1)[:, None]
    high = 255 - occurs[:, ::-1].argmax(axis=1)[:, None]
    scale = 255 / np.maximum(high - low, 1)
    levels = _IDENTITY[:, None]
    stretched = (levels * scale - low * scale).clip(0, 255).astype(np.int64)
    return _look_up_each(frames, np.where(high > low, stretched, levels))


def _equalize(frames: Frames, argument: float, fill: Colour) -> Frames:
    counts = _histograms(frames)
    highest = 255 - (counts > 0)[:, ::-1].argmax(axis=1)[:, None]
    step = (counts.sum(axis=1, keepdims=True) - np.take_along_axis(counts, highest, 1)) // 255
    below = counts.cumsum(axis=1) - counts
    equalized = ((step // 2 + below) // np.maximum(step, 1)).clip(0, 255)
    return _look_up_each(frames, np.where(step > 0, equalized, _IDENTITY[:, None]))


def _invert(frames: Frames, argument: float, fill: Colour) -> Frames:
    return ~frames


def _posterize(frames: Frames, argument: float, fill: Colour) -> Frames:
    return _look_up(frames, _IDENTITY & ~(2 ** (8 - min(int(argument), 8)) - 1))


def _solarize(frames: Frames, argument: float, fill: Colour) -> Frames:
    return _look_up(frames, np.where(_IDENTITY < argument, _IDENTITY, 255 - _IDENTITY))


def _solarize_add(frames: Frames, argument: float, fill: Colour) -> Frames:
    brighter = np.minimum(_IDENTITY + int(argument), 255)
    return _look_up(frames, np.where(_IDENTITY < 128, brighter, _IDENTITY))


# ------------------------------------------------------- away from, or towards, a plainer picture


def _blend_levels(plain: NDArray[np.float32], factor: float) -> NDArray[np.int64]:
    """Make tables (..., 256): factor 0 gives a plain grey level (..., 1), factor 1 the picture."""
    levels = _IDENTITY.astype(np.float32)
    return (plain + np.float32(factor) * (levels - plain)).clip(0, 255).astype(np.int64)


def _blend(plain: Frames, frames: Frames, factor: float) -> Frames:
    shape = frames.shape
    rows = (-1, *shape[2:])
    blended = cv2.addWeighted(
        frames.reshape(rows), factor, plain.reshape(rows), 1 - factor, _CUT_OFF
    )
    return np.asarray(blended, np.uint8).reshape(shape)


def _grey(frames: Frames) -> Frames:
    """Compute the luma of (time, height, width, 3) as (time * height, width)."""
    rows = frames.reshape(-1, *frames.shape[2:])
    return np.asarray(cv2.cvtColor(rows, cv2.COLOR_RGB2GRAY), np.uint8)


def _brightness(frames: Frames, argument: float, fill: Colour) -> Frames:
    return _look_up(frames, _blend_levels(np.zeros(1, np.float32), argument))


def _contrast(frames: Frames, argument: float, fill: Colour) -> Frames:
    means = _grey(frames).reshape(len(frames), -1).mean(axis=1, keepdims=True)
    plain = np.floor(means + 0.5).astype(np.float32)
    return _look_up_each(frames, _blend_levels(plain, argument))


def _color(frames: Frames, argument: float, fill: Colour) -> Frames:
    grey = np.asarray(cv2.cvtColor(_grey(frames), cv2.COLOR_GRAY2RGB), np.uint8)
    return _blend(grey, frames, argument)


def _sharpness(frames: Frames, argument: float, fill: Colour) -> Frames:
    kernel = np.ones((3, 3), np.float32)
    kernel[1, 1] = 5
    # The border keeps its pixels, so that frames that are stacked vertically do not mix.
    smooth = frames.copy()
    for frame, out in zip(frames, smooth, strict=True):
        out[1:-1, 1:-1] = cv2.filter2D(frame, -1, kernel / kernel.sum())[1:-1, 1:-1]
    return _blend(smooth, frames, argument)


# --------------------------------------------------------------------------------- geometry


def _sample_rows(padded: Frames, shift: float, out: Frames) -> None:
    """Read rows at each pixel's place plus `shift`, bicubically, and write those that lie inside.

    Args:
        padded: (n, 1 + width, 3), the rows with their first pixel repeated in front.
        shift: distance in pixels.
        out: (n, width, 3); pixels whose place is outside the row keep their values.
    """
    width = out.shape[1]
    whole = math.floor(shift)
    # A place is inside if its centre is in [0, width).
    first = max(0, math.ceil(-0.5 - shift))
    end = min(width, math.ceil(width - 0.5 - shift))
    if first >= end:
        return
    d = shift - whole
    # Cubic convolution with slope -1, at the distances 1 + d, d, 1 - d and 2 - d.
    weights = [-d + 2 * d**2 - d**3, 1 - 2 * d**2 + d**3, d + d**2 - d**3, -(d**2) + d**3]
    filtered = cv2.filter2D(
        padded,
        -1,
        np.array([weights], np.float32),
        anchor=(1, 0),
        delta=_CUT_OFF,
        borderType=cv2.BORDER_REPLICATE,
    )
    out[:, first:end] = filtered[:, first + whole + 1 : end + whole + 1]


def _pad(frames: Frames) -> Frames:
    return np.concatenate([frames[:, :, :1], frames], axis=2)


def _translate_x(frames: Frames, argument: float, fill: Colour) -> Frames:
    moved = np.full_like(frames, fill)
    for padded, out in zip(_pad(frames), moved, strict=True):
        _sample_rows(padded, argument * frames.shape[2], out)
    return moved


def _shear_x(frames: Frames, argument: float, fill: Colour) -> Frames:
    sheared = np.full_like(frames, fill)
    padded = _pad(frames)
    for row in range(frames.shape[1]):
        _sample_rows(padded[:, row], argument * (row + 0.5), sheared[:, row])
    return sheared


def _transpose(frames: Frames) -> Frames:
    return np.stack([cv2.transpose(frame) for frame in frames], dtype=np.uint8)


def _translate_y(frames: Frames, argument: float, fill: Colour) -> Frames:
    return _transpose(_translate_x(_transpose(frames), argument, fill))


def _shear_y(frames: Frames, argument: float, fill: Colour) -> Frames:
    return _transpose(_shear_x(_transpose(frames), argument, fill))


def _rotate(frames: Frames, argument: float, fill: Colour) -> Frames:
    height, width = frames.shape[1:3]
    cos, sin = math.cos(math.radians(argument)), math.sin(math.radians(argument))
    turn = np.array([[cos, -sin], [sin, cos]])
    center = np.array([width, height]) / 2
    # Maps a pixel of the result to its place in the frame, both measured from pixel centres.
    offset = center - 0.5 - turn @ (center - 0.5)
    matrix = np.column_stack([turn, offset])
    # The fill colour is written below, because OpenCV's constant border blends it into the edge.
    columns, rows = np.arange(width), np.arange(height)[:, None]
    x = turn[0, 0] * columns + turn[0, 1] * rows + offset[0] + 0.5
    y = turn[1, 0] * columns + turn[1, 1] * rows + offset[1] + 0.5
    outside = (x < 0) | (x >= width) | (y < 0) | (y >= height)
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    rotated = np.empty_like(frames)
    for frame, out in zip(frames, rotated, strict=True):
        cv2.warpAffine(frame, matrix, (width, height), out, flags, cv2.BORDER_REPLICATE)
    np.copyto(rotated, np.array(fill, np.uint8), where=outside[None, :, :, None])
    return rotated


# Units of the arguments: `posterize` bits to keep; `solarize` the level from which it inverts;
# `solarize_add` grey levels that it adds to the darker half; `color`, `contrast`, `brightness` and
# `sharpness` a factor, where 1 changes nothing; `rotate` degrees, counter-clockwise; `shear_*`
# pixels for each pixel; `translate_*` a share of the side, positive to the left and up.
OPERATIONS: dict[str, Callable[[Frames, float, Colour], Frames]] = {
    "auto_contrast": _auto_contrast,
    "equalize": _equalize,
    "invert": _invert,
    "rotate": _rotate,
    "posterize": _posterize,
    "solarize": _solarize,
    "solarize_add": _solarize_add,
    "color": _color,
    "contrast": _contrast,
    "brightness": _brightness,
    "sharpness": _sharpness,
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
}
