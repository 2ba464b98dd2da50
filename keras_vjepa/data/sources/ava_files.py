"""Files of AVA v2.2: actions of boxes, names of actions, excluded timestamps (App. D.2).

Rows have no header:

    video,second,left,top,right,bottom,action,person       ground truth; the person may be missing
    video,second,left,top,right,bottom,action,score        detected actions
    video,second                                           a key frame without a box; an exclusion

Coordinates are shares of the frame's width and height.
"""

import csv
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keras_vjepa import files
from keras_vjepa.arguments import shown
from keras_vjepa.named_errors import named

# The name of a video and a second in it, both as they are written in a file.
KeyFrame = tuple[str, str]

_ITEM = re.compile(r"(?:item|label)\s*\{(.*?)\}", re.DOTALL)
_NAME = re.compile(r"""(?:^|\s)name:\s*(["'])(.*?)\1""")
_NUMBER = re.compile(r"(?:^|\s)(?:label_)?id:\s*(\d+)")


@dataclass(frozen=True)
class ActionRows:
    """Holds rows of boxes with an action each, in the order of their file.

    Attributes:
        key_frames: each once, in the order in which they first occur.
        places: `(rows,)`, which of them a row belongs to.
        boxes: float64 `(rows, 4)`: left, top, right and bottom as shares of the frame.
        actions: `(rows,)`, numbers of actions as files have them, from 1.
        scores: float64 `(rows,)`; of ground truth, the number of the person, or 1 without one.
        listed: places of key frames that a row of two columns names.
        source: where they come from, for messages.
    """

    key_frames: list[KeyFrame]
    places: NDArray[np.int64]
    boxes: NDArray[np.float64]
    actions: NDArray[np.int64]
    scores: NDArray[np.float64]
    listed: frozenset[int] = frozenset()
    source: str = "rows"


def read_actions(path: str | Path) -> ActionRows:
    """Read ground truth or detected actions.

    Args:
        path: of a csv file with rows of 7 or 8 columns, and of two for key frames without a box.

    Raises:
        ValueError: for a file of another format, in one line that names the row.

    Example:

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "rows.csv")
    ...     _ = path.write_text("abc,0902,0.1,0.2,0.5,0.9,12,0\\nabc,0902,0.1,0.2,0.5,0.9,17,0\\n")
    ...     read_actions(path).actions.tolist()
    [12, 17]
    """
    key_frames: dict[KeyFrame, int] = {}
    listed, places, numbers, actions = set(), [], [], []
    for where, row in csv_rows(path):
        if len(row) not in (2, 7, 8):
            raise ValueError(f"{where}: A row must have 7 or 8 columns. Received: {len(row)}")
        place = key_frames.setdefault((row[0], row[1]), len(key_frames))
        _check_second(row[1], where)
        if len(row) == 2:
            listed.add(place)
            continue
        places.append(place)
        numbers.append([number_in(text, where) for text in (*row[2:6], *(row[7:] or ["1"]))])
        actions.append(_whole(row[6], where))
    table = np.array(numbers, np.float64).reshape(-1, 5)
    return ActionRows(
        list(key_frames),
        np.array(places, np.int64),
        table[:, :4],
        np.array(actions, np.int64),
        table[:, 4],
        frozenset(listed),
        str(path),
    )


def read_key_frames(path: str | Path) -> list[KeyFrame]:
    """Read the excluded timestamps, or another list of key frames.

    Args:
        path: of a csv file with rows `video,second`.

    Raises:
        ValueError: for a file of another format, in one line that names the row.
    """
    found = []
    for where, row in csv_rows(path):
        if len(row) != 2:
            raise ValueError(f"{where}: A row must be `video,second`. Received: {shown(row)}")
        _check_second(row[1], where)
        found.append((row[0], row[1]))
    return found


def read_label_map(path: str | Path) -> dict[int, str]:
    """Read the names of actions by their numbers.

    Args:
        path: of a pbtxt file, with `item { name id }` or `label { name label_id label_type }`.

    Raises:
        ValueError: for a file without any, and for a number that is there twice.

    Example:

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "list.pbtxt")
    ...     _ = path.write_text('item {\\n  name: "bend/bow (at the waist)"\\n  id: 1\\n}')
    ...     read_label_map(path)
    {1: 'bend/bow (at the waist)'}
    """
    names: dict[int, str] = {}
    with named(path):
        text = Path(path).read_text(encoding="utf-8-sig")
    for item in _ITEM.findall(text):
        name, number = _NAME.search(item), _NUMBER.search(item)
        if name is None or number is None:
            raise ValueError(f"{path}: An item must have a name and an id. Received: {shown(item)}")
        if int(number[1]) in names:
            raise ValueError(f"{path}: The id {number[1]} must be there once. Received: twice")
        names[int(number[1])] = name[2]
    if not names:
        raise ValueError(f"{path} must be a label map: items with a name and an id. Received: none")
    return names


def write_actions(path: str | Path, rows: ActionRows) -> None:
    """Write rows with scores, as `read_actions` and AVA's own evaluation read them.

    Args:
        path: of the csv file.
        rows: detected actions.

    Raises:
        OSError: if it cannot be written.
    """
    lines = [
        ",".join((*rows.key_frames[place], *map(_short, box), str(action), _short(score)))
        for place, box, action, score in zip(
            rows.places.tolist(),
            rows.boxes.tolist(),
            rows.actions.tolist(),
            rows.scores.tolist(),
            strict=True,
        )
    ]
    files.write_text(Path(path), "".join(f"{line}\n" for line in lines))


def _short(number: float) -> str:
    return f"{number:.6f}"


def csv_rows(path: str | Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the place of a row, for messages, and its columns; empty lines are passed over."""
    files.check_is_file(path)
    with named(path), open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file)
        for row in reader:
            if row:
                yield f"{path}:{reader.line_num}", [column.strip() for column in row]


def number_in(text: str, where: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{where}: A number must stand there. Received: {shown(text)}")
    return number


def _whole(text: str, where: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise ValueError(f"{where}: The action must be a whole number. Received: {shown(text)}")
    return int(text)


def _check_second(text: Any, where: str) -> None:
    if number_in(text, where) < 0:
        raise ValueError(f"{where}: The second must be at least 0. Received: {shown(text)}")
