"""Check that a preset folder is as it was written: no file missing, cut or changed (App. C).

The preset's `metadata.json` has the size and checksum of each file, under `written`. Presets of
older versions have no such entry; for them it is only checked that files are valid JSON or HDF5.
"""

import zlib
from pathlib import Path
from typing import Any

import h5py

from keras_vjepa.files import kind_of
from keras_vjepa.json_files import read_json_object

METADATA_FILE = "metadata.json"
WRITTEN = "written"

_CHUNK = 1 << 24


def describe_files(folder: Path) -> dict[str, list[int]]:
    """List size and checksum of each file in a folder, for its `metadata.json`.

    Args:
        folder: folder of the preset, with the files of all its models.
    """
    return {path.name: _described(path) for path in sorted(folder.iterdir())}


def damage(folder: Path, thorough: bool = True) -> str | None:
    """Say which file of a preset is not as it was written.

    Args:
        folder: folder of the preset.
        thorough: whether the contents of files are checked too, and not only their sizes.

    Returns:
        The file and what is wrong with it; None if nothing is wrong.
    """
    metadata = _read_object(folder / METADATA_FILE)
    if metadata is None:
        return f"{folder / METADATA_FILE} is missing or no JSON"
    written = metadata.get(WRITTEN, {})
    if not isinstance(written, dict):
        return f"{folder / METADATA_FILE} is damaged: its `{WRITTEN}` is no object"
    for name, described in written.items():
        path = folder / name
        if Path(name).name != name or not path.is_file():
            return f"{path} is missing"
        # Configs (.json) are not compared, because people may edit them by hand.
        found = _described(path) if thorough else [path.stat().st_size]
        if not isinstance(described, list):
            return f"{folder / METADATA_FILE} is damaged: its `{WRITTEN}` has no sizes"
        if not name.endswith(".json") and found != described[: len(found)]:
            return f"{path} is not as it was written"
    for path in sorted(folder.iterdir()):
        if path.suffix == ".json" and _read_object(path) is None:
            return f"{path} is no JSON"
        if path.suffix == ".h5" and not _is_hdf5(path):
            return f"{path} is no HDF5, or cut short"
    return None


def _described(path: Path) -> list[int]:
    size = checksum = 0
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            size, checksum = size + len(chunk), zlib.crc32(chunk, checksum)
    return [size, checksum]


def _read_object(path: Path) -> dict[str, Any] | None:
    try:
        return read_json_object(path)
    except (OSError, ValueError):
        return None


def _is_hdf5(path: Path) -> bool:
    if kind_of(path) != "file":  # opening a pipe would wait for ever
        return False
    try:
        with h5py.File(path, "r"):
            return True
    except OSError:
        return False
