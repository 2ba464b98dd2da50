"""Lend bytes from elsewhere to a decoder as a regular file (§3.4).

Decoders, and the checks before them, take a path. So the bytes of a video in a shard, or in a row
of a data set, are copied to a file that has a path: in memory, or in the system's temporary folder
if they are many or the system has no files in memory. The file is gone when it is closed or
forgotten, whatever happens to the process.
"""

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from keras_vjepa.data.reading.gate import check_time

# Larger files are not loaded into memory, because each thread that reads may hold one.
_MOST_IN_MEMORY = 2**28
_AT_ONCE = 2**22


@dataclass
class LentFile:
    """Holds a regular file, for as long as it is not closed.

    Attributes:
        path: path of the file.
        identity: what tells its content from that of other files of the same name.
        release: function that gives it back, if there is anything to do.
    """

    path: str
    identity: tuple[Any, ...]
    release: Callable[[], None] | None = None

    def close(self) -> None:
        """Give the file back."""
        if self.release is not None:
            self.release()


def lent_copy(
    size: int, read_at: Callable[[int, int], bytes], identity: tuple[Any, ...]
) -> LentFile:
    """Copy bytes to a file that is gone when it is closed.

    Args:
        size: number of bytes.
        read_at: function of a place and a length, which returns the bytes there.
        identity: what tells these bytes from others.

    Raises:
        ValueError: if there are no bytes, or fewer than `size`.

    Example:

    >>> lent = lent_copy(5, lambda place, length: b"video"[place : place + length], ())
    >>> with open(lent.path, "rb") as file:
    ...     file.read()
    b'video'
    >>> lent.close()
    """
    if size == 0:
        raise ValueError("the file is empty")
    if size <= _MOST_IN_MEMORY and hasattr(os, "memfd_create"):
        # This is a Python object, which closes the file by itself when it is freed.
        memory = open(os.memfd_create("keras_vjepa"), "rb", buffering=0)
        path = f"/proc/self/fd/{memory.fileno()}"
        lent = LentFile(path, identity, memory.close)
        descriptor = os.dup(memory.fileno())
    else:
        folder = tempfile.TemporaryDirectory(prefix="keras_vjepa_")
        path = os.path.join(folder.name, "video")
        lent = LentFile(path, identity, folder.cleanup)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | getattr(os, "O_BINARY", 0))
    try:
        _copy(size, read_at, descriptor)
    except BaseException:
        lent.close()
        raise
    finally:
        os.close(descriptor)
    return lent


def _copy(size: int, read_at: Callable[[int, int], bytes], descriptor: int) -> None:
    place = 0
    while place < size:
        check_time()
        part = memoryview(read_at(place, min(_AT_ONCE, size - place)))
        if not part:
            raise ValueError(f"it is truncated: {place:,} of {size:,} bytes are there")
        place += len(part)
        while part:
            part = part[os.write(descriptor, part) :]
