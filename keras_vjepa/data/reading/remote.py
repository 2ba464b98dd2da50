"""Read files that are not on a disk of this machine: gs://, s3://, hf://, https:// (§3.4).

`http` and `https` need nothing but Python; all others go through fsspec, if that and the package
for the protocol are installed. A file that is read as a whole is kept in the cache folder, under
its address and version, complete or not at all. Of a tar file only the members that are read are
fetched. Nothing is removed from the cache folder, so it grows to the size of all that is read.
"""

import functools
import hashlib
import io
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol, TypeVar

from keras_vjepa import files
from keras_vjepa.data.reading.errors import MissingPackageError
from keras_vjepa.data.reading.gate import check_time
from keras_vjepa.data.reading.kinds import extension
from keras_vjepa.data.reading.lent_files import LentFile
from keras_vjepa.data.reading.media import HASH_BYTES, NO_CONTENT, Content, EncodedMedia, File

ResultT = TypeVar("ResultT")

ADDRESS = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")

_AT_ONCE = 2**24
_SECONDS = 30
# After a failed connection, the next attempts are made after these numbers of seconds.
_PAUSES = (0.5, 2.0)
# Fields that identify the version of a file, as several stores name them.
_VERSIONS = (
    "ETag etag md5Hash md5 crc32c generation sha256 blob_id mtime created updated LastModified "
    "last_modified Last-Modified"
).split()


@dataclass(frozen=True)
class RemoteInfo:
    """Holds what a store says of a file.

    Attributes:
        size: size in bytes.
        version: a text that changes if the file is replaced, as far as the store tells.
        has_ranges: whether a part of the file can be read without the rest.
    """

    size: int
    version: str
    has_ranges: bool = True


class Store(Protocol):
    """Describes what is asked of a place where files lie.

    An error is a `ValueError` if trying again is of no use.
    """

    def info(self, address: str) -> RemoteInfo:
        """Ask for size and version of a file."""

    def read(self, address: str, start: int, stop: int) -> bytes:
        """Read a part of a file."""

    def find(self, address: str) -> dict[str, RemoteInfo]:
        """List all files in a folder and in the folders in it, by their addresses."""


def store_of(address: str) -> Store:
    """Find the store that reads an address.

    Args:
        address: an address such as `gs://bucket/a.mp4`.

    Raises:
        MissingPackageError: if the package for its protocol is not installed.
        ValueError: if nothing knows its protocol.
    """
    protocol = address.partition("://")[0].lower()
    return _Web() if protocol in ("http", "https") else _file_system(protocol)


def is_of_one_process(address: str) -> bool:
    """Tell whether other processes find something else, or nothing, at an address."""
    return address.lower().startswith("memory://")


