"""Read boxes that a detector of persons found, in the two forms in use for AVA (App. D.2).

video,second,left,top,right,bottom,,score            SlowFast's csv, as shares of the frame
[{"image_id": "video,second", "bbox": [left, top, width, height], "score": ...}, ...]
                                                     AlphAction's json, in pixels of the frame
"""

import math
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keras_vjepa.arguments import shown
from keras_vjepa.data.sources.ava_files import KeyFrame, csv_rows, number_in
from keras_vjepa.data.sources.official_lists import load_json

# Matches the name of a video and a second, separated by any of the usual signs.
_IMAGE = re.compile(r"(.+?)[,/_ ](\d+)(?:\.\w+)?", re.DOTALL)


@dataclass(frozen=True)
class DetectedBoxes:
    """Holds the boxes that a detector found.

    Attributes:
        by_key_frame: boxes, `(boxes, 4)` with left, top, right and bottom, and their scores.
        in_pixels: whether boxes are in pixels of the frame, and not shares of it.
        source: the file, for messages.
    """

    by_key_frame: dict[KeyFrame, tuple[NDArray[np.float64], NDArray[np.float64]]]
    in_pixels: bool
    source: str


def read_detected_boxes(path: str | Path) -> DetectedBoxes:
    """Read a file of detected boxes, csv or json.

    Args:
        path: path of the file; its extension determines the form.

    Raises:
        ValueError: for a file of another form, in one line that names the row.

    Example:

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "detected.csv")
    ...     _ = path.write_text("abc,0902,0.1,0.2,0.5,0.9,,0.97\\n")
    ...     read_detected_boxes(path).by_key_frame[("abc", "0902")][1].tolist()
    [0.97]
    """
    is_json = Path(path).suffix.lower() == ".json"
    found = _of_json(path) if is_json else _of_csv(path)
    grouped: dict[KeyFrame, list[list[float]]] = defaultdict(list)
    for where, (video, second), numbers in found:
        left, top, right, bottom, score = numbers
        if not (left < right and top < bottom and 0 <= score <= 1):
            raise ValueError(
                f"{where}: A box must have a width, a height and a score from 0 to 1. "
                f"Received: {shown(numbers)}"
            )
        grouped[video, f"{int(second):04d}"].append(numbers)
    if not grouped:
        raise ValueError(f"{path} must hold detected boxes. Received: none")
    boxes = {key: np.array(rows, np.float64) for key, rows in grouped.items()}
    by_key_frame = {key: (rows[:, :4], rows[:, 4]) for key, rows in boxes.items()}
    return DetectedBoxes(by_key_frame, is_json, str(path))


def _of_csv(path: str | Path) -> list[tuple[str, KeyFrame, list[float]]]:
    found = []
    for where, row in csv_rows(path):
        if len(row) != 8 or row[6]:
            raise ValueError(
                f"{where}: A row must be `video,second,left,top,right,bottom,,score`. "
                f"Received: {shown(','.join(row))}"
            )
        if not row[1].isdecimal():
            raise ValueError(f"{where}: The second must be a whole number. Received: {row[1]}")
        numbers = [number_in(text, where) for text in (*row[2:6], row[7])]
        found.append((where, (row[0], row[1]), numbers))
    return found


def _of_json(path: str | Path) -> list[tuple[str, KeyFrame, list[float]]]:
    found = []
    for place, entry in enumerate(load_json(path, list)):
        where = f"{path}, entry {place}"
        image = _IMAGE.fullmatch(str(entry.get("image_id"))) if isinstance(entry, dict) else None
        if image is None:
            raise ValueError(
                f"{where}: `image_id` must be a video and a second. Received: {shown(entry)}"
            )
        box, score = entry.get("bbox"), entry.get("score")
        if not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, [*box, score]))):
            raise ValueError(
                f"{where}: `bbox` must be left, top, width and height, and `score` a number. "
                f"Received: {shown(entry)}"
            )
        left, top, width, height = box
        numbers = [left, top, left + width, top + height, score]
        found.append((where, (image[1], image[2]), [float(number) for number in numbers]))
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
