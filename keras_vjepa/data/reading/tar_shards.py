"""Read members of tar files where they lie, without unpacking (§3.4).

`shards/000.tar/clip.mp4` is the member `clip.mp4` of the file `shards/000.tar`: it is found by its
place in the file, so that any member can be read at any time, as if it were a file. The places of
members are found by going once through the headers of the tar file. They are kept in memory, and
those of large tar files in the cache folder too, for as long as the tar file does not change.
"""

import hashlib
import io
import os
import posixpath
import re
import tarfile
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from keras_vjepa import files
from keras_vjepa.data.reading.errors import printable
from keras_vjepa.data.reading.gate import check_time
from keras_vjepa.data.reading.kinds import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS, extension
from keras_vjepa.data.reading.media import Content, EncodedMedia, File
from keras_vjepa.data.reading.remote import ADDRESS, RangeFile, RemoteFile

_BLOCK = 512
_END = bytes(_BLOCK)
_INTO_A_SHARD = re.compile(r"\.tar/", re.IGNORECASE)
# Tar files that are compressed as a whole can only be read from the start.
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
# The number of bytes read at once. The headers of small members, such as labels, are close
# together.
_READ_AHEAD = 2**13
# For files with at least this many members, their places are stored in the cache folder. Smaller
# files are scanned in a few hundredths of a second.
_KEPT_FROM = 1000
# The most members whose places are kept in memory.
_MOST_MEMBERS = 2**21


@dataclass(frozen=True)
class TarMembers:
    """Says where the members of a tar file lie.

    Attributes:
        places: start and size of each member by its name, in the order of the file.
        problem: what is wrong with the file behind the last member, "" if nothing is.
    """

    places: dict[str, tuple[int, int]]
    problem: str = ""


def tar_members(path: str) -> TarMembers:
    """Find all members of a tar file that are files, from the cache folder if that knows them.

    Args:
        path: the tar file.

    Raises:
        ValueError: if the file is missing, compressed, or no tar file.

    Example:

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with tarfile.open(Path(folder, "a.tar"), "w") as tar:
    ...         tar.addfile(tarfile.TarInfo("b.mp4"))
    ...     tar_members(str(Path(folder, "a.tar")))
    TarMembers(places={'b.mp4': (512, 0)}, problem='')
    """
    shard = _shard(path)
    status = shard.status()
    kept = _read_kept(path, status)
    if kept is None:
        with shard.content() as content:
            kept = _gone_through(content)
        if len(kept.places) >= _KEPT_FROM:
            _keep(path, status, kept)
    return kept


@dataclass(frozen=True)
class TarMember(EncodedMedia):
    """Stands for a file in a tar file.

    Args:
        name: path of the tar file, a slash, and the name of the member.
        shard: path of the tar file.
    """

    name: str
    shard: str

    @contextmanager
    def content(self) -> Iterator[Content]:
        """Lend the bytes of the member."""
        start, size = self._place()
        with _shard(self.shard).content() as shard:

            def read_at(place: int, length: int) -> bytes:
                return shard.read_at(start + place, min(length, size - place))

            yield Content(size, read_at)

    def status(self) -> tuple[int, int, int, int]:
        """Return the member's size, the tar file's times, and a number of both; or zeros."""
        try:
            start, size = self._place()
        except (OSError, ValueError):
            return 0, 0, 0, 0
        _, changed, made, number = _shard(self.shard).status()
        return size, changed, made, (number ^ start << 20) & (2**63 - 1)

    def _place(self) -> tuple[int, int]:
        member = self.name[len(self.shard) + 1 :]
        found = _places(self.shard).get(member)
        if found is None:
            raise ValueError(f"there is no such member in {printable(self.shard)}")
        return found


def tar_member_at(path: str) -> TarMember | None:
    """Find the member of a tar file to which a path leads.

    Args:
        path: any path or address.

    Returns:
        The member, which need not be there; None if no part of the path is a tar file.
    """
    for found in _INTO_A_SHARD.finditer(path):
        shard = path[: found.end() - 1]
        if ADDRESS.match(path) or os.path.isfile(shard):
            return TarMember(path, shard)
    return None


# --- Going through a tar file --------------------------------------------------------------------


def _shard(path: str) -> EncodedMedia:
    return RemoteFile(path) if ADDRESS.match(path) else File(path)


