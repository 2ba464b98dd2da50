"""Runs side by side: their cores, logs and order; what stops them saves first; nothing is left."""

import os
import signal
import sys
import threading

import pytest

from keras_vjepa.tools import child_runs
from keras_vjepa.tools.child_runs import ChildRun, ChildRunError, raise_if_failed, run_side_by_side

pytestmark = pytest.mark.data

# Stands in for a pretraining: a signal lets it save, and a second one of its kind ends it at once.
STUB = """
import os, signal, sys, time
def save(number, frame):
    signal.signal(number, signal.SIG_DFL)
    print("saves on", signal.Signals(number).name, file=sys.stderr, flush=True)
    time.sleep(0.2)
    print("saved", file=sys.stderr, flush=True)
    sys.exit(75)
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, save)
seconds, code = float(sys.argv[1]), int(sys.argv[2])
cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
print("process", os.getpid(), "cores", cores, file=sys.stderr, flush=True)
time.sleep(seconds)
print("python -m keras_vjepa pretrain: the last line\\n", file=sys.stderr, flush=True)
os.kill(os.getpid(), -code) if code < 0 else sys.exit(code)
"""


def stub(folder, name, seconds=0.0, code=0):
    words = (sys.executable, "-S", "-c", STUB, str(seconds), str(code))
    return ChildRun(name, words, folder / name)


def ended_by(runs, jobs):
    ended = []
    run_side_by_side(runs, jobs, lambda run, *how: ended.append((run.name, *how)))
    return ended


def is_alive(log):
    process = int(log.read_text().split()[1])
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def wait_for(log, text):
    while not (log.exists() and text in log.read_text()):
        threading.Event().wait(0.01)


def test_a_number_of_them_run_at_a_time(tmp_path, capfd):
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else {0}
    runs = [stub(tmp_path, "long", 1.0), *(stub(tmp_path, f"short {i}") for i in range(2))]
    line = "python -m keras_vjepa pretrain: the last line"
    # The short ones take turns beside the long one.
    assert ended_by(runs, 2) == [(name, 0, line) for name in ("short 0", "short 1", "long")]
    said = capfd.readouterr().err.splitlines()
    assert [text.split(":")[0] for text in said] == [
        *("long", "short 0", "short 0", "short 1", "short 1", "long")
    ]
    assert str(tmp_path / "long.log") in said[0]
    assert "1 of 3 pretrainings ended; about " in said[2] and said[2].endswith(" are left")
    assert said[-1].startswith("long: done after 1 s; 3 of 3") and "left" not in said[-1]
    # Each had its share of the cores, and this process has all of its own.
    shares = {int((tmp_path / f"{run.name}.log").read_text().split()[3]) for run in runs}
    assert shares <= {max(1, len(cores) // 2), -(-len(cores) // 2)}
    assert not hasattr(os, "sched_getaffinity") or os.sched_getaffinity(0) == cores


def test_a_log_is_added_to(tmp_path):
    for _ in range(2):
        ended_by([stub(tmp_path, "a")], 4)
    assert (tmp_path / "a.log").read_text().count("the last line") == 2


def test_a_log_has_what_is_said_before_there_is_a_folder(tmp_path):
    [(_, code, _)] = ended_by([stub(tmp_path / "point", "a", code=1)], 1)
    assert code == 1 and "the last line" in (tmp_path / "point" / "a.log").read_text()


def test_a_failure_stops_the_others_once_they_have_saved(tmp_path, capfd):
    runs = [stub(tmp_path, "long", 60), stub(tmp_path, "short", 0.3, 1), stub(tmp_path, "never")]
    with pytest.raises(ChildRunError) as raised:
        run_side_by_side(runs, 2, raise_if_failed)
    log = tmp_path / "short.log"
    assert str(raised.value) == f"short: the last line ({log} has all that it said)"
    assert (tmp_path / "long.log").read_text().endswith("saves on SIGTERM\nsaved\n")
    assert not is_alive(tmp_path / "long.log") and not (tmp_path / "never.log").exists()
    assert "Stopping long: what is done is saved." in capfd.readouterr().err


def test_a_killed_run_is_named_with_its_signal(tmp_path):
    [(_, code, reason)] = ended_by([stub(tmp_path, "a", code=-signal.SIGKILL)], 2)
    assert code == -signal.SIGKILL and reason.startswith("ended by SIGKILL, after the line: ")


@pytest.mark.parametrize("group", [False, True])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_them_save(number, group, tmp_path, capfd):
    """Whether it comes to the command alone, or to its children too, as from a terminal."""
    runs, before = [stub(tmp_path, name, 60) for name in "abc"], signal.getsignal(number)
    logs = [run.log for run in runs[:2]]

    def interrupt():
        for log in logs:
            wait_for(log, "cores")
        if group:
            for log in logs:
                os.kill(int(log.read_text().split()[1]), number)
        os.kill(os.getpid(), number)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(SystemExit) as ended:
        run_side_by_side(runs, 2, raise_if_failed)
    assert ended.value.code == 75 and signal.getsignal(number) is before
    assert capfd.readouterr().err.endswith(
        f"Stopped by {number.name}. Repeat the command to continue.\n"
    )
    for log in logs:
        assert not is_alive(log) and log.read_text().endswith("saved\n")
    assert not runs[2].log.exists()


def test_more_jobs_than_cores_are_refused(monkeypatch):
    monkeypatch.setattr(child_runs, "usable_cores", lambda: 3)
    child_runs.check_jobs(3)
    with pytest.raises(ValueError, match=r"^`jobs` must be at most .* cores .*, 3\. Received: 4$"):
        child_runs.check_jobs(4)


@pytest.mark.parametrize(("jobs", "sizes"), [(1, [5]), (2, [2, 3]), (5, [1] * 5)])
def test_all_cores_are_given_once(jobs, sizes, monkeypatch):
    cores = {0, 2, 4, 6, 8}
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: cores, raising=False)
    shares = child_runs.core_shares(jobs)
    assert [len(share) for share in shares] == sizes and set().union(*shares) == cores
    assert child_runs.core_shares(6).count(cores) == 1  # more shares than cores
