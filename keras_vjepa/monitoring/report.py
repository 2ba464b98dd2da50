"""Write a page about a run, as a single file that needs no network (§3.1, App. C)."""

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
    RunTables,
    read_run,
)
from keras_vjepa.monitoring.tables import Row

FILE_NAME = "report.html"
MASKS_FILE = "masks.png"
# Number of classes that are shown.
_WORST = 20


def write_report(workdir: Path, path: Path | None = None, step: int | None = None) -> Path:
    """Write the page of a run, finished or not.

    Args:
        workdir: folder of the run.
        path: path of the page; if None, `report.html` in the run's folder, or
            `report_step_300.html` for a step.
        step: shows the run as it was after that step; None for the whole run.

    Returns:
        The path of the page.

    Raises:
        FileNotFoundError: if the folder holds no run, or the run has not reached the step.
        OSError: if the page cannot be written.
    """
    run = read_run(workdir, step)
    parts = [
        f"<p>{page.text(run.progress)}{page.text(_clipped(run.steps))}.</p>",
        *_test(run.test),
        *_said(run),
        *page.drawings("What each epoch comes to", _drawn(run, OF_EPOCHS)),
        *page.drawings("What it does", _drawn(run, OF_STEPS)),
        *page.drawings("What it learns", _drawn(run, OF_LOOKS)),
        *_masks(workdir / MASKS_FILE, run.looks),
        *_probe(run.probe),
        *page.pairs("Config", run.options),
        *page.pairs("Environment", run.versions),
    ]
    if path is None:
        path = workdir / (FILE_NAME if step is None else f"report_step_{step}.html")
    page.write_page(path, workdir.resolve().name, parts)
    return path


def _drawn(run: RunTables, wanted: Sequence[tuple[str, tuple[str, ...], bool]]) -> list[str | None]:
    return [
        draw_curves(title, run.curves_of(names), logarithmic)
        for title, names, logarithmic in wanted
    ]


def _clipped(steps: Sequence[Row]) -> str:
    if not steps:
        return ""
    clipped = [row for row in steps if row.get("clipped_encoder") or row.get("clipped_predictor")]
    return f"; the gradient was clipped in {len(clipped) / len(steps):.0%} of them"


def _said(run: RunTables) -> list[str]:
    if not run.looks:
        return []
    rows = "".join(
        f'<tr><td>{row["step"]:,}</td><td class="{page.text(row.get("state", ""))}">'
        f"{page.text(row.get('state', ''))}</td><td>{page.text(row.get('words', ''))}</td></tr>"
        for row in run.looks
    )
    found = run.to_keep()
    are_there = any(row["step"] in run.saved for row in run.looks)
    to_keep = (
        "No look at a checkpoint has a score."
        if are_there
        else "No look is at a checkpoint that is there."
    )
    if found is not None:
        why = found[1][0].upper() + found[1][1:]
        to_keep = f"Checkpoint to keep: that of step {found[0]:,}. {why}."
    return [
        "<h2>What the monitor said</h2>",
        f"<p>{page.text(to_keep)}</p>",
        f"<table><tr><th>step</th><th>it is</th><th>because</th></tr>{rows}</table>",
    ]


def _test(found: Mapping[str, Any]) -> list[str]:
    """Write the accuracy on the test videos, and the classes with the lowest accuracy."""
    if "top1" not in found:
        return [part for kind in KINDS_OF_BOXES if kind in found for part in _boxes(kind, found)]
    names, shares = found["class_names"], found["per_class"]
    classes = [
        (share, str(number) if names is None else names[number])
        for number, share in enumerate(shares)
        if share is not None
    ]
    worst = [[name, f"{share:.1%}"] for share, name in sorted(classes)[:_WORST]]
    return [
        "<h2>Test</h2>",
        f"<p>{found['top1']:.1%} of {found['num_counted']:,} videos are named right, of "
        f"{found['top5']:.1%} the name is among the first five. Least often, of "
        f"{len(classes):,} classes:</p>",
        page.table(worst, ["class", "named right"]),
    ]


def _boxes(kind: str, found: Mapping[str, Any]) -> list[str]:
    """Write the mean average precision of a detector, and the actions of the lowest precision."""
    test = found[kind]
    score, actions = test["mean_average_precision"], test["by_action"]
    worst = sorted((share, name) for name, share in actions.items() if share is not None)[:_WORST]
    return [
        f"<h2>Test with {kind} boxes</h2>",
        f"<p>mAP {'unknown' if score is None else f'{score:.1%}'}, of {test['key_frames']:,} key "
        f"frames, of which {len(test['unreadable']):,} could not be read. Lowest, of "
        f"{len(actions):,} actions:</p>",
        page.table([[name, f"{share:.1%}"] for share, name in worst], ["action", "precision"]),
    ]


def _masks(path: Path, looks: Sequence[Row]) -> list[str]:
    if not path.is_file():
        return []
    return [
        "<h2>Masks</h2>",
        "<p>Clips that the monitor looks at; a row for each, and light is what the encoder sees of "
        f"the first kind of mask.{_given(looks[-1]) if looks else ''}</p>",
        page.picture(path, "clips and masks"),
    ]


def _given(look: Row) -> str:
    """Say which shares of the tokens are seen and predicted, and how bright the pixels are."""
    # Runs of earlier versions lack the numbers, and pixels that are not finite have none.
    if look.get("input_mean") is None or look.get("input_deviation") is None:
        return ""
    kinds = [name for name in look if name.startswith("context_share_mask_")]
    shares = " and ".join(
        f"{look[name]:.0%} (predicted {look[name.replace('context', 'target')]:.0%})"
        for name in kinds
    )
    return (
        f" Of a clip's tokens, the encoder sees {shares}. Its pixels have the mean "
        f"{look['input_mean']:.2f} and the deviation {look['input_deviation']:.2f}."
    )


def _probe(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    if not found:
        return []
    names = list(dict.fromkeys(name for row in found.values() for name in row))
    head = ["", *(name.replace("_", " ") for name in names)]
    rows = [[encoder, *(row.get(name) for name in names)] for encoder, row in found.items()]
    return ["<h2>Frozen probe</h2>", page.table(rows, head)]
