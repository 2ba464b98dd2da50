"""Take frames that lie in memory: arrays, tensors of any library, PIL images (App. D.1).

Everything becomes uint8 RGB with the channels last, as a file is read. An array that could mean two
things is refused rather than guessed. Libraries are recognised by what their objects offer, and
none is imported.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]

# Grey, RGB and RGB with transparency.
_CHANNELS = (1, 3, 4)
# Floats may leave [0, 1] by this much, because resizing may overshoot.
_SLACK = 1e-3
# Modes of PIL with 8 bits for each colour. Values of other modes would be clipped instead of
# scaled.
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "La", "RGBa", "RGBX")
_ACCEPTED = "(frames, height, width, 3) or (frames, 3, height, width)"


def as_array(value: Any) -> NDArray[Any] | None:
    """Make a NumPy array of anything that holds numbers.

    Args:
        value: an array, a tensor of torch, JAX or TensorFlow, on any device, an array of a
            decoder's own kind, or a PIL image.

    Returns:
        The array, or None if `value` is nothing of the kind.

    Raises:
        ValueError: for a PIL image of more than 8 bits or of several frames, and for a tensor that
            has no values yet.
    """
    if isinstance(value, np.ndarray):
        return value
    if hasattr(value, "getbands") and hasattr(value, "convert"):
        return _of_pil(value)
    if isinstance(value, np.generic) or not hasattr(value, "shape"):
        return None
    for step in ("detach", "cpu"):  # a torch tensor may need gradients or be on a GPU
        value = getattr(value, step)() if hasattr(value, step) else value
    if "bfloat16" in str(getattr(value, "dtype", "")) and hasattr(value, "float"):
        value = value.float()
    try:
        if hasattr(value, "asnumpy"):
            array = np.asarray(value.asnumpy())
        elif hasattr(value, "__array__"):
            array = np.asarray(value)
        elif hasattr(value, "__dlpack__"):
            array = np.from_dlpack(value)
        else:
            return None
    except Exception as error:  # libraries raise errors of their own for traced tensors
        raise ValueError(
            f"`inputs` must hold values. Received: a {type(value).__name__} without any"
        ) from error
    # NumPy has no bfloat16 of its own.
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def _of_pil(picture: Any) -> NDArray[Any]:
    if picture.mode not in _MODES:
        raise ValueError(
            f"`inputs` must be pictures of 8 bits. Received: a PIL image of mode {picture.mode!r}"
        )
    if getattr(picture, "n_frames", 1) > 1:
        raise ValueError(
            "`inputs` must be pictures, a list of them for a video; or pass the path of the file. "
            f"Received: a PIL image of {picture.n_frames} frames"
        )
    from PIL import ImageOps

    # The picture is rotated upright, as in reading files.
    return np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))


def is_picture(array: NDArray[Any]) -> bool:
    """Tell whether an array has the axes of one image, and not those of a video."""
    return array.ndim in (2, 3)


def rgb(array: NDArray[Any]) -> Frames:
    """Make uint8 RGB with the channels last of a video or an image in any of the usual layouts.

    Args:
        array: uint8 from 0 to 255, or floats from 0 to 1: `(frames, height, width, channels)`,
            `(frames, channels, height, width)`, the same without frames, or a grey image
            `(height, width)`. One channel is grey; the last of four channels, transparency, is left
            out.

    Returns:
        `(frames, height, width, 3)`, or `(height, width, 3)` for an image.

    Raises:
        ValueError: for other numbers, other layouts, and layouts that could mean two things.

    Example:

    >>> rgb(np.ones((5, 3, 20, 30))).shape
    (5, 20, 30, 3)
    """
    if array.ndim not in (2, 3, 4):
        raise ValueError(f"`inputs` must be {_ACCEPTED}, or images. Received shape: {array.shape}")
    if not array.size:
        raise ValueError(f"`inputs` must hold at least one pixel. Received shape: {array.shape}")
    _check_numbers(array)
    array = array[..., np.newaxis] if array.ndim == 2 else _channels_last(array)
    channels = array.shape[-1]
    array = np.repeat(array, 3, axis=-1) if channels == 1 else array[..., :3]
    if array.dtype == np.uint8:
        return array
    return np.rint(np.clip(array, 0, 1) * 255).astype(np.uint8)


def _check_numbers(array: NDArray[Any]) -> None:
    if array.dtype == np.uint8:
        return
    if array.dtype.kind != "f":
        raise ValueError(
            "`inputs` must be uint8 from 0 to 255, or floats from 0 to 1. "
            f"Received: {array.dtype} of shape {array.shape}"
        )
    low, high = float(array.min()), float(array.max())
    if not (low >= -_SLACK and high <= 1 + _SLACK):  # true for NaN as well
        raise ValueError(
            "`inputs` must be uint8 from 0 to 255, or floats from 0 to 1. "
            f"Received: {array.dtype} from {low:.4g} to {high:.4g}"
        )


def _channels_last(array: NDArray[Any]) -> NDArray[Any]:
    shape, video = array.shape, array.ndim == 4
    first, last = shape[-3] in _CHANNELS, shape[-1] in _CHANNELS
    # Some models of torch take the channels before the frames.
    before_frames = video and not last and shape[0] == 3
    if first and (last or before_frames):
        raise ValueError(
            "`inputs` must say which axis holds the channels. Received shape: "
            f"{shape}, where two could; pass a list of pictures (height, width, 3) in its place"
        )
    if not first and not last:
        wanted = _ACCEPTED if video else "(height, width, 3) or (3, height, width)"
        hint = "; move the first axis to the end" if before_frames else ""
        raise ValueError(f"`inputs` must be {wanted}. Received shape: {shape}{hint}")
    return array if last else np.moveaxis(array, -3, -1)
