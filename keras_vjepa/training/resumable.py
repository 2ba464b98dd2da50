"""Train in runs that can be stopped by anything and resumed by the same call (App. C)."""

import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_vjepa import files
from keras_vjepa.arguments import check_whole
from keras_vjepa.backend.distribution import ALONE, DataParallel
from keras_vjepa.backend.train_step import TrainableModel
from keras_vjepa.locks import locked
from keras_vjepa.training.batches import Batches, Waiting, opened
from keras_vjepa.training.description import changed_versions, check_same_run, describe_run
from keras_vjepa.training.input_files import keep_input_files
from keras_vjepa.training.kept_model import keep_model
from keras_vjepa.training.loss_log import LossLog, NotFiniteError
from keras_vjepa.training.results import CHECKPOINTS, check_not_less
from keras_vjepa.training.run_state import Checkpoints, copy_training_state, restore_training_state
from keras_vjepa.training.signals import StopSignals, stop_signals

LOSSES = "losses"
# Number of characters of a path that a message shows at most.
_LONGEST_SHOWN = 300
Upgrade = Callable[[Mapping[str, Any]], Mapping[str, Any]]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunStart:
    """Holds what a run knows before its next step.

    Attributes:
        done: number of steps that are done, those of earlier processes included.
        steps: number of steps of the whole run.
        batches: the batches that it is trained on.
        waiting: the time that it waits for batches, from now on.
        is_first: whether this process is the one that writes.
        checkpoints: the checkpoints of the run.
        checkpoint_every: steps between two checkpoints; there is one at the last step, too.
    """

    done: int
    steps: int
    batches: Batches
    waiting: Waiting
    is_first: bool
    checkpoints: Checkpoints
    checkpoint_every: int


class RunCallback(keras.callbacks.Callback):
    """Takes part in a run as a Keras callback that is also told of its start and checkpoints."""

    def on_run_begin(self, start: RunStart) -> None:
        """Receive the state of the run before its next step. Every process calls it.

        Args:
            start: what the run knows.
        """

    def before_checkpoint(self) -> None:
        """Write what belongs to the steps done so far, because the run may resume from here.

        Only the first process calls it.
        """

    def on_checkpoint(self, losses: Sequence[float]) -> None:
        """Receive the losses, with every checkpoint and when a run turns out to be finished.

        Only the first process calls it.

        Args:
            losses: the loss of every step so far, those of earlier processes included.
        """


def run(
    model: keras.Model,
    batches: Batches,
    workdir: str | os.PathLike[str],
    steps: int,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    checkpoint_every: int = 300,
    keep_last: int = 2,
    keep_every: int = 0,
    log_every: int = 20,
    description: Mapping[str, Any] | None = None,
    defaults: Mapping[str, Any] | None = None,
    upgrade: Upgrade | None = None,
    parallel: DataParallel = ALONE,
) -> list[float]:
    """Train a model up to a step, from the last checkpoint in its folder if there is one.

    If a signal, a crash or a power cut stops it, the same call continues from the last checkpoint
    and ends with the same numbers as without the stop. SIGTERM and SIGINT (Ctrl-C, a notebook's
    stop button) save first, then end the process with exit code 75.

    Args:
        model: compiled, its optimizer built: a pretrainer, classifier, or other `TrainableModel`.
        batches: batches by step, such as a `keras_vjepa.data.ClipBatches`.
        workdir: a local or mounted folder for the run's checkpoints.
        steps: number of steps of the whole run.
        callbacks: as in `fit`; a `RunCallback` is also told of checkpoints.
        checkpoint_every: steps between two checkpoints.
        keep_last: how many of the newest checkpoints stay.
        keep_every: checkpoints of steps that are a multiple of this stay for good; 0 for none.
        log_every: steps between two lines of progress.
        description: names and values, in types of JSON, that define the run; a folder with another
            run is refused. By default, the arguments of model, optimizer and batches.
        defaults: values of `description` for names that did not exist when a run was stored.
        upgrade: rewrites names and values that an older version stored, before `defaults` apply.
        parallel: devices and processes, as `distribution.setup` gives them.

    Returns:
        The loss of every step.

    Raises:
        ValueError: if a number is out of range, or the folder is unfit or holds another run.
        FloatingPointError: if a loss or the weights are not finite.
        OSError: if checkpoints cannot be written or read, or another process works in the folder.

    Example:

    >>> training.run(pretrainer, batches, workdir="runs/a", steps=10_000)  # doctest: +SKIP
    """
    check_run(steps, checkpoint_every, keep_last, keep_every, log_every)
    folder = writable_folder(workdir)
    checkpoints = Checkpoints(folder / CHECKPOINTS, keep_last, keep_every)
    described = describe_run(model, batches, description)
    with locked(folder, "`workdir`") if parallel.is_first else nullcontext():
        losses = resume(checkpoints, model, described, defaults, upgrade)
        if parallel.is_first:
            keep_input_files(folder, batches.samples, goes_on=bool(losses))
        log = LossLog(steps, log_every, losses, shown=parallel.is_first)
        saving = SaveCheckpoints(checkpoints, log, checkpoint_every, described, callbacks, parallel)
        return _train(model, batches, callbacks, saving)


