"""Read the rows of a list: a path, and the number or the name of its class (§3.4, App. D).

Other tools write lists in many ways. A row that can have only one meaning is read. Any other is
refused, with its file and line, so that no row becomes the name of a file that nobody meant.
"""

import numbers
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from keras_vjepa.arguments import shown
from keras_vjepa.data.reading.errors import printable
from keras_vjepa.data.reading.frame_folder import FrameFolder
from keras_vjepa.data.reading.kinds import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS
from keras_vjepa.data.reading.media import Media
from keras_vjepa.data.reading.remote import ADDRESS

_SEPARATOR = r"(?:\s|,|;|::)"
_EXTENSION = "|".join(re.escape(name) for name in sorted(VIDEO_EXTENSIONS | IMAGE_EXTENSIONS))
# Matches a path: everything up to the last known extension that is followed by a separator or the
# end of the row.
_PATH = re.compile(rf"(.*(?:{_EXTENSION}))(?=$|{_SEPARATOR})", re.IGNORECASE | re.DOTALL)
_QUOTED = re.compile(rf"""(["'])((?:(?!\1).|\1\1)+)\1(?=$|{_SEPARATOR})""", re.DOTALL)
_QUOTED_LAST = re.compile(rf"""([^"']+?){_SEPARATOR}+(["'])(.*(?:{_EXTENSION}))\2""", re.IGNORECASE)
# Matches a label before a path. The label may contain spaces if another separator stands between
# the two.
_FIRST_OF_COLUMNS = re.compile(r"([^/\\,;\t]+?)\s*(?:,|;|\t|::)\s*(.+)", re.DOTALL)
_FIRST_WORD = re.compile(r"([^/\\\s]+)\s+(.+)", re.DOTALL)
# Other tools separate path and label by these; they are not read here.
_OTHER_SEPARATOR = re.compile(rf"(?:{_EXTENSION})\s*[|=:]+\s*\S+", re.IGNORECASE)
_TWO_ROWS = re.compile(rf".*(?:{_EXTENSION}){_SEPARATOR}+\d+{_SEPARATOR}+.+", re.IGNORECASE)
# Matches a row of VideoMAE's lists of folders of frames: a path and two numbers.
_WITH_FRAMES = re.compile(r"(.+?)\s+(\d+)\s+(-?\d+)", re.DOTALL)
# What a web page begins with, such as the one that asks for a login.
_PAGE = re.compile(r"\s*<(!doctype|html|head|body|meta|script|\?xml|!--)", re.IGNORECASE)
_WHOLE = re.compile(r"\d+(\.0*)?")
# Models take labels as 32-bit integers.
_LARGEST, _DIGITS = 2**31 - 1, 100
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)


# The longest row, in characters: twice the longest path that operating systems allow. The second
# number is how many characters a message shows, which fit on a screen.
_LONGEST_ROW, _LONGEST_SHOWN = 8192, 200


@dataclass(frozen=True)
class Row:
    """Holds one row of a list.

    Attributes:
        path: the file, as a path from the working directory.
        label: number of the class, name of the class, or `None` where there is neither.
        where: the list and the line, with which messages about the row begin.
        media: as in `Sample`.
    """

    path: str
    label: int | str | None
    where: str
    media: Media | None = None


def read_rows(source: Path) -> Iterator[Row]:
    """Read the rows of a text file that are not blank.

    A relative path is taken from the working directory if it exists there, otherwise from the
    folder of the list.

    Args:
        source: the list.

    Returns:
        Its rows, in order.

    Raises:
        ValueError: if `source` is not a text file, or a row can mean several things or nothing; the
            message begins with the file and the line.
    """
    try:
        # Names of files need not be UTF-8. A row that is not UTF-8 is accepted if the file exists.
        text = source.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise ValueError(f"{source} cannot be read: {error.strerror}.") from error
    if "\0" in text:
        raise ValueError(f"{source} is not a text file. Save the list as UTF-8 text.")
    if _PAGE.match(text):
        raise ValueError(
            f"{source} is a web page, not a list. A server that asks for a login sends one in "
            "place of the file: open the address in a browser, and save the list itself."
        )
    # Not splitlines(), which would also cut a path at rarer separators, such as U+2028.
    for number, line in enumerate(text.split("\n"), start=1):
        # If files that start with a byte order mark were concatenated, the mark is also inside the
        # text.
        row = line.strip().removeprefix("\ufeff").strip()
        if row:
            where = f"{source}:{number}"
            try:
                path, label = _parsed(row, source.parent)
            except ValueError as error:
                shown = printable(row)
                shown = shown if len(shown) <= _LONGEST_SHOWN else f"{shown[:_LONGEST_SHOWN]}..."
                raise ValueError(f"{where}: {error} Received: '{shown}'") from error
            yield Row(path_from_list(path, source.parent), label, where)


