"""Do something with each of many files in processes of their own (for the 2 M videos of §3.4).

A decoder that crashes ends its process, but not the work: the file is named, and another process
takes the next one. Processes are started anew, not forked, so they know nothing of a backend. They
do not import the program that starts them, and begin in about a second.
"""

import os
import pickle
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Generic, TypeVar

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

# The program of a process. Because of the name in `sys.argv`, the package loads no backend, which
# no reader needs.
_START = """
import pickle, sys
sys.argv = ["keras-vjepa"]
sys.path[:] = pickle.load(sys.stdin.buffer)
from keras_vjepa.data.preparation.processes import serve
serve()
"""


@dataclass(frozen=True)
class ProcessFailure:
    """Says why there is no result for an item.

    Attributes:
        reason: the reason in words.
        is_crash: whether the process ended, instead of raising an error.
    """

    reason: str
    is_crash: bool


def each_in_processes(
    function: Callable[[ItemT], ResultT],
    items: Iterable[ItemT],
    num_processes: int,
    max_seconds: float,
) -> Iterator[tuple[ItemT, ResultT | ProcessFailure]]:
    """Call a function with each of some items, in several processes.

    Args:
        function: a function of a module, or a `functools.partial` of one, which `pickle` can send,
            as it can the results.
        items: what to call the function with; an item is taken when a process becomes free.
        num_processes: how many items are worked on at a time.
        max_seconds: limit for one item; its process is then ended, and another one started.

    Yields:
        Each item with its result, in the order in which they are finished. If the caller stops, the
        processes end.

    Example:

    >>> items = [[3, 1, 2], None]
    >>> results = dict(zip("ab", [r for _, r in each_in_processes(sorted, items, 1, 60.0)]))
    >>> results["a"], results["b"].reason
    ([1, 2, 3], "TypeError: 'NoneType' object is not iterable")
    """
    work = _Work(function, iter(items), num_processes, max_seconds)
    try:
        yield from work.results()
    finally:
        work.stop()


class _Work(Generic[ItemT, ResultT]):
    """Runs a thread for each process, which gives the process one item after another."""

    def __init__(
        self,
        function: Callable[[ItemT], ResultT],
        items: Iterator[ItemT],
        num_processes: int,
        max_seconds: float,
    ) -> None:
        self._function, self._items, self._max_seconds = function, items, max_seconds
        self._lock, self._is_stopped = threading.Lock(), False
        # Bounded, because results may be large: with a slow caller they would fill the memory.
        self._results: queue.Queue[Any] = queue.Queue(2 * num_processes)
        self._processes: set[_Process] = set()
        self._threads = [
            threading.Thread(target=self._run, daemon=True) for _ in range(num_processes)
        ]

    def results(self) -> Iterator[tuple[ItemT, ResultT | ProcessFailure]]:
        """Start the threads, and yield each item with its result."""
        for thread in self._threads:
            thread.start()
        running = len(self._threads)
        while running:
            found = self._results.get()
            if found is None:
                running -= 1
            elif isinstance(found, BaseException):
                raise found
            else:
                yield found

    def stop(self) -> None:
        """End all processes, and wait until their threads have ended too."""
        with self._lock:
            self._is_stopped = True
            for process in self._processes:
                process.end()
        while any(thread.is_alive() for thread in self._threads):
            try:
                self._results.get(timeout=0.05)
            except queue.Empty:
                continue

    def _run(self) -> None:
        process = None
        try:
            while (item := self._next()) is not None:
                process = process or self._started()
                if process is None:
                    return
                result, is_alive = process.ask(item[0], self._max_seconds)
                if not is_alive:
                    self._ended(process)
                    process = None
                self._results.put((item[0], result))
        except BaseException as error:  # raised by `items`, or by a process that cannot be started
            self._results.put(error)
        finally:
            if process is not None:
                self._ended(process)
            self._results.put(None)

    def _next(self) -> tuple[ItemT] | None:
        with self._lock:
            if self._is_stopped:
                return None
            for item in self._items:
                return (item,)
            return None

    def _started(self) -> "_Process | None":
        process = _Process(self._function)
        with self._lock:
            if self._is_stopped:
                process.end()
                return None
            self._processes.add(process)
        return process

    def _ended(self, process: "_Process") -> None:
        with self._lock:
            self._processes.discard(process)
        process.end()


class _Process:
    """Runs a process that calls a function with what it is sent."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        # Holds what libraries print: if the process ends, the last line may say why.
        self._errors = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            # In a session of its own, because Ctrl-C is for the program that started it, which
            # then ends it.
            start_new_session=os.name != "nt",
        )
        self._is_late = False
        self._send(sys.path)
        self._send(function)
        try:
            assert self._process.stdout is not None
            pickle.load(self._process.stdout)
        except EOFError:
            words = self._last_words()
            self.end()
            raise RuntimeError(f"A process that reads files cannot be started: {words}") from None

    def ask(self, item: Any, seconds: float) -> tuple[Any, bool]:
        """Return the result for an item, and whether the process can be asked again."""
        timer = threading.Timer(seconds, self._too_late)
        timer.daemon = True
        timer.start()
        try:
            self._send(item)
            assert self._process.stdout is not None
            result = pickle.load(self._process.stdout)
        except (OSError, EOFError, pickle.UnpicklingError):
            if self._is_late:
                return ProcessFailure(f"it takes longer than {seconds:g} seconds", True), False
            return ProcessFailure(self._last_words(), True), False
        finally:
            timer.cancel()
        return result, True

    def _send(self, message: Any) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(pickle.dumps(message, pickle.HIGHEST_PROTOCOL))
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the process has ended, which is found where its answer is read

    def _too_late(self) -> None:
        self._is_late = True
        self._process.kill()

    def _last_words(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines() or [""]
        if code < 0:
            return f"the decoder crashed ({signal.Signals(-code).name})"
        return f"the process ended with code {code}: {lines[-1][:200]}".rstrip(": ")

    def end(self) -> None:
        """End the process; a second call does nothing."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None and not stream.closed:
                _close(stream)


def _close(stream: Any) -> None:
    try:
        stream.close()
    except OSError:
        pass  # there was something left to write, which the ended process does not read any more


def serve() -> None:
    """Answer what comes in on the standard input, in a process that `each_in_processes` started."""
    questions: BinaryIO = sys.stdin.buffer
    # Answers get the standard output for themselves: prints of libraries go to the error output.
    answers = os.dup(1)
    os.dup2(2, 1)
    function = pickle.load(questions)
    _answer(answers, "ready")
    while True:
        try:
            item = pickle.load(questions)
        except EOFError:
            return
        try:
            result = function(item)
        except Exception as error:
            words = " ".join(str(error).split())
            result = ProcessFailure(f"{type(error).__name__}: {words}".rstrip(": "), False)
        _answer(answers, result)


def _answer(descriptor: int, result: Any) -> None:
    left = memoryview(pickle.dumps(result, pickle.HIGHEST_PROTOCOL))
    while left:
        left = left[os.write(descriptor, left) :]
