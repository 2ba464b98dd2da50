"""RandAugment and AutoAugment on uint8 clips (App. D.1, Table 10).

All frames of a clip get the same operations with the same arguments. What depends on the picture
(the histogram of `equalize`, the mean of `contrast`) is measured in each frame.

The operations are those of Pillow, for which both policies were written. Measured against it,
`color`, `shear_*` and `translate_*` are one grey level off in at most 0.2 % of the values, and the
others give its pixels. `rotate` is OpenCV's bicubic, with a softer kernel (slope -0.75, Pillow's is
-1) and rounding where Pillow cuts off: 0.4 grey levels on average in smooth pictures, 2 at most.

Sources of the numbers: "AutoAugment" (arXiv 1805.09501, Table 9) for the 25 sub-policies;
"RandAugment" (arXiv 1909.13719) and the "increasing" ranges that timm documents as `inc1`.

Departures: Table 10 says no augmentation for the video probes; the authors' code has RandAugment.
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
# Pillow cuts fractions off where OpenCV rounds. A little less than a half, so that a whole number
# that float arithmetic left just below itself stays.
_CUT_OFF = -0.499


@dataclass(frozen=True)
class Operation:
    """An operation with what was drawn for it.

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
    """One table (256,) for the clip."""
    rows = frames.reshape(-1, *frames.shape[2:])
    return np.asarray(cv2.LUT(rows, table.astype(np.uint8)), np.uint8).reshape(frames.shape)


def _look_up_each(frames: Frames, tables: NDArray[np.integer]) -> Frames:
    """Tables (time, 256), or (time, 256, 3) with one for each channel."""
    tables = tables.astype(np.uint8).reshape(len(frames), 256, 1, -1)
    return np.stack(
        [cv2.LUT(frame, table) for frame, table in zip(frames, tables, strict=True)], dtype=np.uint8
    )


def _histograms(frames: Frames) -> NDArray[np.int64]:
    """Shape (time, 256, 3)."""
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
    """Tables (..., 256) from a plain grey level (..., 1): it at factor 0, the picture at 1."""
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
    """Luma of (time, height, width, 3) as (time * height, width)."""
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
    # The border keeps its pixels, so that frames one above the other do not mix.
    smooth = frames.copy()
    for frame, out in zip(frames, smooth, strict=True):
        out[1:-1, 1:-1] = cv2.filter2D(frame, -1, kernel / kernel.sum())[1:-1, 1:-1]
    return _blend(smooth, frames, argument)


# --------------------------------------------------------------------------------- geometry


