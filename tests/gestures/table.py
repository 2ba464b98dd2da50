"""The table of gestures: which cells there are, and a run through them that can be continued."""

import dataclasses
import json
import os
import shutil
import signal
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras

from tests.gestures.exports import export_gestures
from tests.gestures.fresh_process import FreshProcess
from tests.gestures.gestures import GESTURES, Cell
from tests.gestures.models import KINDS
from tests.gestures.outcome import FAILS, WORKS, Outcome, outcome_of

PRECISIONS = (
    "float32",
    "mixed_bfloat16",
    "bfloat16",
    "mixed_float16",
    "float16",
    "float64",
)
# On backends that compile programs first, the whole table is made in these precisions, and a few
# gestures in the others. Code that is the same on each backend is tested on torch.
WHOLE = ("float32", "mixed_bfloat16")
IN_ALL_PRECISIONS = ("call", "fit", "save and load")
# A gesture that takes longer counts as hanging.
SECONDS = 180


@dataclasses.dataclass(frozen=True, order=True)
class Place:
    """A cell by its names."""

    precision: str
    model: str
    gesture: str

    def __str__(self) -> str:
        return f"{self.gesture} | {self.model} | {self.precision}"


def places(backend: str) -> list[Place]:
    """List the cells of a backend."""
    return [
        Place(precision, model, gesture)
        for precision in PRECISIONS
        for model in KINDS
        for gesture in (*GESTURES, *export_gestures(backend))
        if backend == "torch" or precision in WHOLE or gesture in IN_ALL_PRECISIONS
    ]


@contextmanager
def _limited(seconds: int) -> Iterator[None]:
    def too_long(*_: Any) -> None:
        raise TimeoutError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def run_cell(place: Place, fresh: FreshProcess) -> Outcome:
    """Make the gesture of one cell, and judge how it ended."""
    gesture = {**GESTURES, **export_gestures(keras.config.backend())}[place.gesture]
    folder = Path(tempfile.mkdtemp(prefix="gesture-"))
    keras.utils.set_random_seed(3)
    try:
        with warnings.catch_warnings(), _limited(SECONDS):
            warnings.simplefilter("ignore")
            gesture(Cell(KINDS[place.model], place.precision, folder, fresh))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # libraries may raise even what ends a process
        return outcome_of(error)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        keras.backend.clear_session()
    return Outcome(WORKS)


# --- A run ---------------------------------------------------------------------------------------


def read_results(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a results file; one that was cut off in writing is left out."""
    if not path.exists():
        return []
    found = []
    for line in path.read_text().splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def key_of(result: dict[str, Any]) -> tuple[str, Place]:
    """Tell a result's backend and cell."""
    return result["backend"], Place(result["precision"], result["model"], result["gesture"])


def run(path: Path, only: Sequence[str] = ()) -> None:
    """Go through the cells of the running backend that a results file does not hold yet.

    A cell in which the process ended, not by an interrupt, fails; the next run goes on after it.

    Args:
        path: JSON lines, one a cell.
        only: words that a cell's names must all contain.
    """
    backend, begun = keras.config.backend(), path.with_name(path.name + ".begun")
    done = {place for engine, place in map(key_of, read_results(path)) if engine == backend}
    wanted = [p for p in places(backend) if p not in done and all(w in str(p) for w in only)]
    # A process that was killed has left this file.
    last = begun.read_text() if begun.exists() else ""
    fresh, start = FreshProcess(), time.perf_counter()
    with path.open("a") as file:
        if path.stat().st_size and not path.read_bytes().endswith(b"\n"):
            file.write("\n")
        for i, place in enumerate(wanted):
            killed = last == f"{backend} | {place}"
            begun.write_text(f"{backend} | {place}")
            then = time.perf_counter()
            try:
                outcome = (
                    Outcome(FAILS, "it ended the process") if killed else run_cell(place, fresh)
                )
            except KeyboardInterrupt:
                begun.unlink()
                fresh.end()
                raise
            seconds = round(time.perf_counter() - then, 2)
            result = {
                **dataclasses.asdict(place),
                "backend": backend,
                "outcome": outcome.word,
                "message": outcome.message,
                "seconds": seconds,
            }
            file.write(json.dumps(result) + "\n")
            file.flush()
            os.fsync(file.fileno())
            begun.unlink()
            minutes = (time.perf_counter() - start) / 60
            shown = f" {outcome.message}" if outcome.message else ""
            print(
                f"[{i + 1}/{len(wanted)}, {minutes:.1f} min] {place}: {outcome.word}"
                f" ({seconds:.1f} s){shown}",
                flush=True,
            )
    fresh.end()
