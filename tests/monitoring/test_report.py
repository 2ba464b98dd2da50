"""The page of a run: all of it in one file, nothing from elsewhere, and true."""

import html.parser
import json
import sys

import numpy as np
import pytest

from keras_vjepa.monitoring import curves, report
from keras_vjepa.monitoring.pictures import draw_masks
from keras_vjepa.monitoring.tables import Table
from keras_vjepa.tools import report_run

pytestmark = pytest.mark.data


class Page(html.parser.HTMLParser):
    """Which addresses a page asks for, its headings, and whether its tags are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.addresses, self.headings, self.open = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        asked = ("src", "href", "xlink:href", "action", "data")
        self.addresses += [value for name, value in attributes if name in asked]
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("h1", "h2"):
            self.headings.append(data)


@pytest.fixture
def run(tmp_path):
    workdir = tmp_path / "a run <1>"
    workdir.mkdir()
    Table(workdir / "steps").add(
        [
            {"step": i, "loss": 1 / i, "loss_mask_0": 1 / i, "clipped_encoder": int(i > 3)}
            for i in range(1, 5)
        ]
    )
    looks = [
        {
            "step": i,
            "target_clip_rank": 3.0 + i,
            "neighbors_digit": 0.2 * i,
            "state": "unclear",
            "words": f"word {i} & <b>",
        }
        for i in range(3)
    ]
    Table(workdir / "monitor").add(looks)
    (workdir / "config.json").write_text(json.dumps({"steps": 8, "learning_rate": 0.00054321}))
    (workdir / "probe.json").write_text(json.dumps({"untrained": {"digit_accuracy": 0.3125}}))
    videos = np.random.default_rng(0).normal(size=(2, 4, 16, 16, 3))
    draw_masks(videos, np.array([[0, 3, -1], [1, 2, 5]]), (2, 2, 2), workdir / "masks.png")
    return workdir


def test_one_file_with_everything(run):
    pytest.importorskip("matplotlib")
    path = report.write_report(run)
    text = path.read_text()
    page = Page(text)
    assert page.open == []
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    assert page.headings == [
        "a run <1>",
        "What the monitor said",
        "What it does",
        "What it learns",
        "Masks",
        "Frozen probe",
        "Config",
    ]
    assert "4 of 8 steps are done; the gradient was clipped in 25% of them." in text
    assert "Checkpoint to keep: that of step 2" in text and "word 1 &amp; &lt;b&gt;" in text
    assert "0.0005432" in text and "0.3125" in text
    # A curve of the loss, of ranks and of neighbours.
    assert text.count("<svg") == 3


def test_a_long_curve_is_thinned_and_keeps_its_mean(monkeypatch):
    pytest.importorskip("matplotlib")
    points = np.stack([np.arange(5000.0), np.arange(5000.0) % 7], axis=1)
    steps, values = curves._thinned(points)
    assert len(steps) == curves.MOST_POINTS
    assert values.mean() == pytest.approx(points[:, 1].mean())
    short = curves.draw_curves("t", [{"step": 1, "a": 2.0}, {"step": 2, "a": None}], {"a": "A"})
    assert short is not None and short.startswith("<svg")
    assert curves.draw_curves("t", [{"step": 1, "a": None}], {"a": "A"}) is None


def test_the_command(run, tmp_path, capsys, monkeypatch):
    with pytest.raises(SystemExit, match="must be the folder of a run. Received: .*nothing|Matpl"):
        report_run.main([str(tmp_path / "nothing")])
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(SystemExit) as error:
        report_run.main([str(run)], "keras-vjepa report")
    assert str(error.value) == (
        "keras-vjepa report: A report needs Matplotlib: pip install 'keras-vjepa[report]'"
    )
    report.write_report_if_possible(run)
    assert capsys.readouterr().err.startswith("No report.html. A report needs Matplotlib")
    assert not (run / "report.html").exists()
