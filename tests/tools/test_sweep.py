"""The sweep runs every combination once, goes on where it was, and ranks by the mean gain."""

import json
import os
import signal
import subprocess
import threading
import time

import pytest

from keras_vjepa.tools import child_runs, sweep

pytestmark = pytest.mark.data


def write_result(folder, motion, digit):
    folder.mkdir(parents=True)
    results = {
        sweep.PRETRAINED: {"motion_accuracy": motion, "digit_accuracy": digit},
        sweep.UNTRAINED: {"motion_accuracy": 0.5, "digit_accuracy": 0.25},
    }
    results[sweep.PRETRAINED]["effective_rank"] = 7.0
    (folder / "probe.json").write_text(json.dumps(results))


class Recipe:
    """Stands in for the recipe: gains as the learning rate says, and one that fails."""

    def __init__(self):
        self.commands = []

    def __call__(self, command, **kwargs):
        self.commands.append(command)
        options = dict(zip(command[4::2], command[5::2], strict=True))
        rate = float(options["--learning_rate"])
        if rate > 1:
            return subprocess.CompletedProcess(command, 1, stderr="page\npretrain: too high\n")
        folder = sweep.Path(options["--workdir"])
        write_result(folder, 0.5 + rate, 0.25 + rate * int(options["--seed"]))
        return subprocess.CompletedProcess(command, 0, stderr="")


@pytest.fixture
def recipe(monkeypatch):
    recipe = Recipe()
    monkeypatch.setattr(sweep.subprocess, "run", recipe)
    return recipe


def arguments(folder, *values):
    varied = ["--vary", "learning_rate", *values]
    return [str(folder), *varied, "--seeds", "1", "2", "--steps", "5", "--warmup_steps", "1"]


def test_table_is_ranked_and_names_failures(tmp_path, recipe, capsys):
    sweep.main(arguments(tmp_path, "0.1", "9", "0.2"))
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == [
        "learning_rate=0.2",
        "learning_rate=0.1",
        "learning_rate=9",
    ]
    # The gains on the digit are 0.2 and 0.4 for the two seeds.
    assert "0.300 ± 0.141" in lines[2]
    assert "0; pretrain: too high" in lines[4]
    assert capsys.readouterr().out.splitlines() == lines
    assert all("--steps" in command for command in recipe.commands)


def test_goes_on_where_it_was(tmp_path, recipe):
    sweep.main(arguments(tmp_path, "0.1"))
    assert len(recipe.commands) == 2
    # An interruption leaves a folder without a result.
    (tmp_path / "learning_rate=0.3" / "1").mkdir(parents=True)
    sweep.main(arguments(tmp_path, "0.1", "0.3"))
    assert len(recipe.commands) == 4


@pytest.mark.parametrize("content", ["", '{"pretrained target enc', "[1]", '{"a": 1}'])
def test_a_damaged_result_is_run_again(content, tmp_path, recipe):
    sweep.main(arguments(tmp_path, "0.1"))
    table = (tmp_path / "table.md").read_text()
    (tmp_path / "learning_rate=0.1" / "2" / "probe.json").write_text(content)
    sweep.main(arguments(tmp_path, "0.1"))
    assert len(recipe.commands) == 3 and (tmp_path / "table.md").read_text() == table


def test_wrong_option_stops_the_sweep(tmp_path, monkeypatch):
    def refuse(command, **kwargs):
        return subprocess.CompletedProcess(command, 2, stderr="usage\npretrain.py: error: no --x\n")

    monkeypatch.setattr(sweep.subprocess, "run", refuse)
    with pytest.raises(SystemExit, match="no --x"):
        sweep.main(arguments(tmp_path, "0.1"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["learning_rate", "0.1", "-1"], "--learning_rate must be at least 0. Received: -1.0"),
        (["learning_rat", "0.1"], "unknown option --learning_rat; did you mean --learning_rate?"),
        (["learning_rate", "0.1", "--seeds", "0", "0"], "--seeds must differ. Received: 0 0"),
        (["num_heads", "4", "5"], "--hidden_dim must be a multiple of --num_heads=5. Received: 96"),
    ],
)
def test_no_run_begins_when_one_of_them_cannot(given, message, tmp_path, recipe, capsys):
    with pytest.raises(SystemExit) as ended:
        sweep.main([str(tmp_path / "new"), "--vary", *given])
    assert ended.value.code == 2 and not recipe.commands and not list(tmp_path.iterdir())
    assert capsys.readouterr().err == f"sweep.py: {message}\n"