def as_label(value: Any, where: str) -> int | str | None:
    """Make a label of a value in a table or beside a video.

    Args:
        value: a whole number, also as text or with zeros after the point, as pandas writes it; a
            name; or nothing, for which tools write "nan" too.
        where: the place of the value, for messages.

    Returns:
        Number or name of the class, None for nothing.

    Raises:
        ValueError: for anything else, and for numbers below 0 or above 2,147,483,647.

    Example:

    >>> as_label("3", "a.csv:1"), as_label("yoga", "a.csv:1"), as_label("", "a.csv:1")
    (3, 'yoga', None)
    """
    if value is None or (isinstance(value, float | np.floating) and value != value):
        return None  # NaN stands for an empty cell
    if isinstance(value, str):
        text = value.strip()
        if text.lower() == "nan" or not text:
            return None
        whole = text.partition(".")[0] if _WHOLE.fullmatch(text) else ""
        if 0 < len(whole) < _DIGITS and int(whole) <= _LARGEST:
            return int(whole)
        if not whole and not _NUMBER.fullmatch(text):
            return text
    elif isinstance(value, numbers.Real) and not isinstance(value, bool):
        number: Any = value
        if 0 <= number <= _LARGEST and number == int(number):
            return int(number)
    raise ValueError(
        f"{where}: The label must be a whole number, at least 0, or the name of a class. "
        f"Received: {shown(value)}"
    )


def looks_like_a_file(row: Row, folder: Path) -> bool:
    """Tell whether a row may name a file, and is not a line of some other text.

    Args:
        row: as `read_rows` gives it.
        folder: where the list is.
    """
    if row.label is not None or os.path.exists(row.path):
        return True
    written = os.path.relpath(row.path, folder)
    return bool(os.path.dirname(written) or os.path.splitext(written)[1])


def _parsed(row: str, folder: Path) -> tuple[str, int | str | None]:
    """Find the path and the label in a row.

    Raises:
        ValueError: if the row can mean several things or nothing.
    """
    if len(row) > _LONGEST_ROW:
        raise ValueError(f"A row must have at most {_LONGEST_ROW:,} characters.")
    with_frames = _WITH_FRAMES.fullmatch(row)
    if with_frames and os.path.isdir(path_from_list(with_frames[1], folder)):
        return _of_frames(with_frames[1], int(with_frames[2]), int(with_frames[3]), folder)
    quoted = _QUOTED.match(row)
    if quoted:
        path, rest = quoted[2].replace(quoted[1] * 2, quoted[1]), row[quoted.end() :]
        if not rest and not _PATH.fullmatch(path) and not _exists(path, folder):
            return _parsed(path, folder)  # all of the row is quoted
    elif last := _QUOTED_LAST.fullmatch(row):
        return last[3].replace(last[2] * 2, last[2]), _label(last[1])
    elif known := _PATH.match(row):
        path, rest = known[1], row[known.end() :]
    else:
        path, rest = _split_if_need_be(row, folder)
    # VideoMAE's lists of videos without labels have 0 and -1 after the path.
    label = None if rest.split() == ["0", "-1"] else _label(rest)
    if not quoted:
        path, label = _label_first(path, label, folder)
    if not path.strip():
        raise ValueError("There is no path. Write rows `path label`.")
    if not quoted and not _exists(path, folder):
        _check_meant(path, rest)
    if not (is_utf8(f"{label}") and (is_utf8(path) or _exists(path, folder))):
        raise ValueError("It is not UTF-8, nor is there such a file. Save the list as UTF-8 text.")
    return path, label


def _of_frames(path: str, first: int, second: int, folder: Path) -> tuple[str, int | None]:
    """Find path and label in a row `folder frames label` or `folder start frames`.

    The number of frames in the folder, and the first one's, tell which of the two it is.
    """
    frames = FrameFolder(path_from_list(path, folder)).frames()
    count, start = len(frames.names), frames.numbers[0]
    is_labelled = first == count and second >= 0
    is_range = (first, second) == (start, count)
    if is_labelled == is_range:
        raise ValueError(
            f"A row of a folder must be `folder frames label` or `folder start frames`, and "
            f"{printable(path)} has {count:,} frames from {start}."
        )
    return path, second if is_labelled else None


