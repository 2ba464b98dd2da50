"""Save checkpoints from which a long run continues as if never stopped (App. C, 90,000 steps).

A checkpoint is one file, `step-00000300-<hash>.npz`. It holds every variable that training reads,
by its path, and a description. The name holds a hash of the content, so one rename publishes both,
any damage shows, and two runs that agree bit for bit have files of the same name.

What Keras offers was not enough: it writes weight files from the live model, so not while training
continues; `BackupAndRestore` begins an epoch again; Orbax needs JAX whatever the backend is.
"""

import hashlib
import itertools
import json
import logging
import os
import re
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from keras_vjepa import files
from keras_vjepa.arguments import check_whole
from keras_vjepa.backend.collectives import values
from keras_vjepa.zip_archives import open_archive

Arrays = Mapping[str, NDArray[Any]]

_LOG = logging.getLogger(__name__)

_DESCRIPTION = "description"
_PATTERN = re.compile(r"step-(\d+)-.*\.npz")


# --- A model's state -----------------------------------------------------------------------------


def training_variables(model: keras.Model, non_trainable: bool = True) -> dict[str, keras.Variable]:
    """Return all variables that the next training step depends on, by path.

    These are weights, position tables, random seeds, the optimizer's slots and its iteration, which
    determines the schedules. Metrics are left out: each epoch starts them again.

    Args:
        model: the model, compiled.
        non_trainable: whether to include variables that are not trained. Pass False if they are a
            frozen part of the model that is loaded from elsewhere when training continues.

    Raises:
        ValueError: if the optimizer is not built, or two variables have the same path.
    """
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None or not optimizer.built:
        raise ValueError(
            "`model` must be compiled, and its optimizer built. "
            "Received: one without a built optimizer"
        )
    variables = [
        *model.trainable_variables,
        *(model.non_trainable_variables if non_trainable else []),
        *optimizer.variables,
    ]
    named = {variable.path: variable for variable in variables}
    if len(named) < len(variables):
        raise ValueError(
            f"The variables of `model` must have paths of their own. Received: {len(variables)} "
            f"variables with {len(named)} paths"
        )
    return named


def copy_training_state(
    model: keras.Model, into: Arrays | None = None, non_trainable: bool = True
) -> dict[str, NDArray[Any]]:
    """Copy the values of `training_variables` into memory of their own.

    In a callback pass `self.model`, which is up to date on every backend. If the state is sharded
    over processes, all of them must call this function together.

    Args:
        model: the model, compiled.
        into: the result of an earlier call for the same model, to be overwritten; allocating fresh
            memory can take many times as long as the copy itself.
        non_trainable: as in `training_variables`.
    """
    variables, into = training_variables(model, non_trainable), into or {}
    state = {}
    for path, value in zip(variables, values(list(variables.values())), strict=True):
        # NumPy's files do not support bfloat16; float32 holds its values exactly.
        dtype = np.float32 if value.dtype.name == "bfloat16" else value.dtype
        # A copy, since arrays may be views of memory that the next step overwrites.
        state[path] = into[path] if path in into else np.empty(value.shape, dtype)
        np.copyto(state[path], value, casting="unsafe")
    return state


def restore_training_state(model: keras.Model, arrays: Arrays, non_trainable: bool = True) -> None:
    """Assign values that `copy_training_state` returned to the variables of a model.

    Args:
        model: the model, compiled.
        arrays: the values, by path.
        non_trainable: as in `training_variables`.

    Raises:
        ValueError: if names or shapes differ from those of the model; then nothing is assigned.
    """
    _assign(training_variables(model, non_trainable), arrays)


def restore_weights(model: keras.Model, arrays: Arrays) -> None:
    """Assign the weights among such values to a model, which need not be compiled.

    Args:
        model: a model with the same arguments as the one that was copied.
        arrays: values that `copy_training_state` returned, by path.

    Raises:
        ValueError: if names or shapes differ from those of the model; then nothing is assigned.
    """
    weights = (*model.trainable_variables, *model.non_trainable_variables)
    variables = {variable.path: variable for variable in weights}
    # The weights come first in the arrays, and the optimizer's variables follow.
    _assign(variables, dict(itertools.islice(arrays.items(), len(variables))))


