"""What a worker process does: answer one question after another (§3.4).

A question is the item, written without what is held, and what is new of that. An answer is the
result, with what was logged meanwhile, and where its arrays lie in the shared memory.
"""

import io
import logging
import os
import pickle
import sys
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from keras_vjepa.data.processes.shared_memory import SharedMemory

# Smaller arrays are sent with the rest of the answer.
_SHARED_FROM = 2**16

Record = tuple[str, int, str]


@dataclass(frozen=True)
class ProcessFailure:
    """Says why there is no result for an item.

    Attributes:
        reason: in words.
        is_crash: whether the process ended, in place of an error of Python's.
        error: the error of Python's, where it can be sent.
        signal: that ended the process, or 0.
    """

    reason: str
    is_crash: bool
    error: Exception | None = field(default=None, compare=False, repr=False)
    signal: int = field(default=0, compare=False)


class _Records(logging.Handler):
    """Collects what is logged, for the process that asks."""

    def __init__(self) -> None:
        super().__init__()
        self._records: list[Record] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._records.append((record.name, record.levelno, record.getMessage()))

    def taken(self) -> list[Record]:
        found, self._records = self._records, []
        return found


class HoldingPickler(pickle.Pickler):
    """Writes only the number of what is held.

    Args:
        stream: what is written to.
        held: by their numbers.
    """

    def __init__(self, stream: io.BytesIO, held: dict[int, Any]) -> None:
        super().__init__(stream, pickle.HIGHEST_PROTOCOL)
        self._held = held

    def persistent_id(self, item: Any) -> int | None:
        return id(item) if id(item) in self._held else None


class _Unpickler(pickle.Unpickler):
    """Reads what `HoldingPickler` wrote."""

    def __init__(self, written: bytes, held: dict[int, Any]) -> None:
        super().__init__(io.BytesIO(written))
        self._held = held

    def persistent_load(self, number: Any) -> Any:
        return self._held[number]


def serve() -> None:
    """Answer what comes in on the standard input, in a process that `WorkerProcess` started."""
    questions: BinaryIO = sys.stdin.buffer
    # Output of libraries must not get between the answers.
    answers = os.dup(1)
    os.dup2(2, 1)
    shared, start = pickle.load(questions)
    memory = SharedMemory(shared)
    function = pickle.loads(start)
    records = _Records()
    logging.getLogger("keras_vjepa").addHandler(records)
    logging.getLogger("keras_vjepa").propagate = False
    held: dict[int, Any] = {}
    _answer(answers, "ready", memory)
    while True:
        try:
            new, item = pickle.load(questions)
        except EOFError:
            return
        try:
            held |= {number: pickle.loads(written) for number, written in new.items()}
            result = function(_Unpickler(item, held).load())
        except Exception as error:
            result = _failure(error)
        _answer(answers, (result, records.taken()), memory)


def _failure(error: Exception) -> ProcessFailure:
    words = " ".join(str(error).split())
    try:
        # Some errors can be pickled, but not unpickled.
        sent = pickle.loads(pickle.dumps(error))
    except Exception:
        sent = None
    return ProcessFailure(f"{type(error).__name__}: {words}".rstrip(": "), False, sent)


def _answer(descriptor: int, result: Any, memory: SharedMemory) -> None:
    arrays: list[memoryview] = []

    def goes_with_the_rest(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if memory.descriptor is None or raw.nbytes < _SHARED_FROM:
            return True
        arrays.append(raw)
        return False

    message = pickle.dumps(result, pickle.HIGHEST_PROTOCOL, buffer_callback=goes_with_the_rest)
    answer = pickle.dumps((message, memory.write(arrays)), pickle.HIGHEST_PROTOCOL)
    left = memoryview(answer)
    while left:
        left = left[os.write(descriptor, left) :]
