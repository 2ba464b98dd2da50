"""Which run a folder holds: what defines one, and whether two are the same (App. C).

A description is JSON: `run`, names with values, of which all must be the same when a run goes on,
and `versions`, of which a change is only said.
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

# Of batches: what does not change the numbers, or is described by itself.
_NOT_DESCRIBED = {
    "samples",
    "num_workers",
    "read_ahead",
    "max_bad_share",
    "limits",
    "process_index",
    "process_count",
}

# What an argument was before there was one.
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

    Only what makes the numbers: equal runs are to have equal files.

    Args:
        model: compiled.
        batches: what it is trained on.
        given: names and values that define the run, as JSON has them. None takes the arguments of
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
    """Take the options that are not free, as JSON has them."""
    return json.loads(json.dumps({k: v for k, v in options.items() if k not in free}))


def check_same_run(
    stored: Mapping[str, Any],
    current: Mapping[str, Any],
    where: Path,
    defaults: Mapping[str, Any] | None = None,
) -> None:
    """Raise unless two descriptions are of the same run.

    A preset, whose name is a path, is told by its weights where both descriptions have them, under
    its own name followed by `_weights`: it may have moved.

    Args:
        stored: what a folder holds.
        current: what is asked for now.
        where: the folder or file.
        defaults: values that a stored description has where it does not say: it may be older than
            a name.

    Raises:
        ValueError: with all differences, in one line.
    """
    # Before defaults: whoever knows no weights knows the preset by its path.
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
            "Take another --workdir, or the config as it was."
        )


def changed_versions(stored: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """List the versions that are not those of a stored description."""
    return [f"{k} {stored.get(k)} -> {v}" for k, v in current.items() if stored.get(k) != v]


def _describe_samples(samples: Sequence[Named]) -> str:
    """Number and hash of the paths, as seen from the folder that they have in common."""
    root = os.path.commonpath([os.path.dirname(os.path.abspath(s.path)) for s in samples])
    names = "\n".join(os.path.relpath(sample.path, root) for sample in samples)
    return f"{len(samples)} files, {hashlib.sha256(os.fsencode(names)).hexdigest()[:16]}"


# --- Without a config ----------------------------------------------------------------------------


def _describe_model(model: keras.Model) -> dict[str, Any]:
    """The arguments of the model, its parts and its optimizer, by paths with dots."""
    config = {"model": model.get_config(), "training": model.get_compile_config()}
    return _flat("", json.loads(json.dumps(config, default=str)))


def _flat(prefix: str, nested: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in nested.items():
        # Keras numbers the names of what is made a second time.
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
    """The arguments of the batches that change the numbers; of functions the name."""
    if not dataclasses.is_dataclass(batches):
        return {"batches": type(batches).__qualname__}
    found = {}
    for field in dataclasses.fields(batches):
        if field.init and field.name not in _NOT_DESCRIBED:
            value = getattr(batches, field.name)
            plain = value is None or isinstance(value, bool | int | float | str)
            if not plain and not dataclasses.is_dataclass(value) and not isinstance(value, tuple):
                value = getattr(value, "__qualname__", type(value).__qualname__)
            found[f"batches.{field.name}"] = value if plain else str(value)
    return found
