"""Collapse seen while it happens: the spread of the target encoder's features in training (§3.1).

The loss cannot tell. It falls when all features become one constant, and may rise while they learn.
"""

import csv
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
from feature_cache import write_atomically
from keras import ops
from numpy.typing import NDArray
from resumable import LossLog

from keras_vjepa import VJEPABackbone, distribution
from keras_vjepa.monitoring import FeatureStatistics, feature_statistics

COLUMNS = ("step", "feature_std", "effective_rank")
# Encoded at a time.
CLIPS = 8


class FeatureLog(keras.callbacks.Callback):
    """Writes the spread of the features of the same clips, at regular steps.

    All processes need it, since they may hold parts of the weights; the first writes.

    Args:
        log: the losses; it comes before this callback in the list of callbacks.
        every: steps between two rows.
        videos: `(clips, frames, height, width, 3)`, normalised; None in all other processes than
            the first.
        path: csv file with a row for each. Rows of steps that are not done yet are dropped.
    """

    def __init__(
        self,
        log: LossLog,
        every: int,
        videos: NDArray[np.float32] | None,
        path: Path,
    ) -> None:
        super().__init__()
        if every < 1:
            raise ValueError(f"`monitor_every` must be at least 1. Received: {every}")
        self.log = log
        self.every = every
        self.videos = videos
        self.path = path
        self.rows = {} if videos is None else _read(path, log.done)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        if self.log.done == 0:
            self._write()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if self.log.done % self.every == 0 or self.log.done == self.log.steps:
            self._write()

    def _write(self) -> None:
        # First: it raises if there is nothing to see any more.
        self.log.flush()
        encoder = self.model.target_encoder
        weights = distribution.values(encoder.variables)
        if self.videos is None:
            return
        found = feature_statistics(encode_apart(encoder, weights, self.videos))
        self.rows[self.log.done] = found
        lines = [",".join(COLUMNS)]
        lines += [f"{n},{row.std:.6g},{row.effective_rank:.6g}" for n, row in self.rows.items()]
        write_atomically(self.path, "\n".join(lines) + "\n")
        if self.log.shown:
            print(
                f"step {self.log.done}: feature std {found.std:.3f}, "
                f"effective rank {found.effective_rank:.1f} of {encoder.hidden_dim}",
                file=sys.stderr,
                flush=True,
            )


def encode_apart(
    encoder: VJEPABackbone, weights: list[NDArray[Any]], videos: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Features from the given values of `encoder.variables`, on one device and by this process.

    Not by `predict`, in which all devices and processes of a run would have to take part.
    """
    trainable = {id(variable) for variable in encoder.trainable_variables}
    parts: tuple[list[Any], list[Any]] = ([], [])
    for variable, value in zip(encoder.variables, weights, strict=True):
        parts[id(variable) not in trainable].append(ops.convert_to_tensor(value, variable.dtype))
    features = []
    for start in range(0, len(videos), CLIPS):
        found, _ = encoder.stateless_call(*parts, videos[start : start + CLIPS])
        features.append(ops.convert_to_numpy(ops.cast(found, "float32")))
    return np.concatenate(features)


def _read(path: Path, done: int) -> dict[int, FeatureStatistics]:
    """The rows of a run that goes on."""
    if not path.exists():
        return {}
    with open(path, newline="") as file:
        rows = [[float(row[name]) for name in COLUMNS] for row in csv.DictReader(file)]
    return {int(step): FeatureStatistics(std, rank) for step, std, rank in rows if step <= done}
