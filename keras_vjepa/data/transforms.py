"""Clip transforms of pretraining, of training a probe, and evaluation views (App. C, App. D).

Frames are uint8 RGB of shape (time, height, width, 3); clips are float32 of the same layout. Every
transform treats all frames of a clip alike, and what is random is drawn apart from where it is
applied. A box is (top, left, height, width) in pixels.

Departures (the authors' code is followed where the paper is silent): the training crop resizes
bilinearly without antialiasing, the evaluation views resize in 8 bits and so round to whole grey
levels; a moving crop (off in all the paper's settings) truncates its coordinates to whole pixels.
Table 10 trains the video probes with flips and without augmentation, the authors' code the other
way round, with erasing besides; `VideoProbeTransform` names the arguments of both.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from keras_vjepa.data.augmentation import AutoAugment, RandAugment
from keras_vjepa.data.resampling import resize_antialiased

Augmentation = Callable[[NDArray[np.uint8], np.random.Generator], NDArray[np.uint8]]
Box = tuple[int, int, int, int]
Range = tuple[float, float]

# ImageNet, RGB, for pixels in [0, 1].
PIXEL_MEAN = (0.485, 0.456, 0.406)
PIXEL_STD = (0.229, 0.224, 0.225)

_NUM_TRIES = 10


def random_resized_crop_box(
    height: int, width: int, scale: Range, ratio: Range, rng: np.random.Generator
) -> Box:
    """Draw a crop by its share of the area and its aspect ratio (Table 9).

    Up to ten draws of a uniform share and a log-uniform aspect ratio; the first that fits is
    placed uniformly. If none fits: the largest central crop within the limits of `ratio`.

    Args:
        height: of the frames.
        width: of the frames.
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
    """Boxes that move linearly from the first frame's to the last frame's.

    Returns:
        Shape (num_frames, 4); coordinates are truncated to whole pixels.

    Example:

    >>> moving_boxes((6, 25, 38, 39), (2, 4, 45, 60), 3).tolist()
    [[6, 25, 38, 39], [4, 14, 41, 49], [2, 4, 45, 60]]
    """
    # In integers: a float step may fall short of a whole pixel and lose it to the truncation.
    num_steps = max(1, num_frames - 1)
    steps = np.arange(num_frames)[:, np.newaxis]
    total = np.array(first, np.int64) * (num_steps - steps) + np.array(last, np.int64) * steps
    return total // num_steps


def resized_crop(
    frames: NDArray[np.uint8], boxes: ArrayLike, size: int | tuple[int, int], flip: bool = False
) -> NDArray[np.float32]:
    """Crop and resize, bilinear with half-pixel centres, without antialiasing.

    Args:
        frames: (time, height, width, 3).
        boxes: one box (4,) for all frames, or one per frame (time, 4).
        size: side, or (height, width), of the result.
        flip: mirror left and right.

    Returns:
        (time, *size, 3), in [0, 255], not rounded.

    Raises:
        ValueError: if `frames` are not uint8 RGB or a box leaves them.

    Example:

    >>> frames = np.arange(48, dtype=np.uint8).reshape(1, 4, 4, 3)
    >>> resized_crop(frames, (0, 0, 2, 2), 1)[0, 0, 0].tolist()
    [7.5, 8.5, 9.5]
    """
    _check_frames(frames)
    boxes = np.broadcast_to(np.asarray(boxes), (len(frames), 4))
    ends = boxes[:, :2] + boxes[:, 2:]
    if boxes[:, :2].min() < 0 or boxes[:, 2:].min() < 1 or (ends > frames.shape[1:3]).any():
        raise ValueError(
            f"`boxes` (top, left, height, width) must lie inside the frames of height x width "
            f"{frames.shape[1]}x{frames.shape[2]}. Received: {boxes.tolist()}"
        )
    out_height, out_width = (size, size) if isinstance(size, int) else size
    clip = np.empty((len(frames), out_height, out_width, 3), np.float32)
    for frame, (top, left, height, width), out in zip(frames, boxes.tolist(), clip, strict=True):
        crop = frame[top : top + height, left : left + width]
        if flip:
            crop = cv2.flip(crop, 1)
        # In float32, because OpenCV rounds its 8-bit results to whole grey levels.
        cv2.resize(crop.astype(np.float32), (out_width, out_height), out)
    return clip


