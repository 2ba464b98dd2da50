"""Checkpoints on the authors' server: fetched once, checked and removed (App. C, App. D.1).

`transfer.py` downloads. What is done here: one process at a time fetches a file; its SHA-256 is
that which is stated for it or, where none is, that of the first download; and it stays no longer
than it is needed, but long enough for nothing to be fetched twice.
"""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from keras_vjepa import files, locks
from keras_vjepa.presets.transfer import (
    Expected,
    TransferError,
    WrongContentError,
    fetch,
    hash_of,
)

TRUST_VARIABLE = "KERAS_VJEPA_TRUST_ON_FIRST_USE"

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class RemoteFile:
    """A file on a web server.

    Attributes:
        address: where it is.
        sha256: its hash, or None while it is not yet known.
        num_bytes: its length, or None.
        stated_by: who says so of hash and length, for messages; None for this package.
    """

    address: str
    sha256: str | None = None
    num_bytes: int | None = None
    stated_by: str | None = None

    @property
    def name(self) -> str:
        return self.address.rsplit("/", 1)[-1]

    @property
    def _readable(self) -> str:
        return self.address.split("://", 1)[-1].replace("/", "_")

    @property
    def path(self) -> Path:
        """Where it lies in the cache while it is needed."""
        return files.cache_folder() / "downloads" / self._readable

    @property
    def pin(self) -> Path:
        """Where the hash of the first download is kept, in the layout of `sha256sum`."""
        return files.cache_folder() / "trusted" / f"{self._readable}.sha256"

    def known_sha256(self) -> str | None:
        """The hash that the file must have: the stated one, else that of the first download."""
        if self.sha256 is None and self.pin.is_file():
            text = self.pin.read_text("utf-8", errors="replace")
            found = re.match(r"[0-9a-f]{64}(?=\s)", text)
            if found is None:
                raise ValueError(f"{self.pin} must begin with a SHA-256. Remove it to trust anew")
            return found[0]
        return self.sha256

    def trust(self, sha256: str) -> None:
        """Keep the hash of the first download, unless there is one."""
        files.write_text(self.pin, f"{sha256}  {self.address}\n", existing="keep")


@contextmanager
def downloaded(
    file: RemoteFile, trust_on_first_use: bool = False, keep: bool = False
) -> Iterator[Path]:
    """Download a file for as long as the context lasts.

    Its hash is checked. Where none is known, that of this download is kept when the context ends
    well, so a file that turned out to be useless is not trusted. What was stopped, here or on the
    way, is gone on with the next time; of several processes one works, and the others wait.

    Args:
        file: what to download.
        trust_on_first_use: accept a file whose hash is not known.
        keep: leave the file in the cache for the next who asks.

    Yields:
        Path of the complete file. It is removed afterwards, also if the context ends in a
        `ValueError`, which means that the file is useless; whatever else ends it leaves the file.

    Raises:
        ValueError: if it cannot be downloaded, has another hash than it must, or its hash is not
            known and may not be trusted.
        OSError: if there is no place for it.
    """
    known = file.known_sha256()
    trusted = trust_on_first_use or os.environ.get(TRUST_VARIABLE, "0") not in ("", "0")
    if known is None and not trusted:
        raise ValueError(
            f"The SHA-256 of {file.address} is not yet known, so nothing says that what is "
            "downloaded is the authors' file. To accept it once and pin its hash, pass "
            f"`trust_on_first_use=True` or set {TRUST_VARIABLE}=1."
        )
    with _alone_with(file) as path:
        sha256 = _fetched(file, path, known, file.num_bytes)
        try:
            yield path
        except ValueError:
            path.unlink(missing_ok=True)
            raise
        if known is None:
            file.trust(sha256)
        if not keep:
            path.unlink(missing_ok=True)


@contextmanager
def received(file: RemoteFile, keep: bool = False) -> Iterator[tuple[Path, str]]:
    """Download a file for as long as the context lasts, for somebody who checks its hash.

    Args:
        file: what to download.
        keep: leave the file in the cache, where `downloaded` finds it.

    Yields:
        Path of the complete file, and its SHA-256.

    Raises:
        ValueError: if it cannot be downloaded.
        OSError: if there is no place for it.
    """
    with _alone_with(file) as path:
        sha256, is_done = _fetched(file, path, known=None, num_bytes=None), True
        try:
            yield path, sha256
        except BaseException as error:
            is_done = isinstance(error, Exception)  # and was not stopped, to be gone on with
            raise
        finally:
            if is_done and not keep:
                path.unlink(missing_ok=True)


@contextmanager
def _alone_with(file: RemoteFile) -> Iterator[Path]:
    """Keep other processes away from a file in the cache."""
    path = file.path
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = f".lock-{path.name}"
    with locks.locked(path.parent, files.CACHE_VARIABLE, wait=True, name=lock):
        yield path


def _fetched(file: RemoteFile, path: Path, known: str | None, num_bytes: int | None) -> str:
    """Have a file in the cache, and return its hash, which is what it must be."""
    if path.is_file():
        # Whole, from a time before: what was to be made of it was stopped.
        sha256 = hash_of(path)
        if known in (None, sha256):
            return sha256
        _LOG.warning("%s is not what it must be, and is fetched anew.", path)
        path.unlink()
    try:
        return fetch(file.address, path, Expected(known, num_bytes))
    except TransferError as error:
        # Without the errors below it, which are pages that end in the same words.
        raise ValueError(
            f"{error}. Try again, or fetch it yourself: curl -C - -O {file.address}, and then "
            "keras-vjepa convert."
        ) from None
    except WrongContentError as error:
        raise ValueError(_another_file(file, error)) from None


def _another_file(file: RemoteFile, error: WrongContentError) -> str:
    """Say where the hash comes from that a file does not have, and what to do."""
    if file.sha256 is None and file.pin.is_file():
        origin = f"the first download, kept in {file.pin}"
        remedy = "Remove that to trust what is there now"
    else:
        origin = file.stated_by or "this package"
        remedy = (
            "Try once more; if it is the same, tell the project both, with keras-vjepa verify. "
            "What you fetched yourself and trust, keras-vjepa convert takes"
        )
    return (
        f"{file.address} must have {error.must_have}, according to {origin}. "
        f"Received: {error.received}. It was not taken. {remedy}."
    )
