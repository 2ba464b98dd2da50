"""Write rows of frames as a video, or as a picture of some of them (App. C, App. D)."""

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from keras_vjepa import files
from keras_vjepa.data.sources.video_writing import write_h264
from keras_vjepa.files import PathLike
from keras_vjepa.pictures.drawing import sheet

VIDEO_KINDS, PICTURE_KINDS = (".mp4", ".gif"), (".png", ".jpg")
# The most columns of a picture; with more, frames would be too small to see.
_MOST_COLUMNS = 8


@dataclass(frozen=True)
class FrameRow:
    """Holds frames that are drawn in one row of a picture, or in one place of a video.

    Args:
        label: what the frames show, in a few words.
        frames: uint8 `(frames, height, width, 3)`, RGB; all rows have the same number of frames.
    """

    label: str
    frames: NDArray[np.uint8]


def check_picture_path(path: PathLike, name: str = "path", videos: bool = True) -> Path:
    """Check that a picture or a video can be written, before anything is computed.

    Args:
        path: path of the file; its ending determines the format.
        name: name of the argument, for messages.
        videos: whether the file may be a video.

    Returns:
        The path, where ~ at the beginning is replaced by the home directory.

    Raises:
        ValueError: for another ending, and for .mp4 without PyAV.
        OSError: if the folder does not exist, or cannot be written.
    """
    found = Path(path).expanduser()
    kinds = [*(VIDEO_KINDS if videos else ()), *PICTURE_KINDS]
    if found.suffix.lower() not in kinds:
        raise ValueError(f"`{name}` must end in {' or '.join(kinds)}. Received: {path}")
    if found.suffix.lower() == ".mp4" and importlib.util.find_spec("av") is None:
        raise ValueError(
            f"`{name}` must end in .gif or .png without PyAV, which writes H.264: pip install av. "
            f"Received: {path}"
        )
    if not found.parent.is_dir() or found.is_dir():
        raise OSError(f"`{name}` must be a file in a folder that exists. Received: {path}")
    if not os.access(found.parent, os.W_OK):
        raise OSError(f"`{name}` must be a file in a folder that can be written. Received: {path}")
    return found


def write_rows(
    path: PathLike, rows: Sequence[FrameRow], fps: float, title: str = "", start: float = 0
) -> None:
    """Write rows of frames, side by side as a video or one below the other as a picture.

    A video has all frames, in their own size and at their own rate (.gif counts hundredths of a
    second). A picture has up to eight of them, evenly spaced, with their times and the labels.

    Args:
        path: path of the file: .mp4, .gif, .png or .jpg.
        rows: rows with the same number of frames.
        fps: frames per second.
        title: a line above a picture.
        start: number of the first frame in the whole video, so that times are right; at a rate that
            is lower than the video's, it may lie between two whole numbers.

    Raises:
        OSError: if the file cannot be written.
        ValueError: for another ending, or rows that are not equally long.

    Example:

    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> from keras_vjepa.pictures import FrameRow, write_rows
    >>> black = np.zeros((3, 16, 16, 3), np.uint8)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "both.gif"
    ...     write_rows(path, [FrameRow("input", black), FrameRow("other", 255 - black)], 24.0)
    ...     path.stat().st_size > 0
    True
    """
    target = check_picture_path(path)
    if not rows or len({row.frames.shape for row in rows}) > 1:
        shapes = ", ".join(str(row.frames.shape) for row in rows) or "none"
        raise ValueError(f"`rows` must have frames of one shape. Received: {shapes}")
    if target.suffix.lower() in PICTURE_KINDS:
        count = len(rows[0].frames)
        shown = np.unique(np.linspace(0, count - 1, min(count, _MOST_COLUMNS)).round().astype(int))
        columns = [f"{(start + i) / fps:.2f} s" for i in shown]
        cells = [(row.label, [*row.frames[shown]]) for row in rows]
        files.write_picture(target, sheet(cells, columns, title)[..., ::-1])
        return
    beside = np.concatenate([row.frames for row in rows], axis=2)
    if target.suffix.lower() == ".gif":
        _write_gif(target, beside, fps)
    else:
        rate = Fraction(fps).limit_denominator(1001)
        # H.264 stores colours for blocks of two by two pixels, so that both sides must be even.
        odd = [(0, side % 2) for side in beside.shape[1:3]]
        write_h264(target, np.pad(beside, [(0, 0), *odd, (0, 0)], mode="edge"), rate)


def _write_gif(path: Path, frames: NDArray[np.uint8], fps: float) -> None:
    """Write a GIF whose frames begin at the right time, within a hundredth of a second."""
    begins = np.rint(100 * np.arange(len(frames) + 1) / fps).astype(int)
    pictures = [Image.fromarray(frame) for frame in frames]
    with files.unfinished_file(path) as unfinished:
        pictures[0].save(
            unfinished,
            format="GIF",
            save_all=True,
            append_images=pictures[1:],
            duration=[10 * int(one) for one in np.maximum(np.diff(begins), 2)],
            loop=0,
        )
