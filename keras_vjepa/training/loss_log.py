"""Keep and show the loss of every step of a run, and end it if a loss is not finite (App. C)."""

import math
import sys
import time
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_vjepa.arguments import check_whole


class NotFiniteError(FloatingPointError):
    """Says that a step's loss, gradients or weights are NaN or infinite."""

    def __init__(self, step: int, what: str, remedy: str = "") -> None:
        super().__init__(f"{what} at step {step}" + (f"; {remedy}" if remedy else ""))
        self.step = step


class FiniteLoss(keras.callbacks.Callback):
    """Ends a training whose loss is not finite, by a `NotFiniteError`.

    If a model logs `finite`, 1.0 or 0.0, this value decides instead of the loss.

    Args:
        remedy: what a user can do, for the message.
        done: number of steps that were done before.
    """

    # Lets Keras read the logs in a thread of its own, so that no step waits for the host.
    async_safe = True

    def __init__(self, remedy: str, done: int = 0) -> None:
        super().__init__()
        self.remedy = remedy
        self.done = done
        self._epoch = 0

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        logs = logs or {}
        loss = float(logs["loss"])
        if not logs.get("finite", math.isfinite(loss)):
            steps = self._epoch * ((self.params or {}).get("steps") or 0)
            step = self.done + steps + batch + 1
            raise NotFiniteError(step, f"The loss is {loss}", self.remedy)


class LossLog(keras.callbacks.Callback):
    """Keeps the loss of every step, and prints a line of progress now and then.

    Between two lines the losses stay on the device, so that no step waits for the host. A loss that
    is not finite therefore raises `NotFiniteError` only at the next line.

    Args:
        steps: number of steps of the whole run.
        every: steps between two lines.
        losses: losses of the steps that were done before this process began.
        shown: whether lines are printed.

    Raises:
        ValueError: if `every` is not positive.
    """

    def __init__(
        self, steps: int, every: int = 20, losses: Sequence[float] = (), shown: bool = True
    ) -> None:
        super().__init__()
        check_whole(1, log_every=every)
        self.steps = steps
        self.every = every
        self.shown = shown
        self.losses = list(losses)
        self._first = len(losses)
        self._pending: list[tuple[Any, Any]] = []
        self._start = time.perf_counter()

    @property
    def done(self) -> int:
        """Return the number of steps done, those of earlier processes included."""
        return len(self.losses) + len(self._pending)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        logs = logs or {}
        self._pending.append((logs["step_loss"], logs["finite"]))
        # The first step has a line too, which tells how long a step takes.
        is_first = self.done == self._first + 1
        if is_first or self.done % self.every == 0 or self.done == self.steps:
            self.flush()
            if self.shown:
                self._show(self.done)

    def flush(self) -> None:
        """Fetch the losses that are still on the device.

        Raises:
            NotFiniteError: for the first step that was not finite.
        """
        pending, self._pending = self._pending, []
        for loss, weights_are_finite in pending:
            step, value = len(self.losses) + 1, float(loss)
            if not math.isfinite(value):
                raise NotFiniteError(step, f"The loss is {value}")
            if not float(weights_are_finite):
                raise NotFiniteError(step, "The gradients or weights are not finite")
            self.losses.append(value)

    def _show(self, done: int) -> None:
        bar = ("#" * (30 * done // self.steps)).ljust(30)
        seconds = time.perf_counter() - self._start
        left = seconds / (done - self._first) * (self.steps - done)
        end = "\n" if done == self.steps or not sys.stderr.isatty() else "\r"
        print(
            f"[{bar}] step {done}/{self.steps}  loss {np.mean(self.losses[-self.every :]):.4f}  "
            f"{seconds:.0f} s, {left:.0f} s left ",
            end=end,
            file=sys.stderr,
            flush=True,
        )
