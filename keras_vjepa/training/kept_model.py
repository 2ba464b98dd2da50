"""Keep a model's class and arguments beside its checkpoints, which hold only weights (App. C)."""

import json
import logging
from pathlib import Path
from typing import Any

import keras

from keras_vjepa import files
from keras_vjepa.json_files import JsonFileError, read_json_object
from keras_vjepa.named_errors import named, one_line

FILE_NAME = "model.json"

_LOG = logging.getLogger(__name__)


def keep_model(folder: Path, model: keras.Model) -> None:
    """Write a model's class and arguments into its run's folder; log it if they cannot be told.

    Args:
        folder: the folder of the run.
        model: the model that is trained.

    Raises:
        OSError: if the file cannot be written.
    """
    try:
        config = keras.saving.serialize_keras_object(model)
    except Exception as error:  # A user's `get_config` may raise any error.
        _LOG.warning(
            "Without %s, no presets can be made of this run's checkpoints: %s",
            FILE_NAME,
            one_line(error),
        )
        return
    # The optimizer is left out: checkpoints hold its numbers, and a preset has no optimizer.
    for name in ("compile_config", "build_config"):
        config.pop(name, None)
    files.write_text(folder / FILE_NAME, json.dumps(config, indent=1))


def make_kept_model(folder: Path) -> Any:
    """Make the model of a run, with fresh weights that a checkpoint is to replace.

    Args:
        folder: the folder of the run.

    Raises:
        FileNotFoundError: if the folder has no such file, because an earlier version wrote it.
        ValueError: if the file is damaged.
    """
    path = folder / FILE_NAME
    try:
        config = read_json_object(path)
    except JsonFileError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    with named(path, problem="describes no model"):
        model = keras.saving.deserialize_keras_object(config)
        if not isinstance(model, keras.Model):
            raise TypeError(f"it is a {type(model).__name__}")
    return model
