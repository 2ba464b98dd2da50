"""Folders of the transformers package with V-JEPA's rivals, and back (Tables 5 and 6; App. D.1).

That package has VideoMAE, DINOv2, I-JEPA, CLIP and, for images, Hiera. Where its models differ from
the official ones (another rule for other sizes, another epsilon by default), what is converted here
has the weights of the folder, its epsilon, and the official rule. Needs the package safetensors.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from keras_vjepa import files
from keras_vjepa.conversion import hugging_face
from keras_vjepa.conversion.entries import foreign_tensors
from keras_vjepa.conversion.errors import CheckpointError, named
from keras_vjepa.conversion.families import hiera_folders
from keras_vjepa.conversion.families.layouts import LAYOUTS, Layout
from keras_vjepa.conversion.families.official import assemble, entries_of, family_of_backbone
from keras_vjepa.conversion.families.transformers_names import FOLDERS, Folder
from keras_vjepa.json_files import read_json_object
from keras_vjepa.models.families import HieraBackbone, RivalBackbone, VisionBackbone
from keras_vjepa.tasks.classifier import VJEPAVideoClassifier

_FAMILIES = ", ".join([*FOLDERS, "hiera"])
# Values of settings that config.json does not contain.
_DEFAULTS: dict[str, Any] = {
    "num_channels": 3,
    "hidden_act": "gelu",
    "qkv_bias": True,
    "qv_bias": True,
    "use_swiglu_ffn": False,
}


def find_family(folder: str | Path) -> str | None:
    """Name the family of a folder; None for one of V-JEPA 2, others, and none at all."""
    try:
        kind = read_json_object(Path(folder) / hugging_face.CONFIG_FILE).get("model_type")
    except (OSError, ValueError):  # reading the whole folder gives a better message
        return None
    if kind == hiera_folders.MODEL_TYPE:
        return "hiera"
    return next((name for name, one in FOLDERS.items() if kind in one.model_types), None)


def convert(
    folder: str | Path, family: str, **arguments: Any
) -> RivalBackbone | VJEPAVideoClassifier:
    """Make a backbone, or the classifier of a VideoMAE or Hiera that was fine-tuned, from a folder.

    Args:
        folder: what `save_pretrained` of that package wrote, or a download of such.
        family: one that the package has.
        arguments: further ones of the backbone, which count more than what the folder says.

    Raises:
        CheckpointError: if anything in the folder does not fit.
    """
    with named(folder):
        if family == "hiera":
            return _hiera(Path(folder), arguments)
        if family not in FOLDERS:
            raise CheckpointError(f"transformers has no {family}; it has {_FAMILIES}")
        one, layout = FOLDERS[family], LAYOUTS[family]
        config = _config(Path(folder), one)
        tensors = hugging_face.read_tensors(Path(folder))
        found = one.own_names(tensors)
        own = {name: tensors[key] for key, name in found.items() if name is not None}
        stated = {**_arguments(layout, one, config), **arguments}
        layout = dataclasses.replace(layout, head=one.head)
        return assemble(layout, one.names, own, _num_bytes(Path(folder)), stated)


def _hiera(folder: Path, arguments: dict[str, Any]) -> RivalBackbone | VJEPAVideoClassifier:
    """Do as `convert`, for Hiera."""
    config = read_json_object(folder / hugging_face.CONFIG_FILE)
    if config.get("model_type") != hiera_folders.MODEL_TYPE:
        raise CheckpointError(
            f"`model_type` must be {hiera_folders.MODEL_TYPE}. "
            f"Received: {config.get('model_type')!r}"
        )
    stated = {**hiera_folders.arguments(config), **arguments}
    tensors = hiera_folders.official_names(hugging_face.read_tensors(folder), config)
    layout = LAYOUTS["hiera"]
    return assemble(layout, layout.names, tensors, _num_bytes(folder), stated)


def _num_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in hugging_face.weight_files(folder))


def _config(folder: Path, one: Folder) -> dict[str, Any]:
    config = {**_DEFAULTS, **read_json_object(folder / hugging_face.CONFIG_FILE)}
    if config.get("model_type") not in one.model_types:
        raise CheckpointError(
            f"`model_type` must be {' or '.join(one.model_types)}. "
            f"Received: {config.get('model_type')!r}"
        )
    config = {**config, **config.get("vision_config", {})}
    for name in ("qkv_bias", "qv_bias"):
        if config[name] is not True:
            raise CheckpointError(f"`{name}` must be true. Received: {config[name]!r}")
    return config


def _arguments(layout: Layout, one: Folder, config: dict[str, Any]) -> dict[str, Any]:
    """Read the arguments of the backbone that config.json tells."""
    activation = "swiglu" if config["use_swiglu_ffn"] else config["hidden_act"]
    if activation not in layout.backbone.facts.activations:
        raise CheckpointError(
            f"`hidden_act` must be {' or '.join(layout.backbone.facts.activations)}. "
            f"Received: {activation!r}"
        )
    given = {name: config.get(theirs) for name, theirs in one.arguments.items()}
    missing = [one.arguments[name] for name, value in given.items() if value is None]
    if missing:
        raise CheckpointError(f"{hugging_face.CONFIG_FILE} must have {', '.join(missing)}")
    if isinstance(given["image_size"], list):
        given["image_size"] = (*given["image_size"],)
    return {**given, "activation": activation}


# --- Writing folders -----------------------------------------------------------------------------


def export(backbone: RivalBackbone, folder: Path) -> None:
    """Write a backbone as a folder that the transformers package reads.

    Args:
        backbone: what to write.
        folder: must not exist.

    Raises:
        CheckpointError: for a family, or a model of it, that the package does not have.
    """
    library, family = hugging_face.safetensors(), family_of_backbone(backbone)
    if isinstance(backbone, HieraBackbone):
        config = hiera_folders.described(backbone)
        found = foreign_tensors(entries_of(LAYOUTS[family].names, backbone))
        tensors = {hiera_folders.their_name(n, backbone.depths): t for n, t in found.items()}
    elif family in FOLDERS:
        one = FOLDERS[family]
        config = _described(backbone, one)
        found = foreign_tensors(entries_of(one.names, backbone))
        tensors = {f"{one.prefix_of(name)}{name}": tensor for name, tensor in found.items()}
    else:
        raise CheckpointError(f"transformers has no {family}; it has {_FAMILIES}")
    arrays = {name: np.ascontiguousarray(tensor.read()) for name, tensor in tensors.items()}
    with files.unfinished_folder(folder) as unfinished:
        (unfinished / hugging_face.CONFIG_FILE).write_text(json.dumps(config, indent=2))
        library.numpy.save_file(
            arrays, unfinished / hugging_face.WEIGHTS_FILE, metadata={"format": "pt"}
        )


def _described(backbone: VisionBackbone, one: Folder) -> dict[str, Any]:
    """Make the content of config.json."""
    config: dict[str, Any] = {
        "model_type": one.model_types[0],
        "architectures": [one.architecture],
        "dtype": "float32",
        **{theirs: getattr(backbone, name) for name, theirs in one.arguments.items()},
        "num_hidden_layers": backbone.num_layers,
        "hidden_size": backbone.hidden_dim,
        "patch_size": backbone.patch_size,
        "num_channels": backbone.num_channels,
        "hidden_act": backbone.activation,
    }
    return {**config, **one.describe(backbone)}
