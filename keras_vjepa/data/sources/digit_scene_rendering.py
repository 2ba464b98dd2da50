"""Render scenes of several digits, each moving in its own way (a stand-in for AVA, App. D.2).

Two to four handwritten digits of different sizes move over a background, each in one of eight ways.
A digit is a person, what it is and how it moves are its actions: each box has two of 18. The images
and the motions are those of `digit_motion_rendering.py`; but here digits stay within the frame, so
that they have a box, and where one is says a little of how it moves.

Key frames are the whole seconds that have frames on both sides. Everything up to the encoder is
integer arithmetic on NumPy's random bits: frames and boxes are the same on every machine.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from keras_vjepa.arguments import check_number, check_whole
from keras_vjepa.data.sources.digit_motion_rendering import (
    AMPLITUDE,
    CIRCLE_PERIOD,
    MOTIONS,
    NUM_TRAINING_IMAGES,
    Split,
    digit_images,
    displacements,
    enlarged,
    with_noise,
)

Integers = npt.NDArray[np.integer[Any]]

# The two turning motions are left out, because they can only be seen in a whole video.
SCENE_MOTIONS = MOTIONS[:8]
# Numbers of actions begin at 1, as in AVA.
ACTIONS = {
    n: name for n, name in enumerate((*(f"digit {d}" for d in range(10)), *SCENE_MOTIONS), start=1)
}
# Part of the cache folder's name: raise it whenever rendering or encoding changes.
SCENE_VERSION = 1
_FEWEST, _MOST = 2, 4
_TRIES = 40
# The largest share of a digit that another digit may hide in a key frame.
_MOST_HIDDEN = 0.25


@dataclass(frozen=True)
class DigitSceneConfig:
    """Says how scenes are rendered.

    Attributes:
        canvas_size: height and width of a frame in pixels, even.
        smallest, largest: sizes of the digits in pixels.
        seconds: length of a video; its key frames are the whole seconds within.
        fps: frames per second that motions are counted in.
        frame_step: keep one frame of so many.
        noise: standard deviation of the noise in grey levels.
        background_strength: brightest level of the background, 0 (black) to 255.
        num_training_videos, num_test_videos: how many.
        seed: another seed gives other videos of the same digits.

    Raises:
        ValueError: if a value is out of range.
    """

    canvas_size: int = 128
    smallest: int = 24
    largest: int = 40
    seconds: int = 3
    fps: int = 24
    frame_step: int = 2
    noise: float = 2.0
    background_strength: int = 0
    num_training_videos: int = 1200
    num_test_videos: int = 300
    seed: int = 0

    def __post_init__(self) -> None:
        check_whole(2, 60, seconds=self.seconds)
        check_whole(1, 240, fps=self.fps, frame_step=self.frame_step)
        check_whole(8, 512, smallest=self.smallest, largest=self.largest)
        check_whole(1, num_training_videos=self.num_training_videos)
        check_whole(1, num_test_videos=self.num_test_videos)
        check_whole(0, seed=self.seed)
        check_whole(0, 255, background_strength=self.background_strength)
        check_number("[0, 40]", noise=self.noise)
        least = self.largest + self.seconds * self.fps + 2 * AMPLITUDE
        if self.canvas_size < least - 2 * AMPLITUDE or self.canvas_size % 2:
            raise ValueError(
                f"`canvas_size` must be even, and hold the largest digit and its way of "
                f"{self.seconds * self.fps} pixels. Received: {self.canvas_size}"
            )
        if self.smallest > self.largest or self.fps % self.frame_step:
            raise ValueError(
                "`smallest` must be at most `largest`, and `fps` a multiple of `frame_step`. "
                f"Received: {self.smallest}, {self.largest}, {self.fps} and {self.frame_step}"
            )

    @property
    def key_seconds(self) -> range:
        """Return the seconds that are key frames."""
        return range(1, self.seconds)


@dataclass(frozen=True)
class SceneDigit:
    """Describes one digit of a scene.

    Attributes:
        digit: 0 to 9.
        motion: a place in `SCENE_MOTIONS`.
        size: height and width in pixels.
        path: `(frames, 2)`, top and left.
    """

    digit: int
    motion: int
    size: int
    path: Integers

    @property
    def actions(self) -> tuple[int, int]:
        """Return the numbers of the digit's actions, from 1."""
        return 1 + self.digit, 11 + self.motion

    def box(self, frame: int) -> tuple[int, int, int, int]:
        """Return left, top, right and bottom in pixels of a frame."""
        top, left = self.path[frame].tolist()
        return left, top, left + self.size, top + self.size


