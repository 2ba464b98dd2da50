"""Transform clips at random, to pretrain and to train a probe (App. C, App. D.1, Table 10).

Every transform treats all frames of a clip alike.

Departure: Table 10 trains the video probes with flips and without augmentation. The authors' code
trains them without flips, but with augmentation and erasing. `VideoProbeTransform` has the values
of the code by default, and names those of the paper.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from keras_vjepa.arguments import check_colour, check_number, check_range, check_size
from keras_vjepa.data.transforms.augmentation import AutoAugment, RandAugment
from keras_vjepa.data.transforms.crops import (
    PIXEL_MEAN,
    PIXEL_STD,
    Colour,
    check_frames,
    moving_boxes,
    normalize,
    random_erasing,
    random_resized_crop_box,
    resized_crop,
)
from keras_vjepa.data.transforms.resampling import resize_antialiased

Augmentation = Callable[[NDArray[np.uint8], np.random.Generator], NDArray[np.uint8]]
Box = tuple[int, int, int, int]
Range = tuple[float, float]


@dataclass(frozen=True)
class PretrainTransform:
    """Transforms clips for pretraining: one random crop and flip each, normalisation (Table 9).

    Args:
        crop_size: side, or (height, width), of the clips.
        scale: range of the crop's share of the frame's area, in (0, 1].
        ratio: range of the crop's width / height.
        horizontal_flip: probability of a flip.
        motion_shift: move the crop linearly between two boxes drawn for the first and last frame.
        erasing: probability that a box of the clip is erased, see `random_erasing`.
        augmentation: applied to the whole frames before they are cropped, as `RandAugment()` is.
        mean: of red, green and blue, which is subtracted from pixels in [0, 1]; ImageNet's.
        std: of red, green and blue, by which they are divided then; ImageNet's.

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
    mean: Colour = PIXEL_MEAN
    std: Colour = PIXEL_STD

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
        return resized_crop(frames, boxes, self.crop_size, flip, True, self.mean, self.std)

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
        check_frames(frames)
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
    """Transforms clips to train video probes (App. D.1): `PretrainTransform` with other values.

    The defaults are those of the authors' code. The values of the paper (Table 10) are
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
    """Transforms images to train image probes (App. D.1, Table 10).

    Its steps are a random crop, resized in 8 bits (bicubic, antialiased), a flip, augmentation,
    normalisation and erasing. Augmentation comes after the crop, unlike in `PretrainTransform`.

    Args:
        crop_size: side, or (height, width), of the result.
        scale: range of the crop's share of the image's area, in (0, 1].
        ratio: range of the crop's width / height.
        horizontal_flip: probability of a flip.
        erasing: probability that a box of the clip is erased, see `random_erasing`.
        augmentation: what is done to the crop; `None` for nothing.
        mean: as in `PretrainTransform`.
        std: as in `PretrainTransform`.

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
    mean: Colour = PIXEL_MEAN
    std: Colour = PIXEL_STD

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
        check_frames(frames)
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
        clip = normalize(crops, self.mean, self.std)
        if rng.random() < self.erasing:
            random_erasing(clip, rng)
        return clip


def _check_settings(settings: PretrainTransform | ImageProbeTransform) -> None:
    check_size(crop_size=settings.crop_size)
    check_range("(0, 1]", scale=settings.scale)
    check_range("[0.01, 100]", ratio=settings.ratio)
    check_number("[0, 1]", horizontal_flip=settings.horizontal_flip, erasing=settings.erasing)
    check_colour("(-inf, inf)", mean=settings.mean)
    check_colour("(0, inf)", std=settings.std)
