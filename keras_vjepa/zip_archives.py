"""Open zip archives whose members lie in them as they are, and check what they claim (App. C).

PyTorch's checkpoints and NumPy's `.npz` files are such. A library believes an archive's list of
members; here it is compared with the bytes that are there, so a small file stays small.
"""

import struct
import zipfile
from typing import BinaryIO

from keras_vjepa.arguments import shown
from keras_vjepa.files import PathLike

# The list of members; that of the largest checkpoint takes a tenth of that.
_MOST_LISTED_BYTES = 2**23
_END, _END_64, _PLACE_OF_END_64 = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"


def open_archive(path: PathLike) -> tuple[zipfile.ZipFile, dict[str, int]]:
    """Open an archive, and find the bytes of each member by its name.

    Args:
        path: of a plain file.

    Raises:
        BadZipFile: if it is no archive.
        ValueError: if it claims more than there is, is compressed, or has a name twice.
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
    """Find the size of the list of members, which libraries read without a limit."""
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
            raise ValueError("it is compressed, which such archives never are")
        if info.filename in sizes:
            raise ValueError(f"it has two members of the name {shown(info.filename)}")
        sizes[info.filename] = info.file_size
    if sum(sizes.values()) > num_bytes:
        raise ValueError(f"its members claim {sum(sizes.values()):,} bytes. It has {num_bytes:,}")
    return sizes
