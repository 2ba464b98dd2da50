"""Draw maps of tokens over frames, and sheets of frames with labels (Figs. 4 and 9, App. D)."""

from collections.abc import Iterable, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]

_PAPER, _INK, _GAP, _MARGIN = 255, (40, 40, 40), 6, 10
_FONT, _SCALE, _LINE = cv2.FONT_HERSHEY_SIMPLEX, 0.45, 20
# Pixels along the longer side of a frame in a sheet.
_SMALLEST, _LARGEST = 128, 192
# Opacity of a map that lies over a frame.
_OPACITY = 0.65
_BORDER = (0, 255, 120)


def stretched(maps: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """Enlarge maps of tokens to the size of frames, smoothly.

    Args:
        maps: `(frames, rows, columns)`, or with channels as a last axis.
        height: height of the frames in pixels.
        width: width of the frames in pixels.
    """
    sized = [cv2.resize(one, (width, height), interpolation=cv2.INTER_LINEAR) for one in maps]
    return np.stack(sized).astype(maps.dtype)


def heat(
    frames: Picture, maps: NDArray[np.float32], low: float | None = None, high: float | None = None
) -> Picture:
    """Lay maps over frames, from dark violet (low) to yellow (high).

    Args:
        frames: uint8 `(frames, height, width, 3)`, RGB.
        maps: `(frames, rows, columns)`.
        low: value that is drawn darkest; by default the smallest of all maps.
        high: value that is drawn brightest; by default the largest of all maps.
    """
    low = float(maps.min()) if low is None else low
    high = float(maps.max()) if high is None else high
    scaled = (maps - low) / max(high - low, 1e-12)
    levels = (255 * stretched(scaled.astype("float32"), *frames.shape[1:3]).clip(0, 1)).round()
    drawn = []
    for frame, level in zip(frames, levels.astype("uint8"), strict=True):
        grey = cv2.cvtColor(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        colour = cv2.cvtColor(cv2.applyColorMap(level, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
        drawn.append(cv2.addWeighted(colour, _OPACITY, grey, 1 - _OPACITY, 0))
    return np.stack(drawn).astype("uint8")


def mark(
    frames: Picture, shown: Iterable[int], grid: tuple[int, int], place: Sequence[int]
) -> None:
    """Draw a border around a patch in some of the frames, which are changed in place.

    Args:
        frames: uint8 `(frames, height, width, 3)`.
        shown: numbers of the frames to draw in.
        grid: numbers of rows and columns of patches.
        place: row and column of the patch.
    """
    height, width = frames.shape[1:3]
    top, left = (p * side // n for p, side, n in zip(place, (height, width), grid, strict=True))
    bottom, right = (
        (p + 1) * side // n - 1 for p, side, n in zip(place, (height, width), grid, strict=True)
    )
    for number in shown:
        image = np.ascontiguousarray(frames[number])
        cv2.rectangle(image, (left, top), (right, bottom), _BORDER, max(1, height // 120))
        frames[number] = image


def boxed_region(frames: Picture, region: Sequence[int]) -> Picture:
    """Draw a border around a region of frames, outside of it; frames are enlarged to hold it.

    Args:
        frames: uint8 `(frames, height, width, 3)`.
        region: top, left, bottom and right in pixels.

    Returns:
        The frames, several times as large if they are small.
    """
    times = -(-_SMALLEST // max(frames.shape[1:3]))
    drawn = frames.repeat(times, axis=1).repeat(times, axis=2)
    top, left, bottom, right = (side * times for side in region)
    for frame in drawn:
        cv2.rectangle(frame, (left, top), (right - 1, bottom - 1), _BORDER, 1)
    return drawn


def sheet(
    rows: Sequence[tuple[str, Sequence[Picture]]], columns: Sequence[str], title: str = ""
) -> Picture:
    """Draw frames in rows and columns with labels, on white.

    Args:
        rows: for each row its label, and a frame for each column.
        columns: labels of the columns; a line break begins a second line.
        title: text above the whole sheet.

    Returns:
        uint8 `(height, width, 3)`, RGB.
    """
    height, width = _cell(rows[0][1][0].shape)
    left = _MARGIN + max(_text_width(line) for label, _ in rows for line in label.split("\n")) + 8
    head = max(text.count("\n") for text in columns) + 1
    top = _MARGIN + _LINE * (head + bool(title)) + 4
    size = (
        top + len(rows) * (height + _GAP) + _MARGIN,
        max(
            left + len(columns) * (width + _GAP) + _MARGIN,
            _text_width(title) + 2 * _MARGIN,
        ),
    )
    drawn = np.full((*size, 3), _PAPER, np.uint8)
    if title:
        _write(drawn, title, _MARGIN, _MARGIN + 12)
    for number, text in enumerate(columns):
        for line, part in enumerate(text.split("\n")):
            fitted = _fitted(part, width)
            below = top - 8 - _LINE * (head - 1 - line)
            _write(drawn, fitted, left + number * (width + _GAP), below)
    for row, (label, cells) in enumerate(rows):
        above = top + row * (height + _GAP)
        lines = label.split("\n")
        first = above + height // 2 - _LINE * (len(lines) - 1) // 2 + 4
        for line, part in enumerate(lines):
            _write(drawn, part, _MARGIN, first + line * _LINE)
        for number, cell in enumerate(cells):
            begin = left + number * (width + _GAP)
            drawn[above : above + height, begin : begin + width] = _sized(cell, height, width)
    return drawn


def boxed(image: Picture, size: Sequence[int]) -> Picture:
    """Fit a picture into a grey box, and keep its proportions.

    Args:
        image: uint8 `(height, width, 3)`.
        size: shape of the box, `(height, width, 3)`.
    """
    scale = min(size[0] / image.shape[0], size[1] / image.shape[1])
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    drawn = np.full(tuple(size), 225, np.uint8)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    drawn[top : top + height, left : left + width] = _sized(image, height, width)
    return drawn


def _cell(shape: Sequence[int]) -> tuple[int, int]:
    """Choose the height and width of a frame in a sheet: its own, if not too small or large."""
    longer = max(shape[:2])
    scale = min(max(longer, _SMALLEST), _LARGEST) / longer
    return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))


def _sized(image: Picture, height: int, width: int) -> Picture:
    how = cv2.INTER_AREA if height < image.shape[0] else cv2.INTER_NEAREST
    return np.asarray(cv2.resize(image, (width, height), interpolation=how), np.uint8)


def _text_width(text: str) -> int:
    return int(cv2.getTextSize(text, _FONT, _SCALE, 1)[0][0])


def _fitted(text: str, width: int) -> str:
    """Shorten a text to a width, and keep its end."""
    while len(text) > 1 and _text_width(text) > width:
        text = ".." + text.lstrip(".")[1:]
    return text


def _write(image: Picture, text: str, left: int, below: int) -> None:
    # OpenCV can draw only ASCII letters.
    plain = text.encode("ascii", "replace").decode()
    cv2.putText(image, plain, (left, below), _FONT, _SCALE, _INK, 1, cv2.LINE_AA)
