"""Show the progress of a download, as a bar on a terminal, elsewhere as lines (App. C)."""

import shutil
import sys
import time
from collections import deque
from collections.abc import Callable

_SECONDS_BETWEEN_BARS = 0.2
_SECONDS_BETWEEN_LINES = 5.0
# For a file of unknown length, a line is printed after so many bytes.
_BYTES_BETWEEN_LINES = 10**9
_SECONDS_OF_A_RATE = 10.0
_BAR = 20


def amount(num_bytes: float) -> str:
    """Write a number of bytes for people.

    Example:

    >>> from keras_vjepa.presets.transfer_display import amount
    >>> amount(5_127_726_842), amount(12)
    ('5.13 GB', '12 bytes')
    """
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= size:
            return f"{num_bytes / size:.3g} {unit}"
    return f"{num_bytes:.0f} bytes"


class TransferDisplay:
    """Prints the progress of a download to stderr.

    Args:
        name: name of the file.
        clock: a function that returns the time in seconds.
    """

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._name, self._clock = name, clock
        self._total: int | None = None
        self._recent: deque[tuple[float, int]] = deque()
        self._shown_at, self._shown, self._width = 0.0, 0, 0
        self._began_at, self._began_with = 0.0, 0

    def say(self, text: str) -> None:
        """Print a text as a line of its own."""
        self._clear()
        print(f"{self._name}: {text}", file=sys.stderr, flush=True)

    def begin(self, position: int, total: int | None) -> None:
        """Say that the download begins.

        Args:
            position: number of bytes that are here already.
            total: number of bytes of the whole file, if known.
        """
        length = "length unknown" if total is None else amount(total)
        here = f", of which {amount(position)} are here already" if position else ""
        self.say(f"downloading ({length}{here})")
        self._total, self._shown_at, self._shown = total, self._clock(), position
        self._recent = deque([(self._shown_at, position)])
        self._began_at, self._began_with = self._shown_at, position

    def update(self, position: int) -> None:
        """Show how many bytes are here, if enough time has passed since the last time."""
        now = self._clock()
        self._recent.append((now, position))
        while len(self._recent) > 2 and now - self._recent[0][0] > _SECONDS_OF_A_RATE:
            self._recent.popleft()
        passed = now - self._shown_at
        if sys.stderr.isatty():
            if passed >= _SECONDS_BETWEEN_BARS:
                self._draw(position)
                self._shown_at = now
        elif passed >= _SECONDS_BETWEEN_LINES and position - self._shown >= self._step():
            print(f"{self._name}: {self._figures(position)}", file=sys.stderr, flush=True)
            self._shown_at, self._shown = now, position

    def end(self, position: int) -> None:
        """Say that the download is complete."""
        passed, received = self._clock() - self._began_at, position - self._began_with
        rate = f", {amount(received / passed)}/s" if passed > 0 else ""
        self.say(f"downloaded {amount(received)} in {_duration(passed)}{rate}")

    def _step(self) -> float:
        return _BYTES_BETWEEN_LINES if self._total is None else self._total / 10

    def _figures(self, position: int) -> str:
        (then, before), (now, last) = self._recent[0], self._recent[-1]
        rate = (last - before) / (now - then) if now > then else 0.0
        if self._total is None:
            return f"{amount(position)}, {amount(rate)}/s"
        share = f"{position / max(self._total, 1):.0%}, {amount(position)} of {amount(self._total)}"
        left = f", {_duration((self._total - position) / rate)} left" if rate else ""
        return f"{share}, {amount(rate)}/s{left}"

    def _draw(self, position: int) -> None:
        share = position / self._total if self._total else 0.0
        bar = f"[{'#' * int(_BAR * share):{_BAR}s}] " if self._total else ""
        # The bar is cut to the width of the terminal, since a bar of two lines could not be drawn
        # over.
        width = shutil.get_terminal_size().columns - 1
        text = f"{self._name}: {bar}{self._figures(position)}"[:width]
        print(f"\r{text:{self._width}s}", end="", file=sys.stderr, flush=True)
        self._width = len(text)

    def _clear(self) -> None:
        if self._width:
            print(f"\r{'':{self._width}s}\r", end="", file=sys.stderr)
        self._width = 0


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(min(seconds, 359_999)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
