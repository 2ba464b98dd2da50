"""The notebooks of docs/notebooks/ run, each on one backend, and are shown with their outputs."""

import base64
import json
import os
import re
import subprocess
import sys

import keras
import pytest

from tests.support import ROOT
from website import notebooks, run_notebook

# The backend on which each notebook is run: every backend is used, and no notebook is run twice.
BACKENDS = {
    "features": "torch",
    "pretraining": "torch",
    "classifying": "jax",
    "fine_tuning": "tensorflow",
}
PIXEL = base64.b64encode(b"a picture").decode()


def codes(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def kinds(outputs):
    """What a cell shows, and the words in what it prints: numbers differ between machines."""
    return [
        sorted(output["data"] if "data" in output else words("".join(output["text"])))
        for output in outputs
    ]


def words(text):
    return re.findall("[a-zA-Z_]+", text)


@pytest.mark.data
def test_every_notebook_has_a_backend():
    assert {path.stem for path in notebooks.notebooks()} == set(BACKENDS)


@pytest.mark.data
@pytest.mark.parametrize("name", BACKENDS)
def test_its_outputs_are_kept(name):
    """Of a run from top to bottom, with pictures, and with nothing of the machine that made it."""
    notebook = json.loads((notebooks.FOLDER / f"{name}.ipynb").read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    assert [cell["execution_count"] for cell in codes(notebook)] == [
        *range(1, len(codes(notebook)) + 1)
    ]
    outputs = [output for cell in codes(notebook) for output in cell["outputs"]]
    assert any("image/png" in output.get("data", ()) for output in outputs)
    text = "".join(line for output in outputs for line in output.get("text", ()))
    assert words(text) and not re.search(r"/(tmp|home|root|work)/", text)
    # A cell holds one thought, so it must fit on a screen.
    assert max(len(cell["source"]) for cell in codes(notebook)) <= 30


@pytest.mark.data
def test_a_notebook_becomes_a_page(tmp_path):
    stream = {"output_type": "stream", "name": "stdout", "text": ["5\n"]}
    drawn = {"output_type": "display_data", "data": {"image/png": PIXEL, "text/plain": ["<F>"]}}
    value = {"output_type": "execute_result", "data": {"text/plain": ["[1,\n", " 2]"]}}
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "\n", "[a](../speed.md)"]},
        {"cell_type": "code", "source": "f(5)", "outputs": [stream, drawn, value]},
    ]
    path = tmp_path / "a.ipynb"
    path.write_text(json.dumps({"cells": cells}))
    page, pictures = notebooks.page_and_pictures(path)
    assert page.startswith(
        "# Title\n\n[a](../speed.md)\n\n```python\nf(5)\n```\n\n```{ .text .output }\n5\n```"
    )
    assert pictures == {"a_1_1.png": b"a picture"}
    assert '<img src="a_1_1.png"' in page and "```{ .text .output }\n[1,\n 2]\n```" in page
    assert 'href="a.ipynb"' in page


@pytest.mark.data
def test_a_cell_shows_what_it_prints_draws_and_ends_with(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    names = {}
    [printed, value] = run_notebook.run_cell("print('0 %\\r9 %')\na = 3\na + 1", names)
    assert printed["text"] == ["9 %\n"] and names["a"] == 3
    assert value["data"] == {"text/plain": ["4"]}
    assert run_notebook.run_cell("a;", names) == run_notebook.run_cell("a = 4", names) == []
    source = "import matplotlib.pyplot as plt\nplt.plot([a]);"
    [figure] = run_notebook.run_cell(source, names)
    assert base64.b64decode(figure["data"]["image/png"])[1:4] == b"PNG"
    assert run_notebook.run_cell("1 if a else 2", names)[0]["data"] == {"text/plain": ["1"]}
    with pytest.raises(ZeroDivisionError):
        run_notebook.run_cell("1 / 0", names)


def files_and_times():
    return {
        path: path.stat().st_mtime_ns
        for room in ("docs", "keras_vjepa", "recipes", "tools", "website")
        for path in (ROOT / room).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKENDS)
def test_it_runs_and_writes_nothing_into_the_repository(name, tmp_path):
    if keras.config.backend() != BACKENDS[name]:
        pytest.skip(f"it is run on {BACKENDS[name]}")
    kept = notebooks.FOLDER / f"{name}.ipynb"
    copy = tmp_path / kept.name
    copy.write_text(kept.read_text())
    before = files_and_times()
    done = subprocess.run(
        [sys.executable, str(ROOT / "website" / "run_notebook.py"), str(copy)],
        env={**os.environ, "KERAS_BACKEND": BACKENDS[name], "XLA_FLAGS": ""},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert files_and_times() == before
    found, expected = (codes(json.loads(path.read_text())) for path in (copy, kept))
    for cell, stored in zip(found, expected, strict=True):
        assert kinds(cell["outputs"]) == kinds(stored["outputs"]), "".join(cell["source"])
