"""Measure a pretrainer while it is trained, or from a checkpoint (§3.1)."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keras_vjepa.monitoring.health import numbers_of
from keras_vjepa.monitoring.held_out import HeldOut, shares_and_pixels
from keras_vjepa.monitoring.looks import make_looking
from keras_vjepa.tasks.pretrainer import VJEPAPretrainer


class Looking:
    """Measures the features that a pretrainer computes for some clips, with any weights.

    It is compiled once; the weights are arguments of the call.

    Args:
        pretrainer: the pretrainer whose networks are measured.
        held_out: the clips.

    Call arguments:
        values: values of the weights that `looks.variables_of` lists.

    Returns:
        The numbers of `health.numbers_of` and of `held_out.shares_and_pixels`, and
        `encoder_distance`: the distance between the weights of the target encoder and those of the
        encoder, divided by the norm of the encoder's.
    """

    def __init__(self, pretrainer: VJEPAPretrainer, held_out: HeldOut) -> None:
        self.held_out = held_out
        self._look = make_looking(pretrainer)
        self._count = len(pretrainer.target_encoder.variables)
        num_tokens = math.prod(pretrainer.encoder.grid_shape)
        self._given = shares_and_pixels(held_out.batch, num_tokens)

    def __call__(self, values: Sequence[NDArray[Any]]) -> dict[str, float | int]:
        looks = self._look([*values], self.held_out.batch)
        return {
            "encoder_distance": self._distance(values),
            **self._given,
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
