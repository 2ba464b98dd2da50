"""Draw the samples of an epoch: every sample once, or some more often (§3.4, Table 2).

The paper draws from its three sources in proportion to their sizes, which is every video once an
epoch. With a weight w, each sample of a source comes w times on average: as often as the whole
number below w says, and once more if it is in a share of the samples that each epoch chooses again.
So all epochs have the same length, and the sample at a position follows from the seed and the
position alone.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from keras_vjepa.arguments import check_number, shown

Indices = NDArray[np.int64]

_MOST_TIMES = 1000


def check_label_weights(label_weights: Sequence[float] | None) -> None:
    """Check how often the samples of each label are to come; see `EpochOrder`.

    Raises:
        ValueError: if a weight is out of its range, or all are zero.
    """
    if label_weights is None:
        return
    for weight in label_weights:
        check_number(f"[0, {_MOST_TIMES}]", label_weights=weight)
    if not sum(label_weights):
        raise ValueError("`label_weights` must not all be 0: nothing would be left")


class EpochOrder:
    """Draws the order of each epoch.

    Args:
        labels: labels of the samples.
        label_weights: how often the samples of each label come in an epoch, by the number of the
            label; None is once each.

    Attributes:
        length: number of samples in an epoch.

    Raises:
        ValueError: for a label without a weight, or if no sample is left.

    Example:

    >>> order = EpochOrder([0, 0, 1, 1], label_weights=(0.5, 2))
    >>> order.length, sorted(order.draw(np.random.default_rng(0)).tolist())[1:]
    (5, [2, 2, 3, 3])
    """

    def __init__(
        self, labels: Sequence[int | None], label_weights: Sequence[float] | None = None
    ) -> None:
        check_label_weights(label_weights)
        self._count = len(labels)
        # For each label: its samples, how often all of them are drawn, and how many are drawn once
        # more.
        self._groups: list[tuple[Indices, int, int]] = []
        self.length = self._count
        if label_weights is None:
            return
        numbers = [-1 if label is None else label for label in labels]
        wrong = [label for label in labels if label is None or label >= len(label_weights)]
        if wrong:
            raise ValueError(
                "`label_weights` must hold a weight for the label of every sample. "
                f"Received: {shown(label_weights)}, and a sample of label {wrong[0]}"
            )
        of_label = np.array(numbers)
        for label, weight in enumerate(label_weights):
            group = np.flatnonzero(of_label == label)
            times = int(weight)
            self._groups.append((group, times, round(len(group) * (weight - times))))
        self.length = sum(len(group) * times + more for group, times, more in self._groups)
        if not self.length:
            raise ValueError(
                f"`label_weights` must leave a sample. Received: {shown(label_weights)}, of "
                f"{self._count:,} samples"
            )

    def draw(self, rng: np.random.Generator) -> Indices:
        """Draw the order of an epoch.

        Args:
            rng: the epoch's own generator.

        Returns:
            `(length,)`, which sample comes at which place.
        """
        if not self._groups:
            return rng.permutation(self._count)
        parts = []
        for group, times, more in self._groups:
            parts += [np.repeat(group, times), rng.choice(group, more, replace=False)]
        return rng.permutation(np.concatenate(parts))
