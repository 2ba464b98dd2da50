"""Parts of a feature cache: what is in one, and whether it still holds (§4.3, App. D.1).

    00000.npy       features of the first samples, `(samples, predictions, tokens, dim)`
    00000.json      `contents`: hashes of the samples' files as they were; `unreadable`: those
                    that could not be read, with the reason; their rows are zeros

A shard of an older version has the latter alone. It holds if no file is newer than it.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keras_vjepa import files
from keras_vjepa.data.sources.content_hashes import Hashes, as_text
from keras_vjepa.data.sources.samples import Sample
from keras_vjepa.training.results import read_result


def read_shard(path: Path) -> tuple[NDArray[Any], dict[str, str]]:
    """Map the features of a shard into memory.

    Args:
        path: its .npy file.

    Returns:
        The features, and the samples that could not be read with the reason.
    """
    return np.load(path, mmap_mode="r"), _read_notes(path)["unreadable"]


def what_is_wrong(
    path: Path, samples: Sequence[Sample], contents: Hashes, dtype: str
) -> str | None:
    """Say why a shard does not hold the features of samples.

    Args:
        path: the .npy file, which exists.
        samples: of the shard.
        contents: hashes of their files as they are.
        dtype: of the features.

    Returns:
        The reason, with the name of a file; None if nothing is wrong.
    """
    try:
        array = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return f"{path} is damaged"
    if array.ndim != 4 or len(array) != len(samples) or array.dtype != dtype:
        return f"{path} is damaged: it holds {array.dtype} of shape {array.shape}"
    notes = _read_notes(path)
    if not notes:
        return f"{path.with_suffix('.json')} is damaged"
    if "contents" not in notes:
        newer = [s.path for s in samples if _changed_at(s.path) > _changed_at(str(path))]
        return f"{newer[0]} is newer than the features of it" if newer else None
    known = notes["contents"]
    for sample, before, now in zip(samples, known, as_text(contents), strict=True):
        if before != now:
            return f"{sample.path} has another content than when its features were computed"
    return None


def keep_contents(path: Path, contents: Hashes) -> None:
    """Write hashes of the files into a shard of an older version that has none."""
    notes = _read_notes(path)
    if "contents" not in notes:
        write_notes(path, contents, notes["unreadable"])


def write_notes(path: Path, contents: Hashes, unreadable: dict[str, str]) -> None:
    """Write what is known of a shard's files, before its features appear.

    Args:
        path: the .npy file.
        contents: hashes of the files.
        unreadable: those that could not be read, with the reason.
    """
    notes = {"contents": as_text(contents), "unreadable": unreadable}
    files.write_text(path.with_suffix(".json"), json.dumps(notes, indent=2, sort_keys=True))


def _read_notes(path: Path) -> dict[str, Any]:
    """What is known of a shard, in the words of today; empty if its file is damaged."""
    notes = read_result(path.with_suffix(".json"))
    if notes is None:
        return {}
    if all(isinstance(value, str) for value in notes.values()):
        return {"unreadable": notes}
    if isinstance(notes.get("contents"), list) and isinstance(notes.get("unreadable"), dict):
        return notes
    return {}


def _changed_at(path: str) -> int:
    return os.stat(path).st_mtime_ns if os.path.exists(path) else 0
