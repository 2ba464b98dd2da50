"""Mix the clips of a batch by mixup or CutMix, and smooth their labels (App. D.3, Table 12).

Both mix each clip with the one that is as far from the end of the batch as it is from the
beginning. The same draws hold for all clips of a batch.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from keras_vjepa.arguments import check_number, check_whole

Floats = NDArray[np.float32]
# The box's first row, the row after its last, its first column, and the column after its last.
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Mix:
    """Holds the draws by which a batch is mixed.

    Attributes:
        share: share of a clip in the mixed clip; the rest is its partner's.
        box: the box that CutMix takes from the partner, or None for mixup.
    """

    share: float = 1.0
    box: Box | None = None


@dataclass(frozen=True)
class Mixing:
    """Draws how the clips of a batch are mixed, and mixes clips and labels (Table 12).

    Args:
        mixup: both parameters of the beta distribution that mixup's share is drawn from; 0 for no
            mixup.
        cutmix: likewise for the share of CutMix.
        probability: chance that a batch is mixed at all.
        switch_probability: chance that a batch is mixed by CutMix, if mixup and CutMix are both on.
        smoothing: share of a label that is spread over all classes.

    Raises:
        ValueError: for a number out of range.

    Example:

    >>> rng = np.random.default_rng(0)
    >>> videos, targets = Mixing()(np.zeros((2, 4, 32, 32, 3), "float32"), [0, 1], 3, rng)
    >>> videos.shape, targets.shape, targets.sum(axis=1).round(6).tolist()
    ((2, 4, 32, 32, 3), (2, 3), [1.0, 1.0])
    """

    mixup: float = 0.8
    cutmix: float = 1.0
    probability: float = 1.0
    switch_probability: float = 0.5
    smoothing: float = 0.1

    def __post_init__(self) -> None:
        check_number("[0, inf)", mixup=self.mixup, cutmix=self.cutmix)
        check_number("[0, 1]", probability=self.probability, smoothing=self.smoothing)
        check_number("[0, 1]", switch_probability=self.switch_probability)

    @property
    def mixes(self) -> bool:
        """Return whether clips are mixed, and not only labels smoothed."""
        return self.probability > 0 and (self.mixup > 0 or self.cutmix > 0)

    def draw(self, height: int, width: int, rng: np.random.Generator) -> Mix:
        """Draw how a batch is mixed.

        Args:
            height: height of the clips.
            width: width of the clips.
            rng: source of the draws.
        """
        if not self.mixes or rng.random() >= self.probability:
            return Mix()
        cuts = self.cutmix > 0 and (self.mixup == 0 or rng.random() < self.switch_probability)
        alpha = self.cutmix if cuts else self.mixup
        share = float(rng.beta(alpha, alpha))
        if not cuts:
            return Mix(share)
        centre = int(rng.integers(height)), int(rng.integers(width))
        box = cutmix_box(height, width, share, centre)
        return Mix(share_outside(box, height, width), box)

    def __call__(
        self,
        videos: Floats,
        labels: ArrayLike,
        num_classes: int,
        rng: np.random.Generator,
    ) -> tuple[Floats, Floats]:
        """Mix a batch.

        Args:
            videos: `(batch, ..., height, width, channels)`, of an even number of clips.
            labels: int `(batch,)`.
            num_classes: number of classes.
            rng: source of the draws.

        Returns:
            The mixed clips, and their targets, float32 `(batch, num_classes)`, which sum to one.

        Raises:
            ValueError: for an odd number of clips, as the one in the middle would have no partner.
        """
        if self.mixes and len(videos) % 2:
            raise ValueError(
                "`batch_size` must give an even number of clips, mixed in pairs. "
                f"Received: {len(videos)}"
            )
        mix = self.draw(videos.shape[-3], videos.shape[-2], rng)
        return mixed_clips(videos, mix), mixed_targets(
            labels, num_classes, mix.share, self.smoothing
        )


def cutmix_box(height: int, width: int, share: float, centre: tuple[int, int]) -> Box:
    """Find the box that CutMix takes from the partner, cut off at the border of the picture.

    Args:
        height: height of the clips.
        width: width of the clips.
        share: share of the clip itself that is left, if the box is not cut off.
        centre: row and column of the box's centre.

    Example:

    >>> cutmix_box(12, 16, 0.75, (6, 8))
    (3, 9, 4, 12)
    """
    scale = math.sqrt(1.0 - share)
    edges: list[int] = []
    for side, middle in ((height, centre[0]), (width, centre[1])):
        half = int(side * scale) // 2
        edges += [max(middle - half, 0), min(middle + half, side)]
    first_row, end_row, first_column, end_column = edges
    return first_row, end_row, first_column, end_column


def share_outside(box: Box, height: int, width: int) -> float:
    """Compute the share of a picture that lies outside of a box.

    Args:
        box: as `cutmix_box` gives it.
        height: height of the picture.
        width: width of the picture.

    Example:

    >>> share_outside((3, 9, 4, 12), 12, 16)
    0.75
    """
    first_row, end_row, first_column, end_column = box
    return 1.0 - (end_row - first_row) * (end_column - first_column) / (height * width)


def mixed_clips(videos: Floats, mix: Mix) -> Floats:
    """Mix each clip with its partner.

    Args:
        videos: `(batch, ..., height, width, channels)`.
        mix: the draws.

    Returns:
        As many mixed clips; `videos` itself stays as it is.
    """
    partners = videos[::-1]
    if mix.box is not None:
        first_row, end_row, first_column, end_column = mix.box
        box = np.s_[..., first_row:end_row, first_column:end_column, :]
        mixed = videos.copy()
        mixed[box] = partners[box]
        return mixed
    if mix.share == 1.0:
        return videos
    return videos * np.float32(mix.share) + partners * np.float32(1.0 - mix.share)


def mixed_targets(labels: ArrayLike, num_classes: int, share: float, smoothing: float) -> Floats:
    """Make targets of labels, smoothed, and mixed as the clips are.

    Args:
        labels: int `(batch,)`, below `num_classes`.
        num_classes: number of classes.
        share: share of a clip's own label.
        smoothing: share of a label that is spread over all classes.

    Returns:
        float32 `(batch, num_classes)`; rows sum to one.

    Raises:
        ValueError: for a label that is no class.

    Example:

    >>> mixed_targets([0, 1], num_classes=2, share=0.75, smoothing=0.0).tolist()
    [[0.75, 0.25], [0.25, 0.75]]
    """
    check_whole(1, num_classes=num_classes)
    labels = np.asarray(labels)
    wrong = labels[~np.isin(labels, np.arange(num_classes))]
    if len(wrong):
        raise ValueError(
            f"`labels` must be in [0, {num_classes}), the classes. Received: {wrong[0]}"
        )
    own = np.full((len(labels), num_classes), smoothing / num_classes)
    own[np.arange(len(own)), labels.astype("int64")] += 1.0 - smoothing
    return (own * share + own[::-1] * (1.0 - share)).astype(np.float32)
