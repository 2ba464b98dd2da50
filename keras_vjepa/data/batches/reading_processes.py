"""Worker processes that read clips for batches, one for each reading thread (§3.4, App. C).

A thread hands what it is to read to its process, and waits; which clips a batch holds, which file
takes the place of another, and where a clip begins is decided by the batches. So they are the same.
"""

import signal
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from keras_vjepa.data.processes.serving import ProcessFailure
from keras_vjepa.data.processes.worker import WorkerProcess, sendable
from keras_vjepa.data.reading.errors import UnreadableVideoError, printable
from keras_vjepa.data.reading.locating import name_of
from keras_vjepa.data.reading.media import Media
from keras_vjepa.data.reading.remote import is_of_one_process

Source = str | Media
Reader = Callable[[tuple[Source, np.random.Generator]], Any]

# Signals that end a process when a decoder crashes. Others have another cause, such as a lack of
# memory.
_CRASHES = {
    getattr(signal, name)
    for name in ("SIGSEGV", "SIGBUS", "SIGABRT", "SIGFPE", "SIGILL")
    if hasattr(signal, name)
}


class WorkerProcessError(RuntimeError):
    """Tells that a worker process ended, and not because of the file that it read."""


class ReadingProcesses:
    """Runs worker processes that read clips, each begun when its thread first asks.

    Args:
        reader: reads the clips of a source; sent to each process once.

    Raises:
        ValueError: if the reader cannot be sent to another process.
    """

    def __init__(self, reader: Reader) -> None:
        sendable(reader, "The transform")
        self._reader = reader
        self._own = threading.local()
        self._processes: set[WorkerProcess] = set()
        self._lock, self._is_ended = threading.Lock(), False

    def read(self, source: Source, rng: np.random.Generator) -> Any:
        """Read the clips of a source in the process of this thread.

        Args:
            source: a path, or what else `media_at` knows.
            rng: source of what is drawn; it stays as it is here.

        Raises:
            UnreadableVideoError: if they cannot be read, also where the decoder crashed twice.
            ValueError: if the source cannot be sent to another process.
            WorkerProcessError: if the process was ended by something else.
            Exception: whatever else was raised in the process.
        """
        result = self._asked(source, rng)
        if isinstance(result, ProcessFailure) and result.signal in _CRASHES:
            result = self._asked(source, rng)
        if not isinstance(result, ProcessFailure):
            return result
        if not result.is_crash:
            raise result.error or WorkerProcessError(
                f"{printable(name_of(source))}: {result.reason}"
            )
        if result.signal in _CRASHES:
            raise UnreadableVideoError(name_of(source), result.reason)
        ended = f"it got {signal.Signals(result.signal).name}" if result.signal else result.reason
        raise WorkerProcessError(
            f"A worker process ended while it read {printable(name_of(source))}: {ended}. Where "
            "memory is short, fewer `num_workers` need less"
        )

    def end(self) -> None:
        """End all processes, also those at work."""
        with self._lock:
            self._is_ended = True
            for process in self._processes:
                process.end()
            self._processes.clear()

    def _asked(self, source: Source, rng: np.random.Generator) -> Any:
        name = name_of(source)
        if is_of_one_process(name):
            raise ValueError(
                "`use_multiprocessing` must be False to read what only this process knows. "
                f"Received: {name}"
            )
        shared = source.shared if isinstance(source, Media) else None
        process: WorkerProcess | None = getattr(self._own, "process", None)
        if process is None:
            process = self._own.process = self._begun(shared)
        result = process.ask((source, rng), held=shared)
        if isinstance(result, ProcessFailure) and result.is_crash:
            self._own.process = None
            with self._lock:
                self._processes.discard(process)
            process.end()
        return result

    def _begun(self, shared: Any) -> WorkerProcess:
        process = WorkerProcess(self._reader, shared)
        with self._lock:
            if not self._is_ended:
                self._processes.add(process)
                return process
        process.end()
        raise WorkerProcessError("The worker processes have been ended")
