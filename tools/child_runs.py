"""Run commands side by side, each in a process of its own on its share of the cores (App. C, E.3).

A small model hardly trains faster on more cores, so that several runs at a time use a machine
better than one after the other. Each process does what the command does by itself, and is stopped
as a run is, so that it can be continued.
"""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from keras_vjepa import files
from keras_vjepa.arguments import check_whole, counted
from keras_vjepa.data.batches.workers import usable_cores
from keras_vjepa.data.sources import labelled_sets
from keras_vjepa.data.sources.digit_motion_rendering import SETS
from keras_vjepa.evaluation.ablation_cost import in_words
from keras_vjepa.training.signals import stop_signals

# What Python is called with for a pretraining.
RECIPE = ("-m", "keras_vjepa", "pretrain")
# How commands introduce their errors.
_INTRODUCTION = re.compile("python -m keras_vjepa [a-z- ]+: ")

_POLL_SECONDS = 0.1
# A process that has ended may have left others that hold its end of the pipe.
_LAST_LINE_SECONDS = 5.0

Ended = Callable[["ChildRun", int, str], None]


class ChildRunError(Exception):
    """Says which run failed, and why."""


@dataclass(frozen=True)
class ChildRun:
    """Names a command that a process of its own runs.

    Attributes:
        name: name of the run in messages.
        command: the words of the command.
        folder: folder of the run; what the command says on stderr is added to a log beside it.
        what: what such runs are called when they are counted.
    """

    name: str
    command: tuple[str, ...]
    folder: Path
    what: str = "pretraining"

    @property
    def log(self) -> Path:
        """Return the path of the log."""
        return self.folder.with_name(f"{self.folder.name}.log")


def check_jobs(jobs: int) -> None:
    """Check a number of processes that run side by side; raise `ValueError` if it is out of range.

    Args:
        jobs: at least 1, and at most the number of cores.
    """
    check_whole(1, jobs=jobs)
    cores = usable_cores()
    if jobs > cores:
        raise ValueError(
            f"`jobs` must be at most the number of cores that may be used, {cores}. "
            f"Received: {jobs}"
        )


def render_sets(names: Iterable[str]) -> None:
    """Render the built-in sets among some data, unless they are there: else each run would do it.

    Args:
        names: values of `data`.
    """
    for name in sorted({*names} & SETS.keys()):
        labelled_sets.train_and_test(name)


def raise_if_failed(run: ChildRun, code: int, reason: str) -> None:
    """Raise if a run failed: an `Ended` for `run_side_by_side` that lets no run fail.

    Args:
        run: the run.
        code: its exit code.
        reason: the last line that it wrote to stderr.

    Raises:
        ChildRunError: if the exit code is not 0.
    """
    if code:
        said = _INTRODUCTION.sub("", reason, count=1)
        raise ChildRunError(f"{run.name}: {said} ({run.log} has all that it said)")


def run_side_by_side(runs: Sequence[ChildRun], jobs: int, ended: Ended) -> None:
    """Run commands, a number of them at a time, and say on stderr when each begins and ends.

    SIGTERM and SIGINT stop those that run, as they stop a pretraining, and then end this process
    with exit code 75. If `ended` raises an error, they are stopped too, and none is begun.

    Args:
        runs: what to run, in this order; at least one.
        jobs: how many of them run at a time.
        ended: called when a run has ended, with its exit code (minus the number of the signal that
            ended it) and the last line that it wrote to stderr.
    """
    waiting, running, seconds = [*runs], list[_Process](), list[float]()
    shares = core_shares(min(jobs, len(runs)))
    with stop_signals() as signals:
        signals.deferred = True
        try:
            while (waiting or running) and not signals.received:
                while waiting and shares:
                    running.append(_Process(waiting.pop(0), shares.pop(0)))
                time.sleep(_POLL_SECONDS)
                for process in [one for one in running if one.code is not None]:
                    if signals.received:  # by the whole group, so that this is no failure
                        break
                    running.remove(process)
                    shares.append(process.cores)
                    seconds.append(process.seconds)
                    ended(process.run, process.code or 0, process.reason())
                    left = time_left(seconds, [one.seconds for one in running], len(waiting), jobs)
                    _say_done(process, len(seconds), len(runs), left)
        finally:
            _stop(running, signals.received)
        if signals.received:
            signals.exit("Repeat the command to continue.")


