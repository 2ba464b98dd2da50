"""Say what the pretraining of a preset took: samples seen and hours (App. E.2, Fig. 5)."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from keras_vjepa.evaluation.pretraining_cost import SAMPLES_SEEN, hours_of_samples
from keras_vjepa.monitoring.curves import draw_points
from keras_vjepa.monitoring.run_tables import RunTables, read_run
from keras_vjepa.tasks.checkpoint_presets import run_and_step

# A column of a table, the words on the axis, and the file.
_FIGURES = (
    ("samples_seen", "samples seen in pretraining", "samples_seen.svg"),
    ("hours", "hours of pretraining", "pretraining_hours.svg"),
)


def samples_seen(preset: str) -> int | None:
    """Count the clips or images that an encoder was pretrained on, with repetitions.

    Args:
        preset: name of a preset; of a run, its folder `RUN/preset` or `RUN@STEP`.

    Returns:
        Steps times batch of a run, the paper's number for a released model that it has one for,
        and otherwise None, because weights do not tell.
    """
    if preset in SAMPLES_SEEN:
        return SAMPLES_SEEN[preset] * 1_000_000
    run = _run_of(preset)
    batch_size = run.options.get("batch_size") if run else None
    return run.done * batch_size if run and run.done and isinstance(batch_size, int) else None


def pretraining_hours(preset: str, costs: Mapping[str, float]) -> float | None:
    """Compute how long the pretraining of a preset took, or would take on one machine.

    Args:
        preset: as in `samples_seen`.
        costs: seconds of one clip's training step, by the preset's name; see `read_costs`.

    Returns:
        For a run of this package, the hours that its steps took, with the time in between; for a
        released model, the samples that it has seen times the seconds of one; None where either is
        unknown.
    """
    if preset in SAMPLES_SEEN:
        return hours_of_samples(preset, costs[preset]) if preset in costs else None
    run = _run_of(preset)
    batch_size = run.options.get("batch_size") if run else None
    speeds = [row.get("clips_per_second") for row in run.steps] if run else []
    if not speeds or not all(speeds) or not isinstance(batch_size, int):
        return None
    return sum(batch_size / speed for speed in speeds if speed) / 3600


def read_costs(path: str) -> list[tuple[str, float]]:
    """Read the seconds of one clip's training step that `bench-pretraining` has measured.

    Args:
        path: its `costs.json`.

    Returns:
        Pairs of a preset's name and its seconds.

    Raises:
        ValueError: if there is no such file, or it is another one.
    """
    try:
        rows = json.loads(Path(path).expanduser().read_text())
        found = [(str(row["preset"]), float(row["seconds"])) for row in rows]
    except (OSError, ValueError, TypeError, KeyError):
        found = []
    if not found or not all(0 < seconds < math.inf for _, seconds in found):
        raise ValueError(f"`costs` must be a costs.json of bench-pretraining. Received: {path}")
    return found


def draw_effort(rows: Sequence[Mapping[str, Any]], tasks: Sequence[str], folder: Path) -> None:
    """Draw accuracies over what pretraining took, as in Fig. 5, where this is known.

    Args:
        rows: rows of the `table.json` of `probe-table`.
        tasks: names of the tasks; each gets axes of its own.
        folder: folder of the figures. One for which nothing is known any longer is removed.
    """
    for column, axis, name in _FIGURES:
        known = [row for row in rows if row[column]]
        panels = {
            f"{task}, top-1 in %": {
                f"{row['preset']} {row['protocol']}".strip(): (
                    row[column],
                    100 * sum(row["top1"][task]) / len(row["top1"][task]),
                )
                for row in known
            }
            for task in tasks
        }
        if known:
            draw_points(folder / name, axis, panels)
        else:
            (folder / name).unlink(missing_ok=True)


def _run_of(preset: str) -> RunTables | None:
    """Read the tables of the run that a preset comes from, up to its step."""
    folder, step = run_and_step(preset)
    if folder.name == "preset" and step is None:
        folder = folder.parent
    try:
        return read_run(folder, step)
    except (OSError, ValueError):  # it is the preset of no run
        return None
