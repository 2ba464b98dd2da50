"""Pass all reading of files, videos and images alike, through one gate (§3.4).

All work on a file is done behind `through_gate`. There any exception becomes the error that names
the file, and a call that does not return in time is left behind. Names, kinds of files and sizes
are checked before a decoder sees them.

A hang inside a C library cannot be ended from outside. So the work is done by another thread, and
the caller waits for its result for a limited time. A thread that is left behind continues until its
call returns, and holds up nothing else. Handing over costs less than can be measured: 4.7 ms of
processor time for a clip of a 64x64 video with it, 4.7 ms without.

**Files are not read in a process of their own, which would keep crashes out.** Measured (one
process for each reading thread, frames through shared memory; clips/s beside reading in the same
process): 64x64 frames 53 to 60 beside 62; 340x256 5.2 to 5.8 beside 5.3 to 6.1; 720p 0.5 to 0.6
beside 0.5 to 0.7, on a machine with other work. Such a process takes 21 MB of memory of its own for
each thread (59 MB with shared memory) and 0.7 s to start. That is cheap, but it would keep out no
crash that is known: none of the mutated files that `tests/data/reading/fuzz.py` makes crashes a
decoder, and the one crash that was ever seen (OpenCV, names that are not UTF-8) is not reached any
more. In exchange frames would be copied once more, and a Python would have to be started to read,
which fails in a frozen program and where the number of processes is limited.
"""

import errno
import os
import stat
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from keras_vjepa.data.reading.errors import UnreadableVideoError, printable

ResultT = TypeVar("ResultT")

# Seconds beyond the limit within which a thread may notice, between two calls of a library, that it
# is late.
_GRACE_SECONDS = 1.0
_MOST_LETTERS = 200
_UNREADABLE = {
    errno.ENOENT: "no such file",
    errno.ENOTDIR: "no such file",
    errno.EACCES: "no permission to read it",
    errno.EPERM: "no permission to read it",
}


class _Late(Exception):
    """Says that a file takes longer than its limit."""


class _Work(threading.local):
    """Holds the time until which the thread at work must be done."""

    deadline = float("inf")


_work = _Work()


def through_gate(
    path: str | Path,
    error: type[UnreadableVideoError],
    seconds: float,
    action: Callable[[], ResultT],
) -> ResultT:
    """Do something with a file; whatever goes wrong becomes an error that names the file.

    Args:
        path: the file.
        error: what to raise, `UnreadableVideoError` or `UnreadableImageError`.
        seconds: how long the action may take.
        action: what to do.

    Returns:
        What `action` returns.

    Raises:
        UnreadableVideoError: as `error` says, if `action` raises anything or takes too long.

    Example:

    >>> through_gate("a.mp4", UnreadableVideoError, 1.0, lambda: 1 / 0)
    Traceback (most recent call last):
    ...
    keras_vjepa.data.reading.errors.UnreadableVideoError: Cannot read the video a.mp4: \
ZeroDivisionError: division by zero
    """
    try:
        if sys.is_finalizing():
            # Python's other threads have ended, as when it frees what was not read to its end.
            return action()
        return _Worker.idle().do(action, seconds)
    except UnreadableVideoError:
        raise
    except _Late as late:
        raise error(path, f"it takes longer than {seconds:g} seconds") from late
    except MemoryError as cause:
        raise error(path, "there is not enough memory for it") from cause
    except Exception as cause:
        raise error(path, _reason(cause)) from cause


def check_time() -> None:
    """Stop the work on a file if it has taken too long; loops over its parts call this."""
    if time.monotonic() > _work.deadline:
        raise _Late


def check_file(path: str | Path) -> int:
    """Check, before anything opens it, that a path leads to a regular file which is not empty.

    Args:
        path: the file.

    Returns:
        Its size in bytes.

    Raises:
        ValueError: if it is missing, empty or something else; the message says which.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        known = _UNREADABLE.get(error.errno or 0)
        raise ValueError(known or error.strerror) from error
    except ValueError as error:  # a null character, or a surrogate that stands for no byte
        raise ValueError("no such file: there can be none of this name") from error
    if stat.S_ISDIR(status.st_mode):
        raise ValueError("it is a folder, not a file")
    if not stat.S_ISREG(status.st_mode):
        # Opening a pipe would wait until some process writes to it.
        raise ValueError("it is not a regular file but a pipe, a socket or a device")
    if not os.access(path, os.R_OK):
        raise ValueError("no permission to read it")
    if status.st_size == 0:
        raise ValueError("the file is empty")
    return status.st_size


def _reason(cause: Exception) -> str:
    """Say in one line what went wrong; the words of our own checks stay as they are."""
    lines = str(cause).strip().splitlines()
    words = printable(lines[0])[:_MOST_LETTERS] if lines else ""
    if type(cause) is ValueError and words:
        return words
    return f"{type(cause).__name__}: {words}".rstrip(": ")


class _Worker(threading.Thread):
    """Runs a thread that executes one call after another."""

    _idle: "ClassVar[list[_Worker]]" = []

    def __init__(self) -> None:
        super().__init__(name="reads-files", daemon=True)
        self._begin, self._end = threading.Semaphore(0), threading.Semaphore(0)
        self._action: Callable[[], Any] | None = None
        self._deadline = float("inf")
        self._result: list[Any] = []
        self._error: BaseException | None = None
        self._is_left = False
        self.start()

    @classmethod
    def idle(cls) -> "_Worker":
        """Take a worker that has nothing to do, or start a new one."""
        try:
            return cls._idle.pop()
        except IndexError:
            return cls()

    def do(self, action: Callable[[], ResultT], seconds: float) -> ResultT:
        """Do something and return its result, or raise its error."""
        self._action, self._deadline = action, time.monotonic() + seconds
        self._begin.release()
        ended = False
        try:
            ended = self._end.acquire(timeout=seconds + _GRACE_SECONDS)
        finally:
            # This is in `finally`, because the caller may also be interrupted while it waits.
            if not ended:
                self._is_left = True
                self._begin.release()
        if not ended:
            raise _Late
        result, error = self._result, self._error
        self._result, self._error = [], None
        self._idle.append(self)
        if error is not None:
            raise error
        (value,) = result
        return value

    def run(self) -> None:
        """Do what is handed over, one thing after another, until the worker is left behind."""
        while True:
            self._begin.acquire()
            if self._is_left:
                return
            assert self._action is not None
            _work.deadline = self._deadline
            try:
                self._result = [self._action()]
            except BaseException as error:
                self._error = error
            self._action = None
            self._end.release()


# A forked process has none of these threads, so it must not take one.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_Worker._idle.clear)