def normalize(clip: NDArray[np.float32] | NDArray[np.uint8]) -> NDArray[np.float32]:
    """Subtract the ImageNet mean and divide by the standard deviation.

    Args:
        clip: (..., height, width, 3), in [0, 255].

    Returns:
        The same shape, float32.

    Example:

    >>> print(normalize(np.zeros((1, 1, 3), np.uint8)).round(2))
    [[[-2.12 -2.04 -1.8 ]]]
    """
    # Over whole rows: NumPy is several times slower on an inner axis of three.
    width = clip.shape[-2]
    scale = np.tile(1 / (255 * np.array(PIXEL_STD)), width).astype(np.float32)
    shift = np.tile(np.array(PIXEL_MEAN) / PIXEL_STD, width).astype(np.float32)
    rows = clip.reshape(*clip.shape[:-2], 3 * width) * scale
    rows -= shift
    return rows.reshape(clip.shape)


def random_erasing(
    clip: NDArray[np.float32],
    rng: np.random.Generator,
    scale: Range = (0.02, 1 / 3),
    ratio: Range = (0.3, 1 / 0.3),
) -> None:
    """Fill one box, the same in all frames, with unit-normal noise, in place.

    Up to ten draws; if no box is smaller than the frame, the clip stays as it is.

    Args:
        clip: (time, height, width, 3), normalised.
        rng: source of the box and the noise, fresh in each frame.
        scale: range of the box's share of the frame's area.
        ratio: range of its height / width, drawn log-uniformly.

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


@dataclass(frozen=True)
class PretrainTransform:
    """The pretraining transform: one random crop and flip per clip, then normalisation (Table 9).

    Args:
        crop_size: side, or (height, width), of the clips.
        scale: range of the crop's share of the frame's area, in (0, 1].
        ratio: range of the crop's width / height.
        horizontal_flip: probability of a flip.
        motion_shift: move the crop linearly between two boxes drawn for the first and last frame.
        erasing: probability of `random_erasing`.
        augmentation: what is done to the whole frames first, for example `RandAugment()`.

    Raises:
        ValueError: if an argument is out of its range.

    Example:

    >>> transform = PretrainTransform(crop_size=32)
    >>> clip = transform(np.zeros((4, 48, 64, 3), np.uint8), np.random.default_rng(0))
    >>> clip.shape, clip.dtype
    ((4, 32, 32, 3), dtype('float32'))
    """

    crop_size: int | tuple[int, int]
    scale: Range = (0.3, 1.0)
    ratio: Range = (0.75, 1.35)
    horizontal_flip: float = 0.5
    motion_shift: bool = False
    erasing: float = 0.0
    augmentation: Augmentation | None = None

    def __post_init__(self) -> None:
        _check_settings(self)

    def draw(
        self, num_frames: int, height: int, width: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], bool]:
        """Draw one clip's crop boxes, shape (num_frames, 4), and whether it is flipped."""
        first = random_resized_crop_box(height, width, self.scale, self.ratio, rng)
        last = first
        if self.motion_shift:
            last = random_resized_crop_box(height, width, self.scale, self.ratio, rng)
        return moving_boxes(first, last, num_frames), bool(rng.random() < self.horizontal_flip)

    def apply(self, frames: NDArray[np.uint8], boxes: ArrayLike, flip: bool) -> NDArray[np.float32]:
        """Crop, flip and normalise `frames` with known choices, as `draw` makes them."""
        return normalize(resized_crop(frames, boxes, self.crop_size, flip))

    def __call__(self, frames: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.float32]:
        """Transform one clip.

        Args:
            frames: (time, height, width, 3), uint8.
            rng: source of the random choices.

        Returns:
            (time, *crop_size, 3), normalised.

        Raises:
            ValueError: if `frames` are not uint8 RGB.
        """
        _check_frames(frames)
        if self.augmentation is not None:
            frames = self.augmentation(frames, rng)
        num_frames, height, width, _ = frames.shape
        boxes, flip = self.draw(num_frames, height, width, rng)
        clip = self.apply(frames, boxes, flip)
        if rng.random() < self.erasing:
            random_erasing(clip, rng)
        return clip


