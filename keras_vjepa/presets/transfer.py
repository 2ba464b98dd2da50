"""Download a large file in as many attempts as it takes, and fetch no byte twice (App. C).

The bytes received so far lie beside the path of the file as `NAME.part`, with `NAME.part.json`,
which holds the server's name for that version of the file. The next attempt, after a break or by
another process after this one was killed, asks the server for the rest of the same version
(`Range`, `If-Range`). If the server has another version now, or cannot send parts of files, the
download starts again and says so. SHA-256 is computed on the way; a part that an earlier process
left is read once for it.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from keras_vjepa import files
from keras_vjepa.json_files import read_json_object
from keras_vjepa.presets.http_answers import (
    CHUNK,
    Answer,
    BrokenError,
    OutdatedPartError,
    Part,
    RefusedError,
    ask,
)
from keras_vjepa.presets.transfer_display import TransferDisplay, amount

# No file of weights is longer than this. The limit stops a server that sends bytes without end.
_MOST_BYTES = 2**38


@dataclass(frozen=True)
class Patience:
    """Says how long a download continues with a bad connection.

    Attributes:
        timeout: seconds without a byte after which an attempt is broken off.
        least_rate: bytes per second, over `timeout` seconds, below which it is broken off too.
        tries: number of breaks in a row, without progress, after which the download is given up.
        headway: share of the file that counts as progress; then breaks are counted from 0 again.
        first_wait: seconds before the second attempt; each further one waits twice as long.
        longest_wait: most seconds to wait, also if the server asks for more.
    """

    timeout: float = 60.0
    least_rate: float = 1000.0
    tries: int = 6
    headway: float = 1 / 64
    first_wait: float = 1.0
    longest_wait: float = 60.0


PATIENCE = Patience()


class TransferError(ValueError):
    """Says why a file cannot be downloaded, and how much of it was kept."""


class WrongContentError(ValueError):
    """Says that the file on the server is not the expected one.

    Attributes:
        must_have: what the file must have, such as "the SHA-256 ...".
        received: what it has instead.
    """

    def __init__(self, must_have: str, received: str) -> None:
        super().__init__(f"the file must have {must_have}. Received: {received}")
        self.must_have, self.received = must_have, received


@dataclass(frozen=True)
class Expected:
    """Holds what is known of a file before it is downloaded.

    Attributes:
        sha256: SHA-256 of the file, or None.
        num_bytes: length of the file, or None.
    """

    sha256: str | None = None
    num_bytes: int | None = None


def fetch(
    address: str, path: Path, expected: Expected = Expected(), patience: Patience | None = None
) -> str:
    """Download a file, or the rest of it that an earlier process has left.

    Only one process may do this at a time: see `locks.locked`.

    Args:
        address: address of the file.
        path: path to write to; the file appears there once it is complete and correct.
        expected: what is known of the file.
        patience: how long to continue with a bad connection; None for `PATIENCE`.

    Returns:
        SHA-256 of the file.

    Raises:
        TransferError: if the file cannot be downloaded; the received bytes are kept.
        WrongContentError: if it is another file than expected; the received bytes are removed.
        OSError: if the disk has no space for the file, or it cannot be written.
    """
    with files.continued_file(path) as unfinished:
        transfer = _Transfer(address, unfinished, expected, patience or PATIENCE)
        sha256 = transfer.run()
    transfer.forget()
    return sha256


def hash_of(path: Path) -> str:
    """Read a file, and return its SHA-256."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Transfer:
    """Downloads one file; knows the part on disk and the number of breaks without progress."""

    def __init__(
        self, address: str, unfinished: Path, expected: Expected, patience: Patience
    ) -> None:
        self._address, self._expected, self._patience = address, expected, patience
        self._unfinished = unfinished
        self._described = unfinished.with_name(f"{unfinished.name}.json")
        self._display = TransferDisplay(address.rsplit("/", 1)[-1])
        self._hash = hashlib.sha256()
        self._part = self._found()
        # The furthest byte received so far, where that was when the current breaks began, and how
        # many breaks there were.
        self._furthest = self._headway_from = self._part.num_bytes
        self._num_breaks, self._was_answered = 0, False

    def run(self) -> str:
        """Ask until the file is complete, and return its hash."""
        try:
            while not self._is_whole():
                self._ask()
        except KeyboardInterrupt:
            self._display.say(f"stopped; {amount(self._part.num_bytes)} are kept to go on with")
            raise
        except WrongContentError:
            if not self._part.num_bytes:
                self._remove()
            raise
        sha256 = self._hash.hexdigest()
        if self._expected.sha256 not in (None, sha256):
            self._remove()
            raise WrongContentError(f"the SHA-256 {self._expected.sha256}", sha256)
        return sha256

    def _ask(self) -> None:
        """Ask once for the missing bytes, and receive them."""
        try:
            with ask(self._address, self._part, self._patience.timeout) as answer:
                self._was_answered = True
                self._receive(answer)
        except OutdatedPartError as error:
            self._display.say(f"begun anew: {error}")
            self._part = Part()
        except BrokenError as error:
            self._wait_after(error)
        except RefusedError as error:
            raise self._given_up(str(error)) from None

    def forget(self) -> None:
        """Remove the notes about the part."""
        self._described.unlink(missing_ok=True)

    def _remove(self) -> None:
        self._unfinished.unlink(missing_ok=True)
        self.forget()

    # --- What is on the disk ---------------------------------------------------------------------

    def _found(self) -> Part:
        """Find and hash the part that an earlier process left; an empty part if it is useless."""
        num_bytes = self._unfinished.stat().st_size if self._unfinished.is_file() else 0
        if num_bytes == 0:
            return Part()
        noted: dict[str, Any] = {}
        with suppress(OSError, ValueError):
            noted = read_json_object(self._described)
        version, total = noted.get("version"), noted.get("total")
        is_sound = isinstance(version, str | None) and type(total) in (int, type(None))
        if (
            noted.get("address") != self._address
            or not is_sound
            or num_bytes > (total or num_bytes)
        ):
            self._display.say("begun anew: what is here of it cannot be gone on with")
            return Part()
        if version is None and self._expected.sha256 is None:
            self._display.say("begun anew: nothing would tell whether it has changed meanwhile")
            return Part()
        with open(self._unfinished, "rb") as file:
            while chunk := file.read(CHUNK):
                self._hash.update(chunk)
        return Part(num_bytes, version, total)

    def _is_whole(self) -> bool:
        """Tell whether the whole file is there; False while its length is not known."""
        total = self._part.total
        return total is not None and self._part.num_bytes == total and self._unfinished.is_file()

    def _begin(self, answer: Answer) -> BinaryIO:
        """Open the part to write the answer's bytes; empty it if the whole file is sent again."""
        file = _opened(self._unfinished, is_continued=answer.start > 0)
        if not answer.start:
            self._hash = hashlib.sha256()
        self._part = Part(answer.start, answer.version, answer.total)
        noted = {"address": self._address, "version": answer.version, "total": answer.total}
        files.write_text(self._described, json.dumps(noted))
        return file

    # --- What the server sends -------------------------------------------------------------------

    def _receive(self, answer: Answer) -> None:
        self._check_length(answer.total)
        self._check_disk(answer.total)
        if self._part.num_bytes and not answer.start:
            same = answer.version in (None, self._part.version)
            reason = (
                "the server sends no parts of files" if same else "it has changed on the server"
            )
            self._display.say(f"begun anew: {reason}")
        with self._begin(answer) as file:
            self._display.begin(answer.start, answer.total)
            try:
                for chunk in self._fast_enough(answer.content):
                    self._keep(file, chunk)
            except (RefusedError, WrongContentError):  # the received bytes are useless
                self._part = Part()
                raise
        if answer.total is None and not answer.start:
            # The server has not stated the length, so that the end of its answer counts as the end
            # of the file.
            if self._part.num_bytes < (self._expected.num_bytes or 0):
                raise BrokenError("the connection broke (it ended too early)")
            self._part = replace(self._part, total=self._part.num_bytes)
        if not self._is_whole():
            raise BrokenError("the server sent less than was asked for")
        self._display.end(self._part.num_bytes)

    def _keep(self, file: BinaryIO, chunk: bytes) -> None:
        num_bytes = self._part.num_bytes + len(chunk)
        self._check_length(None, at_least=num_bytes)
        _write_all(file, chunk)
        self._hash.update(chunk)
        self._part = replace(self._part, num_bytes=num_bytes)
        self._furthest = max(self._furthest, num_bytes)
        self._display.update(num_bytes)

    def _check_length(self, total: int | None, at_least: int = 0) -> None:
        """Check the length that the server states, and later the number of bytes received."""
        expected = self._expected.num_bytes
        most = _MOST_BYTES if expected is None else expected
        if at_least > most or (total or 0) > most or (expected and total not in (None, expected)):
            must_have = "at most" if expected is None else "exactly"
            received = f"at least {at_least:,}" if at_least else f"{total:,}"
            raise WrongContentError(f"{must_have} {most:,} bytes", received)

    def _check_disk(self, total: int | None) -> None:
        folder = self._unfinished.parent
        here = self._unfinished.stat().st_size if self._unfinished.exists() else 0
        needed = (total or self._expected.num_bytes or 0) - here
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise OSError(
                f"There must be {amount(needed)} free in {folder} for {self._address}. Received: "
                f"{amount(free)}. Make room, or set {files.CACHE_VARIABLE} to another folder"
            )

    def _fast_enough(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        least, since, num_bytes = self._patience.least_rate, time.monotonic(), 0
        for chunk in chunks:
            yield chunk
            num_bytes += len(chunk)
            passed = time.monotonic() - since
            if passed > self._patience.timeout:
                if num_bytes < least * passed:
                    raise BrokenError(f"the connection was slower than {amount(least)} a second")
                since, num_bytes = time.monotonic(), 0

    # --- Interruptions ---------------------------------------------------------------------------

    def _wait_after(self, error: BrokenError) -> None:
        """Wait before the next attempt, or give up after too many breaks without progress."""
        patience, total = self._patience, self._part.total
        enough = 2**20 if total is None else patience.headway * total
        if self._furthest - self._headway_from >= enough:
            self._num_breaks, self._headway_from = 0, self._furthest
        self._num_breaks += 1
        if self._num_breaks >= patience.tries or not (error.answered or self._was_answered):
            raise self._given_up(str(error))
        wait = max(patience.first_wait * 2 ** (self._num_breaks - 1), error.wait)
        wait = min(wait, patience.longest_wait)
        self._display.say(
            f"{error} after {amount(self._part.num_bytes)}; going on in {wait:.3g} s "
            f"({self._num_breaks} of {patience.tries - 1})"
        )
        time.sleep(wait)

    def _given_up(self, reason: str) -> TransferError:
        num_bytes, total = self._part.num_bytes, self._part.total
        kept = "nothing was kept"
        if num_bytes:
            share = amount(num_bytes) + (f" of {amount(total)}" if total else "")
            kept = f"{share} are kept in {self._unfinished}, and the next attempt continues there"
        else:
            self._remove()
        return TransferError(f"{self._address} cannot be downloaded, and {kept}: {reason}")


def _opened(unfinished: Path, is_continued: bool) -> BinaryIO:
    return open(unfinished, "ab" if is_continued else "wb", buffering=0)


def _write_all(file: BinaryIO, chunk: bytes) -> None:
    """Write all bytes to a file that has no buffer.

    Without a buffer, the received bytes are in the file if the process is killed.
    """
    left = memoryview(chunk)
    while left:
        left = left[file.write(left) :]
