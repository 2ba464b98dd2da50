"""Collapse seen while it happens: the spread of the target encoder's features in training (§3.1).

The loss cannot tell. It falls when all features become one constant, and may rise while they learn.
"""

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from keras_vjepa import files
from keras_vjepa.arguments import check_whole
from keras_vjepa.backend import collectives, device
from keras_vjepa.backend.optimizer_state import batches_taken
from keras_vjepa.models.backbone import VJEPABackbone
from keras_vjepa.monitoring.statistics import FeatureStatistics, feature_statistics

COLUMNS = ("step", "feature_std", "effective_rank")
# Encoded at a time.
CLIPS = 8

_LOG = logging.getLogger(__name__)


class FeatureLog(keras.callbacks.Callback):
    """Writes the spread of the features of the same clips, at regular steps and the last.

    Steps are the optimizer's, so a run that goes on, or another `fit`, continues the table. All
    processes need it, since they may hold parts of the weights; the first writes.

    Args:
        videos: `(clips, frames, height, width, 3)`, normalised; None in all other processes than
            the first.
        path: csv file with a row for each. Rows of steps that are not done yet are dropped.
        every: steps between two rows.

    Raises:
        ValueError: if `every` is not positive.
    """

    def __init__(self, videos: NDArray[np.float32] | None, path: Path, every: int = 300) -> None:
        super().__init__()
        check_whole(1, every=every)
        self.videos = videos
        self.path = path
        self.every = every
        self.step = 0
        self.rows: dict[int, FeatureStatistics] = {}
        self._last: int | None = None
        self._written = -1
        self._encode: Callable[..., Any] | None = None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self.step = int(ops.convert_to_numpy(batches_taken(self.model.optimizer)))
        steps, epochs = (self.params.get(name) for name in ("steps", "epochs"))
        # Known before the checkpoint of the last step is written, unless Keras does not know.
        self._last = self.step + steps * epochs if steps and epochs else None
        if self.videos is not None:
            self.rows = _read(self.path, self.step)
        if self.step == 0:
            if self.videos is not None:
                print(
                    f"Features of {len(self.videos):,} clips are looked at now and every "
                    f"{self.every:,} steps.",
                    file=sys.stderr,
                    flush=True,
                )
            self._write()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self.step += 1
        if self.step % self.every == 0 or self.step == self._last:
            self._write()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        if self._written != self.step:
            self._write()

    def _write(self) -> None:
        self._written = self.step
        encoder = self.model.target_encoder
        weights = collectives.values(encoder.variables)
        if self.videos is None:
            return
        # Made once, so that it is compiled once.
        self._encode = self._encode or encode_with(encoder)
        found = feature_statistics(self._encode(weights, self.videos))
        self.rows[self.step] = found
        lines = [",".join(COLUMNS)]
        lines += [f"{n},{row.std:.6g},{row.effective_rank:.6g}" for n, row in self.rows.items()]
        files.write_text(self.path, "\n".join(lines) + "\n")
        print(
            f"step {self.step}: feature std {found.std:.3f}, "
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


def damaged_table(path: Path, steps: int) -> str | None:
    """Say what is wrong with the table of a finished run.

    Args:
        path: of the table.
        steps: of the whole run.

    Returns:
        The file, and that it is missing or damaged; None if its last row is that of the last step.
    """
    lines = path.read_text("utf-8", "replace").splitlines() if path.is_file() else []
    if lines[:1] == [",".join(COLUMNS)] and lines[-1].startswith(f"{steps},"):
        return None
    return f"{path} is missing or damaged"


def _read(path: Path, done: int) -> dict[int, FeatureStatistics]:
    """The rows of a run that goes on; damaged ones are left out, and the log says so."""
    if files.kind_of(path) != "file":
        return {}
    header, *lines = path.read_text("utf-8", "replace").splitlines() or [""]
    found: dict[int, FeatureStatistics] = {}
    damaged = 0 if header == ",".join(COLUMNS) else 1
    for line in lines:
        try:
            step, std, rank = map(float, line.split(","))
            if step <= done:
                found[int(step)] = FeatureStatistics(std, rank)
        except (ValueError, OverflowError):
            damaged += 1
    if damaged:
        _LOG.warning("Left out of %s, which is damaged: %d of its lines.", path, damaged)
    return found
