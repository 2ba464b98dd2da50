"""Lend memory for the frames of a clip, again and again (§3.4).

New memory comes from the system page by page and zeroed. At 720p a clip takes 44 MB, and new memory
for each clip costs more time than converting the frames.
"""

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from keras_vjepa.data.reading.decoders import Frames

# More memory than this, 80 frames of 1080p, is given back at once.
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
