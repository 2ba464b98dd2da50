"""Read which videos official lists name, by their ids, and find their files (§3.4, App. D).

A video of Kinetics or HowTo100M is known by its id on YouTube, of 11 characters, in any list and
under any file name. A video of Something-Something v2 is known by a number.
"""

import csv
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keras_vjepa.arguments import counted, shown
from keras_vjepa.data.reading.errors import printable
from keras_vjepa.data.sources.folders import search_folder
from keras_vjepa.files import check_is_file

_LOG = logging.getLogger(__name__)
_YOUTUBE_ID = re.compile(r"[A-Za-z0-9_-]{11}")


@dataclass(frozen=True)
class ListedVideo:
    """Holds one row of an official list.

    Attributes:
        id: id of the video, in upper and lower case as in the list.
        names: names that its file may have, without extension, in the order in which to look.
        is_valid: whether `id` can be an id at all.
        label: name of the class, or template; None if the list has none.
        where: the list and the line, for messages.
    """

    id: str
    names: tuple[str, ...]
    is_valid: bool = True
    label: str | None = None
    where: str = ""


def files_by_name(folder: str | Path) -> dict[str, str]:
    """Find the videos in a folder, at any depth, by their names without extension.

    Args:
        folder: the folder.

    Returns:
        The path of each. Of several files of one name, the first in the order of paths is taken,
        and the log says how many are not used.
    """
    found: dict[str, str] = {}
    others: list[str] = []
    for path in search_folder(folder).paths:
        name = os.path.splitext(os.path.basename(path))[0]
        if found.setdefault(name, path) != path:
            others.append(path)
    if others:
        name = os.path.splitext(os.path.basename(others[0]))[0]
        _LOG.warning(
            "Not used: %s in %s with the name of another, %s first, for %s is there",
            *(counted(len(others), "file"), printable(str(folder))),
            *(printable(others[0]), printable(found[name])),
        )
    return found


def kinetics_videos(path: Path) -> Iterator[ListedVideo]:
    """Read a list of Kinetics-400, -600 or -700 as published, of training, validation or test.

    Args:
        path: csv with a header. Its columns `youtube_id`, `time_start`, `time_end` and `label` are
            read; the list of a test set has no `label`.

    Raises:
        ValueError: if it is not such a list; the message is one line that names it.

    Example:

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "validate.csv")
    ...     _ = path.write_text(
    ...         "label,youtube_id,time_start,time_end,split\\nabseiling,-3B32lodo2M,59,69,val\\n"
    ...     )
    ...     [video] = kinetics_videos(path)
    >>> video.names
    ('-3B32lodo2M_000059_000069', '-3B32lodo2M')
    """
    for where, row in _rows(path, "youtube_id", "time_start", "time_end"):
        video = row["youtube_id"].strip()
        names = kinetics_file_names(video, row, where)
        label = row.get("label")
        if label == "":
            raise ValueError(f"{where}: `label` must not be empty.")
        yield ListedVideo(video, names, bool(_YOUTUBE_ID.fullmatch(video)), label, where)


def kinetics_file_names(video: str, row: Mapping[str, str], where: str) -> tuple[str, str]:
    """Name the file of a clip of Kinetics, without extension, as copies of the set have it.

    Args:
        video: id of the video.
        row: row of the list, of which `time_start` and `time_end` are used, in seconds.
        where: the file and the line, for messages.

    Returns:
        The name with both times, then the one without them.

    Raises:
        ValueError: if the times are not numbers.
    """
    try:
        start, end = (int(float(row[name])) for name in ("time_start", "time_end"))
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"{where}: `time_start` and `time_end` must be numbers. Received: "
            f"{row['time_start']!r} and {row['time_end']!r}"
        ) from error
    return f"{video}_{start:06d}_{end:06d}", video


def howto100m_videos(path: Path) -> Iterator[ListedVideo]:
    """Read `HowTo100M_v1.csv` as published; a video has a row for each of its tasks.

    Args:
        path: csv with a header, of which the column `video_id` is read.

    Raises:
        ValueError: if it is not such a list; the message is one line that names it.
    """
    for _, row in _rows(path, "video_id"):
        video = row["video_id"].strip()
        yield ListedVideo(video, (video,), bool(_YOUTUBE_ID.fullmatch(video)))


def something_something_videos(path: Path) -> Iterator[ListedVideo]:
    """Read a list of Something-Something v2 as published.

    Args:
        path: json list of objects with an `id`.

    Raises:
        ValueError: if it is not such a list; the message is one line that names it.
    """
    entries = load_json(path, list)
    if not entries:
        raise ValueError(f"No videos in {path}. Use the published json.")
    for entry in entries:
        found: Any = entry.get("id") if isinstance(entry, dict) else None
        if not isinstance(found, str | int) or isinstance(found, bool):
            raise ValueError(
                f"Every entry of {path} must have an `id`. Received: {str(entry)[:80]}"
            )
        template = entry.get("template")
        if not isinstance(template, str | None):
            raise ValueError(
                f"Every `template` in {path} must be text. Received: {shown(template)}"
            )
        video = str(found).strip()
        yield ListedVideo(video, (video,), video.isdecimal(), template, str(path))


def load_json(path: str | Path, kind: type) -> Any:
    """Read a published JSON file.

    Args:
        path: the file.
        kind: `list` or `dict`, which the file must hold.

    Raises:
        ValueError: if it does not; the message is one line that names the file.
    """
    check_is_file(path)
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        is_deep = isinstance(error, RecursionError)
        reason = "nested too deep" if is_deep else " ".join(str(error).split())[:200]
        raise ValueError(f"{path} is not a JSON file: {reason}") from None
    if not isinstance(content, kind):
        raise ValueError(f"{path} must hold a JSON {kind.__name__}. Use the published file.")
    return content


def _rows(path: Path, *columns: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the rows of a csv with a header, each after its place in the file."""
    count = 0
    check_is_file(path)
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            lacking = [name for name in columns if name not in (reader.fieldnames or ())]
            if lacking:
                raise ValueError(
                    f"{path} must have a column `{lacking[0]}`. Use the published csv."
                )
            for row in reader:
                where = f"{path}:{reader.line_num}"
                for name in columns:
                    if not row[name]:
                        raise ValueError(f"{where}: `{name}` must not be empty.")
                yield where, row
                count += 1
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} must be a csv in UTF-8, as published: {error}") from None
    if not count:
        raise ValueError(f"{path} must name videos. Received: a header alone")