@dataclass(frozen=True)
class RemoteFile(EncodedMedia):
    """Stands for a file at an address.

    Args:
        name: the address.
        known: size and version, if a listing of its folder has told them.
    """

    name: str
    known: RemoteInfo | None = None

    def info(self) -> RemoteInfo:
        """Ask for size and version, once in a process."""
        return self.known or _info(self.name)

    @contextmanager
    def content(self) -> Iterator[Content]:
        """Lend the bytes: of the copy if there is one or must be one, else from the store."""
        info, copy = self.info(), self._place()
        if not info.has_ranges or _is_whole(copy, info):
            with File(self.local_copy()).content() as content:
                yield content
            return
        store = store_of(self.name)

        def read_at(place: int, length: int) -> bytes:
            stop = min(place + length, info.size)
            return _tried(lambda: store.read(self.name, place, stop)) if stop > place else b""

        yield Content(info.size, read_at)

    def lent_file(self) -> LentFile:
        """Lend the copy in the cache folder, which is made if need be."""
        return File(self.local_copy()).lent_file()

    def status(self) -> tuple[int, int, int, int]:
        """Return the size and a number of size and version; zeros if the store does not tell."""
        try:
            info = self.info()
        except (OSError, ValueError):
            return 0, 0, 0, 0
        return info.size, 0, 0, int.from_bytes(self._digest(info)[:7])

    def content_hash(self) -> bytes:
        """Hash size and version, as the store tells them; the file is not read."""
        try:
            return self._digest(self.info())
        except (OSError, ValueError):
            return NO_CONTENT

    def _digest(self, info: RemoteInfo) -> bytes:
        text = f"{info.size}\0{info.version or self.name}"
        return hashlib.blake2b(text.encode(), digest_size=HASH_BYTES).digest()

    def _place(self) -> Path:
        """Return the path at which a copy is kept."""
        info = self.info()
        named = os.fsencode(f"{self.name}\0{info.size}\0{info.version}")
        name = hashlib.blake2b(named, digest_size=16).hexdigest()
        ending = extension(without_query(self.name))
        ending = ending if ending.isascii() else ""
        return files.cache_folder() / "remote" / name[:2] / f"{name}{ending}"

    def local_copy(self) -> str:
        """Return the path of a copy in the cache folder, which is made if need be."""
        info, place = self.info(), self._place()
        if not _is_whole(place, info):
            store = store_of(self.name)
            with _naming_the_cache(place), files.unfinished_file(place) as unfinished:
                with open(unfinished, "wb") as file:
                    self._fetch(store, info, file.write)
        return str(place)

    def _fetch(self, store: Store, info: RemoteInfo, write: Callable[[bytes], Any]) -> None:
        step = _AT_ONCE if info.has_ranges else max(info.size, 1)
        for start in range(0, info.size, step):
            check_time()
            stop = min(start + step, info.size)
            part = _tried(functools.partial(store.read, self.name, start, stop))
            if len(part) != stop - start:
                raise ValueError(f"{len(part):,} of {stop - start:,} bytes came: it has changed")
            write(part)


@contextmanager
def _naming_the_cache(place: Path) -> Iterator[None]:
    """Say that a copy cannot be written, and what to do, where a block fails to write one."""
    try:
        yield
    except OSError as error:
        if not str(error.filename or "").startswith(str(files.cache_folder())):
            raise
        reason = f"no copy can be kept in the cache folder ({error.strerror}), set another one by "
        raise OSError(error.errno, reason + files.CACHE_VARIABLE, str(place)) from error


def without_query(address: str) -> str:
    """Return an address of the web up to its `?`, which may be followed by keys for the file.

    Args:
        address: any address or path; others are returned as they are.
    """
    is_web = re.match("https?://", address, re.IGNORECASE)
    return address.partition("?")[0] if is_web else address


class RangeFile(io.RawIOBase):
    """Reads content that is elsewhere as an open file, from any place.

    Args:
        content: the content.
    """

    def __init__(self, content: Content) -> None:
        self._content, self._position = content, 0

    def readable(self) -> bool:
        """Tell that it can be read."""
        return True

    def seekable(self) -> bool:
        """Tell that it can be read from any place."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place, as in any open file."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._content.size}
        self._position = start[whence] + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer from the current place, and return the number of bytes."""
        part = self._content.read_at(self._position, len(buffer))
        buffer[: len(part)] = part
        self._position += len(part)
        return len(part)


def _is_whole(place: Path, info: RemoteInfo) -> bool:
    return place.is_file() and place.stat().st_size == info.size


@functools.lru_cache(maxsize=2**16)
def _info(address: str) -> RemoteInfo:
    return _tried(lambda: store_of(address).info(address))


def _tried(action: Callable[[], ResultT]) -> ResultT:
    """Do something, and do it again if a connection fails."""
    for pause in (*_PAUSES, None):
        try:
            return action()
        except FileNotFoundError as error:
            raise ValueError("no such file") from error
        except PermissionError as error:
            raise ValueError("no permission to read it") from error
        except IsADirectoryError as error:
            raise ValueError("it is a folder, not a file") from error
        except OSError:
            check_time()
            if pause is None:
                raise
            time.sleep(pause)
        except ValueError:
            raise
        except Exception as error:  # each store has errors of its own
            raise ValueError(f"{type(error).__name__}: {error}") from error
    raise AssertionError


