"""Obey signals that ask a run to stop, once its state is saved (App. C, 90,000 steps)."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from keras_vjepa.backend.choice import signal_again

# The code for "try again" in sysexits.h, for schedulers that restart a run they interrupted.
EXIT_STOPPED = 75
_CONTINUE = "Repeat the command to continue from the last checkpoint."


@dataclass
class StopSignals:
    """Handles SIGTERM and SIGINT: notes them, or ends the process with `EXIT_STOPPED`.

    A second signal of the same kind ends the process at once. Where Python ignores errors, such as
    in a callback of its garbage collector, the process would go on as if nothing had come: the exit
    is raised again a moment later.

    Attributes:
        deferred: whether a signal is only noted.
        received: name of the signal that came; empty if none has.
        what_now: what to do, for the message of a signal that ends the process.
    """

    deferred: bool = False
    received: str = ""
    what_now: str = _CONTINUE
    _was_ignored: bool = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        self.received = signal.Signals(number).name
        if self._was_ignored and not self.deferred:
            raise SystemExit(EXIT_STOPPED)
        if not self.deferred:
            self.exit(self.what_now)

    def exit(self, what_now: str) -> None:
        """Print which signal stopped the run and what to do now, and raise SystemExit."""
        print(f"\nStopped by {self.received}. {what_now}", file=sys.stderr, flush=True)
        raise SystemExit(EXIT_STOPPED)

    def raise_again(self, unraisable: Any) -> bool:
        """Let the signal come again if Python has ignored the exit; tell whether it has.

        Args:
            unraisable: what Python passes to `sys.unraisablehook`.
        """
        if not self.received or not isinstance(unraisable.exc_value, SystemExit):
            return False
        self._was_ignored, number = True, signal.Signals[self.received]
        signal.signal(number, self)
        signal_again(number)
        return True


@contextmanager
def stop_signals(what_now: str = _CONTINUE) -> Iterator[StopSignals]:
    """Let a `StopSignals` handle SIGTERM and SIGINT; only in the main thread, where one can.

    Args:
        what_now: as in `StopSignals`.
    """
    signals = StopSignals(what_now=what_now)
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    before = {number: signal.signal(number, signals) for number in (signal.SIGTERM, signal.SIGINT)}
    usual = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if not signals.raise_again(unraisable):
            usual(unraisable)

    sys.unraisablehook = hook
    try:
        yield signals
    finally:
        sys.unraisablehook = usual
        for number, handler in before.items():
            signal.signal(number, handler)
