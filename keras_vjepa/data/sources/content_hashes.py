"""Tell whether files are what they were, without reading all of them again (App. C, App. D.1).

A file is known by a hash of its size and its content: of all bytes if it is small, else of blocks
that lie evenly from its beginning to its end. So a folder that was copied or moved, with other
times, holds the same files. A file that took the place of another is a different one, even if name,
size and times are the same.

Departure from reading all bytes: a change of a large file that leaves its size and all of the
blocks as they were is not seen. A video that is encoded or cut again changes everywhere.

Hashes of long lists are kept in the cache folder, with size, times and number of each file. The
next start then asks the file system for these alone.
"""

import hashlib
import logging
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from keras_vjepa import files
from keras_vjepa.data.reading.locating import media_at, name_of
from keras_vjepa.data.reading.media import HASH_BYTES, EncodedMedia, Media

Hashes = NDArray[np.uint8]
Source = str | Path | Media

# Many threads help, because reading waits for the disk or the network, not for Python.
_THREADS, _FILES_AT_ONCE = 16, 64
# The hashes of lists with at least this many files are stored. Shorter lists are read in a second
# or two.
_KEPT_FROM = 1000
# A stored hash is trusted if the file had last changed at least this long before it was hashed,
# because two changes within the resolution of the clock have the same time.
_CLOCK_NS = 2_000_000_000

_LOG = logging.getLogger(__name__)


def content_hash(source: str | Path | Media) -> bytes:
    """Hash the content of a file, or of other media.

    Args:
        source: as `media_at` takes it.

    Returns:
        `HASH_BYTES` bytes; `NO_CONTENT` if the file is not there or cannot be read.

    Example:

    >>> import tempfile
    >>> from keras_vjepa.data.reading.media import NO_CONTENT
    >>> from keras_vjepa.data.sources.content_hashes import content_hash
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in "ab":
    ...         _ = Path(folder, name).write_text("the same")
    ...     same = content_hash(Path(folder, "a")) == content_hash(Path(folder, "b"))
    ...     same, content_hash(folder) == NO_CONTENT
    (True, True)
    """
    return _hash_of(source)


def content_hashes(sources: Sequence[Source]) -> Hashes:
    """Hash the contents of many files, or of other media.

    Args:
        sources: as `media_at` takes them.

    Returns:
        `(sources, HASH_BYTES)`, as `content_hash` gives them.
    """
    if not sources:
        return np.zeros((0, HASH_BYTES), np.uint8)
    looked_at = time.time_ns()
    starts = range(0, len(sources), _FILES_AT_ONCE)
    chunks = [sources[start : start + _FILES_AT_ONCE] for start in starts]
    with ThreadPoolExecutor(_THREADS) as pool:
        if len(sources) < _KEPT_FROM:
            return np.concatenate(list(pool.map(_hashes, chunks)))
        found = np.concatenate(list(pool.map(_statuses, chunks)))
        place = _place_of(sources)
        kept = _read_kept(place, len(sources))
        hashes, unchanged = kept.unchanged(found) if kept else (None, np.zeros(len(sources), bool))
        hashes = np.zeros((len(sources), HASH_BYTES), np.uint8) if hashes is None else hashes
        new = np.flatnonzero(~unchanged)
        if len(new):
            _LOG.warning("Looking at %s files, which the next start need not do.", f"{len(new):,}")
            parts = np.array_split(new, -(-len(new) // _FILES_AT_ONCE))
            of_parts = pool.map(lambda part: _hashes([sources[i] for i in part]), parts)
            hashes[new] = np.concatenate(list(of_parts))
            _keep(place, found, hashes, looked_at)
    return hashes


def size_of(source: Source) -> int:
    """Return the size of a file or of other media in bytes; -1 if there is none."""
    status = media_at(source).status()
    return status[0] if any(status) else -1


def as_text(hashes: Hashes) -> list[str]:
    """Write each of some hashes as the text that JSON files hold."""
    return [bytes(row).hex() for row in hashes]


# --- A single hash -------------------------------------------------------------------------------


def _statuses(sources: Sequence[Source]) -> NDArray[np.int64]:
    """Return size, times and number of each; zeros if it is missing or has no content."""
    found = map(media_at, sources)
    encoded = (isinstance(one, EncodedMedia) and one.status() or (0, 0, 0, 0) for one in found)
    return np.array([*encoded], np.int64)


def _hash_of(source: Source) -> bytes:
    return media_at(source).content_hash()


def _hashes(sources: Sequence[Source]) -> Hashes:
    return np.frombuffer(b"".join(map(_hash_of, sources)), np.uint8).reshape(-1, HASH_BYTES)


# --- Stored hashes -------------------------------------------------------------------------------


class _Kept:
    """Holds the hashes of a list of files from the cache folder, and the files' state then."""

    def __init__(self, statuses: NDArray[np.int64], hashes: Hashes, looked_at: int) -> None:
        self.statuses = statuses
        self.hashes = hashes
        self.looked_at = looked_at

    def unchanged(self, statuses: NDArray[np.int64]) -> tuple[Hashes, NDArray[np.bool_]]:
        """Return the hashes, and which of them still hold."""
        last_change = statuses[:, 1:3].max(axis=1)
        same = (statuses == self.statuses).all(axis=1) & statuses.any(axis=1)
        return self.hashes.copy(), same & (last_change < self.looked_at - _CLOCK_NS)


def _place_of(sources: Sequence[Source]) -> Path:
    names = b"\0".join(os.fsencode(os.path.abspath(name_of(source))) for source in sources)
    name = hashlib.blake2b(names, digest_size=16).hexdigest()
    return files.cache_folder() / "content_hashes" / f"{name}.npz"


def _read_kept(place: Path, count: int) -> _Kept | None:
    try:
        with np.load(place, allow_pickle=False) as stored:
            kept = _Kept(stored["statuses"], stored["hashes"], int(stored["looked_at"]))
    except Exception:  # not there, or damaged in any way: nothing but time is lost
        return None
    shapes = kept.statuses.shape, kept.hashes.shape
    return kept if shapes == ((count, 4), (count, HASH_BYTES)) else None


def _keep(place: Path, statuses: NDArray[np.int64], hashes: Hashes, looked_at: int) -> None:
    try:
        with files.unfinished_file(place) as unfinished:
            np.savez(unfinished, statuses=statuses, hashes=hashes, looked_at=looked_at)
    except OSError as error:
        _LOG.warning("The next start looks at the files again: %s", error)
