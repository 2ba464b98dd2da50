"""Fetch checkpoints from the authors' server once, check and remove them (App. C, App. D.1).

`transfer.py` does the downloading. This module sees to three things. Only one process at a time
fetches a file. A file's SHA-256 must be the stated one or, if none is stated, that of the first
download. And a file stays in the cache no longer than it is needed, but long enough that it is not
fetched twice.
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
    """Describes a file on a web server.

    Attributes:
        address: address of the file.
        sha256: SHA-256 of the file; None while it is not yet known.
        num_bytes: length of the file; None if it is not known.
        stated_by: who states hash and length, for messages; None for this package.
    """

    address: str
    sha256: str | None = None
    num_bytes: int | None = None
    stated_by: str | None = None

    @property
    def name(self) -> str:
        """Return the name of the file, without the folders of its address."""
        return self.address.rsplit("/", 1)[-1]

    @property
    def _readable(self) -> str:
        return self.address.split("://", 1)[-1].replace("/", "_")

    @property
    def path(self) -> Path:
        """Return where the file is in the cache while it is needed."""
        return files.cache_folder() / "downloads" / self._readable

    @property
    def pin(self) -> Path:
        """Return the path of the first download's hash, a file in the layout of `sha256sum`."""
        return files.cache_folder() / "trusted" / f"{self._readable}.sha256"

    def known_sha256(self) -> str | None:
        """Return the hash that the file must have: the stated one, or the first download's."""
        if self.sha256 is None and self.pin.is_file():
            text = self.pin.read_text("utf-8", errors="replace")
            found = re.match(r"[0-9a-f]{64}(?=\s)", text)
            if found is None:
                raise ValueError(
                    f"{self.pin} must begin with a SHA-256. Remove it to accept the next download"
                )
            return found[0]
        return self.sha256

    def trust(self, sha256: str) -> None:
        """Keep the hash of the first download, unless one is kept already."""
        files.write_text(self.pin, f"{sha256}  {self.address}\n", existing="keep")


@contextmanager
def downloaded(
    file: RemoteFile, trust_on_first_use: bool = False, keep: bool = False
) -> Iterator[Path]:
    """Download a file, check its hash, and keep it for as long as the context lasts.

    If no hash is known, that of this download is kept once the context has ended without an error,
    so that a useless file is not trusted. A download or a context that was stopped continues the
    next time. If several processes ask for the same file, one works and the others wait.

    Args:
        file: the file to download.
        trust_on_first_use: whether a file is accepted whose hash is not known.
        keep: whether the file stays in the cache for others.

    Yields:
        Path of the complete file. It is removed afterwards, also if the context ends with a
        `ValueError`, which means that the file is useless; after any other error the file stays.

    Raises:
        ValueError: if the file cannot be downloaded or has a wrong hash, or if its hash is not
            known and may not be trusted.
        OSError: if there is no space for the file.
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
    """Download a file and keep it for as long as the context lasts; the caller checks its hash.

    Args:
        file: the file to download.
        keep: whether the file stays in the cache, where `downloaded` finds it.

    Yields:
        Path of the complete file, and its SHA-256.

    Raises:
        ValueError: if the file cannot be downloaded.
        OSError: if there is no space for the file.
    """
    with _alone_with(file) as path:
        sha256, is_done = _fetched(file, path, known=None, num_bytes=None), True
        try:
            yield path, sha256
        except BaseException as error:
            # A KeyboardInterrupt, which is no Exception, leaves the file for the next time.
            is_done = isinstance(error, Exception)
            raise
        finally:
            if is_done and not keep:
                path.unlink(missing_ok=True)


@contextmanager
def _alone_with(file: RemoteFile) -> Iterator[Path]:
    """Lock a file in the cache, so that other processes wait for it."""
    path = file.path
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = f".lock-{path.name}"
    with locks.locked(path.parent, files.CACHE_VARIABLE, wait=True, name=lock):
        yield path


def _fetched(file: RemoteFile, path: Path, known: str | None, num_bytes: int | None) -> str:
    """Fetch a file into the cache unless it is there, check its hash and return it."""
    if path.is_file():
        # A complete file is there from an earlier time, when its use was stopped.
        sha256 = hash_of(path)
        if known in (None, sha256):
            return sha256
        _LOG.warning("%s does not have the content that it must have, and is fetched anew.", path)
        path.unlink()
    try:
        return fetch(file.address, path, Expected(known, num_bytes))
    except TransferError as error:
        # The errors that caused this one are hidden, because they are long and say the same.
        raise ValueError(
            f"{error}. Try again, or fetch it yourself (curl -C - -O {file.address}), convert it "
            "(keras-vjepa convert FILE FOLDER), and take FOLDER as preset."
        ) from None
    except WrongContentError as error:
        raise ValueError(_another_file(file, error)) from None


def _another_file(file: RemoteFile, error: WrongContentError) -> str:
    """Say that a file has a wrong hash, who states the right one, and what to do."""
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
