"""A web server on loopback that sends the files of a folder, or parts of them."""

import functools
import http.server
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Server(http.server.SimpleHTTPRequestHandler):
    """Sends files, or parts of them; and counts what it is asked for."""

    has_ranges = True
    asked: list[str] = []
    failures = 0

    def log_message(self, *_):
        pass

    def end_headers(self):
        if self.has_ranges:
            self.send_header("Accept-Ranges", "bytes")
        super().end_headers()

    def do_GET(self):
        self.asked.append(self.path)
        path = self.translate_path(self.path)
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
        if type(self).failures:
            type(self).failures -= 1
            self.close_connection = True  # the connection ends in the middle of the answer
        elif not self.has_ranges or not found or not os.path.isfile(path):
            super().do_GET()
        else:
            with open(path, "rb") as file:
                file.seek(int(found[1]))
                content = file.read(int(found[2]) - int(found[1]) + 1)
            self.send_response(206)
            self.send_header("Content-Length", str(len(content)))
            place = f"{found[1]}-{int(found[1]) + len(content) - 1}"
            self.send_header("Content-Range", f"bytes {place}/{os.path.getsize(path)}")
            self.end_headers()
            self.wfile.write(content)


@contextmanager
def serving(folder: Path) -> Iterator[tuple[str, type[Server]]]:
    """Serve a folder; lends its address, and the class that answers."""
    handler = type("Handler", (Server,), {"asked": []})
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(handler, directory=str(folder))
    ) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", handler
        server.shutdown()
