"""Check that the results of a run are undamaged before it counts as finished (App. C)."""

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from keras_vjepa.json_files import read_json_object
from keras_vjepa.presets.integrity import damage

# Name of the folder of checkpoints within a run's folder.
CHECKPOINTS = "checkpoints"


def read_result(path: Path) -> dict[str, Any] | None:
    """Read a file of results.

    Args:
        path: a JSON file.

    Returns:
        The object in the file; None if there is no file, or it is damaged.
    """
    with suppress(OSError, ValueError):
        return read_json_object(path)
    return None


def damaged_result(workdir: Path, names: Sequence[str], presets: Sequence[str]) -> str | None:
    """Say which result of a run is damaged.

    Args:
        workdir: the folder of the run.
        names: JSON files in the folder, which must be there.
        presets: folders of presets in the folder; those that are not there are skipped.

    Returns:
        The file and what is wrong with it; None if nothing is.
    """
    for name in names:
        # A file that holds an empty object counts as damaged too: a run never writes one.
        if not read_result(workdir / name):
            return f"{workdir / name} is damaged"
    for name in presets:
        if (workdir / name).is_dir() and (problem := damage(workdir / name)):
            return problem
    return None


def need_no_remaking(workdir: Path, problem: str | None, says: bool = True) -> bool:
    """Tell whether results are undamaged; if they are not, print that they are made again.

    Args:
        workdir: the folder of the run.
        problem: what is wrong with a result; None if nothing is.
        says: whether this process is the one that prints.

    Raises:
        ValueError: if there is no checkpoint to make the results again from.
    """
    if problem is not None and not (workdir / CHECKPOINTS).is_dir():
        raise ValueError(
            f"{problem}, and there is no checkpoint to make it anew from. Restore the file, or "
            "take another --workdir."
        )
    if problem is not None and says:
        print(f"{problem}: the results are made anew from the checkpoint.", file=sys.stderr)
    return problem is None


def check_not_less(steps: int, done: int, workdir: Path, name: str = "steps") -> None:
    """Raise if fewer steps are asked for than a run has done.

    Args:
        steps: number of steps of the whole run that is asked for.
        done: number of its steps that are done.
        workdir: the folder of the run.
        name: the name of the option that sets `steps`.

    Raises:
        ValueError: if `steps` is less than `done`.
    """
    if steps < done:
        raise ValueError(
            f"`{name}` must be at least {done:,}, as many as the run in {workdir} has done. "
            f"Received: {steps:,}"
        )


def check_not_lost(workdir: Path, names: Sequence[str]) -> None:
    """Raise if a new run would replace results of an earlier one that has no checkpoints.

    Args:
        workdir: a folder in which some results are missing.
        names: the files and folders that a run writes.

    Raises:
        FileExistsError: if the folder holds one of these and no checkpoint.
    """
    left = [workdir / name for name in names if (workdir / name).exists()]
    if left and not any((workdir / CHECKPOINTS).glob("step-*")):
        raise FileExistsError(
            f"`workdir` must be a new folder, or hold the checkpoints of its run. Received: "
            f"{workdir}, where {left[0]} would be replaced. Move it away, or take another --workdir"
        )