def check_run(
    steps: int,
    checkpoint_every: int = 300,
    keep_last: int = 2,
    keep_every: int = 0,
    log_every: int = 20,
) -> None:
    """Check the numbers among the arguments of `run`, before there is a model or a folder.

    Raises:
        ValueError: for the first number that is out of range.
    """
    check_whole(1, steps=steps)
    check_whole(1, checkpoint_every=checkpoint_every, keep_last=keep_last, log_every=log_every)
    check_whole(0, keep_every=keep_every)


def _train(
    model: keras.Model,
    batches: Batches,
    callbacks: Sequence[keras.callbacks.Callback],
    saving: "SaveCheckpoints",
) -> list[float]:
    """Do the steps that are left; obey a signal to stop when a step is done."""
    log, parallel, waiting = saving.log, saving.parallel, Waiting()
    if isinstance(model, TrainableModel):
        model.log_each_step()
    if parallel.is_first:
        keep_model(saving.checkpoints.folder.parent, model)
    for callback in callbacks:
        if isinstance(callback, RunCallback):
            start = RunStart(
                log.done,
                log.steps,
                batches,
                waiting,
                parallel.is_first,
                saving.checkpoints,
                saving.every,
            )
            callback.on_run_begin(start)
    check_not_less(log.steps, log.done, saving.checkpoints.folder.parent)
    if log.done == log.steps:
        saving.tell()
        return log.losses
    with stop_signals() as signals:
        saving.signals = signals
        signals.deferred = True
        try:
            with opened(batches, log.done, log.steps) as source:
                model.fit(
                    parallel.feed(waiting.timed(source)),
                    steps_per_epoch=log.steps - log.done,
                    shuffle=False,
                    verbose=0,
                    callbacks=[log, *callbacks, saving],
                )
        except NotFiniteError as error:
            raise _explained(error, batches, saving.checkpoints) from None
        except Exception:
            # Wait, so that whoever reads the folder next finds all that this run has saved.
            _wait_for(saving.checkpoints)
            if signals.received and not parallel.is_first:
                signals.exit("The first process has saved and left.")
            raise
        if signals.received:
            signals.exit("Training is done; repeat the command to continue with what follows.")
    return log.losses


def _wait_for(checkpoints: Checkpoints) -> None:
    """Wait until a checkpoint is written, and ignore errors: the run ends by another one."""
    with suppress(OSError, FloatingPointError):
        checkpoints.wait()


def _explained(
    error: NotFiniteError, batches: Batches, checkpoints: Checkpoints
) -> FloatingPointError:
    """Write a list of the videos of the step that was not finite; return the error to raise."""
    path = checkpoints.folder.parent / f"not_finite_step_{error.step}.txt"
    files.write_text(path, "\n".join(batches.paths(error.step - 1)) + "\n")
    _wait_for(checkpoints)
    steps = checkpoints.steps()
    kept = f"checkpoint of step {steps[-1]} is kept" if steps else "no checkpoint was written"
    return FloatingPointError(f"{error}: its videos are listed in {path}, {kept}.")


class SaveCheckpoints(keras.callbacks.Callback):
    """Saves at regular steps, at the last one, and when a signal asks the run to stop.

    Of several processes, the first one writes. It alone obeys a signal, and does so at once. The
    others end with it; if they left earlier, the first could never finish its last step.

    Args:
        checkpoints: the checkpoints of the run.
        log: the losses; it must precede this callback in the list of callbacks.
        every: steps between two checkpoints.
        description: the description of the run.
        callbacks: the callbacks of the run; a `RunCallback` is told of each checkpoint.
        parallel: the processes. If each holds only a part of the state, nothing is saved on a
            signal, because the first process could not save the whole.

    Attributes:
        signals: the signals that ask the run to stop.

    Raises:
        ValueError: if `every` is not positive.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        log: LossLog,
        every: int,
        description: Mapping[str, Any],
        callbacks: Sequence[keras.callbacks.Callback],
        parallel: DataParallel,
    ) -> None:
        super().__init__()
        check_whole(1, checkpoint_every=every)
        self.checkpoints = checkpoints
        self.log = log
        self.every = every
        self.description = description
        self.callbacks = callbacks
        self.parallel = parallel
        self.signals = StopSignals()
        self.can_save_alone = not parallel.sharded or parallel.process_count == 1
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
            self.signals.exit(f"Step {saved} is saved; repeat the command to continue.")

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self.checkpoints.wait()

    def _save(self, step: int) -> None:
        # This comes first, because it raises an error if a loss or the weights are not finite.
        self.log.flush()
        for callback in self._told():
            callback.before_checkpoint()
        # The arrays that may still be on their way to the disk are overwritten next.
        self.checkpoints.wait()
        # `self.model` is a property of Keras that brings the variables up to date. All processes
        # copy together, since each may hold a part of the state.
        state = copy_training_state(self.model, self._state)
        if self.parallel.is_first:
            self._state = state
            losses = np.array(self.log.losses)
            self.checkpoints.save(step, {**state, LOSSES: losses}, self.description)
        self.tell()

    def tell(self) -> None:
        """Pass the losses to the run's callbacks, in the first process only."""
        for callback in self._told():
            callback.on_checkpoint(self.log.losses)

    def _told(self) -> list[RunCallback]:
        told = self.callbacks if self.parallel.is_first else ()
        return [callback for callback in told if isinstance(callback, RunCallback)]


