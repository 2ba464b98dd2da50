"""Read, write and check shards, the parts of a feature cache (§4.3, App. D.1).

    00000.npy       features of the first samples, `(samples, predictions, tokens, dim)`
    00000.json      `contents`: hashes of the samples' files as they were; `unreadable`: the files
                    that could not be read, with the reason; their rows are zeros; `features`: a
                    hash of the features; `reading`: the decoder and the limits with which files
                    were read

In shards of older versions, there is only `unreadable`, or the last two are missing. A shard with
nothing but `unreadable` is valid if none of its samples' files is newer than it.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from keras_vjepa import files
from keras_vjepa.data.reading.errors import printable
from keras_vjepa.data.sources.content_hashes import Hashes, as_text, content_hash
from keras_vjepa.data.sources.samples import Sample
from keras_vjepa.training.results import read_result


def read_shard(path: Path) -> tuple[NDArray[Any], dict[str, str]]:
    """Map the features of a shard into memory.

    Args:
        path: the .npy file of the shard.

    Returns:
        The features, and the samples that could not be read, each with the reason.
    """
    return np.load(path, mmap_mode="r"), _read_notes(path)["unreadable"]


def what_is_wrong(
    path: Path, samples: Sequence[Sample], contents: Hashes, dtype: str, reading: str
) -> str | None:
    """Say why a shard does not hold the current features of its samples.

    Args:
        path: the .npy file, which exists.
        samples: samples of the shard.
        contents: hashes of the samples' files as they are now.
        dtype: dtype of the features.
        reading: the decoder and the limits with which files are read now.

    Returns:
        The reason, with the name of a file; None if nothing is wrong.
    """
    if files.kind_of(path) != "file":
        return f"{path} is damaged: it is no file"
    try:
        array = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return f"{path} is damaged"
    if array.ndim != 4 or len(array) != len(samples) or array.dtype != dtype:
        return f"{path} is damaged: it holds {array.dtype} of shape {array.shape}"
    notes = _read_notes(path)
    if not notes or len(notes.get("contents", samples)) != len(samples):
        return f"{path.with_suffix('.json')} is damaged"
    if "features" in notes and notes["features"] != content_hash(path).hex():
        return f"{path} is damaged: it is not as it was written"
    if notes["unreadable"] and notes.get("reading") != reading:
        unread = printable(next(iter(notes["unreadable"])))
        return f"{unread} could not be read, and files are read in another way now"
    if "contents" not in notes:
        newer = [s.path for s in samples if _changed_at(s.path) > _changed_at(str(path))]
        return f"{newer[0]} is newer than the features of it" if newer else None
    known = notes["contents"]
    for sample, before, now in zip(samples, known, as_text(contents), strict=True):
        if before != now:
            return f"{sample.path} has another content than when its features were computed"
    return None


def keep_notes(path: Path, contents: Hashes, reading: str) -> None:
    """Complete the notes of a valid shard that an older version wrote."""
    notes = _read_notes(path)
    if "contents" not in notes or "features" not in notes:
        write_notes(path, contents, notes["unreadable"], path, reading)


def write_notes(
    path: Path, contents: Hashes, unreadable: dict[str, str], features: Path, reading: str
) -> None:
    """Write the notes of a shard, before its features appear.

    Args:
        path: the .npy file.
        contents: hashes of the samples' files.
        unreadable: files that could not be read, each with the reason.
        features: the file that holds the features now.
        reading: the decoder and the limits with which the files were read.
    """
    notes = {
        "contents": as_text(contents),
        "unreadable": unreadable,
        "features": content_hash(features).hex(),
        "reading": reading,
    }
    files.write_text(path.with_suffix(".json"), json.dumps(notes, indent=2, sort_keys=True))


def write_header(file: BinaryIO, dtype: str, shape: tuple[int, ...]) -> None:
    """Write the header of an .npy file, after which the numbers are written row by row.

    Args:
        file: open for writing, and empty.
        dtype: dtype of the numbers.
        shape: shape of the whole array.
    """
    described = np.lib.format.dtype_to_descr(np.dtype(dtype).newbyteorder("<"))
    header = {"descr": described, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def _read_notes(path: Path) -> dict[str, Any]:
    """Read the notes of a shard in today's format; they are empty if their file is damaged."""
    notes = read_result(path.with_suffix(".json"))
    if notes is None:
        return {}
    if all(isinstance(value, str) for value in notes.values()):
        return {"unreadable": notes}
    contents, unreadable = notes.get("contents"), notes.get("unreadable")
    if not (isinstance(contents, list) and isinstance(unreadable, dict)):
        return {}
    return notes if all(isinstance(reason, str) for reason in unreadable.values()) else {}


def _changed_at(path: str) -> int:
    return os.stat(path).st_mtime_ns if os.path.exists(path) else 0
