"""Write and read presets, which are folders that hold a model (App. C).

Calls and layout are those of keras-hub:

    config.json           the backbone's class and arguments
    metadata.json         library versions, number of parameters
    preprocessor.json     if a preprocessor was saved beside the model
    model.weights.h5      the backbone's weights
    pretrainer.json       only for a pretrainer: its class and arguments
    encoder.weights.h5    the weights of its encoder
    predictor.json, predictor.weights.h5    its predictor
    teacher.weights.h5    the weights of its teacher, if it has one
    task.json             only for a classifier: its class and arguments, with those of its backbone
    task.weights.h5       the weights of its probe

The backbone of a pretrainer's preset is its target encoder, because this is the one that is
evaluated (App. D.1).
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
from keras_vjepa.presets.half_precision import halve
from keras_vjepa.presets.hubs import is_address, preset_from_hub
from keras_vjepa.presets.integrity import METADATA_FILE, WRITTEN, describe_files
from keras_vjepa.presets.recognition import is_version_21

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.weights.h5"
PREPROCESSOR_FILE = "preprocessor.json"

# The files of any kind of model. When a model is saved to an existing preset, those of the model
# before are removed.
MODEL_FILES = {
    METADATA_FILE,
    *(f"{name}.json" for name in ("config", "pretrainer", "predictor", "task", "decoder")),
    *(
        f"{name}.weights.h5"
        for name in ("model", "encoder", "predictor", "teacher", "task", "decoder")
    ),
}

_REMEDY = "Copy the preset again, or have it made anew."

_LOG = logging.getLogger(__name__)

PresetName = str | os.PathLike[str]

# In the name of a preset, this stands between the folder of a run and the step of a checkpoint.
AT_STEP = "@"


# --- Names ---------------------------------------------------------------------------------------


class BuiltInPreset(Protocol):
    """Makes the preset of a built-in name; `zoo.py` lists all of these."""

    def classes(self) -> tuple[str, ...]:
        """List the names of the classes that have it among their `presets`."""

    def describe(self) -> dict[str, Any]:
        """Return the description that `list_presets` gives of it."""

    def configs(self) -> dict[str, dict[str, Any]]:
        """Return the contents of the files that describe its models; empty if they are here."""

    def folder(self, name: str, load_weights: bool, trust_on_first_use: bool) -> Path:
        """Return its preset folder in the cache, and make the folder if it is missing."""


BUILT_IN: dict[str, BuiltInPreset] = {}

# Functions that make presets from another package's folders, by the `model_type` in the folder's
# config.json; `zoo.py` adds those that it has.
CONVERTERS: dict[str, Callable[[Path], Path]] = {}


class CheckpointPresets(Protocol):
    """Makes presets of a run's checkpoints; `tasks/checkpoint_presets.py` implements it."""

    def check(self, name: str, argument: str) -> bool:
        """Tell whether a name means a run's checkpoint, and raise if that is not there."""

    def folder(self, name: str) -> Path:
        """Return the preset folder of a checkpoint, and make the preset if it is missing."""


# Holds the object that makes presets of checkpoints, once its module has been imported.
OF_CHECKPOINTS: list[CheckpointPresets] = []


def list_presets(cls: type | None = None) -> dict[str, dict[str, Any]]:
    """List the built-in names that `from_preset` takes, and describe each.

    Args:
        cls: lists only the presets of this class, as its attribute `presets` does; None for all.

    Returns:
        A dictionary for each name: `description`, `parameters`, `input`, `licence`, `source`,
        `files` (each with its address, its SHA-256 and length, None while they are not known, and
        who states them), and `scores` in per cent: as the paper reports them, or as measured here
        for the package's own models, whose `data`, `command` and `cost` are said too.

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
    """Returns `list_presets` of a class when the attribute `presets` of that class is read."""

    def __get__(self, instance: Any, owner: type) -> dict[str, dict[str, Any]]:
        return list_presets(owner)


def find_preset(
    preset: PresetName, load_weights: bool = True, trust_on_first_use: bool = False
) -> Path:
    """Find the folder of a preset by its name; download or make it if it is missing.

    Args:
        preset: a name of `list_presets`, a folder, `hf://user/repo` (or `hf://user/repo@revision`),
            `kaggle://user/model/framework/variation`, or `workdir/run@300`, the checkpoint of step
            300 of a run (`workdir/run@last` for the last step).
        load_weights: False fetches the description of the model, and no weights.
        trust_on_first_use: as in `Preset.from_preset`.

    Raises:
        FileNotFoundError: if there is no such folder, or if it only holds folders of presets.
        ValueError: if there is no such name, or its preset cannot be fetched.
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


