"""Write a page that compares runs by their curves, probes and configs (App. C)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from keras_vjepa.monitoring import page
from keras_vjepa.monitoring.curves import draw_curves
from keras_vjepa.monitoring.run_tables import (
    KINDS_OF_BOXES,
    OF_EPOCHS,
    OF_LOOKS,
    OF_STEPS,
    Curves,
    RunTables,
    read_run,
)

FILE_NAME = "compare.html"
_NEITHER = "absent"


def write_comparison(folders: Sequence[Path], path: Path) -> None:
    """Write a page that compares several runs, finished or not.

    Args:
        folders: folders of the runs, two or more.
        path: path of the page.

    Raises:
        FileNotFoundError: if a folder holds no run.
        ValueError: if there are fewer than two folders, or one is named twice.
        OSError: if the page cannot be written.
    """
    resolved = [folder.resolve() for folder in folders]
    if len(set(resolved)) < 2 or len(set(resolved)) < len(resolved):
        raise ValueError(
            "`runs` must be two or more folders, each another. Received: "
            f"{', '.join(map(str, folders))}"
        )
    runs = dict(zip(_names(resolved), map(read_run, folders), strict=True))
    parts = [
        page.table([_summary(name, run) for name, run in runs.items()], _SUMMARY),
        *_differences("Config: what differs", {name: run.options for name, run in runs.items()}),
        *_differences("Environment", {name: run.versions for name, run in runs.items()}),
        *_tests(runs),
        *_probes(runs),
        *page.drawings("What each epoch comes to", _drawn(runs, OF_EPOCHS)),
        *page.drawings("What they do", _drawn(runs, OF_STEPS)),
        *page.drawings("What they learn", _drawn(runs, OF_LOOKS)),
    ]
    page.write_page(path, ", ".join(runs), parts)


def _names(folders: Sequence[Path]) -> list[str]:
    """Name runs by the shortest ends of their paths that differ."""
    for length in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = ["/".join(folder.parts[-length:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    return list(map(str, folders))


_SUMMARY = ("run", "how far", "loss", "monitor", "checkpoint to keep", "why")


def _summary(name: str, run: RunTables) -> list[Any]:
    loss = run.steps[-1].get("loss") if run.steps else None
    state = run.looks[-1].get("state", "") if run.looks else ""
    step, why = run.to_keep() or (None, "")
    return [name, run.progress, loss, state, "" if step is None else f"step {step:,}", why]


def _drawn(
    runs: Mapping[str, RunTables], wanted: Sequence[tuple[str, tuple[str, ...], bool]]
) -> list[str | None]:
    """Draw the columns that at least two runs have, with a curve for each run.

    The first column below each title is drawn in any case.
    """
    drawn = []
    for title, names, logarithmic in wanted:
        found = {name: run.curves_of(names) for name, run in runs.items()}
        labels = list(dict.fromkeys(label for curves in found.values() for label in curves))
        for label in labels:
            curves: Curves = {name: one[label] for name, one in found.items() if label in one}
            if len(curves) > 1 or label == labels[0]:
                text = title if len(labels) == 1 or label == title.lower() else f"{title}: {label}"
                drawn.append(draw_curves(text, curves, logarithmic))
    return drawn


def _tests(runs: Mapping[str, RunTables]) -> list[str]:
    names = ("top1", "top5", "loss", "num_counted")
    rows = [
        [name, *(run.test[column] for column in names)]
        for name, run in runs.items()
        if "top1" in run.test
    ]
    head = ["run", "top-1", "top-5", "loss", "test videos"]
    of_boxes = [
        [name, kind, *(run.test[kind][n] for n in ("mean_average_precision", "key_frames"))]
        for name, run in runs.items()
        for kind in KINDS_OF_BOXES
        if kind in run.test
    ]
    of_boxes_head = ["run", "boxes", "mAP", "key frames"]
    return [
        *(["<h2>Test</h2>", page.table(rows, head)] if rows else []),
        *(["<h2>Test of boxes</h2>", page.table(of_boxes, of_boxes_head)] if of_boxes else []),
    ]


def _probes(runs: Mapping[str, RunTables]) -> list[str]:
    found = [
        (name, encoder, row) for name, run in runs.items() for encoder, row in run.probe.items()
    ]
    if not found:
        return []
    names = list(dict.fromkeys(column for _, _, row in found for column in row))
    rows = [[name, encoder, *(row.get(column) for column in names)] for name, encoder, row in found]
    head = ["run", "encoder", *(column.replace("_", " ") for column in names)]
    return ["<h2>Frozen probes</h2>", page.table(rows, head)]


def _differences(heading: str, values: Mapping[str, Mapping[str, Any]]) -> list[str]:
    names = sorted({name for options in values.values() for name in options})
    rows = [[name, *(one.get(name, _NEITHER) for one in values.values())] for name in names]
    different = [row for row in rows if any(value != row[1] for value in row[2:])]
    same = f"<p>{len(rows) - len(different):,} of {len(rows):,} are the same.</p>"
    if not rows:
        return []
    shown = [page.table(different, ["", *values])] if different else []
    return [f"<h2>{page.text(heading)}</h2>", same, *shown]
