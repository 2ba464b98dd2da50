"""Obey signals that ask a run to stop, once its state is saved (App. C, 90,000 steps)."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

# The code for "try again" in sysexits.h, for schedulers that restart a run they interrupted.
EXIT_STOPPED = 75


@dataclass
class StopSignals:
    """Handles SIGTERM and SIGINT: notes them, or ends the process with `EXIT_STOPPED`.

    A second signal of the same kind ends the process at once.

    Attributes:
        deferred: whether a signal is only noted.
        received: name of the signal that came; empty if none has.
    """

    deferred: bool = False
    received: str = ""

    def __call__(self, number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        self.received = signal.Signals(number).name
        if not self.deferred:
            self.exit("Repeat the command to continue from the last checkpoint.")

    def exit(self, what_now: str) -> None:
        """Print which signal stopped the run and what to do now, and raise SystemExit."""
        print(f"\nStopped by {self.received}. {what_now}", file=sys.stderr, flush=True)
        raise SystemExit(EXIT_STOPPED)


@contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """Let a `StopSignals` handle SIGTERM and SIGINT; only in the main thread, where one can."""
    signals = StopSignals()
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    before = {number: signal.signal(number, signals) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
