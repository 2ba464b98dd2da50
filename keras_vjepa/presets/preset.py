"""Presets: folders that hold a model, and the calls that write and read them (App. C).

The grammar and the layout are keras-hub's:

    config.json           the backbone's class and arguments
    metadata.json         library versions, number of parameters
    preprocessor.json     if a preprocessor was saved beside the model
    model.weights.h5      the backbone's weights
    pretrainer.json       only for a pretrainer: its class and arguments
    encoder.weights.h5    the weights of its encoder
    predictor.json, predictor.weights.h5    its predictor
    teacher.weights.h5    the weights of its teacher, if it has one
    task.json             only for a classifier: its class and arguments, its backbone's among them
    task.weights.h5       the weights of its probe

The backbone of a pretrainer's preset is its target encoder, the one that is evaluated (App. D.1).
"""

import inspect
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, Self

import keras

from keras_vjepa import files
from keras_vjepa.arguments import shown
from keras_vjepa.backend import engine
from keras_vjepa.configuration import nearest
from keras_vjepa.json_files import JsonFileError, read_json_object
from keras_vjepa.named_errors import named
from keras_vjepa.presets.claims import (
    check_files,
    check_weight_file,
    described_class,
    weights_asked_for,
)
from keras_vjepa.presets.hubs import is_address, preset_from_hub
from keras_vjepa.presets.integrity import METADATA_FILE, WRITTEN, describe_files

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.weights.h5"
PREPROCESSOR_FILE = "preprocessor.json"

# Whatever kind of model was saved: the next one leaves none of them behind.
MODEL_FILES = {
    METADATA_FILE,
    *(f"{name}.json" for name in ("config", "pretrainer", "predictor", "task")),
    *(f"{name}.weights.h5" for name in ("model", "encoder", "predictor", "teacher", "task")),
}

_REMEDY = "Copy the preset again, or have it made anew."

_LOG = logging.getLogger(__name__)

PresetName = str | os.PathLike[str]

# Between the folder of a run and the step of one of its checkpoints, in the name of a preset.
AT_STEP = "@"


# --- Names ---------------------------------------------------------------------------------------


class BuiltInPreset(Protocol):
    """What a name stands for; `zoo.py`, which knows how to make these folders, lists them."""

    def classes(self) -> tuple[str, ...]:
        """Names of the classes that list it among their `presets`."""

    def describe(self) -> dict[str, Any]:
        """What `list_presets` says of it."""

    def folder(self, name: str, load_weights: bool, trust_on_first_use: bool) -> Path:
        """Its preset folder in the cache, made now if need be."""


BUILT_IN: dict[str, BuiltInPreset] = {}

# Folders of another package, by the `model_type` in their config.json, and what makes presets of
# them; `zoo.py` adds what it can convert.
CONVERTERS: dict[str, Callable[[Path], Path]] = {}


class CheckpointPresets(Protocol):
    """What knows of a run's checkpoints; `tasks/checkpoint_presets.py`, which reads them, is it."""

    def check(self, name: str, argument: str) -> bool:
        """Whether a name is that of a run's checkpoint; raises if the checkpoint is not there."""

    def folder(self, name: str) -> Path:
        """The preset folder of a checkpoint, made now if need be."""


# One at most: what makes presets of checkpoints.
OF_CHECKPOINTS: list[CheckpointPresets] = []


def list_presets(cls: type | None = None) -> dict[str, dict[str, Any]]:
    """Names that `from_preset` takes without a folder, and what is known of each.

    Args:
        cls: only those of this class; the same as its `presets`. None for all.

    Returns:
        A dictionary for each name: `description`, `parameters`, `input`, `licence`, `source`,
        `files` (each with its address, its SHA-256 and length, None while they are not known, and
        who states them), and `scores`, as the paper reports them, in per cent.

    Example:

    >>> import keras_vjepa
    >>> keras_vjepa.list_presets()["vjepa_large_patch16_224"]["licence"]
    'CC BY-NC 4.0'
    """
    return {
        name: entry.describe()
        for name, entry in BUILT_IN.items()
        if cls is None or cls.__name__ in entry.classes()
    }


class PresetNames:
    """The attribute `presets` of a class: `list_presets` of that class."""

    def __get__(self, instance: Any, owner: type) -> dict[str, dict[str, Any]]:
        return list_presets(owner)


