"""Draw curves of a run's tables, and models as points, with Matplotlib (App. C, Fig. 5)."""

import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keras_vjepa import files
from keras_vjepa.monitoring.tables import Row

_SIZE = (6.2, 2.6)
# Number of points of a curve, at most. The page of a long run would otherwise take megabytes.
MOST_POINTS = 1000
# Pairs of a step and its value.
Points = Sequence[tuple[float, float]]


def points_of(rows: Sequence[Row], name: str) -> Points:
    """Take a column of a table as pairs of a step and a value.

    Args:
        rows: rows that have a `step`.
        name: name of the column; rows without a number in it are left out.
    """
    return [(row["step"], row[name]) for row in rows if _is_number(row.get(name))]


def draw_curves(title: str, curves: Mapping[str, Points], logarithmic: bool = False) -> str | None:
    """Draw curves over the steps, as SVG that can be put into a page.

    Args:
        title: text above the curves.
        curves: points by their name in the legend; curves without a point are left out.
        logarithmic: whether the axis of the values is logarithmic.

    Returns:
        The SVG; None if no curve has a point.
    """
    shown = {label: points for label, points in curves.items() if points}
    if not shown:
        return None
    return _as_svg(_figure(title, shown, logarithmic))


def _as_svg(figure: Any) -> str:
    # Imported here, because loading a model does not need Matplotlib.
    from matplotlib import rc_context

    written = io.StringIO()
    # The metadata that says who wrote the file and when is left out, because it contains addresses,
    # and a page must not refer to other places.
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    # Text stays text: shapes of the letters would make up half of a page.
    with rc_context({"svg.fonttype": "none"}), warnings.catch_warnings():
        # Names of runs may have letters that Matplotlib cannot draw; the browser can.
        warnings.filterwarnings("ignore", "Glyph .* missing")
        figure.savefig(written, format="svg", metadata=nothing)
    text = written.getvalue()
    return text[text.index("<svg") :]


def draw_points(
    path: Path, axis: str, panels: Mapping[str, Mapping[str, tuple[float, float]]]
) -> None:
    """Draw models as points over what their pretraining took, as in Fig. 5, and write an SVG.

    Args:
        path: path of the picture, an .svg.
        axis: what the horizontal axis shows; its scale is logarithmic.
        panels: by what the vertical axis shows, the two positions of each model by its name.

    Raises:
        OSError: if the picture cannot be written.
    """
    # Imported here, because loading a model does not need Matplotlib.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_SIZE[0] * len(panels), 1.4 * _SIZE[1]), layout="constrained")
    rooms = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, points) in zip(rooms, panels.items(), strict=True):
        for name, place in points.items():
            axes.plot(*place, "o", label=name)
        axes.set_xscale("log")
        axes.set_xlabel(axis, fontsize=8)
        axes.set_ylabel(title, fontsize=8)
        axes.margins(0.15)
        axes.tick_params(labelsize=8, which="both")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        # Names of folders may be long, so that they stand below the axes and not at the points.
        axes.legend(
            fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(0, -0.2), borderaxespad=0
        )
    files.write_text(path, _as_svg(figure))


def draw_loss(losses: Sequence[float], path: Path) -> None:
    """Draw the loss of every step as a picture.

    Args:
        losses: loss of every step; at least one.
        path: path of the picture, a .png.

    Raises:
        OSError: if the picture cannot be written.
    """
    figure = _figure("Loss", {"loss": [*enumerate(losses, start=1)]}, logarithmic=False)
    written = io.BytesIO()
    figure.savefig(written, format="png", dpi=120)
    files.write_bytes(path, written.getvalue())


def _figure(title: str, curves: Mapping[str, Points], logarithmic: bool) -> Any:
    # Imported here, because loading a model does not need Matplotlib.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.add_subplot()
    for label, points in curves.items():
        steps, values = _thinned(np.array(points, "float64"))
        marker = "." if len(steps) < 30 else ""
        axes.plot(steps, values, label=label, linewidth=1.2, marker=marker)
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel("step", fontsize=8)
    if logarithmic:
        axes.set_yscale("log")
    else:
        # Labels are whole numbers of the curve, not differences from one that stands above.
        axes.ticklabel_format(axis="y", useOffset=False)
    axes.tick_params(labelsize=8, which="both")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    if len(curves) > 1:
        axes.legend(fontsize=7, frameon=False)
    return figure


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and bool(np.isfinite(value))


def _thinned(points: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Replace neighbouring points by their mean if there are too many."""
    size = -(-len(points) // MOST_POINTS)
    starts = range(0, len(points), size)
    means = np.array([points[start : start + size].mean(axis=0) for start in starts])
    return means[:, 0], means[:, 1]
