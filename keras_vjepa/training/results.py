"""Whether the results that a run left are whole, before it is called finished (App. C)."""

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from keras_vjepa.presets.integrity import damage


def read_result(path: Path) -> dict[str, Any] | None:
    """Read a file of results.

    Args:
        path: a JSON file.

    Returns:
        The object in it; None if there is none, or the file is damaged.
    """
    with suppress(OSError, ValueError):
        content = json.loads(path.read_text())
        return content if isinstance(content, dict) else None
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
        if read_result(workdir / name) is None:
            return f"{workdir / name} is damaged"
    for name in presets:
        if (workdir / name).is_dir() and (problem := damage(workdir / name)):
            return problem
    return None
