"""Tell how much of a video file is missing at its end, by what its container says (§3.4).

A download that was broken off, or a disk that was full, leaves the first part of a file. A decoder
reads what is there and says nothing, as if the video were shorter.
"""

import os
import struct
from typing import BinaryIO

from keras_vjepa.data.reading.matroska_elements import segment_end

# Boxes with which an MP4 or QuickTime file can begin.
_FIRST_BOXES = frozenset({b"ftyp", b"styp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot"})


def missing_bytes(path: str) -> int:
    """Count the bytes that a file lacks to be as long as its container says.

    Args:
        path: an MP4, QuickTime, AVI, Matroska or WebM file; any other counts as complete.

    Returns:
        The number of bytes, 0 if nothing is missing or the container does not say.

    Example:

    >>> import tempfile
    >>> from keras_vjepa import files
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "a.mp4")
    ...     files.write_bytes(path, struct.pack(">I4s4sI4s", 12, b"ftyp", b"isom", 100, b"mdat"))
    ...     missing_bytes(path)
    92
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        head = file.read(16)
        if head[4:8] in _FIRST_BOXES:
            end = _end_of_boxes(file, size)
        elif head[:4] == b"RIFF" and len(head) >= 8:
            # A file of several gigabytes consists of several such chunks; only the first is
            # inspected.
            end = 8 + int.from_bytes(head[4:8], "little")
        else:
            end = segment_end(file, size)
    return max(0, end - size)


def _end_of_boxes(file: BinaryIO, size: int) -> int:
    """Find where the last outermost box of an MP4 file ends."""
    start = 0
    while start + 8 <= size:
        file.seek(start)
        head = file.read(16)
        length, kind = struct.unpack(">I4s", head[:8])
        if length == 1 and len(head) == 16:
            (length,) = struct.unpack(">Q", head[8:])
        # The last box may have no length and extend to the end. Bytes without a name are not a box.
        if length < 8 or not kind.isalnum():
            break
        start += length
    return start