def find_preset(
    preset: PresetName, load_weights: bool = True, trust_on_first_use: bool = False
) -> Path:
    """The folder that a preset's name stands for, downloaded or made if need be.

    Args:
        preset: a name of `list_presets`, a folder, `hf://user/repo` (or `hf://user/repo@revision`),
            `kaggle://user/model/framework/variation`, or `workdir/run@300`: the checkpoint of a
            run's step 300, or of its last one as `workdir/run@last`.
        load_weights: False fetches what describes the model, and no weights.
        trust_on_first_use: as in `Preset.from_preset`.

    Raises:
        FileNotFoundError: if there is no such folder, or it holds presets and is none.
        ValueError: if there is no such name, or what it stands for cannot be fetched.
    """
    name = os.fspath(preset)
    if is_address(name):
        folder = preset_from_hub(name, load_weights)
        if not load_weights and _model_of_another_package(folder) in CONVERTERS:
            folder = preset_from_hub(name, load_weights=True)
        return _as_preset(folder)
    if name in BUILT_IN:
        return BUILT_IN[name].folder(name, load_weights, trust_on_first_use)
    for checkpoints in OF_CHECKPOINTS:
        if checkpoints.check(name, "preset"):
            return checkpoints.folder(name)
    check_preset(preset)
    return _as_preset(Path(name).expanduser())


def check_preset(preset: PresetName, name: str = "preset") -> None:
    """Check, without fetching anything, that a preset is there or has a name of one that is not.

    Args:
        preset: as in `find_preset`.
        name: of the argument, for messages.

    Raises:
        FileNotFoundError: if there is no such folder, or it holds presets and is none.
        ValueError: if there is no such name.
    """
    text = os.fspath(preset)
    if is_address(text) or text in BUILT_IN:
        return
    if any(checkpoints.check(text, name) for checkpoints in OF_CHECKPOINTS):
        return
    folder = Path(text).expanduser()
    if folder.is_dir():
        _check_is_no_parent(folder, name)
    elif folder.is_file():
        raise FileNotFoundError(
            f"`{name}` must be the folder of a preset. Received: {text!r}, which is a file"
            f"{_remedy_for_file(text)}"
        )
    elif isinstance(preset, str) and len(folder.parts) == 1 and not text.startswith("."):
        raise ValueError(
            f"`{name}` must be a folder, hf://user/repo, kaggle://user/model/framework/variation "
            f"or a name of keras_vjepa.list_presets(). Received: {text!r}"
            f"{nearest(text, [*BUILT_IN, *_folders_beside(folder)])}"
        )
    else:
        found = "which is no folder" if folder.exists() else "and there is no such folder"
        raise FileNotFoundError(
            f"`{name}` must be the folder of a preset. Received: {text!r}, {found}"
            f"{nearest(text, _folders_beside(folder))}"
        )


def _remedy_for_file(name: str) -> str:
    if name.endswith((".tar", ".pth", ".pt")):
        return f"; a preset is made of a checkpoint by: keras-vjepa convert {name} FOLDER"
    return "; it is loaded by keras.models.load_model" if name.endswith(".keras") else ""


def _check_is_no_parent(folder: Path, name: str) -> None:
    """Point to the presets in a folder that is none itself, such as that of a run."""
    if not (folder / METADATA_FILE).exists():
        within = sorted(str(path.parent) for path in folder.glob(f"*/{METADATA_FILE}"))
        if within:
            raise FileNotFoundError(
                f"`{name}` must be the folder of a preset. Received: {str(folder)!r}, which is "
                f"none and holds {', '.join(within[:4])}{', ...' if len(within) > 4 else ''}"
            )


def _folders_beside(folder: Path) -> list[str]:
    """The folders that are where one should be, as they would have been written."""
    try:
        return [str(path) for path in folder.parent.iterdir() if path.is_dir()]
    except OSError:
        return []


def _model_of_another_package(folder: Path) -> str | None:
    """The `model_type` of a folder of the transformers package, which says no more of its model."""
    try:
        config = read_json_object(folder / CONFIG_FILE)
    except (OSError, ValueError):  # a preset without a backbone, or none at all
        return None
    kind = config.get("model_type")
    return kind if isinstance(kind, str) and "config" not in config else None


def _as_preset(folder: Path) -> Path:
    kind = _model_of_another_package(folder)
    if kind is None:
        return folder
    if kind not in CONVERTERS:
        raise ValueError(
            f"{folder / CONFIG_FILE} describes another package's model, {shown(kind)}. Of those, "
            f"these can be read: {', '.join(CONVERTERS)}; another, as a Keras model, can be passed "
            "to VJEPAVideoClassifier"
        )
    return CONVERTERS[kind](folder)


# --- Models --------------------------------------------------------------------------------------


