"""List data sets of other libraries: anything with a length and rows (§3.4, App. D).

A data set is one of Hugging Face, torch's `Dataset`, grain's `MapDataset`, or a list. A row is a
dictionary, a tuple `(video, label)`, or the video itself; a video is

    a path, bytes as a file holds them, or `{"path": ..., "bytes": ...}`, which are read as files;
    frames, as `in_memory.py` takes them, or a list of pictures.

All rows must hold the same kind of thing as the first one. Rows are read by several threads at
once, and again whenever they are needed. Of Hugging Face's features `Video` and `Image` the bytes
are taken, so that neither torchcodec nor another decoder is needed.
"""

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from keras_vjepa.arguments import check_whole, shown
from keras_vjepa.data.reading.decoders import Frames
from keras_vjepa.data.reading.image_headers import image_format
from keras_vjepa.data.reading.in_memory import as_array, is_picture, rgb
from keras_vjepa.data.reading.lent_files import LentFile
from keras_vjepa.data.reading.limits import ReadingLimits
from keras_vjepa.data.reading.locating import is_image, media_at
from keras_vjepa.data.reading.media import (
    NO_CONTENT,
    Content,
    EncodedMedia,
    FrameMedia,
    Media,
)
from keras_vjepa.data.reading.picture_decoder import PictureDecoder
from keras_vjepa.data.sources.rows import Row, as_label
from keras_vjepa.data.sources.tables import PATH_COLUMNS

_COLUMNS = ("video", "clip", "image", "frames", "mp4", *PATH_COLUMNS)
_numbers = itertools.count(1)


def is_dataset(source: Any) -> bool:
    """Tell whether something is a data set in Python, and not a path."""
    return not isinstance(source, str | os.PathLike)


def dataset_rows(source: Any, path_column: str, label_column: str, fps: float) -> list[Row]:
    """List the videos or images of a data set.

    Args:
        source: the data set.
        path_column: column of the videos, where rows are dictionaries.
        label_column: column of the labels. Without such a column the labels are `targets`, if the
            data set has these. If only the rows hold the labels, all are read. Empty for no labels.
        fps: frames per second of rows that are frames.

    Raises:
        ValueError: if `source` is not a data set, or its rows hold no video.
    """
    _check(source)
    source = _with_bytes(source)
    first = source[0]
    column = _column(first, path_column)
    value = _value(first, column)
    labels = _labels(source, first, label_column)
    if isinstance(value, str | os.PathLike):
        paths = (_path_in(source, i, column) for i in range(len(source)))
        return [Row(path, labels[i], path) for i, path in enumerate(paths)]
    name = type(source).__name__
    row: DatasetBytes | DatasetFrames
    if _encoded(value) is not None:
        row = DatasetBytes(name, source, 0, column, _shows_image(value))
    else:
        array = _frames(value, name)
        row = DatasetFrames(name, source, 0, column, is_picture(array), fps)
    media = [replace(row, name=f"{name}[{i}]", index=i) for i in range(len(source))]
    return [Row(one.name, labels[i], one.name, one) for i, one in enumerate(media)]


def dataset_class_names(source: Any, label_column: str) -> list[str]:
    """List the names of the classes if a data set of Hugging Face knows them, else none."""
    features = getattr(source, "features", None)
    feature = features.get(label_column) if isinstance(features, Mapping) else None
    return [str(name) for name in getattr(feature, "names", None) or ()]


@dataclass(frozen=True)
class _DatasetRow(Media):
    """Stands for the video or image in a row of a data set.

    Args:
        name: name of the row.
        dataset: the data set.
        index: number of the row.
        column: the column that holds it, if the row is a dictionary.
        holds_image: whether it is an image.
    """

    name: str
    dataset: Any = field(repr=False, compare=False)
    index: int
    column: str
    holds_image: bool

    @property
    def is_image(self) -> bool:
        return self.holds_image

    @property
    def shared(self) -> Any:
        return self.dataset

    def value(self) -> Any:
        """Ask the data set for the video or image."""
        return _value(self.dataset[self.index], self.column)


@dataclass(frozen=True)
class DatasetBytes(_DatasetRow, EncodedMedia):
    """Stands for a video or image that a row holds as the bytes of a file, or by its path."""

    @contextmanager
    def content(self) -> Iterator[Content]:
        """Give the bytes that the row holds, or those of the file that it names."""
        found = _encoded(self.value())
        if isinstance(found, bytes):
            yield Content(len(found), lambda place, length: found[place : place + length])
        elif found is None:
            raise ValueError("the row holds neither bytes nor a path, as the first one does")
        else:
            with _media_at(found).content() as content:
                yield content

    def lent_file(self) -> LentFile:
        """Lend the file that the row names, or one with the bytes that it holds."""
        found = _encoded(self.value())
        return _media_at(found).lent_file() if isinstance(found, str) else super().lent_file()

    def status(self) -> tuple[int, int, int, int]:
        """Return zeros, as a row has neither size nor times."""
        return 0, 0, 0, 0

    def content_hash(self) -> bytes:
        """Hash the content; give `NO_CONTENT` if the row cannot be read."""
        try:
            return super().content_hash()
        except Exception:  # a data set may raise anything; reading the row reports it
            return NO_CONTENT


