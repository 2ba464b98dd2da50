"""One page of a run, in one file that opens without a network (§3.1, App. C)."""

import base64
import html
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from keras_vjepa import files
from keras_vjepa.monitoring import monitor, step_log
from keras_vjepa.monitoring.curves import NoMatplotlibError, check_matplotlib, draw_curves
from keras_vjepa.monitoring.health import checkpoint_to_keep
from keras_vjepa.monitoring.tables import Row, read_rows
from keras_vjepa.training.continuing import stored_options
from keras_vjepa.training.results import CHECKPOINTS, read_result
from keras_vjepa.training.run_state import Checkpoints

FILE_NAME = "report.html"
MASKS_FILE = "masks.png"

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1300px; margin: 2em auto; padding: 0 1em;
       color: #222; background: #fff; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; }
table { border-collapse: collapse; font-size: 13px; } th { text-align: left; }
td, th { padding: .15em .9em .15em 0; border-bottom: 1px solid #e4e4e4; vertical-align: top; }
.curves { display: flex; flex-wrap: wrap; gap: 1em; } .curves svg { max-width: 100%; height: auto; }
.collapse, .not { color: #a00; font-weight: 600; } img { max-width: 100%; }
"""

_OF_STEPS = (
    ("Loss", ("loss", "loss_mask_"), False),
    ("Gradient norms before clipping", ("gradient_norm_",), True),
    ("Learning rate", ("learning_rate",), False),
    ("Weight decay", ("weight_decay",), False),
    ("Momentum of the target encoder", ("momentum",), False),
    ("Clips a second", ("clips_per_second",), False),
    ("Share of the time that training waits for data", ("data_wait_share",), False),
)
_PARTS = ("target", "context", "predictions")
_OF_LOOKS = (
    ("Rank of clips", tuple(f"{part}_clip_rank" for part in _PARTS), False),
    ("Rank of tokens", tuple(f"{part}_token_rank" for part in _PARTS), False),
    (
        "Deviation of clips, of features of length one",
        tuple(f"{part}_clip_normalized_deviation" for part in _PARTS),
        False,
    ),
    ("Clips that neighbours name right", ("neighbors_",), False),
    ("LiDAR", ("target_lidar", "context_lidar"), False),
    ("Nearest clip is of the same video", ("target_retrieval", "context_retrieval"), False),
    ("Distance between the encoders' weights", ("encoder_distance",), False),
)


def write_report(workdir: Path, path: Path | None = None) -> Path:
    """Write the page of a run, finished or not.

    Args:
        workdir: of the run.
        path: of the page; `report.html` in the run's folder if None.

    Returns:
        The path of the page.

    Raises:
        FileNotFoundError: if the folder holds no run.
        NoMatplotlibError: without Matplotlib.
        OSError: if the page cannot be written.
    """
    check_matplotlib()
    steps = read_rows(workdir / f"{step_log.FILE_NAME}.jsonl")
    looks = read_rows(workdir / f"{monitor.FILE_NAME}.jsonl")
    options = stored_options(workdir)
    if not steps and not looks and not options:
        raise FileNotFoundError(f"`run` must be the folder of a run. Received: {workdir}")
    parts = [
        f"<h1>{_text(workdir.resolve().name)}</h1>",
        f"<p>{_text(_progress(steps, options))}</p>",
        *_said(looks),
        *_curves("What it does", steps, _OF_STEPS),
        *_curves("What it learns", looks, _OF_LOOKS),
        *_masks(workdir / MASKS_FILE),
        *_probe(read_result(workdir / "probe.json")),
        *_pairs("Config", options),
        *_pairs("Environment", Checkpoints(workdir / CHECKPOINTS).described().get("versions")),
    ]
    page = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<link rel="icon" href="data:,"><title>{_text(workdir.resolve().name)}</title>\n'
        f"<style>{_STYLE}</style></head><body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )
    path = workdir / FILE_NAME if path is None else path
    files.write_text(path, page)
    return path


def write_report_if_possible(workdir: Path) -> None:
    """Write the page of a run that is done where Matplotlib is installed; say it either way.

    Args:
        workdir: of the run.
    """
    try:
        line = f"Wrote {write_report(workdir)}."
    except NoMatplotlibError as error:
        line = f"No {FILE_NAME}. {error}; then keras-vjepa report {workdir} writes it."
    print(line, file=sys.stderr)


def _progress(steps: Sequence[Row], options: Mapping[str, Any]) -> str:
    done = steps[-1]["step"] if steps else 0
    whole = options.get("steps")
    of_all = f" of {whole:,}" if isinstance(whole, int) else ""
    clipped = [row for row in steps if row.get("clipped_encoder") or row.get("clipped_predictor")]
    share = (
        f"; the gradient was clipped in {len(clipped) / len(steps):.0%} of them" if steps else ""
    )
    return f"{done:,}{of_all} steps are done{share}."


def _said(looks: Sequence[Row]) -> list[str]:
    if not looks:
        return []
    rows = "".join(
        f'<tr><td>{row["step"]:,}</td><td class="{_text(row.get("state"))}">'
        f"{_text(row.get('state'))}</td><td>{_text(row.get('words'))}</td></tr>"
        for row in looks
    )
    step, why = checkpoint_to_keep(looks)
    return [
        "<h2>What the monitor said</h2>",
        f"<p>Checkpoint to keep: that of step {step:,}. {_text(why)}.</p>",
        f"<table><tr><th>step</th><th></th><th></th></tr>{rows}</table>",
    ]


def _curves(
    heading: str, rows: Sequence[Row], wanted: Sequence[tuple[str, tuple[str, ...], bool]]
) -> list[str]:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    drawn = []
    for title, names, logarithmic in wanted:
        chosen = {
            column: column.replace("_", " ")
            for name in names
            for column in columns
            if column == name or (name.endswith("_") and column.startswith(name))
        }
        drawn.append(draw_curves(title, rows, chosen, logarithmic) if chosen else None)
    shown = [one for one in drawn if one is not None]
    return [f"<h2>{heading}</h2>", f'<div class="curves">{"".join(shown)}</div>'] if shown else []


def _masks(path: Path) -> list[str]:
    if not path.is_file():
        return []
    data = base64.b64encode(path.read_bytes()).decode()
    return [
        "<h2>Masks</h2>",
        "<p>Clips that the monitor looks at; a row for each, and light is what the encoder sees of "
        "the first kind of mask.</p>",
        f'<img alt="clips and masks" src="data:image/png;base64,{data}">',
    ]


def _probe(found: Mapping[str, Any] | None) -> list[str]:
    if not found:
        return []
    names = list(dict.fromkeys(name for row in found.values() for name in row))
    head = "".join(f"<th>{_text(name.replace('_', ' '))}</th>" for name in names)
    rows = "".join(
        f"<tr><td>{_text(encoder)}</td>"
        + "".join(f"<td>{_text(_short(row.get(name)))}</td>" for name in names)
        + "</tr>"
        for encoder, row in found.items()
    )
    return ["<h2>Frozen probe</h2>", f"<table><tr><th></th>{head}</tr>{rows}</table>"]


def _pairs(heading: str, pairs: Mapping[str, Any] | None) -> list[str]:
    if not pairs:
        return []
    rows = "".join(
        f"<tr><td>{_text(name)}</td><td>{_text(_short(value))}</td></tr>"
        for name, value in sorted(pairs.items())
    )
    return [f"<h2>{heading}</h2>", f"<table>{rows}</table>"]


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)


def _text(value: Any) -> str:
    return html.escape(str(value))
