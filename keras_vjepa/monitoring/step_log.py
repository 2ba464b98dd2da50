"""Write everything that is known of each step of a run, while it runs (App. C)."""

import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from keras_vjepa.arguments import check_whole
from keras_vjepa.backend.device import peak_device_memory
from keras_vjepa.backend.optimizer_state import inner_optimizers
from keras_vjepa.monitoring.follower import RunFollower
from keras_vjepa.monitoring.schedule_values import ScheduleValues
from keras_vjepa.monitoring.tables import Row, Table
from keras_vjepa.training.batches import Waiting

FILE_NAME = "steps"
_NORM = "gradient_norm_"
# Logs of a step that get no column of their own: `loss` is Keras' mean over all steps so far,
# `step_loss` is written as `loss`, and `finite` is checked by the run.
_NOT_WRITTEN = ("loss", "step_loss", "finite")
_STATUS = Path("/proc/self/status")


class StepLog(RunFollower):
    """Writes `steps.csv` and `steps.jsonl`, with a row for each step.

    A row has the step's loss, the loss of each kind of mask, the norm of each network's gradient
    before clipping and whether it was clipped (1 or 0), learning rate, weight decay and momentum.
    It also has three numbers for all steps that were read together: clips per second, the share of
    the time that training waited for data, and the largest memory use so far in bytes, of the
    accelerator or, without one, of this process.

    Values stay on the device between two readings, so that no step waits for the host. A run that
    continues from a checkpoint removes the rows of steps that it makes again.

    Args:
        folder: the folder to write to.
        every: steps between two readings.
        writers: functions that are called with the new rows after each reading.

    Raises:
        ValueError: if `every` is not positive.
        OSError: if the files cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        every: int = 20,
        writers: Sequence[Callable[[Sequence[Row]], None]] = (),
    ) -> None:
        super().__init__()
        check_whole(1, every=every)
        self.folder = folder
        self.every = every
        self.writers = writers
        self._done = 0
        self._table: Table | None = None
        self._pending: list[dict[str, Any]] = []

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        super().on_train_begin(logs)
        start, self._done = self.start, self.begun_at
        self._batch_size = getattr(start and start.batches, "batch_size", None)
        self._waiting = start.waiting if start is not None else Waiting()
        self._knows_waiting = start is not None
        self._pending = []
        self._schedules = ScheduleValues(self.model)
        self._clipping = inner_optimizers(self.model.optimizer)[0]
        writes = start is None or start.is_first
        self._table = Table(self.folder / FILE_NAME, self._done) if writes else None
        self._began = (time.perf_counter(), self._waiting.seconds)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if self._table is None:
            return
        self._pending.append(dict(logs or {}))
        step = self._done + len(self._pending)
        if len(self._pending) == 1 and self._table.is_empty or step % self.every == 0:
            self._flush()

    def before_checkpoint(self) -> None:
        self._flush()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self._flush()

    def _flush(self) -> None:
        pending, self._pending = self._pending, []
        if not pending or self._table is None:
            return
        steps = [self._done + 1 + i for i in range(len(pending))]
        # Reading waits for the device, so that the time must be taken after it.
        values = [{name: float(value) for name, value in logs.items()} for logs in pending]
        speed = self._speed(len(pending))
        scheduled = self._schedules([step - self.skipped for step in steps])
        rows = []
        for i, (step, logs) in enumerate(zip(steps, values, strict=True)):
            found = {name: value for name, value in logs.items() if name not in _NOT_WRITTEN}
            rows.append(
                {
                    "step": step,
                    "loss": logs.get("step_loss", logs.get("loss")),
                    **found,
                    **self._clipped(step - self.skipped, found),
                    **{name: of_steps[i] for name, of_steps in scheduled.items()},
                    **speed,
                }
            )
        self._done += len(pending)
        self._table.add(rows)
        for write in self.writers:
            write(rows)

    def _clipped(self, step: int, logs: dict[str, float]) -> dict[str, int]:
        most = getattr(self._clipping, "clip_norm", None)
        if most is None:
            return {}
        begun = step > self._clipping.clip_after
        return {
            f"clipped_{name.removeprefix(_NORM)}": int(begun and norm + 1e-6 > most)
            for name, norm in logs.items()
            if name.startswith(_NORM)
        }

    def _speed(self, count: int) -> dict[str, float | None]:
        now = (time.perf_counter(), self._waiting.seconds)
        seconds, waited = now[0] - self._began[0], now[1] - self._began[1]
        self._began = now
        found: dict[str, float | None] = {"memory_bytes": memory_in_use()}
        if self._batch_size is not None:
            found["clips_per_second"] = count * self._batch_size / max(seconds, 1e-9)
        if self._knows_waiting:
            found["data_wait_share"] = min(waited / max(seconds, 1e-9), 1.0)
        return found


def memory_in_use() -> int | None:
    """Return the most bytes used so far on the accelerator, or without one by this process.

    The result is None if the system does not say.
    """
    found = peak_device_memory()
    if found is not None:
        return found
    # On Linux, `getrusage` also counts what the process that started this one held.
    if _STATUS.exists() and (peak := re.search(r"^VmHWM:\s+(\d+) kB", _STATUS.read_text(), re.M)):
        return 1024 * int(peak[1])
    try:
        import resource
    except ImportError:  # Windows
        return None
    # Others count in units of 1024 bytes, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
