"""Rows of the table for exported files, which other programs run."""

import functools
from collections.abc import Callable
from typing import Any

import pytest

from tests.exports import ENDINGS, RUNNERS, installed_formats
from tests.gestures.gestures import Cell
from tests.gestures.outcome import is_clear

# Models whose inputs have no fixed shape, so that it must be given.
OF_ANY_LENGTH = ("predictor", "probe")


def export(cell: Cell, format: str, called: bool, batch_size: int | None) -> None:
    """A file that another program runs to the same numbers, for one batch size or for all."""
    model = cell.make()
    if called:
        model(cell.kind.inputs())
    path = cell.folder / f"model{ENDINGS[format]}"
    arguments: dict[str, Any] = {}
    if cell.kind.name in OF_ANY_LENGTH:
        with pytest.raises(ValueError) as raised:
            model.export(path, format=format, batch_size=batch_size, verbose=False)
        assert is_clear(str(raised.value)), str(raised.value)
        arguments["input_signature"] = [cell.kind.signature(batch_size)]
    model.export(path, format=format, batch_size=batch_size, verbose=False, **arguments)
    for batch in (batch_size,) if batch_size else (3, 1):
        inputs = cell.kind.inputs(batch)
        cell.assert_close(RUNNERS[format](path, inputs), model(inputs), factor=2)


def export_gestures(backend: str) -> dict[str, Callable[[Cell], None]]:
    """Return the rows for a backend: each format with a batch size, and for any batch."""
    rows: dict[str, Callable[[Cell], None]] = {}
    for format in installed_formats(backend):
        rows[f"export {format}"] = functools.partial(
            export, format=format, called=False, batch_size=2
        )
        rows[f"export {format}, any batch"] = functools.partial(
            export, format=format, called=True, batch_size=None
        )
    return rows
