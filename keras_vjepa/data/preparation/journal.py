"""Store results for many files, so that interrupted work can continue (2 M videos, §3.4).

A journal has one JSON object in each line, appended as results come. A process that is killed
leaves at most a part of the last line. That part is passed over, and its file done again.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from keras_vjepa import files
from keras_vjepa.data.preparation.processes import ItemT, ResultT, each_in_processes
from keras_vjepa.data.processes.serving import ProcessFailure
from keras_vjepa.data.reading.errors import printable
from keras_vjepa.data.reading.locating import media_at, name_of
from keras_vjepa.data.reading.media import Media

Result = dict[str, Any]


def state_of(source: str | Media) -> list[int]:
    """Return what tells a file from another in its place: size and time of the last change.

    Args:
        source: the path of the file, or other media.

    Returns:
        The two numbers; an empty list if there is no file.
    """
    status = media_at(source).status()
    return [*status[:2]] if any(status) else []


def each_with_state(
    function: Callable[[ItemT], ResultT],
    items: Sequence[ItemT],
    source_of: Callable[[ItemT], str | Media],
    num_processes: int,
    max_seconds: float,
) -> Iterator[tuple[ItemT, list[int], ResultT | ProcessFailure]]:
    """Call a function with each of some items, in several processes, and tell what a journal needs.

    Args:
        function, max_seconds: as in `each_in_processes`.
        items: what to call the function with, each of another file.
        source_of: tells the file of an item.
        num_processes: how many items are worked on at a time, at most.

    Yields:
        Each item, the state of its file before it was read, and the result, in the order in which
        they are finished.
    """
    states = dict[str, list[int]]()

    def noted(item: ItemT) -> ItemT:
        # This is noted before the file is read, so that a file which changes in the meantime is
        # inspected again.
        source = source_of(item)
        states[name_of(source)] = state_of(source)
        return item

    count = min(num_processes, len(items))
    for item, result in each_in_processes(function, map(noted, items), count, max_seconds):
        yield item, states.pop(name_of(source_of(item))), result


class Journal:
    """Holds a result for each file, in memory and in a file of lines.

    Args:
        path: the file of lines, made with the first result.
        settings: what the results depend on beside the files; results of others are not used again.

    Raises:
        OSError: if something is there that is no file, or cannot be read.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        # The result is converted to JSON and back, so that it is equal to one read from the file: a
        # tuple becomes a list.
        self._settings = json.loads(json.dumps(settings))
        self._found: dict[str, Result] = {}
        files.check_is_file(path)
        content = path.read_bytes() if path.exists() else b""
        *lines, rest = content.decode("utf-8", "surrogateescape").split("\n")
        self._begins_anew = bool(rest)
        for line in lines:
            self._take(line)

    def _take(self, line: str) -> None:
        try:
            entry = json.loads(line)
            path, is_ours = entry["path"], entry["settings"] == self._settings
            result = {"state": entry["state"], "result": dict(entry["result"])}
        except (ValueError, TypeError, KeyError, RecursionError):
            return  # a line that was cut off
        if is_ours:
            self._found[path] = result

    def get(self, source: str | Media) -> Result | None:
        """Return what was found of a file; None if nothing was or the file has changed since."""
        found = self._found.get(name_of(source))
        return found["result"] if found and found["state"] == state_of(source) else None

    def add(self, path: str, state: list[int], result: Result) -> None:
        """Keep what was found of a file.

        Args:
            path: the file.
            state: its state before it was read, see `state_of`.
            result: anything that JSON can hold.

        Raises:
            OSError: if the result cannot be written.
        """
        self._found[path] = {"state": state, "result": result}
        entry = {"path": path, "state": state, "settings": self._settings, "result": result}
        # If the last line was cut off, the new line must not be appended to it.
        start = "\n" if self._begins_anew else ""
        # In ASCII, because names of files need not be UTF-8.
        files.append_line(self.path, start + json.dumps(entry))
        self._begins_anew = False


def table(header: list[str], rows: list[list[str]]) -> str:
    """Return a table as comma-separated values, one row a line, whatever the texts hold.

    Args:
        header: names of the columns.
        rows: rows of texts, as many as there are columns.

    Example:

    >>> table(["path", "reason"], [['a "b".mp4', "it is empty"]])
    'path,reason\\n"a ""b"".mp4","it is empty"\\n'
    """
    quoted = [",".join('"' + printable(text).replace('"', '""') + '"' for text in r) for r in rows]
    return "\n".join([",".join(header), *quoted, ""])