def resume(
    checkpoints: Checkpoints,
    model: keras.Model,
    description: Mapping[str, Any],
    defaults: Mapping[str, Any] | None = None,
    upgrade: Upgrade | None = None,
) -> list[float]:
    """Restore the newest checkpoint of a run.

    Args:
        checkpoints: the checkpoints of the run.
        model: a compiled model, which gets the checkpoint's state.
        description: the description of the run as it is now.
        defaults, upgrade: as in `run`.

    Returns:
        The loss of every step that is done; an empty list for a new run.

    Raises:
        OSError: if there are checkpoints, but none can be read.
        ValueError: if the checkpoint belongs to another run.
    """
    found = checkpoints.latest()
    if found is None:
        return []
    described, versions = found.description.get("run"), found.description.get("versions")
    if not (isinstance(described, dict) and isinstance(versions, dict) and LOSSES in found.arrays):
        raise ValueError(f"The checkpoint must be one that a run wrote. Received: {found.path}")
    stored = described if upgrade is None else upgrade(described)
    check_same_run(stored, description["run"], found.path, defaults)
    changed = changed_versions(versions, description["versions"])
    if changed:
        _LOG.warning("Versions changed, so not bit by bit as before: %s", ", ".join(changed))
    state = dict(found.arrays)
    losses = state.pop(LOSSES).tolist()
    restore_training_state(model, state)
    print(f"Going on from step {found.step}, {found.path}", file=sys.stderr)
    return losses


def writable_folder(workdir: str | os.PathLike[str], name: str = "workdir") -> Path:
    """Make a folder for a run, if it is not there yet.

    Args:
        workdir: the folder.
        name: of the argument, for messages.

    Raises:
        ValueError: for an address such as "gs://bucket", which as a path would name a local folder.
        OSError: if the folder cannot be made or written.
    """
    folder = check_folder(workdir, name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # for a broken link, say, or a file system without folders
        raise _not_made(name, folder, error) from error
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"`{name}` must be a folder that can be written. Received: {folder}")
    return folder


@contextmanager
def folder_of_results(workdir: str | os.PathLike[str]) -> Iterator[Path]:
    """Make a folder as `writable_folder` does; an error removes it, if it is new and still empty.

    Some arguments are refused only when a model is there, and nobody's refusal should leave a
    folder.
    """
    folder = check_folder(workdir)
    new = [path for path in (folder, *folder.absolute().parents) if not path.exists()]
    try:
        yield writable_folder(folder)
    except BaseException:
        with suppress(OSError):  # which a folder that holds something raises
            for path in new:
                path.rmdir()
        raise


def check_folder(workdir: str | os.PathLike[str], name: str = "workdir") -> Path:
    """Check that a folder for a run is there or can be made, without making it.

    Args:
        workdir: the folder.
        name: name of the argument, for messages.

    Raises:
        ValueError: for an address, and for a path that begins with "~".
        OSError: if something else has that name, or the folder cannot be written.
    """
    folder = Path(workdir)
    if re.match(r"\w+:/", str(folder)):
        raise ValueError(
            f"`{name}` must be a local or a mounted path (gcsfuse, NFS). Received: {folder}"
        )
    if folder.parts and folder.parts[0].startswith("~"):
        raise ValueError(
            f"`{name}` must be a path without ~, which only a shell and `Path.expanduser` know. "
            f"Received: {folder}"
        )
    try:
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    except OSError as error:  # for a name that is too long
        raise _not_made(name, folder, error) from error
    if not there.is_dir():
        raise NotADirectoryError(f"`{name}` must be a folder. Received: {folder}")
    if not os.access(there, os.W_OK):
        raise PermissionError(f"`{name}` must be a folder that can be written. Received: {folder}")
    return folder


def _not_made(name: str, folder: Path, error: OSError) -> OSError:
    return OSError(
        f"`{name}` must be a folder that can be made: {error.strerror or error}. "
        f"Received: {str(folder)[:_LONGEST_SHOWN]}"
    )