def _check_meant(path: str, rest: str) -> None:
    """Raise `ValueError` if a row plainly means something else than a file that is missing."""
    if path.count('"') % 2 or rest.count('"') % 2:
        raise ValueError("A quote is not closed.")
    if not rest and _OTHER_SEPARATOR.search(path):
        raise ValueError("Between path and label must be a space, a comma or a semicolon.")
    if _TWO_ROWS.fullmatch(path):
        raise ValueError("Two rows stand in one line.")


def _split_if_need_be(row: str, folder: Path) -> tuple[str, str]:
    """Split a row without a known extension, unless all of it is the name of a folder of frames."""
    if not _exists(row, folder):
        return _split_at_last_separator(row)
    with suppress(ValueError):
        path, label = _split_at_last_separator(row)
        if _exists(path, folder):
            return path, label
    return row, ""


def _split_at_last_separator(row: str) -> tuple[str, str]:
    """Split a row without a known extension into the path and the last number, or "" for none."""
    splits = [row.rsplit(separator, maxsplit=1) for separator in (None, "::", ",", ";")]
    candidates = [parts for parts in splits if len(parts) == 2]
    for path, label in candidates:
        if _unquoted(label).isdecimal():
            # A row with a comma and a space was split at the space.
            path = _unquoted(path.rstrip(", ;"))
            if re.search(rf"{_SEPARATOR}\d+$", path):
                raise ValueError("Two numbers follow the path. Write rows `path label`.")
            return path, label
    if candidates:
        raise ValueError(_not_a_label(_unquoted(candidates[-1][1])))
    return _unquoted(row), ""


def _label(rest: str) -> int | str | None:
    """Find the label in the part of a row that follows the path."""
    rest = re.sub(rf"^{_SEPARATOR}+", "", rest).strip()
    label = _unquoted(rest)
    if not label:
        return None
    if label.isdecimal() or label.lower() == "nan":
        return as_label(label, "Behind the path")
    if label != rest:
        return label  # it is quoted, so all of it is the name
    words = [word for word in re.split(_SEPARATOR, rest) if word]
    if len(words) == 1 and _NUMBER.fullmatch(label):
        raise ValueError(_not_a_label(label))
    if any(_NUMBER.fullmatch(word) for word in words) or re.search(r"[,;\t]|::", rest):
        raise ValueError(
            "More than one thing follows the path. Write rows `path label`, and a name with "
            'numbers in it as "name".'
        )
    return label


def _label_first(path: str, label: int | str | None, folder: Path) -> tuple[str, int | str | None]:
    """Find path and label where a path does not exist and may have a label in front of it."""
    columns = _FIRST_OF_COLUMNS.fullmatch(path)
    parts = columns or _FIRST_WORD.fullmatch(path)
    if not parts or _exists(path, folder):
        return path, label
    first, rest = _unquoted(parts[1]), _unquoted(parts[2])
    is_number = bool(_NUMBER.fullmatch(first))
    if not _exists(rest, folder):
        if not columns:
            return path, label  # for example "7 wonders.mp4" if the file is missing
        if not is_number:
            raise ValueError(
                f"Is {first!r} a label or a part of the name? There is neither file. "
                'Write rows `path label`, and a path that holds a separator as "path".'
            )
    if _PATH.fullmatch(first):
        raise ValueError("Two files stand in one row. Write rows `path label`.")
    if label is not None:
        raise ValueError("Something stands before the path and after it. Write rows `path label`.")
    if is_number and not first.isdecimal():
        raise ValueError(_not_a_label(first))
    return rest, int(first) if is_number else first


def _not_a_label(found: str) -> str:
    return (
        f"The label of a row must be a whole number, at least 0, or the name of a class behind a "
        f"path with a known extension (and a list has no header: the name of a table's column of "
        f"paths is given as `path_column`). Found {found!r}."
    )


def _unquoted(text: str) -> str:
    text = text.strip()
    for quote in "\"'":
        inner = text[1:-1]
        # If there are more of these quotes inside, several things are quoted and not one.
        is_one = quote not in inner.replace(quote * 2, "")
        if len(text) > 1 and text[0] == text[-1] == quote and is_one:
            return inner.replace(quote * 2, quote)
    return text


def _exists(path: str, folder: Path) -> bool:
    return os.path.exists(path_from_list(path, folder))


def path_from_list(path: str, folder: Path) -> str:
    """Return the path of a file that a list names, from the working directory or list's folder.

    Args:
        path: the path as written in the list.
        folder: the folder of the list.
    """
    if os.path.isabs(path) or ADDRESS.match(path) or os.path.exists(path):
        return path
    return str(folder / path)


def is_utf8(text: str) -> bool:
    """Tell whether a text that was read from a file is text in UTF-8 throughout."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
