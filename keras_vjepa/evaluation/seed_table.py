"""Hold a table of measured shares with a number for each seed, in files (App. D, Tables 5 to 8).

A table has a row for each condition and a column for each method. Results that are in the file are
not computed again, so that a command that fills a table can be interrupted and repeated.
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from keras_vjepa import files
from keras_vjepa.evaluation.report import mean_and_deviation
from keras_vjepa.locks import LOCK_FILE
from keras_vjepa.training.results import read_result

TABLE, NUMBERS, SETTINGS = "table.md", "table.json", "settings.json"


def settings_of(options: Any, names: Sequence[str]) -> dict[str, Any]:
    """Return options of a command by the names under which they are typed, without leading dashes.

    Args:
        options: what the parser returned.
        names: their names there.
    """
    return {name.replace("_", "-"): getattr(options, name) for name in names}


def check_settings(workdir: Path, key: str, current: Mapping[str, Any]) -> None:
    """Write the settings that numbers are made with, or raise if there are some of others.

    Args:
        workdir: folder of the table.
        key: which numbers of the folder these are.
        current: the settings by the names of their options, without dashes.

    Raises:
        ValueError: if numbers of this key were made with other settings; it names them.
    """
    kept = read_result(workdir / SETTINGS) or {}
    stored = kept.get(key, {})
    if not isinstance(stored, dict):
        raise _damaged(workdir / SETTINGS)
    differing = sorted(k for k in stored.keys() & current.keys() if stored[k] != current[k])
    if differing:
        changes = ", ".join(f"--{k} {stored[k]} -> {current[k]}" for k in differing)
        raise ValueError(
            f"`workdir` must be a folder of these options. Received: {workdir}, with {changes}"
        )
    files.write_text(workdir / SETTINGS, json.dumps({**kept, key: {**stored, **current}}, indent=1))


@contextmanager
def with_settings(workdir: Path, key: str, current: Mapping[str, Any]) -> Iterator[None]:
    """Do as `check_settings`; an error takes the settings back if nothing was made with them.

    Some arguments are refused only when data and a model are there, and nobody's refusal should
    determine what the folder can be used for.

    Args:
        workdir, key, current: as in `check_settings`.

    Raises:
        ValueError: as `check_settings` does.
    """
    path = workdir / SETTINGS
    before, known = path.read_text("utf-8") if path.exists() else None, _contents(workdir)
    check_settings(workdir, key, current)
    try:
        yield
    except BaseException:
        if _contents(workdir) == known:
            if before is None:
                path.unlink(missing_ok=True)
            else:
                files.write_text(path, before)
        raise


def _contents(workdir: Path) -> dict[str, int]:
    """Return when the files of a table were written, and which folders of runs are there."""
    found = [path for path in workdir.iterdir() if path.name not in (LOCK_FILE, SETTINGS)]
    return {path.name: path.stat().st_mtime_ns if path.is_file() else 0 for path in found}


def _is_nested(found: Any, depth: int) -> bool:
    """Tell whether these are objects in each other to a depth, and numbers within."""
    if depth == 0:
        return isinstance(found, int | float) and not isinstance(found, bool)
    return isinstance(found, dict) and all(_is_nested(one, depth - 1) for one in found.values())


def _damaged(path: Path) -> ValueError:
    return ValueError(
        f"`workdir` must hold the results as they were written. Received: {path}, which is "
        "damaged: restore it, or take another folder"
    )


class SeedTable:
    """Holds the shares found so far, by method, row and seed.

    Args:
        workdir: folder of `table.md` and `table.json`, which are written after each number.
        heading: what the numbers are; a folder may hold tables of several headings.
        methods: names of the columns, in their order.

    Attributes:
        numbers: by heading, method, row and seed.

    Raises:
        ValueError: if `table.json` holds something else.
    """

    def __init__(self, workdir: Path, heading: str, methods: Sequence[str]) -> None:
        self.workdir = workdir
        self.heading = heading
        self.methods = tuple(methods)
        self.numbers = read_result(workdir / NUMBERS) or {}
        if not _is_nested(self.numbers, depth=4):
            raise _damaged(workdir / NUMBERS)

    def lacks(self, method: str, row: str, seed: int) -> bool:
        """Tell whether a number is not there; the arguments are those of `fill`."""
        cells = self.numbers.get(self.heading, {}).get(method, {})
        return str(seed) not in cells.get(row, {})

    def fill(self, method: str, row: str, seed: int, make: Callable[[], float]) -> None:
        """Compute a number unless it is there, and write the table.

        Args:
            method: name of the column.
            row: name of the row.
            seed: which of the numbers of this cell it is.
            make: computes the number, a share.
        """
        cells = self.numbers.setdefault(self.heading, {}).setdefault(method, {})
        cell = cells.setdefault(row, {})
        if str(seed) not in cell:
            cell[str(seed)] = make()
            files.write_text(self.workdir / NUMBERS, json.dumps(self.numbers, indent=1))
            files.write_text(self.workdir / TABLE, self.text())
            print(f"{method}, {row}, seed {seed}: {cell[str(seed)]:.3f}", file=sys.stderr)

    def text(self) -> str:
        """Write the tables of all headings as text: mean, deviation, and number of seeds."""
        lines = []
        for heading, found in self.numbers.items():
            lines += ["", f"| {heading} | {' | '.join(self.methods)} |"]
            lines.append("|---" * (1 + len(self.methods)) + "|")
            for row in dict.fromkeys(row for cells in found.values() for row in cells):
                cells = [[*found.get(method, {}).get(row, {}).values()] for method in self.methods]
                texts = [f"{mean_and_deviation(c)} ({len(c)})" if c else "" for c in cells]
                lines.append(f"| {row} | {' | '.join(texts)} |")
        return "\n".join(lines[1:]) + "\n"
