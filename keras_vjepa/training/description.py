"""Describe what defines a run, and tell whether two runs are the same (App. C).

A description is JSON. Its part `run` holds names with values, which must all be the same when a run
continues. Its part `versions` may change, and the log then says so.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import keras
import numpy as np

from keras_vjepa.backend import engine
from keras_vjepa.training.batches import Batches, Named

# Arguments of batches that do not change the numbers, or that are described elsewhere.
_NOT_DESCRIBED = {
    "samples",
    "num_workers",
    "use_multiprocessing",
    "cache_gib",
    "read_ahead",
    "max_bad_share",
    "limits",
    "process_index",
    "process_count",
    "apart",
}

# For an argument that older runs did not have, the value that corresponds to what they did.
_BEFORE = {
    f"training.optimizer.{wrapped}{argument}": None
    for wrapped in ("", "inner_optimizer.")
    for argument in ("gradient_accumulation_steps", "layer_decay")
} | {
    "batches.label_weights": None,
    **{f"model.{part}.drop_path_rate": 0.0 for part in ("encoder", "target_encoder", "backbone")},
    "model.drop_path_rate": 0.0,
    "model.head": "probe",
    "model.head_dropout": 0.0,
    "model.encoder_norm": None,
}


def describe_run(
    model: keras.Model, batches: Batches, given: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Describe a run for its checkpoints.

    The description holds only what determines the numbers, so that equal runs have equal files.

    Args:
        model: the model, compiled.
        batches: the batches that it is trained on.
        given: names and values that define the run, in types of JSON. None takes the arguments of
            the model, of its optimizer and of the batches.
    """
    arguments = given if given is not None else {**_describe_model(model), **_settings_of(batches)}
    return {
        "run": {**arguments, "samples": _describe_samples(batches.samples)},
        "versions": {
            "keras_vjepa": importlib.metadata.version("keras-vjepa"),
            "keras": keras.__version__,
            "backend": engine.name_and_version(),
            "numpy": np.__version__,
            "opencv": cv2.__version__,
        },
    }


def defining(options: Mapping[str, Any], free: set[str]) -> dict[str, Any]:
    """Return the options that define a run: all that are not `free`, in types of JSON."""
    return json.loads(json.dumps({k: v for k, v in options.items() if k not in free}))


def check_same_run(
    stored: Mapping[str, Any],
    current: Mapping[str, Any],
    where: Path,
    defaults: Mapping[str, Any] | None = None,
) -> None:
    """Raise unless two descriptions are of the same run.

    A preset is named by its path, and it may have moved. So where both descriptions have a value
    for the preset's weights, under its name followed by `_weights`, the path is not compared.

    Args:
        stored: the description in a folder.
        current: the description of what is asked for now.
        where: the folder or file.
        defaults: values for names that the stored description lacks, because it is older than
            they are.

    Raises:
        ValueError: if the runs differ; the message lists all differences in one line.
    """
    # This is before defaults are filled in: a description without weights compares the path
    # instead.
    by_weights = {name for name in stored if f"{name}_weights" in stored.keys() & current.keys()}
    defaults = {**_BEFORE, **(defaults or {})}
    stored = {**{k: v for k, v in defaults.items() if k in current}, **stored}
    differences = [
        f"{name} {stored.get(name, 'absent')} -> {current.get(name, 'absent')}"
        for name in sorted({*stored, *current} - by_weights)
        if name not in stored or name not in current or stored[name] != current[name]
    ]
    if differences:
        raise ValueError(
            f"{where} holds a run of another config: {', '.join(differences)}. "
            "Take another --workdir, or the same config."
        )


def changed_versions(stored: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """List the versions that differ from those of a stored description."""
    return [f"{k} {stored.get(k)} -> {v}" for k, v in current.items() if stored.get(k) != v]


def _describe_samples(samples: Sequence[Named]) -> str:
    """Return the number of samples and a hash of their paths, relative to their common folder."""
    root = os.path.commonpath([os.path.dirname(os.path.abspath(s.path)) for s in samples])
    names = "\n".join(os.path.relpath(sample.path, root) for sample in samples)
    return f"{len(samples)} files, {hashlib.sha256(os.fsencode(names)).hexdigest()[:16]}"


# --- Without a config ----------------------------------------------------------------------------


def _describe_model(model: keras.Model) -> dict[str, Any]:
    """Return the arguments of the model, its parts and its optimizer, by paths with dots."""
    config = {"model": model.get_config(), "training": model.get_compile_config()}
    return _flat("", json.loads(json.dumps(config, default=str)))


def _flat(prefix: str, nested: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in nested.items():
        # Left out: Keras adds a number to the name of an object that is made a second time.
        if name == "name":
            continue
        path = f"{prefix}{name}"
        if isinstance(value, dict) and "class_name" in value:
            found[path] = value["class_name"]
            value = value.get("config") or {}
        if isinstance(value, dict):
            found |= _flat(f"{path}.", value)
        else:
            found[path] = value
    return found


def _settings_of(batches: Batches) -> dict[str, Any]:
    """Return the arguments of the batches that change the numbers; functions by their names."""
    if not dataclasses.is_dataclass(batches):
        return {"batches": type(batches).__qualname__}
    found = {}
    for field in dataclasses.fields(batches):
        if field.init and field.name not in _NOT_DESCRIBED:
            value = getattr(batches, field.name)
            if hasattr(value, "samples"):  # batches that are mixed with others
                own = _settings_of(value)
                found |= {f"batches.{field.name}{k.removeprefix('batches')}": own[k] for k in own}
                continue
            plain = value is None or isinstance(value, bool | int | float | str)
            if not plain and not dataclasses.is_dataclass(value) and not isinstance(value, tuple):
                value = getattr(value, "__qualname__", type(value).__qualname__)
            found[f"batches.{field.name}"] = value if plain else str(value)
    return found
