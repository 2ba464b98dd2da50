"""Open zip archives of uncompressed members, and check the sizes that they claim (App. C).

PyTorch's checkpoints and NumPy's `.npz` files are such archives. Libraries trust an archive's list
of members. Here the list is compared with the size of the file, so that a small file cannot claim a
large amount of memory.
"""

import struct
import zipfile
from typing import BinaryIO

from keras_vjepa.arguments import shown
from keras_vjepa.files import PathLike

# The largest list of members allowed. That of the largest checkpoint takes a tenth of this.
_MOST_LISTED_BYTES = 2**23
_END, _END_64, _PLACE_OF_END_64 = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"


class CompressedError(ValueError):
    """Says which member of an archive is compressed."""


def open_archive(path: PathLike) -> tuple[zipfile.ZipFile, dict[str, int]]:
    """Open an archive, and return it with the size of each member in bytes, by name.

    Args:
        path: path of a plain file.

    Raises:
        BadZipFile: if it is not an archive.
        CompressedError: if a member is compressed.
        ValueError: if it claims more bytes than it has, or has a name twice.
        OSError: if it cannot be opened.
    """
    with open(path, "rb") as file:
        num_bytes, listed = file.seek(0, 2), _size_of_list(file)
    if listed > _MOST_LISTED_BYTES:
        raise ValueError(f"its list of members must have at most {_MOST_LISTED_BYTES:,} bytes")
    archive = zipfile.ZipFile(path)
    try:
        return archive, _member_sizes(archive, num_bytes)
    except ValueError:
        archive.close()
        raise


def _size_of_list(file: BinaryIO) -> int:
    """Return the size of the list of members, which libraries would read whatever its size."""
    size = file.seek(0, 2)
    file.seek(max(0, size - 2**16 - 22))
    end = file.read()
    place = end.rfind(_END)
    if place < 0 or place + 22 > len(end):
        return 0
    (listed,) = struct.unpack_from("<I", end, place + 12)
    pointer = end[max(0, place - 20) : place]
    if len(pointer) < 20 or not pointer.startswith(_PLACE_OF_END_64):
        return listed
    file.seek(min(struct.unpack_from("<Q", pointer, 8)[0], size))
    record = file.read(56)
    if len(record) < 56 or not record.startswith(_END_64):
        return listed
    return max(listed % (2**32 - 1), struct.unpack_from("<Q", record, 40)[0])


def _member_sizes(archive: zipfile.ZipFile, num_bytes: int) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for info in archive.infolist():
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            name = shown(info.filename)
            raise CompressedError(f"it is compressed, which such archives never are: {name}")
        if info.filename in sizes:
            raise ValueError(f"it has two members of the name {shown(info.filename)}")
        sizes[info.filename] = info.file_size
    if sum(sizes.values()) > num_bytes:
        raise ValueError(f"its members claim {sum(sizes.values()):,} bytes. It has {num_bytes:,}")
    return sizes