def check_class(preset: PresetName, cls: Any) -> None:
    """Check that a built-in name has a model of a class, before files of some GB are downloaded.

    Args:
        preset: as in `find_preset`; presets of other kinds are not checked.
        cls: class of a model, with its `config_file`.

    Raises:
        FileNotFoundError: if it has none of that kind.
        ValueError: if its model is of another class.
    """
    name = os.fspath(preset)
    if lacks(preset, cls.config_file):
        raise FileNotFoundError(_misses(cls.config_file, cls.__name__, name))
    config = _configs(preset).get(cls.config_file)
    if config is not None:
        with named(Path(name)):
            described_class(config, cls)


def lacks(preset: PresetName, config_file: str) -> bool:
    """Tell whether a built-in name is known to have no model of a kind, without fetching anything.

    Args:
        preset: as in `find_preset`.
        config_file: the file that would describe the model.
    """
    configs = _configs(preset)
    return bool(configs) and config_file not in configs


def _configs(preset: PresetName) -> dict[str, dict[str, Any]]:
    name = os.fspath(preset)
    return BUILT_IN[name].configs() if name in BUILT_IN else {}


def check_preset(preset: PresetName, name: str = "preset") -> None:
    """Check, without fetching anything, that a preset exists or has a name that can be fetched.

    Args:
        preset: as in `find_preset`.
        name: name of the argument, for messages.

    Raises:
        FileNotFoundError: if there is no such folder, or if it only holds folders of presets.
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
        kind = "V-JEPA 2.1 file" if is_version_21(folder) else "file"
        raise FileNotFoundError(
            f"`{name}` must be the folder of a preset. Received: {text!r}, which is a {kind}"
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
    """Refuse a folder that only holds folders of presets, such as a run's, and name these."""
    if not (folder / METADATA_FILE).exists():
        within = sorted(str(path.parent) for path in folder.glob(f"*/{METADATA_FILE}"))
        if within:
            raise FileNotFoundError(
                f"`{name}` must be the folder of a preset. Received: {str(folder)!r}, which is "
                f"none and holds {', '.join(within[:4])}{', ...' if len(within) > 4 else ''}"
            )


def _folders_beside(folder: Path) -> list[str]:
    """List the folders beside a missing one, written in the way in which it was given."""
    try:
        return [str(path) for path in folder.parent.iterdir() if path.is_dir()]
    except OSError:
        return []


def _model_of_another_package(folder: Path) -> str | None:
    """Return the `model_type` of a folder of the transformers package; None for other folders."""
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
            f"these can be read: {', '.join(CONVERTERS)}; of other encoders of docs/rivals.md the "
            "official file can: keras-vjepa convert FILE FOLDER --family FAMILY; another, as a "
            "Keras model, can be passed to VJEPAVideoClassifier"
        )
    return CONVERTERS[kind](folder)


# --- Models --------------------------------------------------------------------------------------


class Preset:
    """Adds `presets`, `from_preset` and `save_to_preset` to a model.

    Without changes it serves a backbone. A model whose parts have files of their own overrides
    `preset_files`.
    """

    presets = PresetNames()
    config_file = CONFIG_FILE

    # This is a method because Keras would save a model that a property returns a second time.
    def preset_files(self) -> dict[str, Any]:
        """List the files of this model's preset, and the object whose contents each holds."""
        return {CONFIG_FILE: self, WEIGHTS_FILE: self}

    def save_to_preset(self, folder: PresetName, half_precision: bool = False) -> None:
        """Write this model as a preset folder, which may be new, empty or a preset already.

        The folder appears complete or not at all. In an existing preset, the files of its model are
        replaced. Other files stay, and so does the preprocessor unless the new model has one.

        Args:
            folder: the folder to write.
            half_precision: whether weights are rounded to float16, for files of half the size. The
                model that is loaded from them has the precision that this one has.

        Raises:
            FileExistsError: if the folder holds something else than a preset.
            OSError: if the folder cannot be written.
            ValueError: if a weight is too large for half precision.
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
            self._write_preset(unfinished, half_precision)
            for path in others:
                if not (unfinished / path.name).exists():
                    files.copy(path, unfinished / path.name)

    def _write_preset(self, unfinished: Path, half_precision: bool) -> None:
        contents = self.preset_files()
        for name, model in contents.items():
            if name.endswith(".json"):
                (unfinished / name).write_text(json.dumps(_described(model), indent=2))
            else:
                model.save_weights(unfinished / name)
                if half_precision:
                    halve(unfinished / name)
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
            load_weights: False makes the architecture with fresh weights, for which nothing large
                is downloaded.
            trust_on_first_use: whether to accept the authors' file of one of `presets` although its
                SHA-256 is not yet known, and to keep the hash: from then on, another file at that
                address is an error. The environment variable `KERAS_VJEPA_TRUST_ON_FIRST_USE=1`
                does the same.
            overrides: constructor arguments to change; unknown names are an error. Weights whose
                shape an override changes cannot be loaded.

        Raises:
            FileNotFoundError: if the folder is no preset, or not of this class.
            ValueError: if `preset` or `overrides` do not exist, or a download fails.
        """
        check_class(preset, cls)
        folder = find_preset(preset, load_weights, trust_on_first_use)
        # Errors use the caller's name for the preset, since users do not know the cache's folders.
        check_holds(folder, cls.config_file, cls.__name__, os.fspath(preset))
        model = _read_model(folder, cls, cls.config_file, overrides, load_weights)
        if load_weights:
            load_preset_weights(model, folder)
        return model