def _assign(variables: Mapping[str, keras.Variable], arrays: Arrays) -> None:
    arrays = _by_own_paths(variables, arrays)
    shapes = {path: tuple(variable.shape) for path, variable in variables.items()}
    stored = {path: array.shape for path, array in arrays.items()}
    for path in sorted(shapes.keys() | stored.keys()):
        if shapes.get(path) != stored.get(path):
            raise ValueError(
                f"The checkpoint must be of this model: {path} has the shape "
                f"{shapes.get(path, 'of nothing')} in the model and "
                f"{stored.get(path, 'of nothing')} in the checkpoint."
            )
    for path, variable in variables.items():
        variable.assign(arrays[path])


def _by_own_paths(variables: Mapping[str, keras.Variable], arrays: Arrays) -> Arrays:
    """Give arrays the paths of a model's variables, if only numbers in the paths differ.

    Keras adds a number to the name of an object that is made a second time in one process, as
    happens in a notebook.
    """
    pairs = list(zip(variables, arrays, strict=False))
    if len(variables) != len(arrays) or variables.keys() == arrays.keys():
        return arrays
    if any(re.sub(r"_\d+", "", own) != re.sub(r"_\d+", "", stored) for own, stored in pairs):
        return arrays
    return {own: arrays[stored] for own, stored in pairs}


# --- Files ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Checkpoint:
    """Holds the content of a checkpoint.

    Attributes:
        path: the file.
        step: number of steps done.
        arrays: arrays by their names.
        description: names with values of types that JSON has.
    """

    path: Path
    step: int
    arrays: dict[str, NDArray[Any]]
    description: dict[str, Any]


