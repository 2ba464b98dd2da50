"""Crop, flip and view clips together with the boxes of their key frames (App. D.2).

The paper names no augmentation for detection. These are the usual ones: the shorter side is scaled,
a square is cropped and mirrored for training, and the whole frame is padded for a test. Boxes are
`(boxes, 4)` with left, top, right and bottom. As inputs they are shares of the frame, as outputs
they are in pixels of the clip.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from keras_vjepa.arguments import check_number, check_range, check_size, check_whole
from keras_vjepa.data.transforms.crops import (
    PIXEL_MEAN,
    PIXEL_STD,
    Colour,
    check_frames,
    normalize,
    resized_crop,
)
from keras_vjepa.data.transforms.views import resize_short_side

Boxes = NDArray[np.float32]
Clip = NDArray[np.float32]
Range = tuple[float, float]

_MOST_CHANGE = 10.0


@dataclass(frozen=True)
class BoxTransform:
    """Scales, crops and flips a clip and its boxes alike, to train a detector (App. D.2).

    Args:
        crop_size: side of the square.
        short_side: range of lengths that the frame's shorter side is scaled to, at least
            `crop_size`; if both ends are the same, only the place of the crop is drawn.
        horizontal_flip: probability of a flip.
        jitter: shares of its width and height by which each edge of a box moves outwards at most;
            inwards it is half as much. VideoMAE's detection has 0.2 and 0.1, SlowFast has none.
        mean, std: as in `normalize`.

    Raises:
        ValueError: if an argument is out of its range.

    Example:

    >>> transform = BoxTransform(crop_size=32, short_side=(32, 32))
    >>> frames, boxes = np.zeros((2, 48, 64, 3), np.uint8), np.array([[0.25, 0.5, 0.5, 1.0]])
    >>> clip, boxes, inside = transform(frames, boxes, np.random.default_rng(0))
    >>> clip.shape, boxes.shape, inside.tolist()
    ((2, 32, 32, 3), (1, 4), [True])
    """

    crop_size: int
    short_side: tuple[int, int] = (256, 320)
    horizontal_flip: float = 0.5
    jitter: tuple[float, float] = (0.0, 0.0)
    mean: Colour = PIXEL_MEAN
    std: Colour = PIXEL_STD

    def __post_init__(self) -> None:
        check_size(crop_size=self.crop_size)
        check_range("[1, 8192]", short_side=self.short_side)
        check_number("[0, 1]", horizontal_flip=self.horizontal_flip)
        check_jitter(self.jitter)
        if self.short_side[0] < self.crop_size:
            raise ValueError(
                f"`short_side` must be at least `crop_size`={self.crop_size}. "
                f"Received: {self.short_side}"
            )

    def __call__(
        self, frames: NDArray[np.uint8], boxes: NDArray[np.floating], rng: np.random.Generator
    ) -> tuple[Clip, Boxes, NDArray[np.bool_]]:
        """Transform one clip.

        Args:
            frames: `(time, height, width, 3)`, uint8.
            boxes: boxes as shares of the frame.
            rng: source of the random choices.

        Returns:
            The clip, `(time, crop_size, crop_size, 3)`, normalised; the boxes in the clip's pixels,
            cut at its borders; and which of the boxes reach into the clip.

        Raises:
            ValueError: if `frames` are not uint8 RGB.
        """
        check_frames(frames)
        height, width = frames.shape[1:3]
        boxes = jittered(np.asarray(boxes, np.float64), self.jitter, rng)
        short = rng.uniform(*self.short_side)
        # The side of the crop is in pixels of the frame, so that the clip is resized only once.
        side = max(1, min(round(self.crop_size * min(height, width) / short), height, width))
        top = int(rng.integers(height - side, endpoint=True))
        left = int(rng.integers(width - side, endpoint=True))
        flip = bool(rng.random() < self.horizontal_flip)
        place = (top, left, side, side)
        clip = resized_crop(frames, place, self.crop_size, flip, True, self.mean, self.std)
        boxes = boxes * [width, height, width, height] - [left, top, left, top]
        boxes *= self.crop_size / side
        if flip:
            boxes[:, [0, 2]] = self.crop_size - boxes[:, [2, 0]]
        boxes, inside = _cut(boxes, self.crop_size, self.crop_size)
        return clip, boxes, inside


@dataclass(frozen=True)
class BoxView:
    """Shows the whole frame, padded to whole patches, to test a detector (App. D.2).

    Args:
        short_side: length that the frame's shorter side is scaled to.
        multiple: height and width are padded to a multiple of it, by zeros on the right and below.
        fits_in: height and width that the frame is scaled to fit in, and then padded to, in place
            of `short_side` and `multiple`; for encoders of squares, or of one size alone.
        extension: shares by which the widths and heights of boxes grow; VideoMAE's detection has
            0.1 and 0.05 for detected boxes, SlowFast has none.
        mean, std: as in `normalize`.

    Raises:
        ValueError: if an argument is out of its range.

    Example:

    >>> view = BoxView(short_side=32)
    >>> clip, boxes = view(np.zeros((2, 48, 64, 3), np.uint8), np.array([[0.25, 0.5, 0.5, 1.0]]))
    >>> clip.shape, boxes.tolist()
    ((2, 32, 48, 3), [[10.5, 16.0, 21.0, 32.0]])
    """

    short_side: int
    multiple: int = 16
    extension: tuple[float, float] = (0.0, 0.0)
    mean: Colour = PIXEL_MEAN
    std: Colour = PIXEL_STD
    fits_in: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.fits_in is not None:
            check_size(fits_in=self.fits_in)
        check_size(short_side=self.short_side)
        check_whole(1, 1024, multiple=self.multiple)
        for share in self.extension:
            check_number(f"[0, {_MOST_CHANGE:g}]", extension=share)

    def __call__(
        self, frames: NDArray[np.uint8], boxes: NDArray[np.floating]
    ) -> tuple[Clip, Boxes]:
        """View one clip and its boxes.

        Args:
            frames: `(time, height, width, 3)`, uint8.
            boxes: boxes as shares of the frame.

        Returns:
            The clip, normalised, and the boxes in its pixels, cut at the frame's borders.

        Raises:
            ValueError: if `frames` are not uint8 RGB.
        """
        clip = normalize(self._scaled(frames), self.mean, self.std)
        height, width = clip.shape[1:3]
        given = np.asarray(boxes, np.float64)
        grown = (given[:, 2:] - given[:, :2]) * self.extension / 2
        given = given + np.concatenate([-grown, grown], axis=1)
        cut, _ = _cut(given * [width, height, width, height], height, width)
        missing = [-side % self.multiple for side in (height, width)]
        if self.fits_in is not None:
            missing = [self.fits_in[0] - height, self.fits_in[1] - width]
        return np.pad(clip, [(0, 0), (0, missing[0]), (0, missing[1]), (0, 0)]), cut

    def _scaled(self, frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if self.fits_in is None:
            return resize_short_side(frames, self.short_side)
        check_frames(frames)
        height, width = frames.shape[1:3]
        share = min(self.fits_in[0] / height, self.fits_in[1] / width)
        size = (max(1, round(width * share)), max(1, round(height * share)))
        return np.stack([cv2.resize(frame, size) for frame in frames])


def check_jitter(jitter: tuple[float, float]) -> None:
    """Check the shares by which the edges of boxes move; see `BoxTransform`."""
    for share in jitter:
        check_number("[0, 0.5]", jitter=share)


def jittered(
    boxes: NDArray[np.float64], jitter: tuple[float, float], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Move the edges of boxes at random, each by itself.

    Args:
        boxes: `(boxes, 4)`.
        jitter: as in `BoxTransform`.
        rng: source of the draws, which are made even if the shares are 0.

    Returns:
        The boxes, which may reach beyond the frame.
    """
    outwards = rng.uniform(-0.5, 1.0, (len(boxes), 4)) * [-1.0, -1.0, 1.0, 1.0]
    sizes = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    return boxes + outwards * sizes * [*jitter, *jitter]


def _cut(boxes: NDArray[np.float64], height: int, width: int) -> tuple[Boxes, NDArray[np.bool_]]:
    """Cut boxes at the borders of a clip; tell which of them reach into it."""
    cut = boxes.clip(0.0, [width, height, width, height])
    inside = (cut[:, 2:] - cut[:, :2] > math.ulp(1.0)).all(axis=1)
    return cut.astype(np.float32), inside
