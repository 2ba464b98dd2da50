"""Read the sizes of images from their headers, before anything is decoded (App. D.1).

Formats that are not understood here are not decoded at all.
"""

import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

FORMATS = "PNG, JPEG, BMP, WebP, TIFF and GIF"

_TIFF_TYPES = {1: "B", 3: "H", 4: "I", 16: "Q"}
_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_TRANSPARENCY = 256, 257, 338
# Whether colours are already multiplied by their transparency, or still have to be.
_DONE, _TO_COME = 1, 2


class ImageHeader(NamedTuple):
    """Holds what the header of an image says.

    Attributes:
        name: name of the format.
        height: height in pixels.
        width: width in pixels.
    """

    name: str
    height: int
    width: int


def image_format(head: bytes) -> str | None:
    """Name the image format of a file by its first bytes; `None` for anything else.

    Args:
        head: the first bytes of a file, a dozen or more.

    Example:

    >>> image_format(b"GIF89a" + bytes(10))
    'GIF'
    """
    for name, starts in _STARTS.items():
        if any(head.startswith(start) for start in starts):
            return name
    return "WebP" if head[:4] == b"RIFF" and head[8:12] == b"WEBP" else None


def still_image_format(head: bytes) -> str | None:
    """Name the format of a file of one picture, also if it is one that is not read here.

    Args:
        head: the first bytes of a file, a dozen or more.

    Example:

    >>> still_image_format(b"#?RADIANCE" + bytes(9)), image_format(b"#?RADIANCE" + bytes(9))
    ('Radiance', None)
    """
    for name, starts in _OTHER_STARTS.items():
        if any(head.startswith(start) for start in starts):
            return name
    if head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS:
        return "HEIF"
    return image_format(head)


def image_header(content: bytes) -> ImageHeader:
    """Read the size of an image from its file.

    Args:
        content: the whole file; JPEG and TIFF may keep their size anywhere in it.

    Returns:
        Format and size, as the header claims them.

    Raises:
        ValueError: if the file is no image of a known format, or its header is damaged.

    Example:

    >>> image_header(b"GIF89a" + struct.pack("<HH", 640, 480))
    ImageHeader(name='GIF', height=480, width=640)
    """
    name = image_format(content[:16])
    if name is None:
        raise ValueError(f"no image is found in it (damaged, or none of {FORMATS})")
    try:
        height, width = _SIZES[name](content)
    except (struct.error, IndexError) as error:
        raise ValueError(f"the header of the {name} image is damaged") from error
    return ImageHeader(name, height, width)


def _png(content: bytes) -> tuple[int, int]:
    if content[12:16] != b"IHDR":
        raise IndexError
    width, height = struct.unpack_from(">II", content, 16)
    return height, width


def _gif(content: bytes) -> tuple[int, int]:
    width, height = struct.unpack_from("<HH", content, 6)
    return height, width


def _bmp(content: bytes) -> tuple[int, int]:
    (header_size,) = struct.unpack_from("<I", content, 14)
    # Headers of OS/2 have sizes of 16 bits. In others a negative height says that the rows go from
    # top to bottom.
    width, height = struct.unpack_from("<HH" if header_size == 12 else "<ii", content, 18)
    return abs(height), abs(width)


def _jpeg(content: bytes) -> tuple[int, int]:
    place = 2
    while True:
        place = content.find(b"\xff", place)
        if place < 0:
            raise IndexError
        while content[place] == 0xFF:  # any number of these bytes may stand before a marker
            place += 1
        marker = content[place]
        place += 1
        # Markers of this range begin a frame; three of them mean something else.
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", content, place + 3)
            return height, width
        if marker not in (0x00, 0x01, *range(0xD0, 0xD9)):
            place += max(2, struct.unpack_from(">H", content, place)[0])


def _webp(content: bytes) -> tuple[int, int]:
    kind = content[12:16]
    if len(content) < 30:
        raise IndexError
    if kind == b"VP8X":
        width = int.from_bytes(content[24:27], "little") + 1
        return int.from_bytes(content[27:30], "little") + 1, width
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", content, 21)
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", content, 26)
        return height & 0x3FFF, width & 0x3FFF
    raise IndexError


def _tiff(content: bytes) -> tuple[int, int]:
    sizes = {_TIFF_HEIGHT: 0, _TIFF_WIDTH: 0}
    for tag, layout, place in _tiff_entries(content):
        if tag in sizes:
            (size,) = struct.unpack_from(layout, content, place)
            sizes[tag] = max(sizes[tag], size)  # the decoder may choose any of several
    return sizes[_TIFF_HEIGHT], sizes[_TIFF_WIDTH]


def with_plain_transparency(content: bytes) -> bytes:
    """Change a TIFF image so that its colours are decoded as they are stored.

    libtiff, with which OpenCV decodes it, multiplies colours by their transparency if the file says
    that this has not been done yet. The changed file says that it has.

    Args:
        content: file of an image whose header has been read. Other formats stay as they are.
    """
    if image_format(content[:16]) != "TIFF":
        return content
    changed = bytearray(content)
    for tag, layout, place in _tiff_entries(content):
        if tag == _TIFF_TRANSPARENCY and struct.unpack_from(layout, content, place) == (_TO_COME,):
            struct.pack_into(layout, changed, place, _DONE)
    return bytes(changed)


def _tiff_entries(content: bytes) -> Iterator[tuple[int, str, int]]:
    """Yield tag, and layout and place of the value, of each entry in a TIFF image's header."""
    order = "<" if content[:2] == b"II" else ">"
    is_big = struct.unpack_from(order + "H", content, 2)[0] == 43
    place_layout, count_layout, entry_size = ("Q", "Q", 20) if is_big else ("I", "H", 12)
    (place,) = struct.unpack_from(order + place_layout, content, 8 if is_big else 4)
    (count,) = struct.unpack_from(order + count_layout, content, place)
    place += struct.calcsize(count_layout)
    for i in range(min(count, 4096)):
        tag, kind = struct.unpack_from(order + "HH", content, place + entry_size * i)
        value = place + entry_size * i + (12 if is_big else 8)
        yield tag, order + _TIFF_TYPES.get(kind, "I"), value


_STARTS = {
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "JPEG": (b"\xff\xd8\xff",),
    "GIF": (b"GIF87a", b"GIF89a"),
    "BMP": (b"BM",),
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
}
_OTHER_STARTS = {
    "JPEG 2000": (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"),
    "JPEG XL": (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"),
    "Radiance": (b"#?RADIANCE", b"#?RGBE"),
    "OpenEXR": (b"\x76\x2f\x31\x01",),
    "Netpbm": tuple(b"P%c%c" % (kind, space) for kind in b"1234567FfHh" for space in b" \t\r\n"),
    "Photoshop": (b"8BPS",),
    "DPX": (b"SDPX", b"XPDS"),
    "DDS": (b"DDS ",),
    "QOI": (b"qoif",),
    "ICO": (b"\0\0\1\0", b"\0\0\2\0"),
    "Sun raster": (b"\x59\xa6\x6a\x95",),
}
_HEIF_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1")
_SIZES: dict[str, Callable[[bytes], tuple[int, int]]] = {
    "PNG": _png,
    "JPEG": _jpeg,
    "GIF": _gif,
    "BMP": _bmp,
    "TIFF": _tiff,
    "WebP": _webp,
}
