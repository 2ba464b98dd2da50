"""Compare the configs of a preset with its files, before a model is made from it (App. C).

A short text can describe a model of any size. Therefore the class that a config names must be known
and of the wanted kind, its arguments are checked as the constructor checks them, and the number of
weights that it asks for is compared with the files that should hold them. For a class that does not
say how many weights its arguments ask for, such as a functional model of Keras, nothing but the
files is checked.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import keras

from keras_vjepa.arguments import shown
from keras_vjepa.files import kind_of
from keras_vjepa.named_errors import named

# Weights of four bits are stored two to a byte; no others take less than a byte.
_WEIGHTS_PER_BYTE = 2
# How many numbers a file may hold beside the weights: states of random generators, scales of
# quantized layers.
_FURTHER_NUMBERS = 2**20
_MOST_OBJECTS = 2**18
_DEEPEST = 64


def described_class(described: Any, kind: type) -> type | None:
    """Find the class that a config names, and check that it is of the wanted kind.

    Args:
        described: a class and its arguments, as Keras writes them.
        kind: the class must be this one or derive from it.

    Returns:
        The class; None if only Keras can find it, which is so for the classes of Keras and
        keras-hub.

    Raises:
        ValueError: if there is no such class, or it is of another kind.
    """
    if not isinstance(described, Mapping) or not isinstance(described.get("config"), dict):
        raise ValueError(f"it must describe a {kind.__name__}. Received: {shown(described)}")
    name, registered = described.get("class_name"), described.get("registered_name")
    found = keras.saving.get_registered_object(registered) if isinstance(registered, str) else None
    if found is None and kind is keras.Model and isinstance(name, str):
        return None
    if not isinstance(found, type) or not issubclass(found, kind):
        raise ValueError(
            f"it must describe a {kind.__name__}. Received: {shown(name)}, which "
            + (_is_none(found) if found else "is not known: import what defines it first")
        )
    return found


def _is_none(found: Any) -> str:
    """Say that a class is not of the wanted kind, and what its presets are loaded by."""
    return "is none" + (
        f": call {found.__name__}.from_preset" if hasattr(found, "from_preset") else ""
    )


def weights_asked_for(described: Any, kind: type) -> dict[str, int]:
    """Count the weights that each file of a preset must have, from a config alone.

    Args:
        described: a class and its arguments, as Keras writes them.
        kind: the class must be this one or derive from it.

    Returns:
        Numbers of weights by the names of files; empty for a class that does not say them.

    Raises:
        ValueError: if the class is of another kind, or an argument is out of range.
    """
    found = described_class(described, kind)
    for one in found.__mro__ if found else ():
        if "weights_asked_for" in vars(one):
            return found.weights_asked_for(described["config"])  # type: ignore[union-attr]
        if "__init__" in vars(one):
            break  # a constructor of its own may have arguments that an inherited method ignores
    return {}


def check_files(folder: Path, described_in: str, asked_for: Mapping[str, int]) -> None:
    """Check that files of a preset have the weights that are asked for.

    Args:
        folder: folder of the preset.
        described_in: name of the config that asks for the weights.
        asked_for: numbers of weights as `weights_asked_for` returns them.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a file has fewer weights or far more, or is no HDF5 file of arrays.
    """
    for name, number in asked_for.items():
        path = folder / name
        check_weight_file(path)
        num_bytes = path.stat().st_size
        if number > _WEIGHTS_PER_BYTE * num_bytes:
            raise ValueError(
                f"{folder / described_in} describes {number:,} weights, and {path} holds "
                f"{num_bytes:,} bytes"
            )
        with named(path):
            held = numbers_held(path)
            if held > _WEIGHTS_PER_BYTE * number + _FURTHER_NUMBERS:
                raise ValueError(
                    f"it must hold the {number:,} numbers that {described_in} describes. "
                    f"Received: {held:,}"
                )


def check_weight_file(path: Path) -> None:
    """Check that a path is a plain file, since opening a pipe would wait for ever.

    Raises:
        FileNotFoundError: if there is nothing at the path.
        ValueError: if there is something else than a file.
    """
    kind = kind_of(path)
    if kind is None:
        raise FileNotFoundError(
            f"The preset {path.parent} holds no {path.name}; pass `load_weights=False`."
        )
    if kind != "file":
        raise ValueError(f"{path} must be a file. Received: a {kind}")


def numbers_held(path: Path) -> int:
    """Count the numbers in the arrays of an HDF5 file by their shapes, without reading them.

    Raises:
        ValueError: for contents that Keras never writes: links, arrays that lie in other files, too
            many parts or too deep nesting.
        OSError: if the file is no HDF5 file.
    """
    with h5py.File(path, "r") as file:
        return sum(_sizes(file))


def _sizes(file: h5py.File) -> Iterator[int]:
    ahead: list[tuple[h5py.Group, int]] = [(file, 0)]
    num_objects = 0
    while ahead:
        group, depth = ahead.pop()
        for name in group:
            num_objects += 1
            if num_objects > _MOST_OBJECTS or depth > _DEEPEST:
                raise ValueError("it must have fewer parts, and less deep in each other")
            if group.get(name, getclass=True, getlink=True) is not h5py.HardLink:
                raise ValueError(f"{shown(name)} must not be a link to something else")
            found = group[name]
            if isinstance(found, h5py.Group):
                ahead.append((found, depth + 1))
            elif found.external or found.is_virtual:
                raise ValueError(f"{shown(name)} must lie in the file itself")
            else:
                yield math.prod(found.shape or ())
