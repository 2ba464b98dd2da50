"""Signals that ask a run to stop, obeyed when its state is saved (App. C, 90,000 steps)."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

# "Try again" in sysexits.h: for schedulers that start a pre-empted run anew.
EXIT_STOPPED = 75


@dataclass
class StopSignals:
    """What SIGTERM and SIGINT do: end the process with `EXIT_STOPPED`, or be noted.

    A second signal ends the process at once.

    Attributes:
        deferred: only note the signal.
        received: name of the signal, if one came.
    """

    deferred: bool = False
    received: str = ""

    def __call__(self, number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        self.received = signal.Signals(number).name
        if not self.deferred:
            self.exit("The same command goes on from the last checkpoint.")

    def exit(self, what_now: str) -> None:
        """Say so and raise SystemExit."""
        print(f"\nStopped by {self.received}. {what_now}", file=sys.stderr, flush=True)
        raise SystemExit(EXIT_STOPPED)


@contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """SIGTERM and SIGINT handled by `StopSignals`; in the main thread, the only one that can."""
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
