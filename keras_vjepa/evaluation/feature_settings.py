"""Check that features added to a folder share one `settings.json` with the others (§4.3, App. D).

The settings are everything that all features in the folder depend on. The model is known by a
fingerprint of its arguments and weights, so that its preset may be moved.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from keras_vjepa import files
from keras_vjepa.evaluation.feature_names import SETTINGS_FILE
from keras_vjepa.evaluation.feature_records import FeatureRecord
from keras_vjepa.training.results import read_result

# `PRESET` is not compared, because the same model may lie in another folder. The other two are
# compared, but earlier versions did not store them.
PRESET, MODEL, BACKEND = "preset", "model", "backend"

_LOG = logging.getLogger(__name__)


def hash_of_settings(settings: Mapping[str, Any]) -> str:
    """Compute a hash of all settings that features depend on.

    Example:

    >>> from keras_vjepa.evaluation.feature_settings import hash_of_settings
    >>> one, moved = {"preset": "a", "stride": 8}, {"preset": "b", "stride": 8}
    >>> hash_of_settings(one) == hash_of_settings(moved) != hash_of_settings({"stride": 16})
    True
    """
    compared = {name: value for name, value in settings.items() if name != PRESET}
    text = json.dumps(compared, sort_keys=True)
    return hashlib.blake2b(text.encode()).hexdigest()[:16]


def write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings of a folder of features into it."""
    files.write_text(folder / SETTINGS_FILE, json.dumps(settings, indent=2))


def check_settings(
    folder: Path,
    settings: Mapping[str, Any],
    records: Mapping[str, FeatureRecord],
    preset: Path,
) -> bool:
    """Check that features of these settings may be added to a folder; write a missing file.

    Args:
        folder: the folder of features.
        settings: as JSON gives them back, with `PRESET`, `MODEL` and `BACKEND`.
        records: what is known of the features that are there.
        preset: the folder of the preset.

    Returns:
        Whether an earlier version wrote the features that are there. In that case it is not known
        which files they were made from, and the settings have not been written.

    Raises:
        ValueError: if the folder holds features of other or unknown settings.
    """
    path = folder / SETTINGS_FILE
    found = read_result(path) or {}
    if not {*settings} - {MODEL, BACKEND} <= {*found}:
        found = {}
    _refuse_others(folder, settings, found, preset)
    if MODEL in found:
        return False
    if found and not records:
        return True
    # The file of settings is missing or damaged; or it is an earlier version's, and a run was
    # killed between writing the records of these features and the new settings.
    if {record.settings for record in records.values()} - {hash_of_settings(settings)}:
        raise ValueError(
            f"`--output` must be another folder: the features there were made with other "
            f"settings, and {path}, which named them, is damaged or missing. Received: {folder}"
        )
    strange = None if records else _any_features(folder)
    if strange is not None:
        raise ValueError(
            f"`--output` must be another folder: {path} is damaged or missing, so that nobody "
            f"knows how {strange} was made. Received: {folder}"
        )
    if not found and (records or path.exists()):
        _LOG.warning("%s is damaged or missing: it is made anew.", path)
    write_settings(folder, settings)
    return False


def _refuse_others(
    folder: Path, settings: Mapping[str, Any], found: Mapping[str, Any], preset: Path
) -> None:
    known = [name for name in settings if name in found]
    # Settings of early versions, without the model's fingerprint, know the model only by its name.
    compared = [name for name in known if name != PRESET or MODEL not in found]
    changed = [name for name in compared if found[name] != settings[name]]
    if {"dtype", MODEL} <= set(changed):
        changed.remove(MODEL)  # another precision changes the weights, and so the fingerprint
    if changed:
        before = ", ".join(f"{name} = {_shown(name, found)}" for name in changed)
        now = ", ".join(_shown(name, settings) for name in changed)
        raise ValueError(
            f"`--output` must be another folder: {folder} holds features with {before}. "
            f"Received: {now}"
        )
    if known and MODEL not in found:
        written = (folder / SETTINGS_FILE).stat().st_mtime_ns
        if max(path.stat().st_mtime_ns for path in preset.iterdir()) > written:
            raise ValueError(
                f"`--output` must be another folder: an earlier version made the features in "
                f"{folder}, and {preset} has changed since."
            )


def _shown(name: str, settings: Mapping[str, Any]) -> str:
    if name == MODEL:
        return f"{str(settings[name])[:8]} ({settings[PRESET]})"
    return str(settings[name])


def _any_features(folder: Path) -> Path | None:
    for path in folder.rglob("*.npy"):
        # Unfinished files of a process that was killed lie in hidden folders.
        if not any(part.startswith(".") for part in path.relative_to(folder).parts):
            return path
    return None
