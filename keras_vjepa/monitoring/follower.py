"""Find out at which step a training is, also if it continues an earlier one (App. C)."""

from typing import Any

from keras import ops

from keras_vjepa.backend.optimizer_state import batches_taken
from keras_vjepa.training.resumable import RunCallback, RunStart


class RunFollower(RunCallback):
    """Finds out at which step a training begins, in a run that continues or in a plain `fit`.

    Attributes:
        begun_at: number of steps done before, including those of earlier processes.
        last: the step at which the training ends; None if Keras does not know.
        start: what the run knew before the first step of this process; None without a run.
        skipped: how many of the steps done before the optimizer has not counted.
    """

    begun_at = 0
    skipped = 0
    last: int | None = None
    start: RunStart | None = None
    _coming: RunStart | None = None

    def on_run_begin(self, start: RunStart) -> None:
        self._coming = start

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        # `_coming` is cleared, because the next `fit` may be without a run.
        self.start, self._coming = self._coming, None
        taken = int(ops.convert_to_numpy(batches_taken(self.model.optimizer)))
        self.begun_at = taken if self.start is None else self.start.done
        self.skipped = self.begun_at - taken
        steps, epochs = ((self.params or {}).get(name) for name in ("steps", "epochs"))
        # The last step must be known before its checkpoint is written.
        self.last = self.begun_at + steps * epochs if steps and epochs else None