@dataclass(frozen=True)
class VideoProbeTransform(PretrainTransform):
    """The training transform of the video probes (App. D.1): `PretrainTransform` with other values.

    The defaults are the authors' code's. The paper's (Table 10) are
    `horizontal_flip=0.5, erasing=0.0, augmentation=None`.

    Example:

    >>> transform = VideoProbeTransform(crop_size=32)
    >>> transform(np.zeros((4, 48, 64, 3), np.uint8), np.random.default_rng(0)).shape
    (4, 32, 32, 3)
    """

    scale: Range = (0.08, 1.0)
    ratio: Range = (3 / 4, 4 / 3)
    horizontal_flip: float = 0.0
    erasing: float = 0.25
    augmentation: Augmentation | None = RandAugment()


@dataclass(frozen=True)
class ImageProbeTransform:
    """The training transform of the image probes (App. D.1, Table 10).

    Random crop, resized in 8 bits (bicubic, antialiased), flip, augmentation, normalisation,
    erasing: here augmentation comes after the crop.

    Args:
        crop_size: side, or (height, width), of the result.
        scale: range of the crop's share of the image's area, in (0, 1].
        ratio: range of the crop's width / height.
        horizontal_flip: probability of a flip.
        erasing: probability of `random_erasing`.
        augmentation: what is done to the crop; `None` for nothing.

    Raises:
        ValueError: if an argument is out of its range.

    Example:

    >>> transform = ImageProbeTransform(crop_size=32)
    >>> transform(np.zeros((1, 48, 64, 3), np.uint8), np.random.default_rng(0)).shape
    (1, 32, 32, 3)
    """

    crop_size: int | tuple[int, int]
    scale: Range = (0.08, 1.0)
    ratio: Range = (3 / 4, 4 / 3)
    horizontal_flip: float = 0.5
    erasing: float = 0.25
    augmentation: Augmentation | None = AutoAugment()

    def __post_init__(self) -> None:
        _check_settings(self)

    def __call__(self, frames: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.float32]:
        """Transform one image, (1, height, width, 3), or frames that share the random choices.

        Args:
            frames: (time, height, width, 3), uint8.
            rng: source of the random choices.

        Returns:
            (time, *crop_size, 3), normalised.

        Raises:
            ValueError: if `frames` are not uint8 RGB.
        """
        _check_frames(frames)
        size = (self.crop_size,) * 2 if isinstance(self.crop_size, int) else self.crop_size
        height, width = frames.shape[1:3]
        box = random_resized_crop_box(height, width, self.scale, self.ratio, rng)
        top, left, height, width = box
        cropped = frames[:, top : top + height, left : left + width]
        crops = np.stack([resize_antialiased(crop, size, "bicubic") for crop in cropped])
        if rng.random() < self.horizontal_flip:
            crops = np.ascontiguousarray(crops[:, :, ::-1])
        if self.augmentation is not None:
            crops = self.augmentation(crops, rng)
        clip = normalize(crops)
        if rng.random() < self.erasing:
            random_erasing(clip, rng)
        return clip


