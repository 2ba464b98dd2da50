"""The page of a run: all of it in one file, nothing from elsewhere, and true."""

import html.parser
import json
import re
import shutil
import subprocess

import cv2
import numpy as np
import pytest

from keras_vjepa.monitoring import curves, report, side_by_side
from keras_vjepa.monitoring.pictures import draw_masks
from keras_vjepa.monitoring.tables import Table
from keras_vjepa.tools import compare_runs, report_run

pytestmark = pytest.mark.data


class Page(html.parser.HTMLParser):
    """Which addresses a page asks for, its headings, and whether its tags are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.addresses, self.headings, self.open, self.policy = [], [], [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        asked = ("src", "href", "xlink:href", "action", "data")
        self.addresses += [value for name, value in attributes if name in asked]
        self.policy = dict(attributes).get("content") or self.policy
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
            "input_mean": 0.125,
            "input_deviation": 0.5,
            "context_share_mask_0": 0.25,
            "target_share_mask_0": 0.75,
            "state": "unclear",
            "words": f"word {i} & <b>",
        }
        for i in range(3)
    ]
    Table(workdir / "monitor").add(looks)
    (workdir / "checkpoints").mkdir()
    for step in (1, 2):
        (workdir / "checkpoints" / f"step-0000000{step}-0.npz").touch()
    (workdir / "config.json").write_text(json.dumps({"steps": 8, "learning_rate": 0.00054321}))
    (workdir / "probe.json").write_text(json.dumps({"untrained": {"digit_accuracy": 0.3125}}))
    videos = np.random.default_rng(0).normal(size=(2, 4, 16, 16, 3))
    draw_masks(videos, np.array([[0, 3, -1], [1, 2, 5]]), (2, 2, 2), workdir / "masks.png")
    return workdir


def test_one_file_with_everything(run):
    path = report.write_report(run)
    text = path.read_text()
    page = Page(text)
    assert page.open == []
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    assert page.policy.startswith("default-src 'none'; ")
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
    assert (
        "Checkpoint to keep: that of step 2. Neighbours name" in text
        and "word 1 &amp; &lt;b&gt;" in text
    )
    assert "0.0005432" in text and "0.3125" in text
    assert "encoder sees 25% (predicted 75%). Its pixels have the mean 0.12 and the" in text
    # There are curves of the loss, of ranks and of neighbours.
    assert text.count("<svg") == 3


def test_a_checkpoint_that_is_gone_is_not_named(run):
    (run / "checkpoints" / "step-00000002-0.npz").unlink()
    assert "Checkpoint to keep: that of step 1." in report.write_report(run).read_text()
    (run / "checkpoints" / "step-00000001-0.npz").unlink()
    assert "No look is at a checkpoint that is there." in report.write_report(run).read_text()


def test_what_was_known_after_a_step(run):
    path = report.write_report(run, step=1)
    text = path.read_text()
    assert path.name == "report_step_1.html"
    assert "1 of 8 steps are done" in text and "word 1" in text and "word 2" not in text
    # The probe's results belong to the end of the run.
    assert "Frozen probe" not in Page(text).headings
    with pytest.raises(FileNotFoundError, match="must have come to step 5. Received: 4 steps"):
        report.write_report(run, step=5)


def test_a_long_curve_is_thinned_and_keeps_its_mean():
    points = np.stack([np.arange(5000.0), np.arange(5000.0) % 7], axis=1)
    steps, values = curves._thinned(points)
    assert len(steps) == curves.MOST_POINTS
    assert values.mean() == pytest.approx(points[:, 1].mean())
    rows = [{"step": 1, "a": 2.0}, {"step": 2, "a": None}, {"step": 3, "a": float("nan")}]
    assert curves.points_of(rows, "a") == [(1, 2.0)]
    assert curves.draw_curves("t", {"A": [(1, 2.0)], "B": []}).startswith("<svg")
    assert curves.draw_curves("t", {"B": []}) is None


def test_the_command(run, tmp_path, capsys):
    with pytest.raises(SystemExit, match="must be the folder of a run. Received: .*nothing"):
        report_run.main([str(tmp_path / "nothing")])
    with pytest.raises(SystemExit, match="`output` must end in .html. Received: .*page.pdf"):
        report_run.main([str(run), "--output", str(tmp_path / "page.pdf")])
    report_run.main([f"{run}@2", "--output", str(tmp_path / "page.html")])
    assert capsys.readouterr().out == f"Wrote {tmp_path / 'page.html'}.\n"
    assert "2 of 8 steps are done" in (tmp_path / "page.html").read_text()


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
@pytest.mark.parametrize("several", [False, True])
def test_a_browser_has_nothing_to_say_and_asks_for_nothing(several, run, other, tmp_path):
    path, log = tmp_path / "page.html", tmp_path / "net.json"
    if several:
        side_by_side.write_comparison([run, other], path)
    else:
        report.write_report(run, path)
    browse = (
        f"{CHROMIUM} --headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
        "--disable-background-networking --disable-component-update --disable-sync "
        # Requests of the browser itself are blocked. They have no page as their initiator.
        "--host-resolver-rules=MAP,*,~NOTFOUND "
        f"--user-data-dir={tmp_path / 'user'} --enable-logging=stderr --log-net-log={log} "
        f"--window-size=1340,3000 --screenshot={tmp_path / 'page.png'}"
    ).split()
    browse = [option.replace(",", " ") if "MAP" in option else option for option in browse]

    def said():
        ended = subprocess.run([*browse, path.as_uri()], capture_output=True, text=True, timeout=99)
        asked = re.findall(r'"initiator":"(?:null|file)', log.read_text())
        return [line for line in ended.stderr.splitlines() if "CONSOLE" in line], len(asked)

    assert said() == ([], 0)
    picture = cv2.imread(str(tmp_path / "page.png"))
    assert picture.shape == (3000, 1340, 3) and len(np.unique(picture)) > 20
    # This shows that the test can fail: the page now asks for something, first with a policy that
    # forbids it, and then without.
    asking = path.read_text().replace("</body>", "<script src='https://a.b/c.js'></script>")
    path.write_text(asking)
    console, asked = said()
    assert "violates" in console[0] and asked == 0
    path.write_text(asking.replace("default-src", "nothing-src"))
    assert said()[1] == 1


# --- Several runs --------------------------------------------------------------------------------


@pytest.fixture
def other(run, tmp_path):
    """A run of one step more, another learning rate and no looks."""
    workdir = tmp_path / "other"
    workdir.mkdir()
    Table(workdir / "steps").add([{"step": i, "loss": 2 / i} for i in range(1, 6)])
    options = {"steps": 8, "learning_rate": 0.001, "new": [1, 2]}
    (workdir / "options.json").write_text(json.dumps(options))
    return workdir


def test_runs_side_by_side(run, other, tmp_path, capsys):
    compare_runs.main([str(run), str(other), "--output", str(tmp_path / "compare.html")])
    text = (tmp_path / "compare.html").read_text()
    page = Page(text)
    assert page.open == []
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    assert page.headings == [
        "a run <1>, other",
        "Config: what differs",
        "Frozen probes",
        "What they do",
        "What they learn",
    ]
    assert "5 of 8 steps are done" in text and "step 2" in text
    # The curves are the losses of both and what one of them measured; losses of masks that only one
    # has are left out.
    assert text.count("<svg") == 3
    assert "1 of 3 are the same." in text
    assert "<td>learning_rate</td><td>0.0005432</td><td>0.001</td>" in text
    assert "<td>new</td><td>absent</td><td>[1, 2]</td>" in text
    assert "<td>steps</td>" not in text


def test_what_cannot_be_compared_is_one_line(run, tmp_path, capsys):
    for runs, what in (
        ([run], "`runs` must be two or more folders, each another"),
        ([run, run], "`runs` must be two or more folders, each another"),
        ([run, tmp_path / "nothing"], "must be the folder of a run. Received: "),
        ([run, f"{run}@2"], "`runs` must be folders, without @STEP. Received: "),
    ):
        with pytest.raises(SystemExit) as error:
            compare_runs.main([*map(str, runs)], "keras-vjepa compare")
        assert error.value.code == 2
        [line] = capsys.readouterr().err.splitlines()
        assert what in line


def test_runs_of_one_name_are_told_apart_by_their_folders(run, tmp_path):
    (tmp_path / "b").mkdir()
    shutil.copytree(run, tmp_path / "b" / run.name)
    side_by_side.write_comparison([run, tmp_path / "b" / run.name], tmp_path / "page.html")
    [heading] = [h for h in Page((tmp_path / "page.html").read_text()).headings if "/" in h]
    assert heading == f"{tmp_path.name}/{run.name}, b/{run.name}"