def core_shares(jobs: int) -> list[set[int]]:
    """Divide the cores that this process may use.

    Args:
        jobs: number of shares.

    Returns:
        The numbers of the cores of each share; all of them if there are fewer than shares, and none
        where the system does not let processes choose.

    Example:

    >>> shares = core_shares(1)
    >>> len(shares)
    1
    """
    if not hasattr(os, "sched_getaffinity"):
        return [set[int]() for _ in range(jobs)]
    cores = sorted(os.sched_getaffinity(0))
    bounds = [len(cores) * job // jobs for job in range(jobs + 1)]
    parts = zip(bounds, bounds[1:], strict=False)
    return [set(cores[begin:end] or cores) for begin, end in parts]


def time_left(done: Sequence[float], begun: Sequence[float], waiting: int, jobs: int) -> float:
    """Estimate the seconds until all runs have ended, from the mean of those that have.

    Args:
        done: the seconds that each run took that has ended, at least one.
        begun: the seconds that each has taken so far that runs.
        waiting: number of runs that have not begun.
        jobs: how many run at a time.

    Example:

    >>> time_left([60.0, 120.0], [30.0], 3, 2)
    180.0
    """
    mean = sum(done) / len(done)
    places = [max(0.0, mean - seconds) for seconds in begun]
    places += [0.0] * (jobs - len(places))
    for _ in range(waiting):
        # Each begins where a run ends first.
        places[places.index(min(places))] += mean
    return max(places)


class _Process:
    """Runs a command on some cores, and adds what it says to its log.

    It says it through a pipe. So if this process is killed, the command ends at its next line, and
    nobody's run goes on.
    """

    def __init__(self, run: ChildRun, cores: set[int]) -> None:
        self.run = run
        self.cores = cores
        self._said = ""
        self._began = time.monotonic()
        on = f" on {counted(len(cores), 'core')}" if cores else ""
        # The run makes its folder late, and what it says before belongs to the log too.
        run.log.parent.mkdir(parents=True, exist_ok=True)
        print(f"{run.name}: begins{on}; {run.log}", file=sys.stderr, flush=True)
        with on_cores(cores):
            self.process = subprocess.Popen(
                run.command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
            )
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    @property
    def code(self) -> int | None:
        """Return the exit code; None while the command runs."""
        return self.process.poll()

    @property
    def seconds(self) -> float:
        """Return the seconds since the command began."""
        return time.monotonic() - self._began

    def reason(self) -> str:
        """Return the last line that the command said, after the signal that ended it if one did."""
        code, said = self.wait(), self._said or "no message"
        return (
            f"ended by {signal.Signals(-code).name}, after the line: {said}" if code < 0 else said
        )

    def wait(self) -> int:
        """Wait until the command has ended and all that it said is in its log; return its code."""
        code = self.process.wait()
        self._listener.join(_LAST_LINE_SECONDS)
        return code

    def _listen(self) -> None:
        """Add lines to the log until there are no more."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._said = line.strip() or self._said
            # If nobody read on, the command would wait for ever: a full disk costs only the log.
            with suppress(OSError):
                files.append_line(self.run.log, line.rstrip())


@contextmanager
def on_cores(cores: set[int]) -> Iterator[None]:
    """Let this thread use some cores only, and with it the processes that it starts.

    Args:
        cores: numbers of the cores; none if all may be used.
    """
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _say_done(process: _Process, done: int, count: int, left: float) -> None:
    """Say that a run has ended, how many have, and how long the others will take."""
    rest = f"; about {in_words(left)} are left" if done < count else ""
    outcome = "failed" if process.code else "done"
    print(
        f"{process.run.name}: {outcome} after {in_words(process.seconds)}; {done} of "
        f"{counted(count, process.run.what)} ended{rest}",
        file=sys.stderr,
        flush=True,
    )


def _stop(running: Sequence[_Process], received: str) -> None:
    """Stop what runs, as a run is stopped, so that it saves its state first; wait for it.

    Args:
        running: the processes.
        received: name of the signal that this process has received; empty if none has come.
    """
    alive = [process for process in running if process.code is None]
    if alive:
        names = ", ".join(process.run.name for process in alive)
        print(f"Stopping {names}: what is done is saved.", file=sys.stderr, flush=True)
    # A terminal sends its signal to the children too. A second one of the same kind would end
    # them before they have saved.
    number = signal.SIGINT if received == signal.SIGTERM.name else signal.SIGTERM
    for process in alive:
        process.process.send_signal(number)
    for process in alive:
        process.wait()
