"""Count the frames of an AVI file, and read how large they are, by its own chunks (§3.4).

Packets of an AVI file do not hold their times: FFmpeg takes them from the index, even when it reads
in order. A flipped bit in the index hides a frame, and every later one passes for its neighbour.
"""

import os
import struct
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from keras_vjepa.data.reading.gate import check_time

_LISTS = (b"RIFF", b"LIST")


def is_avi(path: str) -> bool:
    """Tell whether a file is an AVI file by its first bytes."""
    with open(path, "rb") as file:
        head = file.read(12)
    return head[:4] == b"RIFF" and head[8:11] == b"AVI"


def check_frames_of_avi(path: str, num_frames: int, places: Sequence[int] = ()) -> None:
    """Check that the frames found in an AVI file are as many as its chunks of video, and are these.

    A file that is cut off, or that cannot be followed from chunk to chunk, is taken as it is.

    Args:
        path: the file.
        num_frames: frames that were found.
        places: where in the file they were found; empty if that is not known, and then the file's
            index must be right about at least half of them.

    Raises:
        ValueError: if there are more frames or fewer, or if one was found where no chunk is.
    """
    followed = _video_chunks(path)
    if followed is None:
        return
    chunks, indexed = followed
    if len(chunks) != num_frames:
        raise ValueError(
            f"the index of the AVI file is damaged: it holds {len(chunks)} frames, and "
            f"{num_frames} are found"
        )
    if places:
        is_elsewhere = [*places] != chunks
    else:
        # FFmpeg finds a single frame despite a wrong place, but all are wrong if the first one is.
        wrong = sum(one != other for one, other in zip(indexed, chunks, strict=False))
        is_elsewhere = len(indexed) == len(chunks) < 2 * wrong
    if is_elsewhere:
        raise ValueError(
            "the index of the AVI file is damaged: a frame does not begin where it says"
        )


def frame_sizes_of_avi(path: str) -> list[tuple[int, int]]:
    """Read the height and width of frames that the header of an AVI file claims, for each stream.

    Args:
        path: the file; there are none if it is of another kind.
    """
    if not is_avi(path):
        return []
    sizes, kind_of_stream = [], b""
    with open(path, "rb") as file:
        for kind, place, _ in _chunks(file, 0, os.path.getsize(path)):
            if kind == b"strh":
                kind_of_stream = _read(file, place, 4)
            elif kind == b"strf" and kind_of_stream == b"vids":
                width, height = struct.unpack("<ii", _read(file, place + 4, 8))
                sizes.append((abs(height), abs(width)))
            elif kind[:2].isdigit():
                break  # the header ends where the frames begin
    return sizes


def _video_chunks(path: str) -> tuple[list[int], list[int]] | None:
    """Return the places of the frames, and those that the index says.

    There is None if the file cannot be followed from chunk to chunk.
    """
    size, found, streams, video = os.path.getsize(path), list[int](), 0, b""
    first, indexed = 0, list[int]()
    with open(path, "rb") as file:
        for kind, place, length in _chunks(file, 0, size):
            if place + length > size:
                return None
            if kind == b"strh":
                if not video and _read(file, place, 4) == b"vids":
                    video = b"%02dd" % streams
                streams += 1
            elif kind == b"idx1" and video:
                indexed = _indexed(_read(file, place, length), video, first)
            elif kind[:2].isdigit():
                first = first or place
                # An empty chunk repeats the last frame, and is not a frame itself.
                if video and kind[:3] == video and length:
                    found.append(place)
    return (found, indexed) if video else None


def _indexed(index: bytes, video: bytes, first: int) -> list[int]:
    """Return where an index says that frames are, if its first entry is of the first chunk."""
    whole = index[: len(index) // 16 * 16]
    entries = [e for e in struct.iter_unpack("<4sIII", whole) if e[0][:2].isdigit()]
    # Places count from one that files do not agree on. FFmpeg too takes it from the first entry.
    return [
        first + place - entries[0][2]
        for kind, _, place, length in entries
        if kind[:3] == video and length
    ]


def _chunks(file: BinaryIO, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, place and length of the content of each chunk, those within lists included."""
    while start + 8 <= end:
        check_time()
        kind, length = struct.unpack("<4sI", _read(file, start, 8))
        if kind in _LISTS:
            start += 12  # its content comes next
            continue
        yield kind, start + 8, length
        start += 8 + length + length % 2


def _read(file: BinaryIO, place: int, length: int) -> bytes:
    file.seek(place)
    return file.read(length).ljust(length, b"\0")
