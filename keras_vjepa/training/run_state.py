"""Checkpoints from which a long run goes on as if it had never stopped (App. C, 90,000 steps).

A checkpoint is one file, `step-00000300-<hash>.npz`: every variable that training reads, by its
path, and a description. The hash of the content is in the name, so one rename publishes both, any
damage shows, and two runs that agree bit for bit have files of the same name.

Keras' own ways were not enough: its weight files are written from the live model, so not beside
the training; `BackupAndRestore` begins an epoch anew; Orbax needs JAX whatever the backend.
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
    """All that the next training step depends on, by path.

    Weights, position tables, random seeds, optimizer slots and iteration, from which the schedules
    follow. Metrics are not among it: an epoch starts them anew.

    Args:
        model: compiled.
        non_trainable: whether variables that are not trained are among it. False for a model of
            which they are a frozen part that whoever goes on with the training has anyway.

    Raises:
        ValueError: if the optimizer is not built, or two variables have one path.
    """
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None or not optimizer.built:
        raise ValueError("`model` must be compiled and its optimizer built. Received: one without")
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
    """The values of `training_variables` in memory of their own.

    In a callback take `self.model`, which is up to date on every backend. All processes must call
    it together if the state is sharded over them.

    Args:
        model: compiled.
        into: what this gave before for the same model, to be overwritten. Fresh memory can cost
            many times the copy itself.
        non_trainable: as in `training_variables`.
    """
    variables, into = training_variables(model, non_trainable), into or {}
    state = {}
    for path, value in zip(variables, values(list(variables.values())), strict=True):
        # NumPy's files do not know bfloat16; in float32 it is exact.
        dtype = np.float32 if value.dtype.name == "bfloat16" else value.dtype
        # A copy, since arrays may be views of what the next step overwrites.
        state[path] = into[path] if path in into else np.empty(value.shape, dtype)
        np.copyto(state[path], value, casting="unsafe")
    return state


def restore_training_state(model: keras.Model, arrays: Arrays, non_trainable: bool = True) -> None:
    """Assign what `copy_training_state` gave.

    Args:
        model: compiled.
        arrays: what it gave.
        non_trainable: as in `training_variables`.

    Raises:
        ValueError: unless names and shapes are those of the model. Nothing is assigned then.
    """
    _assign(training_variables(model, non_trainable), arrays)


def restore_weights(model: keras.Model, arrays: Arrays) -> None:
    """Assign the weights in what `copy_training_state` gave, to a model that need not be compiled.

    Args:
        model: as the one that was copied, without its training.
        arrays: what was given.

    Raises:
        ValueError: unless names and shapes are those of the model. Nothing is assigned then.
    """
    weights = (*model.trainable_variables, *model.non_trainable_variables)
    variables = {variable.path: variable for variable in weights}
    # They come first; what follows are the optimizer's.
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
    """Name arrays as this model's variables, if they only differ in the numbers in their names.

    Keras numbers what is made a second time in one process, as in a notebook.
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
    """What was saved.

    Attributes:
        path: the file.
        step: number of steps done.
        arrays: named arrays.
        description: whatever JSON holds.
    """

    path: Path
    step: int
    arrays: dict[str, NDArray[Any]]
    description: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run in a folder, written by a thread, read only if undamaged.

    A file gets its name when it is complete and on the disk: a process that is killed, or a disk
    that is full, leaves those before it as they were.

    Args:
        folder: a local or mounted folder; made when the first checkpoint is written.
        keep_last: the newest so many stay. There must be room for one more.
        keep_every: those whose step is a multiple stay for good; 0 for none.

    Attributes:
        protected: steps whose checkpoints stay as long as they are among it.

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
        """Begin to write a checkpoint; waits first for the one before it.

        Args:
            step: number of steps done.
            arrays: named arrays, not to be changed afterwards.
            description: whatever JSON holds.

        Raises:
            OSError, FloatingPointError: see `wait`.
        """
        self.wait()
        self._writing = self._writer.submit(self._write, step, arrays, description)

    def wait(self) -> None:
        """Return once everything is on the disk.

        Raises:
            OSError: if a checkpoint could not be written.
            FloatingPointError: if its arrays are not finite; such are not saved.
        """
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def check(self) -> None:
        """Raise what `wait` would raise, as far as it is known; never waits."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def steps(self) -> list[int]:
        """Steps of the checkpoints in the folder, ascending, damaged or not."""
        return [_step_of(path) for path in self._paths()]

    def latest(self) -> Checkpoint | None:
        """The newest undamaged checkpoint, or None where nothing was ever saved.

        Damaged ones are named in the log. They are removed when a new one is written.

        Raises:
            OSError: if there are checkpoints, all of them damaged.
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
                # The disk's fault, which may pass.
                problem = error.strerror or str(error)
            except Exception as error:  # A zip file of something else raises anything.
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
            FileNotFoundError: if there is none of that step.
            OSError: if it is damaged.
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
        """Read the description of the newest checkpoint that has one, and nothing else of it."""
        for path in reversed(self._paths()):
            # Damage is named where the arrays are read.
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
    """Remove what has a checkpoint's name, as far as that can be done."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            # Never ours: what somebody put there stays, under a name that is in nobody's way.
            files.move_file(path, path.with_name(f"{path.name}.folder"))
        elif not (unless_file and path.is_file()):
            path.unlink(missing_ok=True)


def _step_of(path: Path) -> int:
    return int(path.stem.split("-")[1])


def _hash_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]


def _read(path: Path) -> Checkpoint:
    # What a file claims is compared with its bytes first.
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
