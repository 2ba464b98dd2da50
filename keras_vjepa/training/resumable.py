"""What lets the same command go on with a run: its losses, checkpoints and signals (App. C)."""

import hashlib
import importlib.metadata
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import keras
import numpy as np

from keras_vjepa.backend import engine
from keras_vjepa.backend.distribution import DataParallel
from keras_vjepa.data.sources.samples import Sample
from keras_vjepa.training.run_state import Checkpoints, copy_training_state, restore_training_state
from keras_vjepa.training.signals import StopSignals

LOSSES = "losses"

_LOG = logging.getLogger(__name__)


class NotFiniteError(FloatingPointError):
    """A step's loss, or what it made of the weights, is NaN or infinite."""

    def __init__(self, step: int, what: str) -> None:
        super().__init__(f"{what} at step {step}")
        self.step = step


# --- Callbacks -----------------------------------------------------------------------------------


class LossLog(keras.callbacks.Callback):
    """Keeps the loss of every step, and shows it now and then.

    Losses stay on the device between two lines on the screen, so that no step waits for the host;
    so long it may take until a loss that is not finite raises `NotFiniteError`.

    Args:
        steps: of the whole run.
        every: steps between two lines.
        losses: of the steps before this process began.
        shown: whether there are lines on the screen.
    """

    def __init__(
        self, steps: int, every: int = 20, losses: Sequence[float] = (), shown: bool = True
    ) -> None:
        super().__init__()
        self.steps = steps
        self.every = every
        self.shown = shown
        self.losses = list(losses)
        self._first = len(losses)
        self._pending: list[tuple[Any, Any]] = []
        self._start = time.perf_counter()

    @property
    def done(self) -> int:
        """Steps done, those of earlier processes included."""
        return len(self.losses) + len(self._pending)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        logs = logs or {}
        self._pending.append((logs["step_loss"], logs["finite"]))
        if self.done % self.every == 0 or self.done == self.steps:
            self.flush()
            if self.shown:
                self._show(self.done)

    def flush(self) -> None:
        """Fetch what is still on the device."""
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


class SaveCheckpoints(keras.callbacks.Callback):
    """Saves at regular steps, at the last one, and when a signal asks the run to stop.

    Of several processes the first writes. It alone obeys a signal, at once: the others would end
    with it, and if they left before, its last step would never be done.

    Args:
        checkpoints: where to.
        log: the losses; it comes before this callback in the list of callbacks.
        every: steps between two checkpoints.
        description: of the run.
        signals: asks the run to stop.
        on_save: called with the losses, when a checkpoint is on its way.
        parallel: the processes.
        sharded: processes hold parts of the state: on a signal, with several of them, nothing is
            saved, since no process has it whole.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        log: LossLog,
        every: int,
        description: Mapping[str, Any],
        signals: StopSignals,
        on_save: Callable[[Sequence[float]], None],
        parallel: DataParallel,
        sharded: bool,
    ) -> None:
        super().__init__()
        if every < 1:
            raise ValueError(f"`checkpoint_every` must be at least 1. Received: {every}")
        self.checkpoints = checkpoints
        self.log = log
        self.every = every
        self.description = description
        self.signals = signals
        self.on_save = on_save
        self.parallel = parallel
        self.can_save_alone = not sharded or parallel.process_count == 1
        self._state: dict[str, Any] = {}

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        step, stop = self.log.done, self.signals.received and self.parallel.is_first
        self.checkpoints.check()
        due = step % self.every == 0 or step == self.log.steps
        if due or (stop and self.can_save_alone):
            self._save(step)
        if stop and step < self.log.steps:
            self.checkpoints.wait()
            saved = max(self.checkpoints.steps(), default=0)
            self.signals.exit(f"Step {saved} is saved; the same command goes on from there.")

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self.checkpoints.wait()

    def _save(self, step: int) -> None:
        # First: it raises if the state is not worth saving.
        self.log.flush()
        # What is still being written is overwritten next.
        self.checkpoints.wait()
        # `self.model`, as a property of Keras, brings the variables up to date. All processes
        # together: each may hold a part.
        state = copy_training_state(self.model, self._state)
        if self.parallel.is_first:
            self._state = state
            losses = np.array(self.log.losses)
            self.checkpoints.save(step, {**state, LOSSES: losses}, self.description)
            self.on_save(self.log.losses)


# --- Which run it is -----------------------------------------------------------------------------


def describe_run(config: Mapping[str, Any], samples: Sequence[Sample]) -> dict[str, Any]:
    """What a checkpoint says of its run: config, samples, versions; JSON.

    Of the config only what makes the numbers: equal runs are to have equal files.
    """
    return {
        "run": {**config, "samples": _describe_samples(samples)},
        "versions": {
            "keras_vjepa": importlib.metadata.version("keras-vjepa"),
            "keras": keras.__version__,
            "backend": engine.name_and_version(),
            "numpy": np.__version__,
            "opencv": cv2.__version__,
        },
    }


def _describe_samples(samples: Sequence[Sample]) -> str:
    """Number and hash of the paths, as seen from the folder that they have in common."""
    root = os.path.commonpath([os.path.dirname(os.path.abspath(s.path)) for s in samples])
    names = "\n".join(os.path.relpath(sample.path, root) for sample in samples)
    return f"{len(samples)} files, {hashlib.sha256(names.encode()).hexdigest()[:16]}"


def check_same_run(stored: Mapping[str, Any], current: Mapping[str, Any], where: Path) -> None:
    """Raise `ValueError`, with all differences, unless two configs are of the same run."""
    differences = [
        f"{name} {stored.get(name, 'absent')} -> {current.get(name, 'absent')}"
        for name in sorted({*stored, *current})
        if name not in stored or name not in current or stored[name] != current[name]
    ]
    if differences:
        raise ValueError(
            f"{where} holds a run of another config: {', '.join(differences)}. "
            "Take another --workdir, or the config as it was."
        )


def resume(
    checkpoints: Checkpoints,
    model: keras.Model,
    description: Mapping[str, Any],
) -> list[float]:
    """Restore the newest checkpoint.

    Args:
        checkpoints: of the run.
        model: compiled; takes the checkpoint's state.
        description: of the run as it is now.

    Returns:
        The loss of every step that is done; none for a new run.

    Raises:
        OSError: if no checkpoint can be read.
        ValueError: if it is another run's.
    """
    found = checkpoints.latest()
    if found is None:
        return []
    check_same_run(found.description["run"], description["run"], found.path)
    stored, current = found.description["versions"], description["versions"]
    changed = [f"{k} {stored.get(k)} -> {v}" for k, v in current.items() if stored.get(k) != v]
    if changed:
        _LOG.warning("Versions changed, so not bit by bit as before: %s", ", ".join(changed))
    state = dict(found.arrays)
    losses = state.pop(LOSSES).tolist()
    restore_training_state(model, state)
    print(f"Going on from step {found.step}, {found.path}", file=sys.stderr)
    return losses