@dataclass(frozen=True)
class DatasetFrames(_DatasetRow, FrameMedia):
    """Stands for the frames of a video, or an image, that a row holds as numbers.

    Args:
        name, dataset, index, column, holds_image: as in `_DatasetRow`.
        fps: frames per second.
    """

    fps: float

    def decoder(self, limits: ReadingLimits) -> "ArrayDecoder":
        """Return a decoder of the frames that the row holds now."""
        frames = _frames(self.value(), "it")
        return ArrayDecoder(frames[np.newaxis] if frames.ndim == 3 else frames, self.fps)

    def status(self) -> tuple[int, int, int, int]:
        """Return a new number each time, as a row may hold other frames whenever it is read."""
        return 0, 0, 0, next(_numbers)

    def content_hash(self) -> bytes:
        """Return `NO_CONTENT`, because hashing frames would need all of them to be decoded."""
        return NO_CONTENT


class ArrayDecoder(PictureDecoder):
    """Reads frames that are in memory; see `PictureDecoder`."""

    def __init__(self, frames: Frames, fps: float) -> None:
        super().__init__(len(frames), fps)
        self._frames = frames

    def name_of(self, position: int) -> str:
        """Name a frame by its number, for messages."""
        return f"frame {position}"

    def picture(self, position: int) -> Frames:
        """Return a frame, (height, width, 3)."""
        return self._frames[position]


# --- Rows ----------------------------------------------------------------------------------------


def _check(source: Any) -> None:
    if isinstance(source, Mapping):
        raise ValueError(
            f"`source` must be one data set, such as that of {shown(next(iter(source), ''))} in "
            f"it. Received: a {type(source).__name__}"
        )
    if not (hasattr(source, "__len__") and hasattr(source, "__getitem__")):
        raise ValueError(
            "`source` must be a path, or a data set with a length and rows by their number. "
            f"Received: a {type(source).__name__}"
        )
    size: dict[str, Any] = {"len(source)": len(source)}
    check_whole(1, **size)


def _column(row: Any, given: str) -> str:
    if not isinstance(row, Mapping):
        return ""
    found = [name for name in ([given] if given else _COLUMNS) if name in row]
    if not found:
        raise ValueError(
            f"`path_column` must be a column of `source`, which has "
            f"{', '.join(map(repr, row))}. Received: {given!r}"
        )
    return found[0]


def _with_bytes(source: Any) -> Any:
    """Return a data set whose rows hold bytes, where one of Hugging Face would decode them."""
    features = getattr(source, "features", None)
    if isinstance(features, Mapping) and hasattr(source, "cast_column"):
        for column, feature in features.items():
            if getattr(feature, "decode", False):
                source = source.cast_column(column, type(feature)(decode=False))
    return source


def _value(row: Any, column: str) -> Any:
    if column:
        return row[column]
    is_pair = isinstance(row, tuple | list) and len(row) == 2 and not _is_pictures(row)
    return row[0] if is_pair else row


def _path_in(source: Any, index: int, column: str) -> str:
    """Return the path in a row of a data set whose first row holds one."""
    row = source[index]
    try:
        path = os.fspath(_value(row, column))
        if isinstance(path, str):
            return path
    except (KeyError, TypeError):
        pass
    where = f"{type(source).__name__}[{index}]"
    raise ValueError(f"{where} must hold a path, as the first row does. Received: {shown(row)}")


def _is_pictures(row: Sequence[Any]) -> bool:
    return all(hasattr(one, "getbands") or len(getattr(one, "shape", ())) in (2, 3) for one in row)


def _encoded(value: Any) -> bytes | str | None:
    """Return the bytes or the path in a row's value, or None if it holds neither."""
    if isinstance(value, Mapping):
        content, path = value.get("bytes"), value.get("path")
        value = path if content is None else content
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    return os.fspath(value) if isinstance(value, str | os.PathLike) else None


def _media_at(path: str) -> EncodedMedia:
    media = media_at(path)
    if not isinstance(media, EncodedMedia):
        raise ValueError(f"its path must be that of a file. Received: {path}")
    return media


def _shows_image(value: Any) -> bool:
    found = _encoded(value)
    if isinstance(found, str):
        return is_image(found)
    return image_format((found or b"")[:16]) is not None


def _frames(value: Any, name: str) -> Frames:
    """Return the frames (frames, height, width, 3), or image (height, width, 3), in a value."""
    try:
        if isinstance(value, list | tuple):
            pictures = [as_array(one) for one in value]
            if not pictures or any(one is None or not is_picture(one) for one in pictures):
                raise ValueError(f"`inputs` must be a video. Received: {shown(value)}")
            return np.stack([rgb(one) for one in pictures if one is not None])
        array = as_array(value)
        if array is None:
            raise ValueError(f"`inputs` must be a video. Received: {shown(value)}")
        return rgb(array)
    except ValueError as error:
        raise ValueError(str(error).replace("`inputs`", f"a row of {name}")) from error


def _labels(source: Any, first: Any, label_column: str) -> list[int | str | None]:
    name = type(source).__name__
    if not label_column:
        return [None] * len(source)
    values: Sequence[Any]
    if label_column in (getattr(source, "column_names", None) or ()):
        values = source[label_column]
    elif len(getattr(source, "targets", ())) == len(source):
        values = source.targets
    elif isinstance(first, Mapping):
        if label_column not in first:
            return [None] * len(source)
        values = [source[i].get(label_column) for i in range(len(source))]
    elif isinstance(first, tuple | list) and len(first) == 2 and not _is_pictures(first):
        values = [source[i][1] for i in range(len(source))]
    else:
        return [None] * len(source)
    return [as_label(_plain(value), f"{name}[{i}]") for i, value in enumerate(values)]


def _plain(value: Any) -> Any:
    """Return the number in an array or tensor of one; leave anything else as it is."""
    if isinstance(value, str) or not hasattr(value, "item"):
        return value
    try:
        return value.item()
    except (ValueError, RuntimeError):  # it has several numbers, and so is not a label
        return value
