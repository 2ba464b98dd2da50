"""Augment clips by RandAugment and AutoAugment, which draw picture operations (App. D.1, Table 10).

Sources of the numbers: "AutoAugment" (arXiv 1805.09501, Table 9) for the 25 sub-policies;
"RandAugment" (arXiv 1909.13719) and the "increasing" ranges that timm documents as `inc1`.

Departure: Table 10 says no augmentation for the video probes; the authors' code has RandAugment.
"""

import re
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from keras_vjepa.arguments import check_number, check_whole, shown
from keras_vjepa.data.transforms.operations import (
    MAX_MAGNITUDE,
    OPERATIONS,
    Operation,
    apply_operations,
)

Frames = NDArray[np.uint8]
Colour = tuple[int, int, int]


_MOST_OPERATIONS = 1000


def _check_colour(fill: Colour) -> None:
    if not isinstance(fill, tuple | list) or len(fill) != 3:
        raise ValueError(f"`fill` must be red, green and blue. Received: {shown(fill)}")
    for part in fill:
        check_whole(0, 255, fill=part)


# --------------------------------------------------------------------------------- policies


def increasing_argument(name: str, magnitude: float, sign: int) -> float:
    """Compute how strong an operation of RandAugment is: the larger the magnitude, the stronger.

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
    """Compute how strong an operation of AutoAugment is, in the ranges of its paper.

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


# The arguments at the largest magnitude.
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
    """Augments clips as the authors do for video probes: timm's `rand-m7-n4-mstd0.5-inc1`.

    Each clip draws `num_operations` of the 15 operations, with replacement; each is applied with
    `probability`, at a magnitude drawn from a normal distribution and clipped to [0, 10].

    Args:
        num_operations: operations drawn for a clip.
        magnitude: mean of the magnitudes, 0 to 10.
        magnitude_std: standard deviation of the magnitudes.
        probability: chance that a drawn operation is applied.
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
        check_whole(0, _MOST_OPERATIONS, num_operations=self.num_operations)
        check_number(f"[0, {MAX_MAGNITUDE:g}]", magnitude=self.magnitude)
        check_number("[0, inf)", magnitude_std=self.magnitude_std)
        check_number("[0, 1]", probability=self.probability)
        _check_colour(self.fill)

    @classmethod
    def from_string(cls, text: str) -> Self:
        """Read a policy in timm's short form: `rand`, then parts after a dash each (App. D.3).

        Args:
            text: `m` the magnitude (10 by default), `n` the operations (2), `mstd` the deviation of
                the magnitudes (0), `p` the probability (0.5); `inc1` must be there, which says that
                a larger magnitude is stronger. No part may be there twice.

        Raises:
            ValueError: for a text of another form, and for numbers that the constructor refuses.

        Example:

        >>> RandAugment.from_string("rand-m7-n4-mstd0.5-inc1") == RandAugment()
        True
        """
        names = {
            "m": "magnitude",
            "n": "num_operations",
            "mstd": "magnitude_std",
            "p": "probability",
        }
        given: dict[str, float] = {"magnitude": 10.0, "num_operations": 2, "magnitude_std": 0.0}
        head, *parts = text.split("-")
        form = re.compile(r"(mstd|m|n|p|inc)([0-9]+(?:\.[0-9]+)?)")
        found = [match for match in map(form.fullmatch, parts) if match]
        numbers = {match[1]: float(match[2]) for match in found}
        if head != "rand" or len(numbers) != len(parts) or "inc1" not in parts:
            raise ValueError(
                "`auto_augment` must be as rand-m7-n4-mstd0.5-inc1, with inc1 in it and no part "
                f"twice. Received: {shown(text)}"
            )
        del numbers["inc"]
        for name, number in numbers.items():
            given[names[name]] = int(number) if number.is_integer() else number
        try:
            return cls(**given)  # type: ignore[arg-type]
        except ValueError as error:
            raise ValueError(f"`auto_augment` has a number out of range: {error}") from None

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


# A row of AutoAugment's Table 9 (ImageNet) has two entries of (operation, probability, magnitude).
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
    """Augments images by the policy found on ImageNet: timm's `original` (image probes, Table 10).

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

    def __post_init__(self) -> None:
        _check_colour(self.fill)

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
