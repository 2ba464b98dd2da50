"""Read the sizes of frames, and of the whole file, that a Matroska or WebM file claims (§3.4).

Such a file is a tree of elements. Each has an identifier and a size, whose lengths their first
bytes tell, and then its content.
"""

import os
from collections.abc import Iterator
from typing import BinaryIO

from keras_vjepa.data.reading.gate import check_time

_EBML, _CLUSTER, _WIDTH, _HEIGHT = 0x1A45DFA3, 0x1F43B675, 0xB0, 0xBA
_SEGMENT = 0x18538067
# Segment, Tracks, TrackEntry, Video: the elements that lead to a frame's size.
_LISTS = frozenset({_SEGMENT, 0x1654AE6B, 0xAE, 0xE0})
_LONGEST = 8


def frame_sizes_of_matroska(path: str) -> list[tuple[int, int]]:
    """Read the largest height and width of frames that the header in front of them claims.

    Args:
        path: the file.

    Returns:
        One size, or none if the file is of another kind.
    """
    heights, widths = [], []
    with open(path, "rb") as file:
        if int.from_bytes(file.read(4)) != _EBML:
            return []
        for identifier, content in _elements(file, os.path.getsize(path)):
            if identifier == _HEIGHT:
                heights.append(int.from_bytes(content))
            elif identifier == _WIDTH:
                widths.append(int.from_bytes(content))
    return [(max(heights), max(widths))] if heights and widths else []


def segment_end(file: BinaryIO, size: int) -> int:
    """Read where the part of a Matroska file that holds its frames ends, as its header says.

    Args:
        file: the open file.
        size: number of its bytes.

    Returns:
        The place; 0 for a file of another kind, or if the header leaves it open.
    """
    file.seek(0)
    if int.from_bytes(file.read(4)) != _EBML:
        return 0
    place = 0
    while place < size:
        identifier, length = _number(file, place, keeps_length=True)
        content, more = _number(file, place + length, keeps_length=False)
        if not length or not more:
            return 0
        place += length + more
        if identifier == _SEGMENT:
            # A size whose bits are all ones means that the writer did not know it.
            return 0 if content == (1 << 7 * more) - 1 else place + content
        place += content
    return 0


def _elements(file: BinaryIO, end: int) -> Iterator[tuple[int, bytes]]:
    """Yield each element with the start of its content, those within lists included."""
    place = 0
    while place < end:
        check_time()
        identifier, length = _number(file, place, keeps_length=True)
        size, more = _number(file, place + length, keeps_length=False)
        if not length or not more or identifier == _CLUSTER:
            return
        place += length + more
        if identifier in _LISTS:
            continue  # its content comes next
        file.seek(place)
        yield identifier, file.read(min(size, _LONGEST))
        place += size


def _number(file: BinaryIO, place: int, keeps_length: bool) -> tuple[int, int]:
    """Read a number that tells its own length; return both, with length 0 if there is none."""
    file.seek(place)
    first = file.read(1)
    if not first or not first[0]:
        return 0, 0
    length = 9 - first[0].bit_length()
    number = int.from_bytes(first + file.read(length - 1))
    return number if keeps_length else number & ~(1 << 7 * length), length