class Preset:
    """Adds `presets`, `from_preset` and `save_to_preset` to a model.

    As it stands, for a backbone. A model that has parts with files of their own says which.
    """

    presets = PresetNames()
    config_file = CONFIG_FILE

    # A method: Keras takes a property that returns a model for another place to save it in.
    def preset_files(self) -> dict[str, Any]:
        """The files of this model's preset, and whose arguments or weights are in each."""
        return {CONFIG_FILE: self, WEIGHTS_FILE: self}

    def save_to_preset(self, folder: PresetName) -> None:
        """Write this model as a preset folder; a folder of that name must not exist, or be empty.

        The folder appears complete or not at all. Of a preset that is there, the files of its model
        are replaced; others stay, and so does its preprocessor, unless the model has one.

        Raises:
            FileExistsError: if the folder holds something else than a preset.
            OSError: if it cannot be written.
        """
        folder = preset_folder(folder)
        others = _others_in(folder)
        others_of_model = MODEL_FILES - {*self.preset_files(), METADATA_FILE}
        gone = sorted(name for name in others_of_model if (folder / name).exists())
        if gone:
            _LOG.warning(
                "Removed from %s: %s, of the model that was there", folder, ", ".join(gone)
            )
        with files.unfinished_folder(folder, existing="replace") as unfinished:
            self._write_preset(unfinished)
            for path in others:
                if not (unfinished / path.name).exists():
                    files.copy(path, unfinished / path.name)

    def _write_preset(self, unfinished: Path) -> None:
        contents = self.preset_files()
        for name, model in contents.items():
            if name.endswith(".json"):
                (unfinished / name).write_text(json.dumps(_described(model), indent=2))
            else:
                model.save_weights(unfinished / name)
        metadata = {
            "keras_version": keras.__version__,
            "backend": engine.name(),
            "parameter_count": contents.get(CONFIG_FILE, self).count_params(),
            WRITTEN: describe_files(unfinished),
        }
        (unfinished / METADATA_FILE).write_text(json.dumps(metadata, indent=2))

    @classmethod
    def from_preset(
        cls,
        preset: PresetName,
        load_weights: bool = True,
        trust_on_first_use: bool = False,
        **overrides: Any,
    ) -> Self:
        """Restore a model from a preset.

        Args:
            preset: one of `presets`, a folder that `save_to_preset` wrote, `hf://user/repo`,
                `kaggle://user/model/framework/variation`, or `workdir/run@300`, the checkpoint of a
                run's step. A V-JEPA 2 folder or repository of the transformers package is converted
                into the cache.
            load_weights: False gives the architecture with fresh weights; nothing large is
                downloaded for it.
            trust_on_first_use: accept the authors' file of one of `presets` although its SHA-256
                is not yet known, and keep its hash: another file at that address is an error from
                then on. The same as the environment variable `KERAS_VJEPA_TRUST_ON_FIRST_USE=1`.
            overrides: constructor arguments to change; unknown names are an error. Weights whose
                shape an override changes cannot be loaded.

        Raises:
            FileNotFoundError: if the folder is no preset, or not of this class.
            ValueError: if `preset` or `overrides` do not exist, or a download fails.
        """
        folder = find_preset(preset, load_weights, trust_on_first_use)
        # As the caller calls it, who knows nothing of a folder in the cache.
        check_holds(folder, cls.config_file, cls.__name__, os.fspath(preset))
        model = _read_model(folder, cls, cls.config_file, overrides, load_weights)
        if load_weights:
            load_preset_weights(model, folder)
        return model


def preset_folder(folder: PresetName) -> Path:
    """The folder to write a preset to; in front, ~ is the home directory.

    Args:
        folder: what a user has given.

    Raises:
        ValueError: for an address of a hub, which nothing is written to here.
        FileExistsError: for a file.
    """
    name = os.fspath(folder)
    if is_address(name):
        raise ValueError(
            "`folder` must be a folder on a disk; upload it from there with "
            f"`keras_vjepa.upload_preset`. Received: {name!r}"
        )
    path = Path(name).expanduser()
    if path.is_file():
        raise FileExistsError(
            f"`folder` must not exist, be empty or be a preset. Received: {path}, which is a file"
        )
    return path


def _others_in(folder: Path) -> list[Path]:
    """What lies in a folder and is no file of a model; refuses one that is no preset."""
    found = sorted(folder.iterdir()) if folder.exists() else []
    names = {path.name for path in found}
    known = names <= {*MODEL_FILES, PREPROCESSOR_FILE}
    # Of a preset that was damaged, any file may be missing.
    is_left = known and any(name.endswith(".weights.h5") for name in names)
    if names - {PREPROCESSOR_FILE} and METADATA_FILE not in names and not is_left:
        raise FileExistsError(
            f"`folder` must not exist, be empty or be a preset. Received: {folder}"
        )
    return [path for path in found if path.name not in MODEL_FILES]


