"""Describe what can be read: files, and videos and images that lie elsewhere (§3.4).

A `Media` says where the frames of one video, or the pixels of one image, come from. There are two
kinds. An `EncodedMedia` has bytes, as a file holds them. They are lent to a decoder as a regular
file, so that the same checks and decoders serve for them as for files, and give the same pixels. A
`FrameMedia` has pictures, one for each frame.

All methods of media that read are called behind the gate (see `gate.py`).
"""

import hashlib
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from keras_vjepa.data.reading.decoders import Decoder
from keras_vjepa.data.reading.gate import check_file
from keras_vjepa.data.reading.kinds import has_image_extension
from keras_vjepa.data.reading.lent_files import LentFile, lent_copy
from keras_vjepa.data.reading.limits import ReadingLimits

HASH_BYTES = 16
# Stands for the hash of a file that is missing or cannot be read.
NO_CONTENT = bytes(HASH_BYTES)

_BLOCK, _NUM_BLOCKS = 32 * 1024, 5


@dataclass(frozen=True)
class Content:
    """Gives the bytes of a video or an image.

    Attributes:
        size: number of bytes.
        read_at: function of a place and a length, which returns the bytes there, fewer only at the
            end.
    """

    size: int
    read_at: Callable[[int, int], bytes]

    def digest(self) -> bytes:
        """Hash the size, and all bytes if they are few, else blocks at equal distances."""
        hashed = hashlib.blake2b(str(self.size).encode(), digest_size=HASH_BYTES)
        if self.size <= _BLOCK * _NUM_BLOCKS:
            hashed.update(self.read_at(0, self.size))
        else:
            for i in range(_NUM_BLOCKS):
                hashed.update(self.read_at(i * (self.size - _BLOCK) // (_NUM_BLOCKS - 1), _BLOCK))
        return hashed.digest()


class Media(ABC):
    """Describes one video or image, wherever it is stored.

    Attributes:
        name: its name in messages, logs and tables, which is there once in a list of samples.
        is_image: whether it is a still image.
        what: what it is, for messages.
        shared: what it has in common with many others, such as a data set; it is sent to another
            process only once.
    """

    name: str
    what: ClassVar[str] = "a video"

    @property
    def shared(self) -> Any:
        """Return what many sources have in common, which a worker process is sent once, or None."""
        return None

    @property
    def is_image(self) -> bool:
        """Return whether it is a still image, by the extension of its name."""
        return has_image_extension(self.name)

    @abstractmethod
    def content_hash(self) -> bytes:
        """Hash its content: `HASH_BYTES` bytes, `NO_CONTENT` if nothing can be read."""

    @abstractmethod
    def status(self) -> tuple[int, int, int, int]:
        """Return size, times and number, which change if it is replaced; zeros if unknown."""


class EncodedMedia(Media):
    """Stands for a video or an image of which there are bytes, as a file holds them."""

    @abstractmethod
    def content(self) -> AbstractContextManager[Content]:
        """Lend the bytes, or raise a `ValueError` that says why there are none."""

    def lent_file(self) -> LentFile:
        """Lend the bytes as a regular file, for decoders that take nothing else."""
        with self.content() as content:
            return lent_copy(content.size, content.read_at, (*self.status(), content.digest()))

    def content_hash(self) -> bytes:
        """Hash the bytes as `Content.digest` does, `NO_CONTENT` if they cannot be read."""
        try:
            with self.content() as content:
                return bytes(content.digest())
        except (OSError, ValueError):
            return NO_CONTENT


class FrameMedia(Media):
    """Stands for a video whose frames are pictures of their own."""

    @property
    def is_image(self) -> bool:
        """Return False, because it is a video."""
        return False

    @abstractmethod
    def decoder(self, limits: ReadingLimits) -> Decoder:
        """Make a decoder of the frames, or raise a `ValueError` that says what is wrong."""


@dataclass(frozen=True)
class File(EncodedMedia):
    """Stands for a file of its own, on a disk of this machine."""

    name: str

    @contextmanager
    def content(self) -> Iterator[Content]:
        """Lend the bytes of the file."""
        size = check_file(self.name)
        with open(self.name, "rb", buffering=0) as file:
            yield Content(size, lambda place, length: read_at(file.fileno(), place, length))

    def lent_file(self) -> LentFile:
        """Lend the file itself."""
        check_file(self.name)
        return LentFile(self.name, self.status())

    def content_hash(self) -> bytes:
        """Hash the bytes as `Content.digest` does, `NO_CONTENT` if there is no such file."""
        size, *others = self.status()
        if not any((size, *others)):
            return NO_CONTENT
        try:
            # The file is opened here, because `content` refuses an empty file, which is not the
            # same as a missing one.
            with open(self.name, "rb", buffering=0) as file:
                number = file.fileno()
                return Content(size, lambda place, length: read_at(number, place, length)).digest()
        except OSError:
            return NO_CONTENT

    def status(self) -> tuple[int, int, int, int]:
        """Return size, times and number of the file; zeros if there is none."""
        return file_status(self.name)


def read_at(descriptor: int, place: int, length: int) -> bytes:
    """Read a number of bytes from a place of an open file, fewer only at its end."""
    parts = []
    os.lseek(descriptor, place, os.SEEK_SET)
    while length > 0 and (part := os.read(descriptor, length)):
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


def file_status(path: str | os.PathLike[str]) -> tuple[int, int, int, int]:
    """Return size, times and number of a regular file; zeros for anything else.

    Args:
        path: the file.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return 0, 0, 0, 0
    if not stat.S_ISREG(status.st_mode):
        return 0, 0, 0, 0
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino & (2**63 - 1)
