"""Lend memory for frames and clips, again and again (§3.4).

New memory comes from the system page by page and zeroed. At 720p a clip takes 44 MB, and new memory
for each clip costs more time than converting the frames.
"""

import math
import sys
import sysconfig
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from keras_vjepa.data.reading.decoders import Frames

# A buffer larger than this (80 frames of 1080p) is freed at once.
_MOST_BYTES = 2**29


class _Own(threading.local):
    """Holds the memory that each thread keeps."""

    spare: Frames = np.empty(0, np.uint8)


_own = _Own()


@contextmanager
def lent_frames(shape: tuple[int, ...]) -> Iterator[Frames]:
    """Lend memory for frames, which the same thread gets again later.

    If the block raises, it is not lent again, because a reader that is late may still write to it.

    Args:
        shape: (frames, height, width, 3).

    Yields:
        uint8 of this shape, with anything in it. It must not be kept after the block.

    Example:

    >>> with lent_frames((2, 4, 6, 3)) as frames:
    ...     frames.shape
    (2, 4, 6, 3)
    """
    size = math.prod(shape)
    memory = _own.spare if _own.spare.size >= size else np.empty(size, np.uint8)
    _own.spare = _Own.spare
    yield memory[:size].reshape(shape)
    if memory.nbytes <= _MOST_BYTES:
        _own.spare = memory


# --- Memory of arrays that are returned ----------------------------------------------------------

# Smaller arrays are not reused: the process has memory for them already.
_REUSED_FROM = 2**20
# The most bytes that are kept in all. Arrays beyond this are freed as usual.
_MOST_REUSED = 2**31

_buffers: list[Frames] = []
_lock = threading.Lock()


def _references(buffers: list[Frames], place: int) -> int:
    return sys.getrefcount(buffers[place])


# The number of references to a buffer that only the list refers to. It depends on how Python
# counts.
_UNUSED = _references([np.empty(1, np.uint8)], 0)
# Without exact reference counts, it is not known which buffers are in use.
_is_counted = sys.implementation.name == "cpython" and not sysconfig.get_config_var(
    "Py_GIL_DISABLED"
)


def reused_array(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Make an array as `np.empty` does, of memory that an earlier one had that nobody has now.

    The array and views of it can be kept for any time. A clip of 9.6 MB took 0.3 ms to
    copy to such memory, and 17 ms to new memory, on a virtual machine.

    Args:
        shape: of the array.
        dtype: of its numbers.

    Example:

    >>> reused_array((2, 3), "float32").shape
    (2, 3)
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size < _REUSED_FROM or not _is_counted:
        return np.empty(shape, dtype)
    with _lock:
        buffer = _unused(size)
        if buffer is None:
            if sum(one.nbytes for one in _buffers) + size > _MOST_REUSED:
                _drop_unused()
            buffer = np.empty(size, np.uint8)
            if sum(one.nbytes for one in _buffers) + size <= _MOST_REUSED:
                _buffers.append(buffer)
    return buffer.view(dtype).reshape(shape)


def stacked(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Join arrays of one shape and type along a new first axis, as `np.stack` does.

    Args:
        arrays: at least one.
    """
    first = arrays[0]
    if any(one.shape != first.shape or one.dtype != first.dtype for one in arrays):
        return np.stack(arrays)
    return np.stack(arrays, out=reused_array((len(arrays), *first.shape), first.dtype))


def give_back_unused() -> None:
    """Give the memory that nobody has back to the system."""
    with _lock:
        _drop_unused()


def _unused(size: int) -> Frames | None:
    for place in range(len(_buffers)):
        if _buffers[place].nbytes == size and _references(_buffers, place) == _UNUSED:
            return _buffers[place]
    return None


def _drop_unused() -> None:
    for place in reversed(range(len(_buffers))):
        if _references(_buffers, place) == _UNUSED:
            del _buffers[place]