class Checkpoints:
    """Manages a run's checkpoints in a folder: writes them by a thread, reads undamaged ones.

    A file gets its name when it is complete and on the disk. So if the process is killed, or the
    disk is full, earlier checkpoints remain as they were.

    Args:
        folder: a local or mounted folder; made when the first checkpoint is written.
        keep_last: how many of the newest checkpoints stay. There must be room for one more.
        keep_every: checkpoints of steps that are a multiple of this stay for good; 0 for none.

    Attributes:
        protected: steps whose checkpoints stay as long as the steps are in this set.

    Raises:
        ValueError: if a number is out of its range.

    Example:

    >>> import tempfile
    >>> import numpy as np
    >>> from keras_vjepa.training.run_state import Checkpoints
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     checkpoints = Checkpoints(folder)
    ...     checkpoints.save(300, {"weights": np.ones(3)}, {"seed": 0})
    ...     checkpoints.wait()
    ...     found = Checkpoints(folder).latest()
    >>> found.step, found.arrays["weights"].tolist(), found.description
    (300, [1.0, 1.0, 1.0], {'seed': 0})
    """

    def __init__(
        self, folder: str | os.PathLike[str], keep_last: int = 2, keep_every: int = 0
    ) -> None:
        check_whole(1, keep_last=keep_last)
        check_whole(0, keep_every=keep_every)
        self.folder = Path(folder)
        self.keep_last = keep_last
        self.keep_every = keep_every
        self.protected: frozenset[int] = frozenset()
        self._damaged: set[Path] = set()
        self._writer = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None

    def save(self, step: int, arrays: Arrays, description: Mapping[str, Any]) -> None:
        """Begin to write a checkpoint, once the one before it is written.

        Args:
            step: number of steps done.
            arrays: arrays by their names; they must not be changed until `wait` has returned.
            description: names with values of types that JSON has.

        Raises:
            OSError, FloatingPointError: see `wait`.
        """
        self.wait()
        self._writing = self._writer.submit(self._write, step, arrays, description)

    def wait(self) -> None:
        """Wait until everything is on the disk.

        Raises:
            OSError: if a checkpoint could not be written.
            FloatingPointError: if its arrays are not finite; then no checkpoint is written.
        """
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def check(self) -> None:
        """Raise the error of `wait` if it is known by now; never wait."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def steps(self) -> list[int]:
        """List the steps of the checkpoints in the folder, ascending, damaged ones included."""
        return [_step_of(path) for path in self._paths()]

    def latest(self) -> Checkpoint | None:
        """Read the newest undamaged checkpoint; return None if nothing was ever saved.

        Damaged checkpoints are named in the log, and removed when a new one is written.

        Raises:
            OSError: if there are checkpoints, and all of them are damaged.
        """
        paths = self._paths()
        for path in reversed(paths):
            try:
                if not path.is_file():
                    problem = "it is no file"
                elif _hash_of(path) != path.stem.split("-")[-1]:
                    problem = "its content does not fit the hash in its name"
                else:
                    return _read(path)
                self._damaged.add(path)
            except OSError as error:
                # An error of the disk may pass, so the file does not count as damaged for good.
                problem = error.strerror or str(error)
            except Exception as error:  # A zip file of other content may raise any error.
                problem = f"it holds no checkpoint: {error}"
                self._damaged.add(path)
            _LOG.warning("Damaged checkpoint, the one before it is used: %s: %s", path, problem)
        if paths:
            raise OSError(
                f"None of the {len(paths)} checkpoints in {self.folder} can be read. "
                "Move that folder away to begin anew."
            )
        return None

    def of_step(self, step: int) -> Checkpoint:
        """Read the checkpoint of a step.

        Args:
            step: number of steps done.

        Raises:
            FileNotFoundError: if there is no checkpoint of that step.
            OSError: if the checkpoint is damaged.
        """
        paths = [path for path in self._paths() if _step_of(path) == step]
        if not paths:
            raise FileNotFoundError(
                f"`step` must be that of a checkpoint in {self.folder}, where there are "
                f"{', '.join(map(str, self.steps())) or 'none'}. Received: {step}"
            )
        if _hash_of(paths[-1]) != paths[-1].stem.split("-")[-1]:
            raise OSError(f"{paths[-1]} is damaged: its content does not fit the hash in its name")
        return _read(paths[-1])

    def described(self) -> dict[str, Any]:
        """Read the description of the newest checkpoint that has one, without its arrays."""
        for path in reversed(self._paths()):
            # Errors are ignored here: `latest` reports damage when it reads the arrays.
            with suppress(Exception), open_archive(path)[0], np.load(path) as stored:
                return dict(json.loads(stored[_DESCRIPTION].tobytes()))
        return {}

    def _paths(self) -> list[Path]:
        return sorted(p for p in self.folder.glob("step-*.npz") if _PATTERN.fullmatch(p.name))

    def _write(self, step: int, arrays: Arrays, description: Mapping[str, Any]) -> None:
        _check_finite(step, arrays)
        text = json.dumps(description, sort_keys=True)
        arrays = {**arrays, _DESCRIPTION: np.frombuffer(text.encode(), np.uint8)}
        try:
            with files.scratch_folder(self.folder) as scratch:
                unfinished = scratch / "checkpoint.npz"
                np.savez(unfinished, **arrays)  # type: ignore[arg-type]
                path = self.folder / f"step-{step:08d}-{_hash_of(unfinished)}.npz"
                _remove(path, unless_file=True)
                files.move_file(unfinished, path, durable=True)
        except OSError as error:
            steps = self.steps()
            last = f"The last one is of step {steps[-1]}." if steps else "There is none before it."
            raise OSError(
                f"The checkpoint of step {step} cannot be written to {self.folder}: "
                f"{error.strerror or error}. {last}"
            ) from error
        self._remove_old(path)

    def _remove_old(self, newest: Path) -> None:
        good = [path for path in self._paths() if path not in self._damaged or path == newest]
        steps = sorted({_step_of(path) for path in good})
        kept = {*steps[-self.keep_last :], *self.protected}
        if self.keep_every:
            kept |= {step for step in steps if step % self.keep_every == 0}
        for path in self._paths():
            replaced = _step_of(path) == _step_of(newest) and path != newest
            if path not in good or replaced or _step_of(path) not in kept:
                _remove(path)
        self._damaged = {path for path in self._damaged if os.path.lexists(path)}


def _remove(path: Path, unless_file: bool = False) -> None:
    """Remove whatever has a checkpoint's name, if that is possible."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            # No checkpoint is a folder. Somebody put it there, so it is renamed and not removed.
            files.move_file(path, path.with_name(f"{path.name}.folder"))
        elif not (unless_file and path.is_file()):
            path.unlink(missing_ok=True)


def _step_of(path: Path) -> int:
    return int(path.stem.split("-")[1])


def _hash_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]


def _read(path: Path) -> Checkpoint:
    # First, the sizes that the archive claims are compared with its bytes.
    open_archive(path)[0].close()
    with np.load(path) as stored:
        arrays = dict(stored)
    description = json.loads(arrays.pop(_DESCRIPTION).tobytes())
    if not isinstance(description, dict):
        raise ValueError("its description is no object")
    return Checkpoint(path, _step_of(path), arrays, description)


def _check_finite(step: int, arrays: Arrays) -> None:
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise FloatingPointError(
                f"{name} is not finite after step {step}; no checkpoint was written."
            )
