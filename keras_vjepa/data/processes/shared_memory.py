"""Arrays that one process writes and another reads, through memory that both have open (§3.4).

The memory has no name, so it disappears with both processes, however they end.
"""

import mmap
import os
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from keras_vjepa.data.reading.frame_memory import reused_array

# For each array, where it starts in the shared memory, and its size.
Places = list[tuple[int, int]]


def memory_without_name() -> int | None:
    """Open memory that disappears with the last process that has it; None without support."""
    if not hasattr(os, "memfd_create"):
        return None
    with suppress(OSError):
        return os.memfd_create("keras-vjepa")
    return None


def _copied(view: NDArray[np.uint8]) -> NDArray[np.uint8]:
    copy = reused_array(view.shape, np.uint8)
    copy[:] = view
    return copy


class SharedMemory:
    """Holds arrays in memory that two processes have open, one of which writes at a time.

    Args:
        descriptor: of the memory, None for none.
    """

    def __init__(self, descriptor: int | None) -> None:
        self.descriptor = descriptor
        self._mapped: mmap.mmap | None = None

    def write(self, arrays: Sequence[memoryview]) -> Places:
        """Write arrays; returns size and start of each."""
        places, end = [], 0
        for array in arrays:
            places.append((array.nbytes, end))
            end += -(-array.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
        for array, view in zip(arrays, self._views(places), strict=True):
            view[:] = np.frombuffer(array, np.uint8)
        return places

    def copies(self, places: Places) -> list[NDArray[np.uint8]]:
        """Read arrays that the other process has written."""
        return [_copied(view) for view in self._views(places)]

    def close(self) -> None:
        """Give it back; again does nothing."""
        self._mapped = None
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None

    def _views(self, places: Places) -> list[NDArray[np.uint8]]:
        if not places:
            return []
        assert self.descriptor is not None
        end = max(start + size for size, start in places)
        if self._mapped is None or len(self._mapped) < end:
            # The memory stays mapped, because mapping it for each clip takes longer than copying
            # the clip.
            if os.fstat(self.descriptor).st_size < end:
                os.ftruncate(self.descriptor, end)
            self._mapped = mmap.mmap(self.descriptor, 0)
        mapped = self._mapped
        return [np.frombuffer(mapped, np.uint8, size, start) for size, start in places]
