"""Presets: folders that hold a model, and the two calls that write and read them (App. C).

A preset folder is laid out as keras-hub's:

    config.json           the backbone's class and arguments
    metadata.json         library versions, number of parameters
    model.weights.h5      the backbone's weights
    pretrainer.json       only for a pretrainer: its class and arguments
    pretrainer.weights.h5 its weights (encoder, predictor, target encoder)
    task.json             only for a classifier: its class and arguments, its backbone's among them
    task.weights.h5       the weights of its probe

The backbone of a pretrainer's preset is its target encoder, the one that is evaluated (App. D.1).
"""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, Self

import keras

CONFIG_FILE, METADATA_FILE, WEIGHTS_FILE = "config.json", "metadata.json", "model.weights.h5"
PRETRAINER_FILES = ("pretrainer.json", "pretrainer.weights.h5")
TASK_FILES = ("task.json", "task.weights.h5")


class Preset:
    """Adds `save_to_preset` and `from_preset` to a model.

    As it stands, for a backbone. A model that holds a backbone, and is more, says in which files it
    keeps itself, which of its parts is the backbone, and whose weights stand beside the backbone's.
    """

    preset_files = (CONFIG_FILE, WEIGHTS_FILE)

    # Methods: Keras takes a property that returns a model for another place to save it in.
    def preset_backbone(self) -> Any:
        """What a backbone's class restores from this model's preset."""
        return self

    def preset_weights(self) -> Any:
        """The part whose weights are in the second of `preset_files`."""
        return self

    def save_to_preset(self, folder: str | os.PathLike[str]) -> None:
        """Write this model as a preset folder; a folder of that name must not exist, or be empty.

        The folder appears complete or not at all.

        Raises:
            FileExistsError: if the folder holds something else than a preset.
            OSError: if it cannot be written.
        """
        folder = Path(folder)
        if folder.exists() and any(folder.iterdir()) and not (folder / CONFIG_FILE).exists():
            raise FileExistsError(
                f"`folder` must not exist, be empty or be a preset. Received: {folder}"
            )
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            self._write_preset(temporary)
            if folder.exists():
                shutil.rmtree(folder)
            temporary.chmod(0o755)
            temporary.rename(folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise

    def _write_preset(self, folder: Path) -> None:
        backbone = self.preset_backbone()
        _write_model(backbone, backbone, folder, (CONFIG_FILE, WEIGHTS_FILE))
        if backbone is not self:
            _write_model(self, self.preset_weights(), folder, self.preset_files)
        metadata = {
            "keras_version": keras.__version__,
            "backend": keras.config.backend(),
            "parameter_count": backbone.count_params(),
        }
        (folder / METADATA_FILE).write_text(json.dumps(metadata, indent=2))

    @classmethod
    def from_preset(
        cls, folder: str | os.PathLike[str], load_weights: bool = True, **overrides: Any
    ) -> Self:
        """Restore a model from a preset folder.

        Args:
            folder: what `save_to_preset` wrote.
            load_weights: False gives the architecture with fresh weights.
            overrides: constructor arguments to change; unknown names are an error. Weights whose
                shape an override changes cannot be loaded.

        Raises:
            FileNotFoundError: if the folder is no preset, or not of this class.
        """
        model = _read_model(Path(folder), cls, cls.preset_files[0], overrides)
        if load_weights:
            keras.saving.load_weights(model.preset_weights(), Path(folder) / cls.preset_files[1])
        return model


def load_backbone(
    folder: str | os.PathLike[str], load_weights: bool = True, **overrides: Any
) -> Any:
    """The backbone of any preset, whatever its class. Arguments as in `Preset.from_preset`."""
    backbone = _read_model(Path(folder), keras.Model, CONFIG_FILE, overrides)
    if load_weights:
        keras.saving.load_weights(backbone, Path(folder) / WEIGHTS_FILE)
    return backbone


def _read_model(folder: Path, cls: type, name: str, overrides: dict[str, Any]) -> Any:
    if not (folder / name).is_file():
        raise FileNotFoundError(
            f"`folder` must be a preset that holds {name}, for {cls.__name__}. Received: {folder}"
        )
    config = json.loads((folder / name).read_text())
    unknown = set(overrides) - set(config["config"])
    if unknown:
        raise ValueError(
            f"`overrides` must be arguments of {cls.__name__}. Received: {sorted(unknown)}"
        )
    config["config"].update(overrides)
    model = keras.saving.deserialize_keras_object(config)
    if not isinstance(model, cls):
        raise ValueError(f"{folder} holds a {type(model).__name__}, not a {cls.__name__}.")
    return model


def _write_model(model: Any, weights_of: Any, folder: Path, files: tuple[str, str]) -> None:
    config = keras.saving.serialize_keras_object(model)
    for key in ("compile_config", "build_config"):
        config.pop(key, None)
    if weights_of is model and "trainable" in config["config"]:
        # Frozen where it comes from (a target encoder, a classifier's backbone), not for ever.
        config["config"]["trainable"] = True
    (folder / files[0]).write_text(json.dumps(config, indent=2))
    weights_of.save_weights(folder / files[1])