def load_backbone(
    preset: PresetName,
    load_weights: bool = True,
    trust_on_first_use: bool = False,
    **overrides: Any,
) -> Any:
    """The backbone of any preset, whatever its class. Arguments as in `Preset.from_preset`."""
    folder = find_preset(preset, load_weights, trust_on_first_use)
    backbone = _read_model(folder, keras.Model, CONFIG_FILE, overrides, load_weights)
    if load_weights:
        _load_weights(backbone, folder, WEIGHTS_FILE)
    return backbone


def load_preset_weights(model: Any, folder: Path) -> None:
    """Load a model's weights from its preset folder."""
    for name, part in model.preset_files().items():
        if not name.endswith(".json"):
            _load_weights(part, folder, name)


def check_holds(folder: Path, name: str, class_name: str, preset: str) -> None:
    """Check that a preset has the file that a class is made of.

    Args:
        folder: of the preset.
        name: of the file.
        class_name: for the message.
        preset: what the user calls it.

    Raises:
        FileNotFoundError: if it has not.
    """
    if files.kind_of(folder / name) is None:
        raise FileNotFoundError(
            f"`preset` must be a folder that holds {name}, for {class_name}. Received: {preset}"
        )


def read_config(folder: Path, name: str, class_name: str) -> dict[str, Any]:
    """A class and its arguments, as a preset folder holds them.

    Raises:
        FileNotFoundError: if the folder does not.
        ValueError: if the file is damaged.
    """
    path = folder / name
    check_holds(folder, name, class_name, str(folder))
    try:
        config = read_json_object(path)
    except JsonFileError as error:
        raise ValueError(f"{path} is damaged: {error}. {_REMEDY}") from error
    if not isinstance(config.get("config"), dict):
        raise ValueError(f"{path} is damaged: it describes no {class_name}. {_REMEDY}")
    return config


def _load_weights(model: keras.Model, folder: Path, name: str) -> None:
    path = folder / name
    check_weight_file(path)
    # Keras' loader, and HDF5 below it, raise anything for a file that is damaged.
    with named(path, problem=f"is damaged. {_REMEDY}"):
        keras.saving.load_weights(model, path)


def check_claims(
    folder: Path, name: str, kind: type, overrides: dict[str, Any] | None = None
) -> None:
    """Check that a preset has the weights that one of its configs asks for; makes nothing.

    Args:
        folder: of the preset.
        name: of the config.
        kind: what it must describe.
        overrides: arguments to change.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if the config, an override or a file does not fit.
    """
    config = read_config(folder, name, kind.__name__)
    config["config"].update(overrides or {})
    _check_described(folder, name, kind, config)


def _check_described(folder: Path, name: str, kind: type, config: dict[str, Any]) -> None:
    with named(folder / name):
        asked_for = weights_asked_for(config, kind)
    check_files(folder, name, asked_for)


def _read_model(
    folder: Path, cls: type, name: str, overrides: dict[str, Any], load_weights: bool
) -> Any:
    config = read_config(folder, name, cls.__name__)
    with named(folder / name):
        found = described_class(config, cls)
    # What the constructor has learned since the preset was written may be given too.
    known = {*config["config"], *(inspect.signature(found).parameters if found else ())}
    unknown = set(overrides) - known
    if unknown:
        raise ValueError(
            f"`overrides` must be arguments of {cls.__name__}. Received: {sorted(unknown)}"
        )
    config["config"].update(overrides)
    if load_weights:
        _check_described(folder, name, cls, config)
    with named(folder / name, problem=f"describes no {cls.__name__}"):
        model = keras.saving.deserialize_keras_object(config)
        if not isinstance(model, cls):
            raise ValueError(f"it holds a {type(model).__name__}, not a {cls.__name__}")
    if not {"dtype", "backbone"} & {*overrides}:
        _say_precision(model, folder)
    return model


def _say_precision(model: keras.Model, folder: Path) -> None:
    """Say that a preset keeps its precision where the user has set another for all models."""
    wanted, stored = keras.config.dtype_policy().name, model.dtype_policy.name
    if stored != wanted != "float32":
        _LOG.warning(
            "%s stays %s, as it was saved, although keras.config.dtype_policy() is %s; pass "
            "dtype=%r for that",
            folder,
            stored,
            wanted,
            wanted,
        )


def _described(model: Any) -> dict[str, Any]:
    config = keras.saving.serialize_keras_object(model)
    for key in ("compile_config", "build_config"):
        config.pop(key, None)
    states = config["config"].get("layer_states", {})
    if "trainable" in config["config"] and not any(s.get("trainable") for s in states.values()):
        # Frozen where it comes from (a target encoder, a classifier's backbone), not for ever.
        config["config"]["trainable"] = True
    # A file of its own.
    config["config"].pop("preprocessor", None)
    return config
