"""All numbers of one look at a pretrainer, while it is trained or from a checkpoint (§3.1)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keras_vjepa.monitoring.health import numbers_of
from keras_vjepa.monitoring.held_out import HeldOut
from keras_vjepa.monitoring.looks import make_looking
from keras_vjepa.tasks.pretrainer import VJEPAPretrainer


class Looking:
    """Measures what a pretrainer makes of some clips; compiled once, for whatever weights.

    Args:
        pretrainer: whose networks are looked at.
        held_out: the clips.

    Call arguments:
        values: of the weights that `looks.variables_of` lists.

    Returns:
        As `health.numbers_of`, and `encoder_distance`: how far the target encoder's weights lie
        from the encoder's, in units of the length of these.
    """

    def __init__(self, pretrainer: VJEPAPretrainer, held_out: HeldOut) -> None:
        self.held_out = held_out
        self._look = make_looking(pretrainer)
        self._count = len(pretrainer.target_encoder.variables)

    def __call__(self, values: Sequence[NDArray[Any]]) -> dict[str, float | int]:
        looks = self._look([*values], self.held_out.batch)
        return {
            "encoder_distance": self._distance(values),
            **numbers_of(looks, self.held_out.videos, self.held_out.labels),
        }

    def _distance(self, values: Sequence[NDArray[Any]]) -> float:
        target, own = values[: self._count], values[self._count : 2 * self._count]
        squares = [
            (np.square(b - a, dtype="f8").sum(), np.square(b, dtype="f8").sum())
            for a, b in zip(target, own, strict=True)
        ]
        difference, length = np.sum(squares, axis=0)
        return float(np.sqrt(difference / max(length, np.finfo("f8").tiny)))
