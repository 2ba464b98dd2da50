"""Render the built-in labelled video set (a stand-in for §4's datasets).

A handwritten digit moves over a coloured background in one of ten ways. One frame shows which digit
it is, but not how it moves: the digit wraps around the borders and starts anywhere with equal
probability, so in every class each single frame has the same distribution. A model that knows the
motion must have looked at several frames, in order.

Use clips that span most of a video (64 of the 72 frames, as those of the paper), because two of the
motions turn halfway. Never flip horizontally, because that turns right into left.

Everything up to the encoder is integer arithmetic on NumPy's random bits, so frames and labels
are the same on every machine; the bytes of the video files are not, because encoders differ.

The digits are the 1,797 images of 8×8 pixels of "Optical Recognition of Handwritten Digits",
E. Alpaydin and C. Kaynak, UCI Machine Learning Repository, https://doi.org/10.24432/C50P49,
CC BY 4.0, in the form in which scikit-learn distributes them (the UCI test part), stored here as
`digits.npz` with unchanged values 0 to 16. Images 0 to 1256 appear in training videos only, the
rest in test videos only.
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Split = Literal["train", "test"]
Integers = npt.NDArray[np.integer[Any]]

MOTIONS = (
    "right",
    "left",
    "down",
    "up",
    "circle clockwise",
    "circle counter-clockwise",
    "shake horizontally",
    "shake vertically",
    "right, then down",
    "down, then right",
)
NUM_TRAINING_IMAGES = 1257
CIRCLE_PERIOD = 36  # frames
SHAKE_PERIOD = 24  # frames
AMPLITUDE = 12  # pixels, of circles and shakes
BACKGROUND_CELLS = 4  # random colours along each side of the background
# Part of the cache folder's name: raise it whenever rendering or encoding changes.
RENDERING_VERSION = 1


@dataclass(frozen=True)
class DigitMotionConfig:
    """Says what is rendered.

    Attributes:
        canvas_size: height and width of a frame in pixels, even.
        digit_size: height and width of the digit in pixels, at most `canvas_size`.
        num_frames: number of frames of a video.
        fps: frames per second.
        noise: standard deviation of the noise in grey levels, new for each frame.
        background_strength: brightest level of the background, 0 (black) to 255.
        num_training_videos: number of videos in `train.csv`.
        num_test_videos: number of videos in `test.csv`.
        frame_step: keep one frame out of this many; a video then has `num_frames / frame_step`,
            rounded up. Files of fewer frames are faster to read.
        shrink: height and width of the squares of pixels whose mean is one pixel of the file.
        seed: seed of the videos; another seed gives other videos of the same digits.

    Raises:
        ValueError: if a value is out of range.
    """

    canvas_size: int = 64
    digit_size: int = 24
    num_frames: int = 72
    fps: int = 24
    noise: float = 2.0
    background_strength: int = 96
    num_training_videos: int = 2000
    num_test_videos: int = 600
    frame_step: int = 1
    shrink: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in (
            "digit_size",
            "num_frames",
            "fps",
            "num_training_videos",
            "num_test_videos",
            "frame_step",
            "shrink",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1. Received: {getattr(self, name)}")
        if self.canvas_size % 2 or self.canvas_size < self.digit_size:
            raise ValueError(
                "`canvas_size` must be even (video codecs need it) and at least `digit_size`. "
                f"Received: canvas_size={self.canvas_size}, digit_size={self.digit_size}"
            )
        if self.canvas_size % (2 * self.shrink):
            raise ValueError(
                f"`canvas_size`={self.canvas_size} must be an even multiple of `shrink`. "
                f"Received: {self.shrink}"
            )
        if self.fps % self.frame_step:
            raise ValueError(
                f"`fps`={self.fps} must be a multiple of `frame_step`. Received: {self.frame_step}"
            )
        if not 0 <= self.background_strength <= 255:
            raise ValueError(
                f"`background_strength` must lie in [0, 255]. Received: {self.background_strength}"
            )
        if not 0 <= self.noise <= 40:
            raise ValueError(f"`noise` must lie in [0, 40]. Received: {self.noise}")
        if self.seed < 0:
            raise ValueError(f"`seed` must be at least 0. Received: {self.seed}")


@dataclass(frozen=True)
class MovingBackgroundConfig(DigitMotionConfig):
    """Says what is rendered on a background that moves, independently of the digit.

    It is a class of its own, so that the cache folders of the other sets keep their names.

    Attributes:
        background_cells: random colours along each side of the background.
        background_speed: most pixels by which it moves in a frame, along each axis.

    Raises:
        ValueError: if a value is out of range.
    """

    background_cells: int = 16
    background_speed: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("background_cells", 1), ("background_speed", 0)):
            value = getattr(self, name)
            if not least <= value <= self.canvas_size:
                raise ValueError(
                    f"`{name}` must lie in [{least}, `canvas_size`={self.canvas_size}]. "
                    f"Received: {value}"
                )


_LARGE_DIGITS: dict[str, Any] = {
    "digit_size": 32,
    "num_training_videos": 8000,
    "frame_step": 4,
    "shrink": 2,
}
# Names under which recipes take a set in place of a path. On the second, with a black background,
# larger digits and more videos, a small encoder learns in minutes; see recipes/README.md. Its files
# have 18 frames of 32 x 32 pixels, because reading larger ones takes as long as training on them.
# The third is the second with what cannot be predicted: noise, and a texture that moves.
SETS: dict[str, DigitMotionConfig] = {
    "digit_motion": DigitMotionConfig(),
    "digit_motion_black": DigitMotionConfig(background_strength=0, **_LARGE_DIGITS),
    "digit_motion_texture": MovingBackgroundConfig(noise=10.0, **_LARGE_DIGITS),
}


@dataclass(frozen=True)
class DigitMotionVideo:
    """Holds one rendered video.

    Attributes:
        frames: uint8 (frames, size, size, 3), RGB; these are `num_frames` and `canvas_size` of the
            config, divided by `frame_step` and `shrink`.
        digit: class of the digit, 0 to 9.
        motion: class of the motion, 0 to 9, an index into `MOTIONS`.
    """

    frames: npt.NDArray[np.uint8]
    digit: int
    motion: int

    @property
    def label(self) -> int:
        """Return both classes in one number, 0 to 99; `split_label` takes it apart."""
        return self.digit * len(MOTIONS) + self.motion


def split_label(label: int) -> tuple[int, int]:
    """Take a label of the lists apart into its two classes.

    Args:
        label: 0 to 99.

    Returns:
        Class of the digit and class of the motion, each 0 to 9.

    Raises:
        ValueError: if `label` is out of range.

    Example:

    >>> split_label(73)
    (7, 3)
    """
    if not 0 <= label < 10 * len(MOTIONS):
        raise ValueError(f"`label` must lie in [0, 100). Received: {label}")
    return divmod(label, len(MOTIONS))


# --------------------------------------------------------------------------------------- rendering


def render_digit_motion(
    split: Split, index: int, config: DigitMotionConfig | None = None
) -> DigitMotionVideo:
    """Render one video; the same arguments always give the same pixels.

    Args:
        split: `"train"` or `"test"`; decides which digit images are used.
        index: number of the video, at least 0. Its last decimal is its motion class.
        config: what to render; `None` is the standard set.

    Returns:
        The frames and the two classes.

    Raises:
        ValueError: if `split` or `index` is out of range.

    Example:

    >>> video = render_digit_motion("train", 7)
    >>> video.frames.shape, video.digit, MOTIONS[video.motion]
    ((72, 64, 64, 3), 7, 'shake vertically')
    """
    scene = _drawn(split, index, config or DigitMotionConfig())
    config, alpha, path = scene.config, scene.alpha, scene.path
    frames = _paste(scene.background, alpha, scene.colour, path)
    frames = with_noise(frames, config.noise, scene.rng)[:: config.frame_step]
    return DigitMotionVideo(_shrink(frames, config.shrink), scene.digit, scene.motion)


def render_digit_masks(
    split: Split, index: int, config: DigitMotionConfig | None = None
) -> npt.NDArray[np.bool_]:
    """Say which pixels of a video of `render_digit_motion` show more of the digit than not.

    Args:
        split: as in `render_digit_motion`, like the other arguments.

    Returns:
        As many frames, rows and columns as the video has.

    Raises:
        ValueError: as `render_digit_motion`.

    Example:

    >>> render_digit_masks("train", 7).shape
    (72, 64, 64)
    """
    scene = _drawn(split, index, config or DigitMotionConfig())
    config = scene.config
    black, white = np.zeros_like(scene.background), np.full(3, 255)
    frames = _paste(black, scene.alpha, white, scene.path)[:: config.frame_step]
    return np.asarray(_shrink(frames.astype(np.uint8), config.shrink)[..., 0] >= 128)


@dataclass(frozen=True)
class _Scene:
    """Holds what is drawn for a video before its frames are made; `rng` draws the noise next."""

    config: DigitMotionConfig
    digit: int
    motion: int
    alpha: Integers
    colour: Integers
    background: Integers
    path: Integers
    rng: np.random.Generator


def _drawn(split: Split, index: int, config: DigitMotionConfig) -> _Scene:
    if split not in ("train", "test"):
        raise ValueError(f'`split` must be "train" or "test". Received: {split!r}')
    if index < 0:
        raise ValueError(f"`index` must be at least 0. Received: {index}")
    rng = np.random.default_rng([config.seed, ("train", "test").index(split), index])
    motion = index % len(MOTIONS)
    images, labels = digit_images()
    bounds = (0, NUM_TRAINING_IMAGES) if split == "train" else (NUM_TRAINING_IMAGES, len(images))
    chosen = int(rng.integers(*bounds))

    colour = rng.integers(128, 256, size=3)
    moving = config if isinstance(config, MovingBackgroundConfig) else None
    cells = moving.background_cells if moving else BACKGROUND_CELLS
    levels = rng.integers(0, config.background_strength + 1, size=(cells, cells, 3))
    background = enlarged(levels, config.canvas_size)
    # The start is uniform on the torus and independent of the motion, so that no single frame
    # tells the motion, whatever its path.
    start = rng.integers(config.canvas_size, size=2)
    path = start + displacements(motion, config.num_frames, phase=int(rng.integers(CIRCLE_PERIOD)))
    alpha = enlarged(images[chosen][..., None] * 16, config.digit_size)
    if moving:
        speed = moving.background_speed
        background = _moving(background, rng.integers(-speed, speed + 1, size=2), len(path))
    return _Scene(config, int(labels[chosen]), motion, alpha, colour, background, path, rng)


@functools.cache
def digit_images() -> tuple[Integers, Integers]:
    """Return the images, `(1797, 8, 8)` from 0 to 16, and the digit that each shows."""
    with np.load(Path(__file__).with_name("digits.npz")) as stored:
        return stored["images"].astype(np.int64), stored["labels"].astype(np.int64)


def displacements(motion: int, num_frames: int, phase: int) -> Integers:
    """Compute the displacements of a motion, (num_frames, 2): pixels downwards and to the right.

    Args:
        motion: a place in `MOTIONS`.
        num_frames: of the video.
        phase: frames by which circles and shakes begin later.
    """
    time = np.arange(num_frames)
    rest = np.zeros_like(time)
    turn = num_frames // 2
    first, second = np.minimum(time, turn), np.maximum(time - turn, 0)
    circle = 2 * np.pi * (time + phase) / CIRCLE_PERIOD
    shake = np.rint(AMPLITUDE * np.sin(2 * np.pi * (time + phase) / SHAKE_PERIOD)).astype(int)
    across = np.rint(AMPLITUDE * np.cos(circle)).astype(int)
    along = np.rint(AMPLITUDE * np.sin(circle)).astype(int)
    rows, columns = (
        (rest, time),
        (rest, -time),
        (time, rest),
        (-time, rest),
        (along, across),
        (-along, across),
        (rest, shake),
        (shake, rest),
        (second, first),
        (first, second),
    )[motion]
    return np.stack([rows, columns], axis=1)


def enlarged(image: Integers, size: int) -> Integers:
    """Interpolate (n, n, channels) linearly to (size, size, channels) in exact integers.

    Args:
        image: of integers.
        size: height and width of the result.
    """
    weights = _interpolation_weights(len(image), size)
    result = weights @ image.transpose(2, 0, 1) @ weights.T
    return result.transpose(1, 2, 0) // (2 * size) ** 2


@functools.cache
def _interpolation_weights(num_cells: int, size: int) -> Integers:
    """Compute weights (size, num_cells) of pixels at their centres; each row sums to 2 * size."""
    weights = np.zeros((size, num_cells), np.int64)
    for row in range(size):
        # (row + 1/2) * num_cells / size - 1/2, times 2 * size.
        cell, remainder = divmod((2 * row + 1) * num_cells - size, 2 * size)
        weights[row, max(cell, 0)] += 2 * size - remainder
        weights[row, min(cell + 1, num_cells - 1)] += remainder
    return weights


def _moving(background: Integers, velocity: Integers, num_frames: int) -> Integers:
    """Copy the background for each frame, moved; like the digit, it wraps around."""
    one = background.astype(np.uint8)
    return np.stack([np.roll(one, n * velocity, axis=(0, 1)) for n in range(num_frames)])


def _paste(background: Integers, alpha: Integers, colour: Integers, path: Integers) -> Integers:
    """Blend the digit (alpha 0 to 256) into the background, one or many, for places of the path."""
    canvas_size = background.shape[-2]
    offsets = np.arange(len(alpha))
    shape = len(path), canvas_size, canvas_size, 3
    frames = np.broadcast_to(background.astype(np.uint8), shape).copy()
    rows = (path[:, :1] + offsets) % canvas_size
    columns = (path[:, 1:] + offsets) % canvas_size
    where = np.arange(len(path))[:, None, None], rows[:, :, None], columns[:, None, :]
    frames[where] = (frames[where] * (256 - alpha) + colour * alpha) >> 8
    return frames


def with_noise(frames: Integers, noise: float, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Add noise to frames, new for each.

    Args:
        frames: uint8 levels.
        noise: standard deviation in grey levels.
        rng: source of the noise.
    """
    # Random bytes index a table of quantiles, which is exact on every machine, and faster than
    # `normal`.
    random_bytes = np.frombuffer(rng.bytes(frames.size), np.uint8)
    noisy = _noise_quantiles(noise).take(random_bytes).reshape(frames.shape)
    noisy += frames
    return np.clip(noisy, 0, 255, out=noisy).astype(np.uint8)


def _shrink(frames: npt.NDArray[np.uint8], factor: int) -> npt.NDArray[np.uint8]:
    """Average squares of pixels, rounded; the result is exact on every machine."""
    if factor == 1:
        return frames
    count, size = len(frames), frames.shape[1] // factor
    squares = frames.reshape(count, size, factor, size, factor, 3)
    total = squares.sum(axis=(2, 4), dtype=np.int64)
    return ((total + factor**2 // 2) // factor**2).astype(np.uint8)


@functools.cache
def _noise_quantiles(noise: float) -> npt.NDArray[np.int16]:
    normal = NormalDist()
    return np.array([round(noise * normal.inv_cdf((i + 0.5) / 256)) for i in range(256)], np.int16)
