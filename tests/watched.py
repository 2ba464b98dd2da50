"""A process that does what may crash or hang, watched by the one that asks for it; for fuzzing."""

import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# `tests.support` is not imported, because it imports Keras.
ROOT = Path(__file__).parents[1]
_READY, _DONE = "ready", "done\t"


class WatchedProcess:
    """Python in a process of its own, begun anew when it dies or hangs.

    Args:
        arguments: its command line; what it runs calls `answer`.
        environment: its environment, see `environment_with`.
        hang_seconds: after which a request counts as a hang.
        most_mib: how much its memory may grow by one request.
        further: names of the numbers that it tells beside its memory.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        environment: dict[str, str],
        hang_seconds: float,
        most_mib: int,
        further: Sequence[str] = (),
    ) -> None:
        self._command = [sys.executable, *arguments]
        self._environment = environment
        self._hang_seconds = hang_seconds
        self._most_mib = most_mib
        self._further = further
        self._start()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            self._command,
            cwd=ROOT,
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._listen, args=(self._process, self._lines)).start()
        assert self._lines.get(timeout=300) == _READY
        self._most = 0

    def _listen(self, process: "subprocess.Popen[str]", lines: "queue.Queue[str]") -> None:
        assert process.stdout is not None
        for line in process.stdout:
            # Libraries may write to this stream too.
            if line.startswith((_READY, _DONE)):
                lines.put(line.rstrip("\n"))
        lines.put("")

    def ask(self, request: str) -> dict[str, Any]:
        """Have a request done: what came of it, in how many seconds, and what the process holds."""
        assert self._process.stdin is not None
        start = time.monotonic()
        self._process.stdin.write(f"{request}\n")
        self._process.stdin.flush()
        try:
            line = self._lines.get(timeout=self._hang_seconds)
            outcome = "" if line else f"CRASH {self._process.wait()}"
        except queue.Empty:
            outcome = "HANG"
        seconds = round(time.monotonic() - start, 2)
        if outcome:
            self.close()
            self._start()
            nothing = dict.fromkeys(self._further, 0)
            return {"outcome": outcome, "seconds": seconds, "mib": 0, **nothing}
        outcome, mib, *others = line.removeprefix(_DONE).split("\t")
        grown = int(mib) - self._most if self._most else 0
        self._most = int(mib)
        if grown > self._most_mib:
            outcome = f"{grown} MiB"
        numbers = dict(zip(self._further, map(int, others), strict=True))
        return {"outcome": outcome, "seconds": seconds, "mib": int(mib), **numbers}

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def environment_with(*folders: Path) -> dict[str, str]:
    """This process's environment, with folders in front on the path, and then the tests."""
    path = [*map(str, folders), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))}


def answer(do: Callable[[str], str], *further: Callable[[], int]) -> None:
    """Do the requests that a `WatchedProcess` sends to this process, until there are no more.

    Args:
        do: does one, and says in one line what came of it.
        further: what else is told after each.
    """
    print(_READY, flush=True)
    for line in sys.stdin:
        outcome = " ".join(do(line.rstrip("\n")).split())
        print(f"{_DONE}{outcome}", most_mib(), *[tell() for tell in further], sep="\t", flush=True)


def most_mib() -> int:
    """Most memory that this process ever had, in MiB; 0 if not known."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) >> 10


def num_open_files() -> int:
    """Open files of this process; 0 if not known."""
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:
        return 0
