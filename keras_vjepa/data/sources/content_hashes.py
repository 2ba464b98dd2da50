"""Tell whether files are what they were, without reading all of them again (App. C, App. D.1).

A file is known by its content: its size, and all of it if it is small, else blocks that lie evenly
from its beginning to its end. So a folder that was copied or moved, with other times, holds the
same files, and a file that another one replaced is another, whatever its name, size and times.

Departure from reading all: a change of a large file that leaves its size and all of the blocks as
they were is not seen. A video that is encoded or cut anew changes everywhere.

Hashes of long lists are kept in the cache folder with size, times and number of each file, so that
the next start asks the file system for these alone.
"""

import hashlib
import logging
import os
import stat
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from keras_vjepa import files

Hashes = NDArray[np.uint8]

HASH_BYTES = 16
# Of a file that is not there, or is none.
NO_CONTENT = bytes(HASH_BYTES)

_BLOCK, _NUM_BLOCKS = 32 * 1024, 5
# Reading waits for the disk or the network, not for Python.
_THREADS, _FILES_AT_ONCE = 16, 64
# Shorter lists are read in a second or two.
_KEPT_FROM = 1000
# A file that changes twice within the clock's resolution has the same times.
_CLOCK_NS = 2_000_000_000

_LOG = logging.getLogger(__name__)


def content_hash(path: str | os.PathLike[str]) -> bytes:
    """Hash the content of a file.

    Args:
        path: the file.

    Returns:
        `HASH_BYTES` bytes; `NO_CONTENT` for what is no file, or cannot be read.

    Example:

    >>> import tempfile
    >>> from keras_vjepa.data.sources.content_hashes import NO_CONTENT, content_hash
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in "ab":
    ...         _ = Path(folder, name).write_text("the same")
    ...     same = content_hash(Path(folder, "a")) == content_hash(Path(folder, "b"))
    ...     same, content_hash(folder) == NO_CONTENT
    (True, True)
    """
    return _hash_of(path, _status(path))


def content_hashes(paths: Sequence[str]) -> Hashes:
    """Hash the contents of many files.

    Args:
        paths: the files.

    Returns:
        `(files, HASH_BYTES)`, as `content_hash` gives them.
    """
    if not paths:
        return np.zeros((0, HASH_BYTES), np.uint8)
    looked_at = time.time_ns()
    starts = range(0, len(paths), _FILES_AT_ONCE)
    chunks = [paths[start : start + _FILES_AT_ONCE] for start in starts]
    with ThreadPoolExecutor(_THREADS) as pool:
        found = np.concatenate(list(pool.map(_statuses, chunks)))
        if len(paths) < _KEPT_FROM:
            return np.concatenate(list(pool.map(_hashes, chunks, np.split(found, starts[1:]))))
        kept = _read_kept(paths)
        hashes, unchanged = kept.unchanged(found) if kept else (None, np.zeros(len(paths), bool))
        hashes = np.zeros((len(paths), HASH_BYTES), np.uint8) if hashes is None else hashes
        new = np.flatnonzero(~unchanged)
        if len(new):
            _LOG.warning("Looking at %s files, which the next start need not do.", f"{len(new):,}")
            parts = np.array_split(new, -(-len(new) // _FILES_AT_ONCE))
            of_parts = pool.map(lambda part: _hashes([paths[i] for i in part], found[part]), parts)
            hashes[new] = np.concatenate(list(of_parts))
            _keep(paths, found, hashes, looked_at)
    return hashes


def as_text(hashes: Hashes) -> list[str]:
    """Write each of some hashes as JSON files hold it."""
    return [bytes(row).hex() for row in hashes]


# --- A file --------------------------------------------------------------------------------------


def _status(path: str | os.PathLike[str]) -> tuple[int, int, int, int]:
    """Size, times and number of a file; zeros for what is none."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return 0, 0, 0, 0
    if not stat.S_ISREG(status.st_mode):
        return 0, 0, 0, 0
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino & (2**63 - 1)


def _statuses(paths: Sequence[str]) -> NDArray[np.int64]:
    return np.array([_status(path) for path in paths], np.int64)


def _hash_of(path: str | os.PathLike[str], status: Sequence[int]) -> bytes:
    size = int(status[0])
    if not any(status):
        return NO_CONTENT
    digest = hashlib.blake2b(str(size).encode(), digest_size=HASH_BYTES)
    try:
        with open(path, "rb", buffering=0) as file:
            if size <= _BLOCK * _NUM_BLOCKS:
                digest.update(file.readall())
            else:
                for i in range(_NUM_BLOCKS):
                    file.seek(i * (size - _BLOCK) // (_NUM_BLOCKS - 1))
                    digest.update(file.read(_BLOCK) or b"")
    except OSError:
        return NO_CONTENT
    return digest.digest()


def _hashes(paths: Sequence[str], statuses: NDArray[np.int64]) -> Hashes:
    pairs = zip(paths, statuses.tolist(), strict=True)
    content = b"".join(_hash_of(path, status) for path, status in pairs)
    return np.frombuffer(content, np.uint8).reshape(-1, HASH_BYTES)


# --- What is kept --------------------------------------------------------------------------------


class _Kept:
    """Hashes of a list of files from the cache folder, and what the files were then."""

    def __init__(self, statuses: NDArray[np.int64], hashes: Hashes, looked_at: int) -> None:
        self.statuses = statuses
        self.hashes = hashes
        self.looked_at = looked_at

    def unchanged(self, statuses: NDArray[np.int64]) -> tuple[Hashes, NDArray[np.bool_]]:
        """Return the hashes, and which of them still hold."""
        last_change = statuses[:, 1:3].max(axis=1)
        same = (statuses == self.statuses).all(axis=1) & statuses.any(axis=1)
        return self.hashes.copy(), same & (last_change < self.looked_at - _CLOCK_NS)


def _file_of(paths: Sequence[str]) -> Path:
    names = b"\0".join(os.fsencode(os.path.abspath(path)) for path in paths)
    name = hashlib.blake2b(names, digest_size=16).hexdigest()
    return files.cache_folder() / "content_hashes" / f"{name}.npz"


def _read_kept(paths: Sequence[str]) -> _Kept | None:
    try:
        with np.load(_file_of(paths), allow_pickle=False) as stored:
            kept = _Kept(stored["statuses"], stored["hashes"], int(stored["looked_at"]))
    except Exception:  # Not there, or damaged in any way: all that is lost is time.
        return None
    shapes = kept.statuses.shape, kept.hashes.shape
    return kept if shapes == ((len(paths), 4), (len(paths), HASH_BYTES)) else None


def _keep(
    paths: Sequence[str], statuses: NDArray[np.int64], hashes: Hashes, looked_at: int
) -> None:
    try:
        with files.unfinished_file(_file_of(paths)) as unfinished:
            np.savez(unfinished, statuses=statuses, hashes=hashes, looked_at=looked_at)
    except OSError as error:
        _LOG.warning("The next start looks at the files again: %s", error)
