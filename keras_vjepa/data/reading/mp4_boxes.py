"""Read what only the boxes of an MP4 file say, and no decoding library tells (§3.4).

An MP4 file is a tree of boxes: eight bytes of size and kind, then content.
"""

import os
import struct
from collections.abc import Iterator
from typing import Any, BinaryIO

from keras_vjepa.data.reading.gate import check_time

# Boxes that contain other boxes, on the way to the tables.
_LISTS = frozenset({b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf"})


def kinds_of_boxes(path: str) -> list[bytes]:
    """List the kinds of the outermost boxes; for other files, anything or nothing."""
    with open(path, "rb") as file:
        return [kind for kind, _, _ in _boxes(file, 0, os.path.getsize(path))]


def edit_list_seconds(path: str) -> float | None:
    """Return the seconds of its video track that an MP4 shows; `None` without an edit list.

    A file cut without encoding it again (`ffmpeg -ss ... -c copy`, as many Kinetics copies are)
    keeps the packets since the last keyframe and hides them with an edit list. Neither the count
    in the header nor OpenCV's packets take the edit list into account.
    """
    with open(path, "rb") as file:
        moov = _find(file, [b"moov"], 0, os.path.getsize(path))
        if moov is None:
            return None
        header = _find(file, [b"mvhd"], *moov)
        for kind, start, end in _boxes(file, *moov):
            if kind != b"trak" or header is None:
                continue
            handler = _find(file, [b"mdia", b"hdlr"], start, end)
            edits = _find(file, [b"edts", b"elst"], start, end)
            if handler and edits and _read(file, handler[0] + 8, "4s")[0] == b"vide":
                return _sum_of_edits(file, edits[0]) / _timescale(file, header[0])
    return None


def mp4_claims(path: str) -> tuple[list[tuple[int, int]], int]:
    """Read what the tables of an MP4 file claim of its frames.

    Args:
        path: the file; a file of another kind claims nothing.

    Returns:
        Height and width of the frames of each track of video, and the number of samples of all
        tracks: frames, and pieces of sound.
    """
    sizes, num_samples, handler = [], 0, b""
    with open(path, "rb") as file:
        for kind, start, end in _all_boxes(file, 0, os.path.getsize(path)):
            if kind == b"hdlr":
                component, handler_or_data = _read(file, start + 4, "4s4s")
                # QuickTime has a second handler, of the data, between that of the track and the
                # tables.
                handler = handler if component == b"dhlr" else handler_or_data
            elif kind == b"stsd" and handler == b"vide" and end - start >= 44:
                width, height = _read(file, start + 40, "HH")
                sizes.append((height, width))
            elif kind in (b"stsz", b"stz2"):
                num_samples += _read(file, start + 8, "I")[0]
            elif kind == b"trun":
                num_samples += _read(file, start + 4, "I")[0]
    return sizes, num_samples


def _all_boxes(file: BinaryIO, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, and start and end of the content, of each box, those within others included.

    A box that reaches beyond the end is cut off there, because FFmpeg reads such a box too.
    """
    while start + 8 <= end:
        check_time()
        size, kind = _read(file, start, "I4s")
        content = start + 8
        if size == 1:
            size, content = _read(file, content, "Q")[0], content + 8
        elif size == 0:
            size = end - start
        if start + size < content:
            return
        start = min(start + size, end)
        if kind in _LISTS:
            yield from _all_boxes(file, content, start)
        else:
            yield kind, content, start


def _timescale(file: BinaryIO, header: int) -> int:
    version = _read(file, header, "B")[0]
    return int(_read(file, header + (20 if version == 1 else 12), "I")[0]) or 1


def _sum_of_edits(file: BinaryIO, start: int) -> int:
    version, count = _read(file, start, "B3xI")
    layout = "Qqi" if version == 1 else "Iii"
    size = struct.calcsize(">" + layout)
    edits = [_read(file, start + 8 + size * i, layout) for i in range(min(count, 1000))]
    return sum(duration for duration, media_time, _ in edits if media_time >= 0)


def _find(file: BinaryIO, kinds: list[bytes], start: int, end: int) -> tuple[int, int] | None:
    """Find start and end of the content of a nested box."""
    for kind, inner_start, inner_end in _boxes(file, start, end):
        if kind == kinds[0]:
            rest = kinds[1:]
            return _find(file, rest, inner_start, inner_end) if rest else (inner_start, inner_end)
    return None


def _boxes(file: BinaryIO, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, and start and end of the content, of each box; stop at what is no box."""
    while start + 8 <= end:
        check_time()
        size, kind = _read(file, start, "I4s")
        content = start + 8
        if size == 1 and start + 16 <= end:
            size, content = _read(file, start + 8, "Q")[0], start + 16
        elif size == 0:
            size = end - start
        if start + size > end or start + size < content:
            return
        yield kind, content, start + size
        start += size


def _read(file: BinaryIO, offset: int, layout: str) -> tuple[Any, ...]:
    file.seek(offset)
    size = struct.calcsize(">" + layout)
    return struct.unpack(">" + layout, file.read(size).ljust(size, b"\0"))