def preset_folder(folder: PresetName) -> Path:
    """Return the path of a folder to write a preset to, with ~ replaced by the home directory.

    Args:
        folder: the folder as a user has given it.

    Raises:
        ValueError: for an address of a hub, because presets are uploaded in another way.
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
    """List the files in a preset folder that are no files of its model; refuse other folders."""
    found = sorted(folder.iterdir()) if folder.exists() else []
    names = {path.name for path in found}
    known = names <= {*MODEL_FILES, PREPROCESSOR_FILE}
    # A damaged preset is accepted too, although any of its files may be missing.
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
    """Load the backbone of a preset of any class; the arguments are as in `Preset.from_preset`."""
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
    """Check that a preset has the file from which a class is made.

    Args:
        folder: folder of the preset.
        name: name of the file.
        class_name: name of the class, for the message.
        preset: name of the preset as the user gave it.

    Raises:
        FileNotFoundError: if the file is missing.
    """
    if files.kind_of(folder / name) is None:
        holds = ", which holds files of V-JEPA 2.1" if is_version_21(folder) else ""
        raise FileNotFoundError(f"{_misses(name, class_name, preset)}{holds}")


def _misses(name: str, class_name: str, preset: str) -> str:
    return f"`preset` must be a folder that holds {name}, for {class_name}. Received: {preset}"


def read_config(folder: Path, name: str, class_name: str) -> dict[str, Any]:
    """Read a class and its arguments from a file of a preset folder.

    Raises:
        FileNotFoundError: if the folder has no such file.
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
    # For a damaged file, Keras' loader and HDF5 may raise any exception.
    with named(path, problem=f"is damaged. {_REMEDY}"):
        keras.saving.load_weights(model, path)


def check_claims(
    folder: Path, name: str, kind: type, overrides: dict[str, Any] | None = None
) -> None:
    """Check that a preset has the weights that one of its configs asks for, without a model.

    Args:
        folder: folder of the preset.
        name: name of the config's file.
        kind: class that the config must describe, or one from which that derives.
        overrides: arguments to change.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if the config, an override or a file does not fit.
    """
    config = read_config(folder, name, kind.__name__)
    _override(config["config"], overrides or {})
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
    # Arguments that the constructor has gained since the preset was written are accepted too.
    known = {*config["config"], *(inspect.signature(found).parameters if found else ())}
    unknown = set(overrides) - known
    if unknown:
        raise ValueError(
            f"`overrides` must be arguments of {cls.__name__}. Received: {sorted(unknown)}"
        )
    _override(config["config"], overrides)
    if load_weights:
        _check_described(folder, name, cls, config)
    with named(folder / name, problem=f"describes no {cls.__name__}"):
        model = keras.saving.deserialize_keras_object(config)
        if not isinstance(model, cls):
            raise ValueError(f"it holds a {type(model).__name__}, not a {cls.__name__}")
    if not {"dtype", "backbone"} & {*overrides}:
        _say_precision(model, folder)
    return model


def _override(config: dict[str, Any], overrides: dict[str, Any]) -> None:
    """Change arguments of a model; a precision is that of its parts too, which compute."""
    config.update(overrides)
    if "dtype" in overrides:
        for part in config.values():
            described = part.get("config") if isinstance(part, dict) else None
            if isinstance(described, dict) and "dtype" in described:
                described["dtype"] = overrides["dtype"]


def _say_precision(model: keras.Model, folder: Path) -> None:
    """Warn that a preset keeps its precision although the user has set another for all models."""
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
        # A model that was frozen as a part of another one (a target encoder, a classifier's
        # backbone) is not frozen when it is loaded by itself.
        config["config"]["trainable"] = True
    # The preprocessor has a file of its own.
    config["config"].pop("preprocessor", None)
    return config
