"""Ask a web server for a file or the rest of it, and interpret its answer (App. C).

Nothing but the standard library is used. The server is not trusted: a range that was not asked for,
a page in place of a file, bytes beyond the end and data that swell when they are expanded are
recognised here.
"""

import http.client
import re
import socket
import ssl
import sys
import threading
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from email.message import Message
from typing import IO, Any

from keras_vjepa.named_errors import one_line

CHUNK = 1 << 20
# The factor by which compressed data may grow. Weights hardly shrink when they are compressed, so
# that data which grow more are no file of weights.
_MOST_SWELLING = 64
# Status codes after which the same request may succeed later: a few single codes, and all those of
# a failing server (proxies use numbers of their own among these), except for the codes that say
# that the server cannot do what it is asked for.
_PASSING, _FAILING, _NEVER = {408, 425, 429}, range(500, 600), {501, 505}
# How many timeouts the headers of an answer may take.
_MOST_TIMEOUTS = 2
_ZLIB_WITH_GZIP_HEADER = 32 + zlib.MAX_WBITS


class RefusedError(Exception):
    """Says that the answer will not change if the server is asked again."""


class BrokenError(Exception):
    """Says that a connection or a server has failed, and may work later.

    Attributes:
        wait: seconds after which the server wants to be asked again, if it says so; else 0.
        answered: whether there was a server at all.
    """

    def __init__(self, reason: str, wait: float = 0.0, answered: bool = True) -> None:
        super().__init__(reason)
        self.wait, self.answered = wait, answered


class OutdatedPartError(Exception):
    """Says that, and why, the part of a file that is here cannot be continued."""


@dataclass(frozen=True)
class Part:
    """Describes the part of a file that is here already.

    Attributes:
        num_bytes: length of the part.
        version: name that the server gave to this version of the file: an ETag or a date.
        total: length of the whole file, if the server has said it.
    """

    num_bytes: int = 0
    version: str | None = None
    total: int | None = None


@dataclass(frozen=True)
class Answer:
    """Holds a server's answer, before its content is read.

    Attributes:
        start: position in the file at which the content begins.
        version: as in `Part`.
        total: as in `Part`.
        content: the bytes, chunk by chunk. If the connection breaks, it raises `BrokenError`, or
            just ends early if the break cannot be noticed.
    """

    start: int
    version: str | None
    total: int | None
    content: Iterator[bytes]


def _bounded(connection: type[http.client.HTTPConnection]) -> type[http.client.HTTPConnection]:
    """Derive a class of connections that are cut if an answer's headers take too long.

    The usual timeout does not suffice: a server that sends its headers very slowly restarts it with
    each byte.
    """

    class Bounded(connection):  # type: ignore[misc, valid-type]
        def getresponse(self) -> http.client.HTTPResponse:
            timer = threading.Timer(_MOST_TIMEOUTS * self.timeout, self._cut, [self.sock])
            timer.daemon = True
            timer.start()
            try:
                return super().getresponse()
            finally:
                timer.cancel()

        @staticmethod
        def _cut(cut: socket.socket) -> None:
            with suppress(OSError):
                cut.shutdown(socket.SHUT_RDWR)

    return Bounded


class _Http(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_bounded(http.client.HTTPConnection), req)


