"""Run a process that reads files when asked to (§3.4).

It is a new process and not a fork, so it knows nothing of a backend, and begins in about a second.
It imports the program that starts it only if the function to call is defined there. It ends with
the process that started it, however that ends, since nobody holds its input open any more.

Arrays come back through memory that the two processes share, if the system has memory without
a name, which disappears with them; elsewhere through a pipe.
"""

import io
import logging
import multiprocessing.spawn
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from keras_vjepa.data.processes.serving import HoldingPickler, ProcessFailure
from keras_vjepa.data.processes.shared_memory import SharedMemory, memory_without_name

# The program of a worker process. The name keeps it from loading a backend, which no reader needs.
_START = """
import pickle, sys
sys.argv = ["keras-vjepa"]
program = pickle.load(sys.stdin.buffer)
sys.path[:] = program["sys_path"]
if len(program) > 1:
    import multiprocessing.spawn
    multiprocessing.spawn.prepare(program)
from keras_vjepa.data.processes.serving import serve
serve()
"""
# This variable is set in worker processes. A program that they import must not start workers
# itself.
_VARIABLE = "KERAS_VJEPA_WORKER_PROCESS"


class WorkerProcess:
    """Starts a process that calls a function with each object that it is sent.

    Args:
        function: of a module, or an object that `pickle` can send.
        held: what is part of many items, and is sent once.

    Raises:
        ValueError: if the function cannot be sent to another process.
        RuntimeError: if the process cannot be started.
    """

    def __init__(self, function: Callable[[Any], Any], held: Any = None) -> None:
        start = sendable(function, "What worker processes do")
        # Objects are known by their address in memory, which is unique while they are referred to
        # here.
        self._held: dict[int, Any] = {}
        self._not_sent: dict[int, bytes] = {}
        self._hold(held)
        # The output of libraries goes to this file. If the process is killed, its last line may say
        # why.
        self._errors = tempfile.TemporaryFile()
        self._memory = SharedMemory(memory_without_name())
        descriptor = self._memory.descriptor
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            # Ctrl-C must not reach the worker. The process that started the worker ends it.
            start_new_session=os.name != "nt",
            pass_fds=[] if descriptor is None else [descriptor],
            env={**os.environ, _VARIABLE: "1"},
        )
        self._is_late = False
        self._send(pickle.dumps(_program(start, *self._not_sent.values())))
        self._send(pickle.dumps((descriptor, start)))
        try:
            self._receive()
        except (EOFError, OSError, pickle.UnpicklingError):
            words = self._last_words().reason
            self.end()
            raise RuntimeError(f"A process that reads files cannot be started: {words}") from None

    def ask(self, item: Any, seconds: float | None = None, held: Any = None) -> Any:
        """Ask for the result for an item.

        Args:
            item: what `pickle` can send.
            seconds: how long it may take; the process is then ended.
            held: a part of the item that is part of others too.

        Returns:
            The result, or a `ProcessFailure`: if that is a crash, the process is gone.
        """
        question = self._question(item, held)
        timer = None if seconds is None else threading.Timer(seconds, self._too_late)
        if timer is not None:
            timer.daemon = True
            timer.start()
        try:
            self._send(question)
            result, records = self._receive()
        except (OSError, EOFError, ValueError, pickle.UnpicklingError):
            if self._is_late:
                return ProcessFailure(f"it takes longer than {seconds:g} seconds", True)
            return self._last_words()
        finally:
            if timer is not None:
                timer.cancel()
        for name, level, text in records:
            logging.getLogger(name).log(level, "%s", text)
        return result

    def end(self) -> None:
        """End the process; again does nothing."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None and not stream.closed:
                with suppress(OSError):  # the last answer was not read
                    stream.close()
        self._memory.close()

    def _hold(self, held: Any) -> None:
        if held is not None and id(held) not in self._held:
            self._not_sent[id(held)] = sendable(held, f"The {type(held).__name__}")
            self._held[id(held)] = held

    def _question(self, item: Any, held: Any) -> bytes:
        self._hold(held)
        stream = io.BytesIO()
        HoldingPickler(stream, self._held).dump(item)
        question = pickle.dumps((self._not_sent, stream.getvalue()), pickle.HIGHEST_PROTOCOL)
        self._not_sent = {}
        return question

    def _send(self, message: bytes) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # the process has ended, which `_receive` reports
            self._process.stdin.write(message)
            self._process.stdin.flush()

    def _receive(self) -> Any:
        assert self._process.stdout is not None
        message, places = pickle.load(self._process.stdout)
        return pickle.loads(message, buffers=self._memory.copies(places))

    def _too_late(self) -> None:
        self._is_late = True
        self._process.kill()

    def _last_words(self) -> ProcessFailure:
        code = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines() or [""]
        if code < 0:
            name = signal.Signals(-code).name
            return ProcessFailure(f"the decoder crashed ({name})", True, signal=-code)
        reason = f"the process ended with code {code}: {lines[-1][:200]}".rstrip(": ")
        return ProcessFailure(reason, True)


def sendable(item: Any, what: str) -> bytes:
    """Write what is to be sent to another process as `pickle` does.

    Args:
        item: anything.
        what: it is, for the message.

    Raises:
        ValueError: if it cannot be sent, or this process is a worker itself.

    Example:

    >>> pickle.loads(sendable(sorted, "The transform"))([2, 1])
    [1, 2]
    """
    if _VARIABLE in os.environ:
        raise ValueError(
            "Worker processes import the program that starts them: put what it does under "
            '`if __name__ == "__main__":`, or leave `use_multiprocessing` False'
        )
    try:
        written = pickle.dumps(item, pickle.HIGHEST_PROTOCOL)
    except Exception as error:  # pickling can raise any error
        words = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{what} must be a function or class of a module to be sent to a worker process; "
            f"otherwise leave `use_multiprocessing` False. Received: {words}"
        ) from error
    if b"__main__" in written and not _has_a_file(_main_program()):
        raise ValueError(
            f"{what} must be defined in a file to be sent to a worker process; otherwise leave "
            "`use_multiprocessing` False. Received: one that was typed in"
        )
    return written


def _program(*sent: bytes) -> dict[str, Any]:
    """Return what a process needs of the program that starts it, as `multiprocessing` takes it."""
    is_main_needed = any(b"__main__" in one for one in sent)
    return {"sys_path": sys.path, **(_main_program() if is_main_needed else {})}


def _main_program() -> dict[str, Any]:
    names = ("sys_argv", "init_main_from_name", "init_main_from_path")
    told = multiprocessing.spawn.get_preparation_data("reads-files")
    return {name: told[name] for name in names if name in told}


def _has_a_file(program: dict[str, Any]) -> bool:
    return "init_main_from_name" in program or os.path.isfile(
        program.get("init_main_from_path", "")
    )