def _gone_through(content: Content) -> TarMembers:
    places: dict[str, tuple[int, int]] = {}
    remark = ""
    if content.read_at(0, 6).startswith(_COMPRESSED):
        raise ValueError("it is a compressed tar file, whose members cannot be read singly")
    with io.BufferedReader(RangeFile(content), _READ_AHEAD) as file:
        try:
            tar = tarfile.open(fileobj=file, mode="r:")
        except (tarfile.TarError, ValueError, OverflowError) as error:
            raise ValueError(f"it is no tar file, or damaged: {error}") from error
        for member in _members(tar):
            check_time()
            place = _place_of(member, places)
            if member.isdir() or (place and sum(place) > content.size):
                continue  # a truncated member is left out
            if place is None:
                remark = remark or f"{printable(member.name)} in it is no file, and not read"
            elif member.name in places:
                name = printable(member.name)
                remark = remark or f"it holds {name} twice, the first of which is read"
            else:
                places[member.name] = place
        # Python's reader takes anything that it cannot read for the end of the file.
        problem = _problem_at(content, tar.offset)
    return TarMembers(places, problem or remark)


def _place_of(
    member: tarfile.TarInfo, places: dict[str, tuple[int, int]]
) -> tuple[int, int] | None:
    """Find where the content of a member is: for a link, that of an earlier member."""
    if member.islnk():
        return places.get(member.linkname)
    if member.issym():
        folder = posixpath.dirname(member.name)
        return places.get(posixpath.normpath(posixpath.join(folder, member.linkname)))
    is_plain = member.isreg() and not member.issparse()
    return (member.offset_data, member.size) if is_plain else None


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield all members up to the end, or to one that cannot be read."""
    # This is less than any real offset, because opening the file has already read the first member.
    end = -1
    while True:
        try:
            member = tar.next()
        except (tarfile.TarError, ValueError, OverflowError):
            return
        if member is None or tar.offset <= end:
            return
        yield member
        end = tar.offset
        tar.members.clear()  # type: ignore[attr-defined]  # it would remember all of them


def _problem_at(content: Content, end: int) -> str:
    if end > content.size:
        return f"it is truncated: {end - content.size:,} bytes of its last member are missing"
    block = content.read_at(end, _BLOCK)
    if len(block) < _BLOCK:
        return "it is truncated: the mark of its end is missing"
    return "" if block == _END else f"it is damaged at byte {end:,}, and not read from there on"


# --- Stored places -------------------------------------------------------------------------------

# For each tar file, its status when it was read and the places of its members. The most recently
# used file is the last.
_remembered: OrderedDict[str, tuple[tuple[int, ...], dict[str, tuple[int, int]]]] = OrderedDict()
_lock = threading.Lock()


def _places(path: str) -> dict[str, tuple[int, int]]:
    """Return the places of the videos and images of a tar file."""
    status = _shard(path).status()
    with _lock:
        known, places = _remembered.get(path, ((), {}))
        if known == status:
            _remembered.move_to_end(path)
            return places
    places = {
        name: place
        for name, place in tar_members(path).places.items()
        if extension(name) in VIDEO_EXTENSIONS | IMAGE_EXTENSIONS
    }
    with _lock:
        _remembered[path] = status, places
        while len(_remembered) > 1 and sum(map(_count, _remembered.values())) > _MOST_MEMBERS:
            _remembered.popitem(last=False)
    return places


def _count(entry: tuple[tuple[int, ...], dict[str, tuple[int, int]]]) -> int:
    return len(entry[1])


def _file_of(path: str) -> Path:
    place = path if ADDRESS.match(path) else os.path.abspath(path)
    name = hashlib.blake2b(os.fsencode(place), digest_size=16).hexdigest()
    return files.cache_folder() / "tar_members" / f"{name}.npz"


def _read_kept(path: str, status: tuple[int, ...]) -> TarMembers | None:
    try:
        with np.load(_file_of(path), allow_pickle=False) as stored:
            if tuple(stored["status"].tolist()) != status:
                return None
            names = bytes(stored["names"]).decode("utf-8", "surrogateescape").split("\0")
            places = [(start, size) for start, size in stored["places"].tolist()]
            return TarMembers(dict(zip(names, places, strict=True)), str(stored["problem"]))
    except Exception:  # not there, or damaged in any way: nothing but time is lost
        return None


def _keep(path: str, status: tuple[int, ...], members: TarMembers) -> None:
    names = "\0".join(members.places).encode("utf-8", "surrogateescape")
    try:
        with files.unfinished_file(_file_of(path)) as unfinished:
            np.savez(
                unfinished,
                status=np.array(status),
                names=np.frombuffer(names, np.uint8),
                places=np.array([*members.places.values()]),
                problem=members.problem,
            )
    except OSError:
        pass  # the next process scans the tar file again
