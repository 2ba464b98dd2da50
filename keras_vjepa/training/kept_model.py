"""What a run's model is made of, beside its checkpoints, which hold its weights alone (App. C)."""

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
    """Write a model's class and arguments into the folder of its run; the log says if it has none.

    Args:
        folder: of the run.
        model: that is trained.

    Raises:
        OSError: if the file cannot be written.
    """
    try:
        config = keras.saving.serialize_keras_object(model)
    except Exception as error:  # whatever somebody's `get_config` raises
        _LOG.warning(
            "No %s: %s. Presets cannot be made of its checkpoints.", FILE_NAME, one_line(error)
        )
        return
    # The checkpoints have an optimizer's numbers, and a preset has none.
    for name in ("compile_config", "build_config"):
        config.pop(name, None)
    files.write_text(folder / FILE_NAME, json.dumps(config, indent=1))


def make_kept_model(folder: Path) -> Any:
    """Make the model of a run, with weights of no meaning.

    Args:
        folder: of the run.

    Raises:
        FileNotFoundError: if there is no such file: the run is of an earlier version.
        ValueError: if it is damaged.
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
