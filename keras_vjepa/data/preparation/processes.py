"""Do something with each of many files in processes of their own (for the 2 M videos of §3.4).

A decoder that crashes ends its process, but not the work: the file is named, and another process
takes the next one.
"""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

from keras_vjepa.data.processes.serving import ProcessFailure
from keras_vjepa.data.processes.worker import WorkerProcess

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


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
        # The queue is bounded, because results may be large, and would fill the memory if the
        # caller is slow.
        self._results: queue.Queue[Any] = queue.Queue(2 * num_processes)
        self._processes: set[WorkerProcess] = set()
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
                result = process.ask(item[0], self._max_seconds)
                if isinstance(result, ProcessFailure) and result.is_crash:
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

    def _started(self) -> WorkerProcess | None:
        process = WorkerProcess(self._function)
        with self._lock:
            if self._is_stopped:
                process.end()
                return None
            self._processes.add(process)
        return process

    def _ended(self, process: WorkerProcess) -> None:
        with self._lock:
            self._processes.discard(process)
        process.end()
