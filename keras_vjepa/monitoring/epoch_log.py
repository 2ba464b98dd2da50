"""Write the results of each epoch of a fine-tuning: its loss, and a test (App. D.3)."""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_vjepa.arguments import check_whole
from keras_vjepa.monitoring.follower import RunFollower
from keras_vjepa.monitoring.step_log import FILE_NAME as STEPS
from keras_vjepa.monitoring.tables import Row, Table, read_rows

FILE_NAME = "epochs"


class EpochLog(RunFollower):
    """Writes `epochs.csv` and `epochs.jsonl`, with a row for each epoch after which it tests.

    A row has the epoch, the mean loss of its steps, and what a test on videos that are not trained
    on gives. A run that continues from a checkpoint removes the rows of epochs that it makes
    again. All processes of a run need the log, since they test together; the first one writes.

    Args:
        folder: the folder to write to.
        steps_per_epoch: number of steps of an epoch.
        test: a function of the model that returns numbers, or None, by the names of their columns.
        every: epochs between two rows; there is also a row after the last step.
        writers: functions that are called with the new row after each test.

    Raises:
        ValueError: if a number is not positive.
    """

    def __init__(
        self,
        folder: Path,
        steps_per_epoch: int,
        test: Callable[[Any], Mapping[str, Any]],
        every: int = 1,
        writers: Sequence[Callable[[Sequence[Row]], None]] = (),
    ) -> None:
        super().__init__()
        check_whole(1, steps_per_epoch=steps_per_epoch, every=every)
        self.folder = folder
        self.steps_per_epoch = steps_per_epoch
        self.test = test
        self.every = every
        self.writers = writers
        self._step = 0
        self._losses_of_steps: dict[int, Any] = {}
        self._table: Table | None = None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        super().on_train_begin(logs)
        self._step = self.begun_at
        # An earlier process may have begun the current epoch; its losses are in the table of steps.
        earlier = read_rows(self.folder / f"{STEPS}.jsonl")
        self._losses_of_steps = {
            r["step"]: r.get("loss") for r in earlier if r["step"] <= self.begun_at
        }
        if self.start is None or self.start.is_first:
            self._table = Table(self.folder / FILE_NAME, self.begun_at)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._step += 1
        self._losses_of_steps[self._step] = (logs or {}).get("step_loss")
        epoch, rest = divmod(self._step, self.steps_per_epoch)
        if self._step == self.last or (not rest and epoch % self.every == 0):
            self._write(epoch + bool(rest))
        if not rest:
            self._losses_of_steps = {}

    def _write(self, epoch: int) -> None:
        # Reading `self.model`, a property of Keras, brings the variables up to date.
        found = self.test(self.model)
        if self._table is None:
            return
        first = (epoch - 1) * self.steps_per_epoch
        losses = [
            float(x) for step, x in self._losses_of_steps.items() if step > first and x is not None
        ]
        row = {
            "step": self._step,
            "epoch": epoch,
            "training_loss": float(np.mean(losses)) if losses else None,
            **found,
        }
        self._table.add([row])
        for write in self.writers:
            write([row])
        numbers = {"loss": row["training_loss"], **found}
        said = (f"{k.replace('_', ' ')} {x:.4f}" for k, x in numbers.items() if x is not None)
        print(f"epoch {epoch}: {', '.join(said)}", file=sys.stderr, flush=True)
