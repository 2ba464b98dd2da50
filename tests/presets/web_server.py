"""A web server on loopback that sends one file, well or as badly as a test wants."""

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class WebServer(ThreadingHTTPServer):
    """Answers each request with the next of `answers`, and then with what was asked for.

    Attributes:
        content: the file.
        etag: what it is called, or None.
        answers: functions of a handler.
        asked: start of the range of each request, 0 without one.
        num_sent: bytes of the file that were sent in all.
    """

    daemon_threads = True

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.etag = content, '"one"'
        self.answers: list[Callable[[Handler], None]] = []
        self.asked: list[int] = []
        self.num_sent = 0
        self.address = f"http://127.0.0.1:{self.server_port}/weights.pt"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever asked was killed."""


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: WebServer

    def do_GET(self) -> None:
        server = self.server
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        server.asked.append(int(found[1]) if found else 0)
        try:
            (server.answers.pop(0) if server.answers else well)(self)
        except (ConnectionError, BrokenPipeError):
            pass
        self.close_connection = True

    @property
    def start(self) -> int:
        """Where the answer may begin: at a range of the version that is here."""
        condition = self.headers.get("If-Range")
        return self.server.asked[-1] if condition in (None, self.server.etag) else 0

    def head(self, status: int = 200, **headers: Any) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if value is not None:
                self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def body(self, content: bytes) -> None:
        self.wfile.write(content)
        self.server.num_sent += len(content)

    def log_message(self, *arguments: Any) -> None:
        pass


def well(handler: Handler, most: int | None = None) -> None:
    """Send the file or the range that was asked for; of it, at most `most` bytes."""
    content, start = handler.server.content, handler.start
    total = len(content)
    if start >= total > 0:
        handler.head(416, Content_Range=f"bytes */{total}")
        return
    place = f"bytes {start}-{total - 1}/{total}" if start else None
    handler.head(
        206 if start else 200,
        Content_Length=total - start,
        Content_Range=place,
        ETag=handler.server.etag,
    )
    handler.body(content[start:][:most])


@contextmanager
def serving(content: bytes) -> Iterator[WebServer]:
    """A server that runs for as long as the context lasts."""
    server = WebServer(content)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