# Stands in for the recipe in a process of its own, as `Recipe` does in this one.
SCRIPT = """
import json, os, sys
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
rate, folder = float(options["--learning_rate"]), options["--workdir"]
if rate > 1:
    sys.exit("page\\npretrain: too high")
if rate == 0.5 and options["--seed"] == "1" and not os.path.exists("stopped"):
    open("stopped", "w").close()
    sys.exit(75)
if rate == 0:
    print("pretrain.py: error: no --x", file=sys.stderr)
    sys.exit(2)
os.makedirs(folder)
result = lambda gain: {"motion_accuracy": 0.5 + gain, "digit_accuracy": 0.25, "effective_rank": 7.0}
with open(folder + "/probe.json", "w") as file:
    json.dump({"pretrained target encoder": result(rate), "untrained encoder": result(0)}, file)
"""


@pytest.fixture
def script(monkeypatch):
    """Lists the names of the runs of each call, and how many ran at a time."""
    begun = []

    def rendered(data):
        assert data == "digit_motion"

    def run(runs, jobs, ended):
        begun.append((jobs, [run.name for run in runs]))
        child_runs.run_side_by_side(runs, jobs, ended)

    monkeypatch.setattr(sweep, "RECIPE", ("-S", "-c", SCRIPT))
    monkeypatch.setattr(sweep, "run_side_by_side", run)
    monkeypatch.setattr(child_runs.labelled_sets, "train_and_test", rendered)
    monkeypatch.setattr(child_runs, "usable_cores", lambda: 2)
    return begun


def test_side_by_side_is_as_one_after_the_other(tmp_path, script, capsys):
    tables = []
    for folder, jobs in (("one", []), ("two", ["--jobs", "2"]), ("one", ["--jobs", "2"])):
        sweep.main([*arguments(tmp_path / folder, "0.1", "9", "0.2", "0.1"), *jobs])
        tables.append(capsys.readouterr().out)
        assert (tmp_path / folder / "table.md").read_text() == tables[-1]
    assert len({*tables}) == 1 and "0; pretrain: too high" in tables[0]
    # Each was run once, and the third command had nothing left to run.
    [(jobs, names)] = script
    assert jobs == 2 and names == [
        f"learning_rate={r}, seed {s}" for r in (0.1, 9, 0.2) for s in (1, 2)
    ]
    # An interruption leaves a folder without a result.
    (tmp_path / "two" / "learning_rate=0.2" / "1" / "probe.json").unlink()
    sweep.main([*arguments(tmp_path / "two", "0.1", "9", "0.2", "0.1"), "--jobs", "2"])
    assert script[1:] == [(2, ["learning_rate=0.2, seed 1"])]
    assert capsys.readouterr().out == tables[0]


def test_wrong_option_stops_all_side_by_side(tmp_path, script):
    with pytest.raises(SystemExit, match="no --x"):
        sweep.main([*arguments(tmp_path, "0"), "--jobs", "2"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_sweep_alone_ends_its_run(number, tmp_path, monkeypatch, capsys):
    waits = "import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(60)"
    monkeypatch.setattr(sweep, "RECIPE", ("-S", "-c", waits))
    monkeypatch.chdir(tmp_path)

    def interrupt():
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(SystemExit) as ended:
        sweep.main(arguments(tmp_path / "sweep", "0.1"))
    assert ended.value.code == 75
    said = capsys.readouterr().err
    assert said.endswith(f"Stopped by {number.name}. Repeat the command to continue.\n")
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    assert not (tmp_path / "sweep" / "table.md").exists()


@pytest.mark.parametrize(("jobs", "kept"), [("1", "1/failure.txt"), ("2", "1.log")])
def test_a_sweep_of_which_all_runs_fail_fails(jobs, kept, tmp_path, script, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    line = [*arguments(tmp_path / "sweep", "9"), "--jobs", jobs]
    for _ in range(2):  # the second one finds both failures
        with pytest.raises(SystemExit) as ended:
            sweep.main(line)
        assert (tmp_path / "sweep" / "learning_rate=9" / kept).exists()
        assert str(ended.value.code).startswith("sweep.py: all 2 runs failed; their ")
        assert f"{tmp_path}/sweep/learning_rate=9/{kept} and 1 more. " in str(ended.value.code)
        assert "0; pretrain: too high" in capsys.readouterr().out
    sweep.main([*arguments(tmp_path / "sweep", "9", "0.1"), "--jobs", jobs])


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_run_that_was_stopped_is_no_failure(jobs, tmp_path, script, monkeypatch, capsys):
    """A signal may come to a run alone; the next sweep makes it."""
    monkeypatch.chdir(tmp_path)
    line = [*arguments(tmp_path / "sweep", "0.5"), "--jobs", jobs]
    sweep.main(line)
    assert "| 1 |" in capsys.readouterr().out
    sweep.main(line)
    assert "| 2 |" in capsys.readouterr().out