class _Https(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        context = ssl.create_default_context()
        return self.do_open(_bounded(http.client.HTTPSConnection), req, context=context)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows only redirects to the web, and from https only those to https."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: Any,
        newurl: str,
    ) -> urllib.request.Request | None:
        kept = ("https",) if req.type == "https" else ("https", "http")
        if newurl.partition(":")[0].lower() not in kept:
            raise RefusedError(
                f"the server leads to {newurl[:200]}, which is not {' or '.join(kept)}"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@contextmanager
def ask(address: str, part: Part, timeout: float) -> Iterator[Answer]:
    """Ask for a file or the rest of it; the connection is open for as long as the context lasts.

    Args:
        address: address of the file.
        part: the part of the file that is here already.
        timeout: seconds without a byte after which the connection counts as broken.

    Yields:
        The answer; its `start` is 0 if the server sends the whole file again.

    Raises:
        RefusedError: if it is useless to ask again.
        BrokenError: if it may help to ask again.
        OutdatedPartError: if the file must be asked for from its beginning.
    """
    headers = {"Accept-Encoding": "identity", "User-Agent": "keras_vjepa"}
    if part.num_bytes:
        headers["Range"] = f"bytes={part.num_bytes}-"
        if part.version and not part.version.startswith("W/"):
            headers["If-Range"] = part.version
    opener = urllib.request.build_opener(_Http, _Https, _Redirects)
    try:
        response = opener.open(urllib.request.Request(address, headers=headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        with closing(error):
            yield _answer_to_error(error, part)
        return
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _no_connection(error) from None
    with closing(response):
        yield _answer(response, part)


def _no_connection(error: Exception) -> Exception:
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, ssl.SSLCertVerificationError):
        return RefusedError(f"its certificate cannot be trusted ({reason.verify_message})")
    text = one_line(reason) if isinstance(reason, Exception) else str(reason)
    if isinstance(error, ValueError) and not isinstance(error, OSError):
        return RefusedError(f"its address cannot be used ({text})")
    answered = not isinstance(error, urllib.error.URLError)
    return BrokenError(f"no connection ({text})", answered=answered)


def _answer_to_error(error: urllib.error.HTTPError, part: Part) -> Answer:
    if error.code == 416 and part.num_bytes:
        length = re.fullmatch(r"bytes \*/(\d{1,18})", error.headers.get("Content-Range", ""))
        version = _version(error.headers)
        if length and int(length[1]) == part.num_bytes and version in (None, part.version):
            return Answer(part.num_bytes, part.version, part.num_bytes, iter(()))
        raise OutdatedPartError("it is not as long any more as what is here")
    reason = f"the server answers {error.code}, {one_line(Exception(error.reason))}"
    if error.code in _PASSING or (error.code in _FAILING and error.code not in _NEVER):
        wait = error.headers.get("Retry-After", "")
        raise BrokenError(reason, wait=float(wait) if re.fullmatch(r"\d{1,6}", wait) else 0.0)
    raise RefusedError(reason)


def _answer(response: http.client.HTTPResponse, part: Part) -> Answer:
    kind = response.headers.get_content_type()
    if kind in ("text/html", "application/xhtml+xml"):
        raise RefusedError(
            f"the server answers with a page ({kind}) in place of the file: a login, or something "
            "between here and there"
        )
    if response.status != 200 and not (response.status == 206 and part.num_bytes):
        raise RefusedError(f"the server answers {response.status}, {response.reason}")
    # The first chunk is read before the headers are used, because a connection that breaks within
    # the headers looks as if they had ended.
    sent, first = response.length, _first_chunk(response)
    version, encoding = _version(response.headers), response.headers.get("Content-Encoding", "")
    is_plain = encoding.strip().lower() in ("", "identity")
    if response.status == 206:
        if not is_plain:
            raise OutdatedPartError("the server sends parts of it compressed")
        length, total = _range(response.headers, part)
        if version is not None and part.version not in (None, version):
            raise OutdatedPartError("it has changed on the server")
        content = _chunks(response, first, length if sent is None else min(length, sent))
        total = part.total if total is None else total
        return Answer(part.num_bytes, version or part.version, total, content)
    content = _chunks(response, first, sent)
    if is_plain:
        return Answer(0, version, sent, content)
    if encoding.strip().lower() not in ("gzip", "x-gzip", "deflate"):
        raise RefusedError(f"the server sends it compressed ({encoding[:40]}), unasked")
    # Length and version are left out, because they are those of the compressed data.
    return Answer(0, None, None, _expanded(content))


def _version(headers: Message) -> str | None:
    found = headers.get("ETag") or headers.get("Last-Modified")
    return found[:500] if found else None


_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")


def _range(headers: Message, part: Part) -> tuple[int, int | None]:
    """Return how many bytes are sent and the whole length; check that they continue the part."""
    text = headers.get("Content-Range", "")
    found = _RANGE.fullmatch(text.strip())
    if found is None or int(found[1]) != part.num_bytes or int(found[2]) < int(found[1]):
        raise OutdatedPartError(f"the server sends another part than was asked for ({text[:60]!r})")
    total = None if found[3] == "*" else int(found[3])
    if total is not None and int(found[2]) >= total:
        raise OutdatedPartError(f"the server sends a part that cannot be ({text[:60]!r})")
    if part.total is not None and total not in (None, part.total):
        raise OutdatedPartError("it has another length on the server now")
    return int(found[2]) - part.num_bytes + 1, total


def _first_chunk(response: http.client.HTTPResponse) -> bytes:
    """Read the first chunk, which must not be empty unless the stated length is 0."""
    chunk = b"" if response.length == 0 else _read(response, CHUNK)
    if not chunk and response.length != 0:
        raise BrokenError("the connection broke (before the first byte)")
    return chunk


def _chunks(
    response: http.client.HTTPResponse, first: bytes, length: int | None
) -> Iterator[bytes]:
    left = sys.maxsize if length is None else length
    chunk = first[:left]
    while chunk:
        left -= len(chunk)
        yield chunk
        chunk = _read(response, min(CHUNK, left)) if left else b""
    if length is not None and left > 0:
        raise BrokenError("the connection broke (it ended too early)")


def _read(response: http.client.HTTPResponse, most: int) -> bytes:
    """Read the bytes that have arrived, without waiting for a full chunk.

    In this way even a slow connection shows progress.
    """
    try:
        return response.read1(most)
    except (OSError, http.client.HTTPException) as error:
        reason = "no more bytes came" if isinstance(error, TimeoutError) else one_line(error)
        raise BrokenError(f"the connection broke ({reason})") from None


def _expanded(chunks: Iterator[bytes]) -> Iterator[bytes]:
    expanding = zlib.decompressobj(_ZLIB_WITH_GZIP_HEADER)
    num_sent = num_expanded = 0
    for chunk in chunks:
        num_sent += len(chunk)
        while chunk and not expanding.eof:
            try:
                expanded = expanding.decompress(chunk, CHUNK)
            except zlib.error as error:
                raise RefusedError(f"what the server sends cannot be expanded ({error})") from None
            num_expanded += len(expanded)
            if num_expanded > _MOST_SWELLING * num_sent + CHUNK:
                raise RefusedError("what the server sends swells too much when it is expanded")
            chunk = expanding.unconsumed_tail
            yield expanded
    if not expanding.eof:
        raise BrokenError("the connection broke (what was compressed ended too early)")
