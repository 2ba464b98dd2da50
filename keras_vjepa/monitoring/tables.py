"""Write rows of a run by their step, to files that others read while it runs (App. C).

Each table is written twice: as JSON with a line for each row, and as CSV with a column for each
name. Rows are added at the end, in one write, so that readers see whole rows. If a process was
killed, its last line may be cut off, and there may be rows of steps that the run makes again. A run
that continues leaves these out and writes both files again.
"""

import csv
import io
import json
import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from keras_vjepa import files

Row = Mapping[str, Any]

_LOG = logging.getLogger(__name__)


class Table:
    """Keeps a table of rows that have a `step`, in ascending order, each step once.

    Args:
        path: path without an ending; `.jsonl` and `.csv` are added.
        done: number of steps that are done; existing rows of later steps are removed.

    Attributes:
        is_empty: whether there is no row.

    Raises:
        OSError: if the files cannot be written.

    Example:

    >>> import tempfile
    >>> from keras_vjepa.monitoring.tables import Table
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Table(Path(folder) / "steps").add([{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.4}])
    ...     Table(Path(folder) / "steps", done=1).add([{"step": 2, "loss": 0.3}])
    ...     (Path(folder) / "steps.csv").read_text().split()
    ['step,loss', '1,0.5', '2,0.3']
    """

    def __init__(self, path: Path, done: int = 0) -> None:
        self._json = path.with_name(f"{path.name}.jsonl")
        self._csv = path.with_name(f"{path.name}.csv")
        kept = {row["step"]: row for row in read_rows(self._json) if row["step"] <= done}
        self.is_empty = not kept
        self._columns: list[str] = []
        self._write_all([kept[step] for step in sorted(kept)])

    def add(self, rows: Sequence[Row]) -> None:
        """Add rows at the end.

        Args:
            rows: rows of steps that are not yet in the table.

        Raises:
            OSError: if they cannot be written.
        """
        rows = [{name: _plain(value) for name, value in row.items()} for row in rows]
        if not rows:
            return
        self.is_empty = False
        files.append_line(self._json, "\n".join(map(json.dumps, rows)))
        if all(set(row) <= set(self._columns) for row in rows):
            files.append_line(self._csv, _as_csv(rows, self._columns))
        else:
            # All rows get the new column. They are read from the file, because there may be too
            # many to be kept in memory.
            self._write_all(read_rows(self._json))

    def _write_all(self, rows: Sequence[Row]) -> None:
        names = [name for row in rows for name in row]
        self._columns = list(dict.fromkeys(names))
        lines = [json.dumps(row) for row in rows]
        files.write_text(self._json, "".join(f"{line}\n" for line in lines))
        head = [",".join(self._columns), _as_csv(rows, self._columns)]
        files.write_text(self._csv, "".join(f"{part}\n" for part in head if part))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a table; lines that are damaged are left out, and the log says so.

    Args:
        path: the file with a line of JSON for each row; without such a file there are no rows.
    """
    if files.kind_of(path) != "file":
        return []
    rows: list[dict[str, Any]] = []
    damaged = 0
    for line in path.read_text("utf-8", "replace").splitlines():
        row = None
        with suppress(ValueError, RecursionError):
            row = json.loads(line)
        whole = isinstance(row, dict) and type(row.get("step")) is int
        damaged += not whole
        if isinstance(row, dict) and whole:
            rows.append(row)
    if damaged:
        _LOG.warning("Left out of %s, which is damaged: %d of its lines.", path, damaged)
    return rows


def _plain(value: Any) -> Any:
    """Round a number to the digits of float32; None for NaN and infinity, which JSON lacks."""
    if isinstance(value, float):
        return float(f"{value:.9g}") if math.isfinite(value) else None
    return value


def _as_csv(rows: Sequence[Row], columns: Sequence[str]) -> str:
    text = io.StringIO()
    csv.DictWriter(text, columns, lineterminator="\n").writerows(rows)
    return text.getvalue().removesuffix("\n")
