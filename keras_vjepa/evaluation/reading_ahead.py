"""Read the windows of many files in threads, while the model works on earlier ones (§4.3, App. D).

Files are read side by side and handed on in their order. Only so many windows wait that memory does
not grow with the number of files or the length of a video.
"""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

Name = Path | str
Window = NDArray[np.float32]

# The number of windows of one file that may wait for the model.
WAITING = 2
# A waiting thread checks after this many seconds whether it is still needed.
_LOOK = 0.1


@dataclass(frozen=True)
class Opened:
    """Holds what is known of a file once it is open.

    Attributes:
        content: hash of the file's content from before it was read.
        count: number of windows.
        repeats: whether the last window reaches beyond the end of the video.
        windows: the windows.
    """

    content: str
    count: int
    repeats: bool
    windows: Iterator[Window]


class FileAhead:
    """Hands on one file that a thread reads.

    Args:
        path: the video or image.
        closed: set if nobody wants the file any more.
    """

    def __init__(self, path: Name, closed: threading.Event) -> None:
        self.path = path
        self._closed = closed
        self._opened: queue.Queue[Opened | Exception] = queue.Queue(1)
        self._windows: queue.Queue[Window | Exception | None] = queue.Queue(WAITING)
        self._first: Opened | Exception | None = None

    def opened(self) -> Opened:
        """Wait until the file is open.

        Raises:
            UnreadableVideoError: if it cannot be read; so does `windows`, within the file.
        """
        if self._first is None:
            self._first = self._opened.get()
        if isinstance(self._first, Exception):
            raise self._first
        return self._first

    def windows(self) -> Iterator[Window]:
        """Yield the windows, each as soon as it is read."""
        self.opened()
        while (window := self._windows.get()) is not None:
            if isinstance(window, Exception):
                raise window
            yield window

    def read(self, open_file: Callable[[Name], Opened]) -> None:
        """Read the file, in a thread; an error is raised where the file is used."""
        opened = False
        try:
            found = open_file(self.path)
            self._opened.put(found)
            opened = True
            for window in found.windows:
                self._put(window)
            self._put(None)
        except CancelledError:
            return
        except Exception as error:
            if opened:
                self._put(error)
            else:
                self._opened.put(error)

    def _put(self, window: Window | Exception | None) -> None:
        while not self._closed.is_set():
            try:
                return self._windows.put(window, timeout=_LOOK)
            except queue.Full:
                continue
        raise CancelledError


class FilesAhead:
    """Yields files that are read ahead in threads; a `with` block ends the threads.

    Args:
        paths: the files, in the order in which they are handed on.
        open_file: opens one file; called in a thread.
        num_workers: number of threads.
        most_ahead: files that may be open or read and not yet handed on.

    Example:

    >>> from keras_vjepa.evaluation.reading_ahead import FilesAhead, Opened
    >>> opened = lambda path: Opened("", 2, False, iter([path + " 0", path + " 1"]))
    >>> with FilesAhead(["a", "b"], opened, num_workers=2, most_ahead=2) as ahead:
    ...     print([window for file in ahead for window in file.windows()])
    ['a 0', 'a 1', 'b 0', 'b 1']
    """

    def __init__(
        self,
        paths: Sequence[Name],
        open_file: Callable[[Name], Opened],
        num_workers: int,
        most_ahead: int,
    ) -> None:
        self._closed = threading.Event()
        self._files = [FileAhead(path, self._closed) for path in paths]
        self._open_file = open_file
        self._next = iter(self._files)
        self._taking = threading.Lock()
        # Threads take files in order. The file that is needed first is therefore always among those
        # being read, and no thread waits for a later one.
        self._room = threading.Semaphore(most_ahead)
        workers = min(num_workers, most_ahead, max(1, len(paths)))
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(workers)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._closed.set()
        for _ in self._threads:
            self._room.release()
        for thread in self._threads:
            thread.join()

    def __iter__(self) -> Iterator[FileAhead]:
        for file in self._files:
            yield file
            self._room.release()

    def _work(self) -> None:
        while True:
            with self._taking:
                self._room.acquire()
                file = None if self._closed.is_set() else next(self._next, None)
            if file is None:
                # Another thread may be waiting for the room that this one does not need.
                self._room.release()
                return
            file.read(self._open_file)
