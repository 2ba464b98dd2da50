"""Collapse seen while it happens: the spread of the target encoder's features in training (§3.1).

The loss cannot tell. It falls when all features become one constant, and may rise while they learn.
"""

import csv
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from keras_vjepa import files
from keras_vjepa.backend import collectives, device
from keras_vjepa.models.backbone import VJEPABackbone
from keras_vjepa.monitoring.statistics import FeatureStatistics, feature_statistics
from keras_vjepa.training.resumable import LossLog

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
        self._encode: Callable[..., Any] | None = None
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
        weights = collectives.values(encoder.variables)
        if self.videos is None:
            return
        # Made once, so that it is compiled once.
        self._encode = self._encode or encode_with(encoder)
        found = feature_statistics(self._encode(weights, self.videos))
        self.rows[self.log.done] = found
        lines = [",".join(COLUMNS)]
        lines += [f"{n},{row.std:.6g},{row.effective_rank:.6g}" for n, row in self.rows.items()]
        files.write_text(self.path, "\n".join(lines) + "\n")
        if self.log.shown:
            print(
                f"step {self.log.done}: feature std {found.std:.3f}, "
                f"effective rank {found.effective_rank:.1f} of {encoder.hidden_dim}",
                file=sys.stderr,
                flush=True,
            )


def encode_with(encoder: VJEPABackbone) -> Callable[..., NDArray[np.float32]]:
    """A function from values of `encoder.variables` and videos to features, by this process alone.

    Not by `predict`, in which all devices and processes of a run would have to take part.
    """
    trainable = {id(variable) for variable in encoder.trainable_variables}

    def features_of(*arguments: Any) -> Any:
        return ops.cast(encoder.stateless_call(*arguments)[0], "float32")

    compiled = device.compiled_alone(features_of)

    def encode(weights: list[NDArray[Any]], videos: NDArray[np.float32]) -> NDArray[np.float32]:
        parts: tuple[list[Any], list[Any]] = ([], [])
        for variable, value in zip(encoder.variables, weights, strict=True):
            tensor = ops.convert_to_tensor(value, variable.dtype)
            parts[id(variable) not in trainable].append(tensor)
        starts = range(0, len(videos), CLIPS)
        features = [compiled(*parts, videos[start : start + CLIPS]) for start in starts]
        return np.concatenate([ops.convert_to_numpy(one) for one in features])

    return encode


def _read(path: Path, done: int) -> dict[int, FeatureStatistics]:
    """The rows of a run that goes on."""
    if not path.exists():
        return {}
    with open(path, newline="") as file:
        rows = [[float(row[name]) for name in COLUMNS] for row in csv.DictReader(file)]
    return {int(step): FeatureStatistics(std, rank) for step, std, rank in rows if step <= done}
