"""Run notebooks and keep what their cells print and draw, without Jupyter.

    KERAS_BACKEND=torch python website/run_notebook.py docs/notebooks/features.ipynb

Each notebook is run in an empty folder, with an empty cache, and then holds its new outputs. As in
Jupyter, a cell shows what it prints, the figures that it draws and the value of its last line.
"""

import ast
import base64
import contextlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

Output = dict[str, Any]


def outputs_of(notebook: dict[str, Any]) -> list[list[Output]]:
    """Run the code cells of a notebook, one after the other, and return their outputs.

    Args:
        notebook: what the file holds; it is not changed.

    Returns:
        The outputs of each code cell.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    codes = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return [
        run_cell("".join(cell["source"]), names, count) for count, cell in enumerate(codes, start=1)
    ]


def run_cell(source: str, names: dict[str, Any], count: int = 1) -> list[Output]:
    """Run a cell and return its outputs: what was printed, a value, figures.

    Args:
        source: the code.
        names: names that earlier cells have given; those of this one are added.
        count: number of the cell.
    """
    printed = io.StringIO()
    label = f"<cell {count}>"
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    value = None
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, label, "exec"), names)
        if isinstance(last, ast.Expr) and not source.rstrip().endswith(";"):
            value = eval(compile(ast.Expression(last.value), label, "eval"), names)
        elif isinstance(last, ast.Expr):
            exec(compile(ast.Module([last], []), label, "exec"), names)
    stream: list[Output] = []
    if printed.getvalue():
        text = _lines(printed.getvalue())
        stream = [{"output_type": "stream", "name": "stdout", "text": text}]
    shown = [] if value is None else [_value(value, count)]
    return [*stream, *shown, *_figures()]


def _lines(text: str) -> list[str]:
    """Return lines as a terminal shows them: a carriage return begins the line again."""
    lines = text.removesuffix("\n").split("\n")
    return [line.rstrip("\r").rpartition("\r")[2] + "\n" for line in lines]


def _value(value: Any, count: int) -> Output:
    data: dict[str, Any] = {"text/plain": repr(value).splitlines(keepends=True)}
    drawn = getattr(value, "_repr_png_", lambda: None)()
    if drawn:
        data["image/png"] = base64.b64encode(drawn).decode()
    return {
        "output_type": "execute_result", "execution_count": count, "metadata": {}, "data": data
    }  # fmt: skip


def _figures() -> list[Output]:
    """Return the figures that are open, and close them."""
    if "matplotlib.pyplot" not in sys.modules:
        return []
    import matplotlib.pyplot as plt

    found = []
    for number in plt.get_fignums():
        drawn = io.BytesIO()
        plt.figure(number).savefig(drawn, format="png", dpi=80, bbox_inches="tight")
        data = {
            "image/png": base64.b64encode(drawn.getvalue()).decode(),
            "text/plain": ["<Figure>"],
        }
        found.append({"output_type": "display_data", "metadata": {}, "data": data})
    plt.close("all")
    return found


def run(path: Path) -> dict[str, Any]:
    """Run a notebook in an empty folder with an empty cache, and return it with its outputs."""
    notebook: dict[str, Any] = json.loads(path.read_text())
    with tempfile.TemporaryDirectory() as folder:
        os.environ["KERAS_VJEPA_CACHE"] = str(Path(folder) / "cache")
        os.environ.setdefault("MPLBACKEND", "agg")
        work = Path(folder) / "work"
        work.mkdir()
        with contextlib.chdir(work):
            outputs = outputs_of(notebook)
    codes = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for count, (cell, shown) in enumerate(zip(codes, outputs, strict=True), start=1):
        cell["execution_count"], cell["outputs"] = count, shown
    return notebook


def main() -> None:
    for name in sys.argv[1:]:
        path = Path(name)
        path.write_text(json.dumps(run(path), indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
