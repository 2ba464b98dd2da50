"""Read and write the processor of a V-JEPA 2 folder of the transformers package (App. D.1).

That processor resizes with antialiasing, so that the shorter side is 256 / 224 of `crop_size`,
whatever the folder says in `size`. It crops in the middle, and rounds a margin of half a pixel
down. It uses every frame that it is given. A folder has the processor's arguments in one of
`PROCESSOR_FILES`; of several, the first one counts.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from keras_vjepa.arguments import check_flag, check_number, check_size, shown
from keras_vjepa.conversion.errors import CheckpointError, named
from keras_vjepa.data.transforms.crops import PIXEL_MEAN, PIXEL_STD
from keras_vjepa.files import kind_of
from keras_vjepa.json_files import read_json_object
from keras_vjepa.preprocessor import VJEPAVideoPreprocessor

PROCESSOR_FILE = "video_preprocessor_config.json"
PROCESSOR_FILES = ("processor_config.json", PROCESSOR_FILE, "preprocessor_config.json")
# If the first of these files has the arguments, they are under this name.
_NESTED = "video_processor"
_CLASS = "VJEPA2VideoProcessor"
_USUAL_CROP = 256
# The transformers package uses Pillow's numbers for methods of interpolation.
_RESAMPLE = {2: "bilinear", 3: "bicubic"}
_REMEDY = f"change or remove the file: without one, the usual {_CLASS} is meant"
_LOG = logging.getLogger(__name__)


def read_preprocessor(folder: Path, image_size: int, num_frames: int) -> VJEPAVideoPreprocessor:
    """Make the preprocessor that a folder describes.

    Args:
        folder: a folder of the transformers package.
        image_size: image size of the folder's model, used if the folder describes no processor.
        num_frames: number of frames of the folder's model.

    Returns:
        A preprocessor that gives the pixels of that package's processor.

    Raises:
        CheckpointError: if the processor belongs to another model, or does something that ours
            cannot do; the message names the file.
    """
    path, described = _described(folder)
    if path is None:
        return like_that_package(image_size, num_frames)
    with named(path):
        return like_that_package(num_frames=num_frames, **_arguments(path, described))


def like_that_package(image_size: int, num_frames: int, **arguments: Any) -> VJEPAVideoPreprocessor:
    """Make a preprocessor that resizes and crops as that package's processor does."""
    return VJEPAVideoPreprocessor(
        image_size, num_frames, antialias=True, crop_rounding="down", **arguments
    )


def _described(folder: Path) -> tuple[Path | None, dict[str, Any]]:
    for name in PROCESSOR_FILES:
        path = folder / name
        if kind_of(path) is None:
            continue
        with named(path):
            described = read_json_object(path)
            if name != PROCESSOR_FILES[0]:
                return path, described
            if isinstance(described.get(_NESTED), dict):
                return path, described[_NESTED]
    return None, {}


def _arguments(path: Path, described: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the arguments of that package's processor to those of the preprocessor."""
    kinds = [described.get(f"{kind}_processor_type") for kind in ("video", "image")]
    kind = next((kind for kind in kinds if kind is not None), _CLASS)
    if kind != _CLASS:
        raise CheckpointError(f"it must be of a {_CLASS}; {_REMEDY}. Received: {shown(kind)}")
    flags = {
        name: True if described.get(name) is None else described[name]
        for name in ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
    }
    check_flag(**flags)
    for name in ("do_resize", "do_center_crop"):
        if not flags[name]:
            raise CheckpointError(f"`{name}` must be true; {_REMEDY}. Received: false")
    side = _side(described.get("crop_size", _USUAL_CROP))
    short_side = side * 256 // 224
    size = described.get("size")
    if size is None:
        size = short_side
    if (size.get("shortest_edge") if isinstance(size, Mapping) else size) != short_side:
        _LOG.warning(
            "%s: `size` is not used, as by that package: frames get a shorter side of %d pixels "
            "for that `crop_size`. Received: %s",
            path,
            short_side,
            shown(size),
        )
    if described.get("do_sample_frames"):
        _LOG.warning("%s: `do_sample_frames` is not used: frames are `frame_step` apart", path)
    resample = described.get("resample", 2)
    if not isinstance(resample, int) or resample not in _RESAMPLE:
        raise CheckpointError(
            f"`resample` must be 2 (bilinear) or 3 (bicubic); {_REMEDY}. Received: "
            f"{shown(resample)}"
        )
    return {
        "image_size": side,
        "interpolation": _RESAMPLE[resample],
        **_colours(described, flags["do_rescale"], flags["do_normalize"]),
    }


def _side(crop_size: Any) -> int:
    """Return the side of a square crop, given as a number or as a height and a width."""
    if isinstance(crop_size, Mapping):
        crop_size = [crop_size.get("height"), crop_size.get("width")]
    check_size(crop_size=crop_size)
    height, width = crop_size if isinstance(crop_size, list) else (crop_size, crop_size)
    if height != width:
        raise CheckpointError(
            f"`crop_size` must be a square; {_REMEDY}. Received: {height} x {width}"
        )
    return int(height)


def _colours(described: Mapping[str, Any], rescales: bool, normalizes: bool) -> dict[str, Any]:
    """Compute mean and deviation for pixels in [0, 1], whatever they are rescaled by."""
    factor = described.get("rescale_factor", 1 / 255) if rescales else 1.0
    check_number("(0, inf)", rescale_factor=factor)
    found = {}
    for name, usual, without in (("mean", PIXEL_MEAN, 0.0), ("std", PIXEL_STD, 1.0)):
        value: Any = described.get(f"image_{name}", usual) if normalizes else without
        values = [*value] if isinstance(value, list | tuple) else [value] * 3
        for one in values:
            check_number("(-inf, inf)", **{f"image_{name}": one})
        found[name] = [one / (255 * factor) for one in values]
    return found


def processor_config(preprocessor: VJEPAVideoPreprocessor) -> dict[str, Any]:
    """Describe a preprocessor by that package's arguments, as they stand in `PROCESSOR_FILE`.

    Args:
        preprocessor: a preprocessor for square clips. Its numbers of frames and clips are left out,
            because such a file does not hold them.

    Raises:
        CheckpointError: if its clips are not square, or it makes several views.
    """
    side = preprocessor.image_size
    if not isinstance(side, int):
        side = _side([*side])
    if preprocessor.num_views > 1:
        raise CheckpointError(
            f"`num_views` must be 1 in that layout. Received: {preprocessor.num_views}"
        )
    return {
        "video_processor_type": _CLASS,
        "do_resize": True,
        "size": {"shortest_edge": side * 256 // 224},
        "resample": {name: number for number, name in _RESAMPLE.items()}[
            preprocessor.interpolation
        ],
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [*preprocessor.mean],
        "image_std": [*preprocessor.std],
    }


def differences(preprocessor: VJEPAVideoPreprocessor) -> list[str]:
    """List the arguments of a preprocessor that differ from that package's processor."""
    theirs = like_that_package(1, 1)
    return [
        f"{name}={getattr(preprocessor, name)!r}"
        for name in ("antialias", "crop_rounding", "short_side")
        if getattr(preprocessor, name) != getattr(theirs, name)
    ]