@dataclass(frozen=True)
class DigitScene:
    """Holds one rendered video.

    Attributes:
        frames: uint8 `(frames, size, size, 3)`, RGB.
        digits: what is in it; of two that meet, the later one is in front.
    """

    frames: npt.NDArray[np.uint8]
    digits: list[SceneDigit]


def render_scene(split: Split, index: int, config: DigitSceneConfig | None = None) -> DigitScene:
    """Render one video; the same arguments always give the same pixels.

    Args:
        split: `"train"` or `"test"`; decides which images of digits are used.
        index: number of the video.
        config: what to render; `None` is the standard set.

    Example:

    >>> scene = render_scene("train", 0)
    >>> scene.frames.shape, 2 <= len(scene.digits) <= 4
    ((36, 128, 128, 3), True)
    """
    config = config or DigitSceneConfig()
    # The 7 keeps these draws apart from those of the other built-in set.
    rng = np.random.default_rng([config.seed, 7, ("train", "test").index(split), index])
    cells = (4, 4, 3)
    background = rng.integers(0, config.background_strength + 1, size=cells)
    num_frames = config.seconds * config.fps
    frames = np.repeat(
        enlarged(background, config.canvas_size).astype(np.uint8)[None], num_frames, axis=0
    )
    images, labels = digit_images()
    bounds = (0, NUM_TRAINING_IMAGES) if split == "train" else (NUM_TRAINING_IMAGES, len(images))
    digits: list[SceneDigit] = []
    for _ in range(int(rng.integers(_FEWEST, _MOST, endpoint=True))):
        chosen = int(rng.integers(*bounds))
        found = _placed(digits, int(labels[chosen]), config, rng)
        colour = rng.integers(128, 256, size=3)
        if found is None:
            continue
        digits.append(found)
        alpha = enlarged(images[chosen][..., None] * 16, found.size)
        for frame, (top, left) in zip(frames, found.path.tolist(), strict=True):
            part = frame[top : top + found.size, left : left + found.size]
            part[:] = (part * (256 - alpha) + colour * alpha) >> 8
    return DigitScene(with_noise(frames, config.noise, rng)[:: config.frame_step], digits)


def _placed(
    others: list[SceneDigit], digit: int, config: DigitSceneConfig, rng: np.random.Generator
) -> SceneDigit | None:
    """Draw size, motion and way of a digit that hides little of others; None if none is found."""
    for _ in range(_TRIES):
        size = int(rng.integers(config.smallest, config.largest, endpoint=True))
        motion = int(rng.integers(len(SCENE_MOTIONS)))
        way = displacements(
            motion, config.seconds * config.fps, phase=int(rng.integers(CIRCLE_PERIOD))
        )
        least, most = -way.min(axis=0), config.canvas_size - size - way.max(axis=0)
        start = rng.integers(least, most, endpoint=True)
        found = SceneDigit(digit, motion, size, start + way)
        frames = [second * config.fps for second in config.key_seconds]
        if all(_hidden(found.box(f), o.box(f)) <= _MOST_HIDDEN for o in others for f in frames):
            return found
    return None


def _hidden(box: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> float:
    """Compute the share of the smaller box that the other one covers."""
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    smaller = min(box[2] - box[0], other[2] - other[0]) ** 2
    return max(width, 0) * max(height, 0) / smaller
