"""Sort what a user passes into videos and images, each a file or frames in memory (App. D.1).

Departure: the authors' evaluations take files only; see `as_sources` for what is taken here.
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keras_vjepa.arguments import shown
from keras_vjepa.data.reading.in_memory import as_array, is_picture, rgb
from keras_vjepa.data.reading.remote import ADDRESS

# The path or the address of a file, or uint8 RGB (frames, height, width, 3) or (height, width, 3).
Source = str | NDArray[np.uint8]


def as_sources(inputs: Any, images_apart: bool = False) -> list[Source]:
    """List the videos and images that a user passes.

    Args:
        inputs: a path; an array, tensor or PIL image, as `in_memory` takes them; a list of
            pictures, which are the frames of one video; or a list, or an array of five axes, of
            several of these.
        images_apart: whether a list of pictures holds images rather than the frames of one video.

    Returns:
        One entry for each video or image.

    Raises:
        ValueError: for anything else; the message names the element of a list.

    Example:

    >>> frame = np.zeros((8, 9, 3), np.uint8)
    >>> [source.shape for source in as_sources([frame, frame])]
    [(2, 8, 9, 3)]
    >>> as_sources(["a.mp4", 3])
    Traceback (most recent call last):
    ValueError: element 1 of `inputs` must be a path, an array or tensor, a PIL image, or a list \
of these. Received: 3
    """
    elements = _elements(inputs, images_apart)
    if elements is None:
        return [_source(inputs)]
    if not len(elements):
        raise ValueError("`inputs` must hold at least one video or image. Received: none")
    return [_in_place(f"element {n}", _source, one) for n, one in enumerate(elements)]


def is_one(inputs: Any, images_apart: bool = False) -> bool:
    """Tell whether `as_sources` of the same arguments takes `inputs` for one video or image."""
    return _elements(inputs, images_apart) is None


def _elements(inputs: Any, images_apart: bool) -> Sequence[Any] | None:
    """Return the videos and images that `inputs` holds; None if it is one itself."""
    if isinstance(inputs, list | tuple):
        one_video = bool(inputs) and all(map(_looks_like_a_picture, inputs)) and not images_apart
        return None if one_video else inputs
    shape = getattr(inputs, "shape", ())
    if isinstance(inputs, np.ndarray) and inputs.dtype.kind in "USO" and len(shape) == 1:
        return inputs.tolist()
    if len(shape) == 5:
        array = as_array(inputs)
        return None if array is None else list(array)
    return None


def _looks_like_a_picture(value: Any) -> bool:
    return hasattr(value, "getbands") or len(getattr(value, "shape", ())) in (2, 3)


def _source(value: Any) -> Source:
    if isinstance(value, str | os.PathLike):
        return _path(value)
    if isinstance(value, list | tuple):
        return _video(value)
    array = as_array(value)
    if array is None:
        raise ValueError(
            "`inputs` must be a path, an array or tensor, a PIL image, or a list of these. "
            f"Received: {shown(value)}"
        )
    return rgb(array)


def _path(value: str | os.PathLike[str]) -> str:
    path = os.fspath(value)
    if not isinstance(path, str):
        raise ValueError(f"`inputs` must have paths of text. Received: {shown(path)}")
    return path if ADDRESS.match(path) else os.path.expanduser(path)


def _video(pictures: Sequence[Any]) -> NDArray[np.uint8]:
    """Make one video of a list of its frames; a single frame is an image."""
    if not pictures:
        raise ValueError("`inputs` must hold at least one frame of a video. Received: none")
    frames = [_in_place(f"frame {n}", _picture, one) for n, one in enumerate(pictures)]
    if len(frames) == 1:
        return frames[0]
    for number, frame in enumerate(frames):
        if frame.shape != frames[0].shape:
            raise ValueError(
                f"`inputs` must have frames of one size in a video, {frames[0].shape[:2]} as its "
                f"first. Received: {frame.shape[:2]} for frame {number}"
            )
    return np.stack(frames)


def _picture(value: Any) -> NDArray[np.uint8]:
    array = None if isinstance(value, str | os.PathLike) else as_array(value)
    if array is None or not is_picture(array):
        received = shown(value) if array is None else f"shape {array.shape}"
        raise ValueError(
            f"`inputs` must be a picture where a list holds a video. Received: {received}"
        )
    return rgb(array)


def _in_place(place: str, function: Any, value: Any) -> Any:
    """Call a function, and let its errors name a part of `inputs` where they name `inputs`."""
    try:
        return function(value)
    except ValueError as error:
        raise ValueError(str(error).replace("`inputs`", f"{place} of `inputs`", 1)) from error