def _version(told: Any) -> str:
    return " ".join(f"{name}={told[name]}" for name in _VERSIONS if told.get(name) is not None)


class _Web:
    """Reads files behind HTTP."""

    def info(self, address: str) -> RemoteInfo:
        try:
            with self._opened(address, "HEAD") as answer:
                size = answer.headers.get("Content-Length", "")
                ranges = answer.headers.get("Accept-Ranges", "none") != "none"
                version = _version(answer.headers)
        except OSError as error:
            cause = error.__cause__ or error
            if getattr(cause, "code", 0) not in (403, 405, 501):
                raise
            # Addresses that contain a key often allow only GET.
            with self._opened(address, "GET", {"Range": "bytes=0-0"}) as answer:
                ranges = answer.status == 206
                said = answer.headers.get("Content-Range" if ranges else "Content-Length", "")
                size, version = said.rpartition("/")[2], _version(answer.headers)
        if not size.isdecimal():
            raise ValueError("its server does not say how large it is")
        return RemoteInfo(int(size), version, ranges)

    def read(self, address: str, start: int, stop: int) -> bytes:
        with self._opened(address, "GET", {"Range": f"bytes={start}-{stop - 1}"}) as answer:
            # A server that does not support ranges sends the whole file.
            skipped = start if answer.status == 200 else 0
            answer.read(skipped)
            return bytes(answer.read(stop - start))

    def find(self, address: str) -> dict[str, RemoteInfo]:
        raise ValueError(f"`source` must be a list or shards at http. Received: {address}")

    @contextmanager
    def _opened(
        self, address: str, method: str, headers: dict[str, str] | None = None
    ) -> Iterator[Any]:
        # Spaces and letters of all languages are escaped, since lists contain them as they are.
        # What is already escaped, such as %20, stays.
        quoted = urllib.parse.quote(address, safe="%/:?#[]@!$&'()*+,;=~")
        request = urllib.request.Request(quoted, method=method, headers=headers or {})
        try:
            with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
                yield answer
        except urllib.error.HTTPError as error:
            if error.code in (404, 410):
                raise FileNotFoundError(address) from error
            if error.code in (401, 403):
                raise PermissionError(address) from error
            raise


@cache
def _file_system(protocol: str) -> "_FileSystem":
    try:
        import fsspec
    except ImportError as error:
        raise MissingPackageError(
            f"{protocol}:// needs fsspec: pip install keras-vjepa[remote]"
        ) from error
    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        raise MissingPackageError(f"{protocol}:// needs another package. {error}") from error
    except ValueError as error:
        raise ValueError(f"{protocol}:// is not known. {error}") from error
    return _FileSystem(fsspec)


class _FileSystem:
    """Reads files of a store that fsspec knows."""

    def __init__(self, fsspec: Any) -> None:
        self._fsspec = fsspec

    def info(self, address: str) -> RemoteInfo:
        system, path = self._fsspec.core.url_to_fs(address)
        told = system.info(path)
        if told.get("type") == "directory":
            raise IsADirectoryError(address)
        return _of_store(told)

    def read(self, address: str, start: int, stop: int) -> bytes:
        system, path = self._fsspec.core.url_to_fs(address)
        return bytes(system.cat_file(path, start=start, end=stop))

    def find(self, address: str) -> dict[str, RemoteInfo]:
        system, path = self._fsspec.core.url_to_fs(address)
        found = system.find(path, detail=True)
        return {
            system.unstrip_protocol(name): _of_store(told)
            for name, told in found.items()
            if told.get("type") == "file"
        }


def _of_store(told: Any) -> RemoteInfo:
    return RemoteInfo(int(told.get("size") or 0), _version(told))