def resize_short_side(
    frames: NDArray[np.uint8], short_side: int, antialias: bool = False
) -> NDArray[np.uint8]:
    """Resize so that the shorter side has `short_side` pixels, in 8 bits, bilinear.

    Args:
        frames: (time, height, width, 3).
        short_side: at least 1. The longer side keeps the proportions, rounded down.
        antialias: resize as Pillow does (images) instead of OpenCV (videos).

    Raises:
        ValueError: if `frames` are not uint8 RGB or `short_side` is out of range.

    Example:

    >>> resize_short_side(np.zeros((2, 48, 64, 3), np.uint8), 32).shape
    (2, 32, 42, 3)
    """
    _check_frames(frames)
    if short_side < 1:
        raise ValueError(f"`short_side` must be at least 1. Received: {short_side}")
    height, width = frames.shape[1:3]
    short = min(height, width)
    if short == short_side:
        return frames
    size = (short_side * height // short, short_side * width // short)
    if antialias:
        return np.stack([resize_antialiased(frame, size) for frame in frames])
    resized = np.empty((len(frames), *size, 3), np.uint8)
    for frame, out in zip(frames, resized, strict=True):
        cv2.resize(frame, size[::-1], out)
    return resized


def center_view(
    frames: NDArray[np.uint8],
    crop_size: int | tuple[int, int],
    short_side: int | None = None,
    antialias: bool = False,
) -> NDArray[np.float32]:
    """The single-view evaluation transform: resize, central crop, normalise (App. D).

    Args:
        frames: (time, height, width, 3).
        crop_size: side, or (height, width), of the crop.
        short_side: of the resized frames, so that they hold the crop. Default: the least with
            which they hold crop_size * 256 / 224, rounded down.
        antialias: of the resizing; `True` is the transform of the image tasks.

    Returns:
        (time, *crop_size, 3), normalised.

    Raises:
        ValueError: if an argument is out of range.

    Example:

    >>> center_view(np.zeros((2, 48, 64, 3), np.uint8), crop_size=28).shape
    (2, 28, 28, 3)
    """
    height, width = (crop_size, crop_size) if isinstance(crop_size, int) else crop_size
    _check_frames(frames)
    if short_side is None:
        short = min(frames.shape[1:3])
        sides = zip((height, width), frames.shape[1:3], strict=True)
        short_side = max(-(-(side * 256 // 224) * short // have) for side, have in sides)
    if not 1 <= min(height, width) <= short_side:
        raise ValueError(
            f"`crop_size` must be in [1, `short_side`={short_side}]. Received: {crop_size}"
        )
    frames = resize_short_side(frames, short_side, antialias)
    if height > frames.shape[1] or width > frames.shape[2]:
        raise ValueError(
            f"`short_side`={short_side} must give frames that hold `crop_size`={crop_size}. "
            f"Received frames of {frames.shape[1]}x{frames.shape[2]}"
        )
    top, left = round((frames.shape[1] - height) / 2), round((frames.shape[2] - width) / 2)
    return normalize(frames[:, top : top + height, left : left + width])


def three_views(frames: NDArray[np.uint8], crop_size: int) -> NDArray[np.float32]:
    """The three-view evaluation transform: crops at both ends and the middle of the long side.

    Args:
        frames: (time, height, width, 3).
        crop_size: side of the crops, and short side of the resized frames.

    Returns:
        (3, time, crop_size, crop_size, 3), normalised; left to right, or top to bottom.

    Raises:
        ValueError: if an argument is out of range.

    Example:

    >>> three_views(np.zeros((2, 48, 64, 3), np.uint8), crop_size=28).shape
    (3, 2, 28, 28, 3)
    """
    frames = resize_short_side(frames, crop_size)
    height, width = frames.shape[1:3]
    stride = (max(height, width) - crop_size) // 2
    long_axis = 1 if height > width else 2
    crops = [
        frames.take(range(start, start + crop_size), long_axis) for start in (0, stride, 2 * stride)
    ]
    return normalize(np.stack(crops))


def _check_settings(settings: PretrainTransform | ImageProbeTransform) -> None:
    if np.min(settings.crop_size) < 1:
        raise ValueError(f"`crop_size` must be at least 1. Received: {settings.crop_size}")
    if not 0 < settings.scale[0] <= settings.scale[1] <= 1:
        raise ValueError(
            f"`scale` must be a (low, high) range in (0, 1]. Received: {settings.scale}"
        )
    if not 0 < settings.ratio[0] <= settings.ratio[1]:
        raise ValueError(f"`ratio` must be a (low, high) range above 0. Received: {settings.ratio}")
    for name in ("horizontal_flip", "erasing"):
        if not 0 <= getattr(settings, name) <= 1:
            raise ValueError(f"`{name}` must be in [0, 1]. Received: {getattr(settings, name)}")


def _check_frames(frames: NDArray[np.uint8]) -> None:
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not frames.size:
        raise ValueError(
            "`frames` must be uint8 of shape (time, height, width, 3). "
            f"Received: {frames.dtype} of shape {frames.shape}"
        )


def _log_uniform(limits: Range, rng: np.random.Generator) -> float:
    return math.exp(rng.uniform(math.log(limits[0]), math.log(limits[1])))
