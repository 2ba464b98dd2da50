"""Read tables of videos with named columns: csv, tsv, jsonl, parquet (§3.4, App. D)."""

import csv
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from keras_vjepa.arguments import check_number, shown
from keras_vjepa.data.reading.errors import MissingPackageError, printable
from keras_vjepa.data.reading.frame_folder import FrameFolder
from keras_vjepa.data.reading.media import Media
from keras_vjepa.data.sources.rows import Row, as_label, is_utf8, path_from_list

# Names of the column of paths that other tools use. The first one that a table has is taken.
PATH_COLUMNS = ("path", "video_path", "file_name", "filename", "filepath", "file", "video", "image")
# This column is read only for folders of frames, which do not contain their rate as video files do.
FPS_COLUMN = "fps"
ENDINGS = (".jsonl", ".ndjson", ".parquet", ".tsv")

_LONGEST = 2**20


def is_table(source: Path, path_column: str) -> bool:
    """Tell whether a file is a table with named columns.

    Args:
        source: the file.
        path_column: column of the paths, if a user has named it.
    """
    if source.suffix.lower() in ENDINGS:
        return True
    if source.suffix.lower() != ".csv":
        return False
    if path_column:
        return True  # so that a missing column is an error, and the table is not read as a list
    names = _header(source)
    # A list has no header, but in its first row the name of a class may be that of a column.
    is_header = not any(os.path.splitext(name)[1] or "/" in name for name in names)
    return is_header and any(_column(names, name) for name in PATH_COLUMNS)


def table_rows(source: Path, path_column: str, label_column: str) -> Iterator[Row]:
    """Read the rows of a table.

    A relative path is taken from the working directory if it exists there, otherwise from the
    folder of the table. A folder of frames has the frames per second of the column `fps`, if there
    is one.

    Args:
        source: the table.
        path_column: column of the paths; empty for the first of `PATH_COLUMNS` that is there.
        label_column: column of the classes' numbers or names, which may be missing. Empty for no
            labels.

    Raises:
        MissingPackageError: for a parquet file, if pyarrow is not installed.
        ValueError: if the table cannot be read, has no such column, or a row has no path.
    """
    column = ""
    for where, row in _read(source):
        if not column:
            column = _path_column(source, row, path_column)
            label_column = label_column and (_column(row, label_column) or label_column)
        path = row.get(column)
        # Data sets of videos store a path in a dictionary.
        path = path.get("path") if isinstance(path, dict) else path
        if not isinstance(path, str) or not path.strip():
            raise ValueError(f"{where}: `{column}` must be a path. Received: {shown(path)}")
        label = as_label(row.get(label_column), where) if label_column else None
        path = path_from_list(path, source.parent)
        _check_is_utf8(source, {**row, column: "" if os.path.exists(path) else path})
        yield Row(path, label, where, _frames(path, row.get(FPS_COLUMN), where))


def _check_is_utf8(source: Path, row: dict[str, Any]) -> None:
    """Check the cells of a row, but for the path of a file that exists."""
    for cell in row.values():
        if isinstance(cell, str) and not is_utf8(cell):
            raise ValueError(f"{source} must be UTF-8 text. Received: {shown(printable(cell))}")


def _frames(path: str, fps: Any, where: str) -> Media | None:
    """Return the folder of frames at a path, if a table says how many of them make a second."""
    if fps in (None, "") or not os.path.isdir(path):
        return None
    try:
        number = float(fps)
        check_number("(0, 100000]", fps=number)
    except (TypeError, ValueError):
        raise ValueError(
            f"{where}: `{FPS_COLUMN}` of a folder of frames must be a number in (0, 100000]. "
            f"Received: {shown(fps)}"
        ) from None
    return FrameFolder(path, number)


def _path_column(source: Path, row: dict[str, Any], given: str) -> str:
    names = [given] if given else [*PATH_COLUMNS]
    found = [column for name in names if (column := _column(row, name)) is not None]
    if not found:
        raise ValueError(
            f"`path_column` must be a column of {source}, which has {', '.join(map(repr, row))}. "
            f"Received: {given!r}"
        )
    return found[0]


def _column(names: Iterable[str], name: str) -> str | None:
    """Find a column by its name, in upper or lower case; None if it is missing."""
    names = [*names]
    others = (other for other in names if other.lower() == name.lower())
    return name if name in names else next(others, None)


def _read(source: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each row by its columns, after its file and line."""
    ending = source.suffix.lower()
    try:
        if ending == ".parquet":
            yield from _read_parquet(source)
        elif ending in (".csv", ".tsv"):
            yield from _read_csv(source)
        else:
            yield from _read_json_lines(source)
    except UnicodeDecodeError as error:
        raise ValueError(f"{source} must be UTF-8 text. {error}") from error
    except OSError as error:
        raise ValueError(f"{source} cannot be read: {error.strerror or error}.") from error


def _read_csv(source: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    delimiter = "\t" if source.suffix.lower() == ".tsv" else ","
    # Names of files need not be UTF-8, see `_check_is_utf8`.
    with open(source, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        # If the header is "path, label" with a space, the rows are written like "a.mp4, 3".
        is_spaced = f"{delimiter} " in file.readline(_LONGEST)
        file.seek(0)
        reader = csv.DictReader(file, delimiter=delimiter, strict=True, skipinitialspace=is_spaced)
        try:
            twice = [name for name, times in Counter(reader.fieldnames or ()).items() if times > 1]
            if twice:
                raise ValueError(f"{source}:1: A column must be there once. Received: {twice[0]!r}")
            for row in reader:
                where = f"{source}:{reader.line_num}"
                if None in row or None in row.values():
                    raise ValueError(
                        f"{where}: A row must have {len(reader.fieldnames or ())} columns, as the "
                        'header has. Write what holds a comma as "text".'
                    )
                yield where, row
        except csv.Error as error:
            raise ValueError(f"{source}:{reader.line_num}: {error}") from error


def _read_json_lines(source: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with open(source, encoding="utf-8-sig") as file:
        for number, line in enumerate(iter(lambda: file.readline(_LONGEST), ""), start=1):
            if not line.strip():
                continue
            where = f"{source}:{number}"
            if len(line) == _LONGEST and line[-1] != "\n":
                raise ValueError(f"{where}: A row must have at most {_LONGEST:,} characters.")
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{where}: A row must be a JSON object. {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f"{where}: A row must be a JSON object. Received: {shown(row)}")
            yield where, row


def _read_parquet(source: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise MissingPackageError(
            f"{source} needs pyarrow: pip install keras-vjepa[parquet]"
        ) from error
    try:
        with parquet.ParquetFile(source) as table:
            rows = (row for batch in table.iter_batches() for row in batch.to_pylist())
            for number, row in enumerate(rows):
                yield f"{source}, row {number}", row
    except ArrowException as error:
        raise ValueError(f"{source} is no readable parquet file: {error}") from error


def _header(source: Path) -> list[str]:
    """Read the names in the first line of a csv file."""
    try:
        with open(source, newline="", encoding="utf-8-sig", errors="replace") as file:
            line = file.readline(_LONGEST)
            return next(csv.reader([line], skipinitialspace=", " in line), [])
    except (OSError, csv.Error):
        return []


def is_kinetics(source: str | os.PathLike[str]) -> bool:
    """Tell whether a file is a list of Kinetics as published, by its header."""
    return "youtube_id" in _header(Path(source))