def _sample_rows(padded: Frames, shift: float, out: Frames) -> None:
    """Read rows at each pixel's place plus `shift`, bicubic; what lies outside is not written.

    Args:
        padded: (n, 1 + width, 3), the rows with their first pixel repeated in front.
        shift: in pixels.
        out: (n, width, 3).
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
    # From a pixel of the result to its place in the frame, both counted from pixel centres.
    offset = center - 0.5 - turn @ (center - 0.5)
    matrix = np.column_stack([turn, offset])
    # Not OpenCV's constant border, which blends the colour into the edge.
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


# Units of the arguments: `posterize` bits to keep; `solarize` the level from which on it inverts;
# `solarize_add` grey levels for the darker half; `color`, `contrast`, `brightness` and
# `sharpness` a factor, 1 changing nothing; `rotate` degrees, counter-clockwise; `shear_*` pixels
# for each pixel; `translate_*` a share of the side, positive to the left and up.
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


# --------------------------------------------------------------------------------- policies


def increasing_argument(name: str, magnitude: float, sign: int) -> float:
    """RandAugment's argument of an operation: the larger the magnitude, the stronger.

    Args:
        name: a key of `OPERATIONS`.
        magnitude: 0 to 10.
        sign: 1 or -1, the direction where there are two.

    Example:

    >>> increasing_argument("rotate", 7.0, -1), increasing_argument("posterize", 7.0, 1)
    (-21.0, 2)
    """
    share = magnitude / MAX_MAGNITUDE
    if name == "posterize":
        return 4 - int(share * 4)
    if name == "solarize":
        return 256 - int(share * 256)
    if name == "solarize_add":
        return int(share * 110)
    if name in ("color", "contrast", "brightness", "sharpness"):
        return max(0.1, 1 + sign * share * 0.9)
    return sign * share * _REACH[name] if name in _REACH else 0.0


def original_argument(name: str, magnitude: float, sign: int) -> float:
    """AutoAugment's argument of an operation, in the ranges of its paper.

    Args:
        name: a key of `OPERATIONS`.
        magnitude: 0 to 10.
        sign: 1 or -1, the direction where there are two.

    Example:

    >>> original_argument("posterize", 8, 1), original_argument("color", 0, 1)
    (7, 0.1)
    """
    share = magnitude / MAX_MAGNITUDE
    if name == "posterize":
        return int(share * 4) + 4
    if name == "solarize":
        return int(share * 256)
    if name in ("color", "contrast", "brightness", "sharpness"):
        return share * 1.8 + 0.1
    return sign * share * _REACH[name] if name in _REACH else 0.0


# Arguments at the largest magnitude.
_REACH = {
    "rotate": 30.0,
    "shear_x": 0.3,
    "shear_y": 0.3,
    "translate_x": 0.45,
    "translate_y": 0.45,
}


def _random_sign(rng: np.random.Generator) -> int:
    return 1 if rng.random() < 0.5 else -1


@dataclass(frozen=True)
class RandAugment:
    """RandAugment as the authors train their video probes: timm's `rand-m7-n4-mstd0.5-inc1`.

    Each clip draws `num_operations` of the 15 operations, with replacement; each is applied with
    `probability`, at a magnitude drawn from a normal distribution and clipped to [0, 10].

    Args:
        num_operations: operations drawn for a clip.
        magnitude: mean of the magnitudes, 0 to 10.
        magnitude_std: their standard deviation.
        probability: of each operation drawn.
        fill: colour of what rotation, shear and translation bring into view.

    Raises:
        ValueError: if an argument is out of its range.

    Example:

    >>> augment = RandAugment()
    >>> clip = augment(np.zeros((4, 32, 48, 3), np.uint8), np.random.default_rng(0))
    >>> clip.shape, clip.dtype
    ((4, 32, 48, 3), dtype('uint8'))
    """

    num_operations: int = 4
    magnitude: float = 7.0
    magnitude_std: float = 0.5
    probability: float = 0.5
    fill: Colour = (128, 128, 128)

    def __post_init__(self) -> None:
        if self.num_operations < 0:
            raise ValueError(
                f"`num_operations` must be at least 0. Received: {self.num_operations}"
            )
        if not 0 <= self.magnitude <= MAX_MAGNITUDE:
            raise ValueError(f"`magnitude` must be in [0, 10]. Received: {self.magnitude}")
        if self.magnitude_std < 0:
            raise ValueError(f"`magnitude_std` must be at least 0. Received: {self.magnitude_std}")
        if not 0 <= self.probability <= 1:
            raise ValueError(f"`probability` must be in [0, 1]. Received: {self.probability}")

    def draw(self, rng: np.random.Generator) -> list[Operation]:
        """Draw the operations of one clip; between none and `num_operations` of them."""
        names = list(OPERATIONS)
        drawn = []
        for index in rng.integers(len(names), size=self.num_operations):
            if rng.random() < self.probability:
                magnitude = rng.normal(self.magnitude, self.magnitude_std)
                magnitude = float(np.clip(magnitude, 0.0, MAX_MAGNITUDE))
                argument = increasing_argument(names[index], magnitude, _random_sign(rng))
                drawn.append(Operation(names[index], argument))
        return drawn

    def __call__(self, frames: Frames, rng: np.random.Generator) -> Frames:
        """Augment one clip, uint8 (time, height, width, 3)."""
        return apply_operations(frames, self.draw(rng), self.fill)


# AutoAugment's Table 9 (ImageNet): (operation, probability, magnitude), twice.
_SubPolicy = tuple[tuple[str, float, int], tuple[str, float, int]]
IMAGENET_POLICY: tuple[_SubPolicy, ...] = (
    (("posterize", 0.4, 8), ("rotate", 0.6, 9)),
    (("solarize", 0.6, 5), ("auto_contrast", 0.6, 5)),
    (("equalize", 0.8, 8), ("equalize", 0.6, 3)),
    (("posterize", 0.6, 7), ("posterize", 0.6, 6)),
    (("equalize", 0.4, 7), ("solarize", 0.2, 4)),
    (("equalize", 0.4, 4), ("rotate", 0.8, 8)),
    (("solarize", 0.6, 3), ("equalize", 0.6, 7)),
    (("posterize", 0.8, 5), ("equalize", 1.0, 2)),
    (("rotate", 0.2, 3), ("solarize", 0.6, 8)),
    (("equalize", 0.6, 8), ("posterize", 0.4, 6)),
    (("rotate", 0.8, 8), ("color", 0.4, 0)),
    (("rotate", 0.4, 9), ("equalize", 0.6, 2)),
    (("equalize", 0.0, 7), ("equalize", 0.8, 8)),
    (("invert", 0.6, 4), ("equalize", 1.0, 8)),
    (("color", 0.6, 4), ("contrast", 1.0, 8)),
    (("rotate", 0.8, 8), ("color", 1.0, 2)),
    (("color", 0.8, 8), ("solarize", 0.8, 7)),
    (("sharpness", 0.4, 7), ("invert", 0.6, 8)),
    (("shear_x", 0.6, 5), ("equalize", 1.0, 9)),
    (("color", 0.4, 0), ("equalize", 0.6, 3)),
    (("equalize", 0.4, 7), ("solarize", 0.2, 4)),
    (("solarize", 0.6, 5), ("auto_contrast", 0.6, 5)),
    (("invert", 0.6, 4), ("equalize", 1.0, 8)),
    (("color", 0.6, 4), ("contrast", 1.0, 8)),
    (("equalize", 0.8, 8), ("equalize", 0.6, 3)),
)


@dataclass(frozen=True)
class AutoAugment:
    """AutoAugment with the policy found on ImageNet: timm's `original` (image probes, Table 10).

    Each clip draws one of the 25 sub-policies; each of its two operations is applied with its
    probability, in a random direction where there are two.

    Args:
        fill: colour of what rotation and shear bring into view; the default is ImageNet's mean.

    Example:

    >>> augment = AutoAugment()
    >>> augment.draw(np.random.default_rng(0))
    [Operation(name='solarize', argument=128), Operation(name='auto_contrast', argument=0.0)]
    """

    fill: Colour = (124, 116, 104)

    def draw(self, rng: np.random.Generator) -> list[Operation]:
        """Draw the operations of one clip; none, one or two of them."""
        sub_policy = IMAGENET_POLICY[rng.integers(len(IMAGENET_POLICY))]
        return [
            Operation(name, original_argument(name, magnitude, _random_sign(rng)))
            for name, probability, magnitude in sub_policy
            if rng.random() < probability
        ]

    def __call__(self, frames: Frames, rng: np.random.Generator) -> Frames:
        """Augment one clip, uint8 (time, height, width, 3)."""
        return apply_operations(frames, self.draw(rng), self.fill)
