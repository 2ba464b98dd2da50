"""Make the preprocessor that a preset holds beside a model (App. D.1).

This module may not import the preprocessor's class, which is on a higher floor of the package.
The class is therefore found by the name under which it is registered in Keras.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import keras

from keras_vjepa import files
from keras_vjepa.arguments import arguments_of
from keras_vjepa.named_errors import named
from keras_vjepa.presets.preset import CONFIG_FILE, PREPROCESSOR_FILE, read_config
from keras_vjepa.types import Tensor

_REGISTERED = "keras_vjepa>VJEPAVideoPreprocessor"
# The backbone's arguments that determine a preprocessor if a preset has none.
_SIZES = ("image_size", "num_frames")


class Preprocessor(Protocol):
    """Makes the inputs of a classifier from files and arrays; see `VJEPAVideoPreprocessor`.

    Attributes:
        num_clips: clips of a video.
        num_views: views of a clip.
        image_size: height and width, one int for squares.
    """

    num_clips: int
    num_views: int
    image_size: int | tuple[int, int]

    def sources(self, inputs: Any) -> list[Any]:
        """List the videos and images in `inputs`."""

    def is_one(self, inputs: Any) -> bool:
        """Tell whether `inputs` are a single video or image, and no list."""

    def batch(self, sources: Sequence[Any]) -> Tensor:
        """Read and transform some of the sources."""

    def key_frame(
        self,
        video: Any,
        boxes: Any,
        second: float | None,
        patch_size: int,
        *,
        fits_in: tuple[int, int] | None = None,
    ) -> dict[str, Tensor]:
        """Make the inputs of a detector from a video and boxes in it."""


def described_preprocessor(folder: Path, class_name: str) -> tuple[str, dict[str, Any]]:
    """Read the arguments of a preset's preprocessor.

    Args:
        folder: folder of the preset.
        class_name: class of the preprocessor, for messages.

    Returns:
        Name of the file that holds the arguments, and the arguments. If the preset has no
        preprocessor, they are the sizes among the arguments of its backbone, and the colours that
        its family is normalised with.

    Raises:
        FileNotFoundError: if the folder is no preset.
        ValueError: if the file is damaged.
    """
    if files.kind_of(folder / PREPROCESSOR_FILE) is not None:
        return PREPROCESSOR_FILE, read_config(folder, PREPROCESSOR_FILE, class_name)["config"]
    description = read_config(folder, CONFIG_FILE, class_name)
    config = description["config"]
    sizes = {name: config[name] for name in _SIZES if name in config}
    # Not all of the rivals share V-JEPA's colours, which are those of a new preprocessor.
    registered = description.get("registered_name")
    family = keras.saving.get_registered_object(registered) if isinstance(registered, str) else None
    colours_of = getattr(family, "colours_of", None)
    return CONFIG_FILE, {**sizes, **(colours_of(config) if colours_of else {})}


def changed(arguments: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Change arguments of a preprocessor, and adapt the shorter side of frames to the changes.

    If the preset sets `short_side` and the changes do not, it is scaled with the size of the clips,
    and is left out for several views, which do not have it.

    Args:
        arguments: arguments of the preset's preprocessor.
        changes: new values by the names of arguments.

    Example:

    >>> from keras_vjepa.presets.preprocessing import changed
    >>> changed({"image_size": 32, "short_side": 36}, {"image_size": 64})
    {'image_size': 64, 'short_side': 72}
    """
    found = {**arguments, **changes}
    if arguments.get("short_side") is None or "short_side" in changes:
        return found
    if changes.get("num_views", 1) != 1:
        return {**found, "short_side": None}
    sizes = (arguments["image_size"], found["image_size"])
    before, after = (size if isinstance(size, int) else min(size) for size in sizes)
    return {**found, "short_side": round(arguments["short_side"] * after / before)}


def preset_preprocessor(folder: Path, **changes: Any) -> Preprocessor | None:
    """Make the preprocessor of a preset.

    Args:
        folder: folder of the preset.
        changes: arguments to change.

    Returns:
        The preprocessor; None if the preset does not say enough about one, or if a preprocessor
        cannot have the `changes`.

    Raises:
        ValueError: if the file of the preprocessor is damaged.
    """
    found = keras.saving.get_registered_object(_REGISTERED)
    described_in, arguments = described_preprocessor(folder, _REGISTERED.split(">")[1])
    if found is None or (described_in == CONFIG_FILE and not arguments.keys() >= {*_SIZES}):
        return None
    with named(folder / described_in):
        arguments = arguments_of(found, arguments)
        found(**arguments)
    try:
        return found(**changed(arguments, changes))
    except ValueError:  # for example a number of views that it cannot make
        return None
