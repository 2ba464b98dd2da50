"""Curves of a run's tables, drawn by Matplotlib as SVG that stands in a page (App. C)."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_vjepa.monitoring.tables import Row

_SIZE = (6.2, 2.6)
# Points of a curve, at most: a long run's page would have megabytes of them.
MOST_POINTS = 1000


class NoMatplotlibError(ImportError):
    """Raised where a page is to be drawn and Matplotlib is not installed."""

    def __init__(self) -> None:
        super().__init__("A report needs Matplotlib: pip install 'keras-vjepa[report]'")


def draw_curves(
    title: str, rows: Sequence[Row], names: Mapping[str, str], logarithmic: bool = False
) -> str | None:
    """Draw columns of a table over the steps.

    Args:
        title: above the curves.
        rows: with `step`.
        names: of the columns, with what the legend calls them; those without a number are left out.
        logarithmic: whether the values' axis is.

    Returns:
        The SVG; None if no column has a number.

    Raises:
        NoMatplotlibError: without Matplotlib.
    """
    figure_class = _figure_class()
    figure = figure_class(figsize=_SIZE, layout="constrained")
    axes = figure.add_subplot()
    drawn = 0
    for name, label in names.items():
        points = [(row["step"], row[name]) for row in rows if _is_number(row.get(name))]
        if points:
            steps, values = _thinned(np.array(points, "float64"))
            marker = "." if len(steps) < 30 else ""
            axes.plot(steps, values, label=label, linewidth=1.2, marker=marker)
            drawn += 1
    if not drawn:
        return None
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel("step", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
    if logarithmic:
        axes.set_yscale("log")
    if drawn > 1:
        axes.legend(fontsize=7, frameon=False)
    written = io.StringIO()
    # Nothing of who wrote it and when: a page has no address of elsewhere in it.
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(written, format="svg", metadata=nothing)
    text = written.getvalue()
    return text[text.index("<svg") :]


def check_matplotlib() -> None:
    """Raise `NoMatplotlibError` unless Matplotlib is installed."""
    _figure_class()


def _figure_class() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise NoMatplotlibError from error
    return Figure


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and bool(np.isfinite(value))


def _thinned(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of neighbouring points where there are too many."""
    size = -(-len(points) // MOST_POINTS)
    starts = range(0, len(points), size)
    means = np.array([points[start : start + size].mean(axis=0) for start in starts])
    return means[:, 0], means[:, 1]
