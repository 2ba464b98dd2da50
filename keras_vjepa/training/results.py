"""Whether the results that a run left are whole, before it is called finished (App. C)."""

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from keras_vjepa.json_files import read_json_object
from keras_vjepa.presets.integrity import damage

# In a run's folder.
CHECKPOINTS = "checkpoints"


def read_result(path: Path) -> dict[str, Any] | None:
    """Read a file of results.

    Args:
        path: a JSON file.

    Returns:
        The object in it; None if there is none, or the file is damaged.
    """
    with suppress(OSError, ValueError):
        return read_json_object(path)
    return None


def damaged_result(workdir: Path, names: Sequence[str], presets: Sequence[str]) -> str | None:
    """Say which result of a run is damaged.

    Args:
        workdir: of the run.
        names: JSON files in it, which must be there.
        presets: folders of presets in it; those that are not there are passed over.

    Returns:
        The file and what is wrong with it; None if nothing is.
    """
    for name in names:
        # Of what a run says about itself nothing is left out.
        if not read_result(workdir / name):
            return f"{workdir / name} is damaged"
    for name in presets:
        if (workdir / name).is_dir() and (problem := damage(workdir / name)):
            return problem
    return None


def need_no_remaking(workdir: Path, problem: str | None, says: bool = True) -> bool:
    """Tell whether results are whole; if not, say that they are made anew.

    Args:
        workdir: of the run.
        problem: what is wrong with a result; None if nothing is.
        says: whether this process is the one that prints.

    Raises:
        ValueError: if there is no checkpoint to make them anew from.
    """
    if problem is not None and not (workdir / CHECKPOINTS).is_dir():
        raise ValueError(
            f"{problem}, and there is no checkpoint to make it anew from. Copy it again, or take "
            "another --workdir."
        )
    if problem is not None and says:
        print(f"{problem}: the results are made anew from the checkpoint.", file=sys.stderr)
    return problem is None


def check_not_less(steps: int, done: int, workdir: Path) -> None:
    """Raise if fewer steps are asked for than a run has done.

    Args:
        steps: of the whole run, as it is asked for.
        done: steps of it that are done.
        workdir: of the run.

    Raises:
        ValueError: if it is so.
    """
    if steps < done:
        raise ValueError(
            f"`steps` must be at least {done:,}, which {workdir} has done. Received: {steps:,}"
        )


def check_not_lost(workdir: Path, names: Sequence[str]) -> None:
    """Raise if a run that begins would replace the results of one that cannot go on.

    Args:
        workdir: in which some results are missing.
        names: files and folders that a run leaves.

    Raises:
        FileExistsError: if there is one of them and no checkpoint.
    """
    left = [workdir / name for name in names if (workdir / name).exists()]
    if left and not any((workdir / CHECKPOINTS).glob("step-*")):
        raise FileExistsError(
            f"`workdir` must be a new folder, or hold the checkpoints of its run. Received: "
            f"{workdir}, where {left[0]} would be replaced. Move it away, or take another --workdir"
        )
