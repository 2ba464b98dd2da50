"""Downloads that break, resume and are lied to: a hostile server on loopback."""

import gzip
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from functools import partial
from types import SimpleNamespace

import pytest

from keras_vjepa.presets import http_answers, transfer
from keras_vjepa.presets.transfer import (
    Expected,
    Patience,
    TransferError,
    WrongContentError,
    fetch,
)
from tests.presets.web_server import serving, well
from tests.support import ROOT

pytestmark = pytest.mark.data

CONTENT = random.Random(1).randbytes(200_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
FAST = Patience(timeout=10.0, first_wait=0.0)


@pytest.fixture
def server():
    with serving(CONTENT) as server:
        yield server


@pytest.fixture
def path(tmp_path):
    return tmp_path / "downloads" / "weights.pt"


def download(server, path, sha256=SHA256, num_bytes=None, patience=FAST):
    return fetch(server.address, path, Expected(sha256, num_bytes), patience)


def assert_whole(path):
    assert path.read_bytes() == CONTENT
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def leave_part(server, path, content=CONTENT[:50_000], **changes):
    """What a process that was killed leaves."""
    noted = {"address": server.address, "version": server.etag, "total": len(CONTENT)}
    path.parent.mkdir(parents=True)
    path.with_name("weights.pt.part").write_bytes(content)
    path.with_name("weights.pt.part.json").write_text(json.dumps({**noted, **changes}))


# --- Resuming ------------------------------------------------------------------------------------

# Only these modules are loaded, because importing Keras takes seconds.
CHILD = """
import sys, types
package = types.ModuleType("keras_vjepa")
package.__path__ = [sys.argv[1]]
sys.modules["keras_vjepa"] = package
from pathlib import Path
from keras_vjepa.presets.transfer import Expected, fetch
print(fetch(sys.argv[2], Path(sys.argv[3]), Expected(sys.argv[4])))
"""


def start_child(server, path):
    arguments = [ROOT / "keras_vjepa", server.address, path, SHA256]
    command = [sys.executable, "-c", CHILD, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_killed_three_times_nothing_is_fetched_twice(server, path):
    until = threading.Event()

    def hanging(handler, most):
        well(handler, most)
        until.wait()

    part, sizes = path.with_name("weights.pt.part"), (30_000, 70_000, 90_001)
    server.answers = [partial(hanging, most=most) for most in (30_000, 40_000, 20_001)]
    for size in sizes:
        child = start_child(server, path)
        while not part.exists() or part.stat().st_size < size:
            assert child.poll() is None, child.communicate()
            time.sleep(0.01)
        child.kill()
        child.communicate()
        assert part.stat().st_size == size
    child = start_child(server, path)
    out, err = child.communicate()
    until.set()
    assert out == f"{SHA256}\n" and "90 kB are here already" in err
    assert server.asked == [0, *sizes]
    assert server.num_sent == len(CONTENT)
    assert_whole(path)


def test_fifty_early_closes_at_random_bytes(server, path):
    cuts = sorted(random.Random(2).sample(range(1, len(CONTENT)), 50))
    lengths = [b - a for a, b in zip([0, *cuts], cuts, strict=False)]
    server.answers = [partial(well, most=length) for length in lengths]
    assert download(server, path) == SHA256
    assert server.asked == [0, *cuts] and server.num_sent == len(CONTENT)
    assert_whole(path)


def test_what_was_made_in_one_go_is_not_read_again(server, path, monkeypatch):
    opened = []

    def counting(name, mode="r", **options):
        opened.append(mode)
        return open(name, mode, **options)

    monkeypatch.setattr(transfer, "open", counting, raising=False)
    server.answers = [partial(well, most=1000)]
    download(server, path)
    assert opened == ["wb", "ab"]
    leave_part(server, path.parent / "other" / "weights.pt")
    del opened[:]
    download(server, path.parent / "other" / "weights.pt")
    assert opened == ["rb", "ab"]


def test_a_part_that_is_whole_needs_no_server(server, path):
    leave_part(server, path, CONTENT)
    assert download(server, path) == SHA256 and server.asked == []
    assert_whole(path)


def test_a_part_that_is_whole_and_nobody_knew_how_long(server, path):
    leave_part(server, path, CONTENT, total=None)
    assert download(server, path) == SHA256
    assert server.asked == [len(CONTENT)] and server.num_sent == 0
    assert_whole(path)


def test_ctrl_c_leaves_a_part(server, path, monkeypatch, capsys):
    def interrupted(display, position):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(transfer.TransferDisplay, "update", interrupted)
        download(server, path)
    size = path.with_name("weights.pt.part").stat().st_size
    assert "kB are kept to go on with" in capsys.readouterr().err and size > 0
    download(server, path)
    assert server.asked == [0, size] if size < len(CONTENT) else [0]
    assert_whole(path)


def without_ranges(handler, most=None, **headers):
    handler.head(Content_Length=len(CONTENT), ETag=handler.server.etag, **headers)
    handler.body(handler.server.content[:most])


@pytest.mark.parametrize(
    ("changes", "etag", "message"),
    [
        ({"version": '"old"'}, '"one"', "begun anew: it has changed on the server"),
        ({"total": 999_999}, '"one"', "begun anew: it has another length on the server now"),
        ({"version": 'W/"old"'}, 'W/"one"', "begun anew: it has changed on the server"),
        ({"address": "http://elsewhere"}, '"one"', "cannot be gone on with"),
        ({"version": 7}, '"one"', "cannot be gone on with"),
        ({"total": 10}, '"one"', "cannot be gone on with"),
        ({"total": True}, '"one"', "cannot be gone on with"),
    ],
)
def test_a_part_of_another_version_is_begun_anew(changes, etag, message, server, path, capsys):
    server.etag = etag
    leave_part(server, path, bytes(50_000), **changes)
    assert download(server, path) == SHA256
    assert message in capsys.readouterr().err
    assert_whole(path)


@pytest.mark.parametrize("version", ['W/"one"', "Fri, 27 Nov 2026 20:00:00 GMT", None])
def test_other_names_of_a_version_resume_too(version, server, path):
    server.etag = version
    leave_part(server, path)
    assert download(server, path) == SHA256
    assert server.asked == [50_000]


def test_without_version_and_hash_nothing_could_tell(server, path, capsys):
    server.etag = None
    leave_part(server, path)
    assert download(server, path, sha256=None) == SHA256
    assert server.asked == [0] and "nothing would tell" in capsys.readouterr().err


@pytest.mark.parametrize("noted", ["", "[]", "{", '{"address": 3}'])
def test_a_damaged_note_is_no_part(noted, server, path):
    leave_part(server, path)
    path.with_name("weights.pt.part.json").write_text(noted)
    assert download(server, path) == SHA256 and server.asked == [0]
    assert_whole(path)


def test_a_server_without_ranges(server, path, capsys):
    server.answers = [partial(without_ranges, most=80_000), without_ranges]
    assert download(server, path) == SHA256
    assert "begun anew: the server sends no parts of files" in capsys.readouterr().err
    assert server.asked == [0, 80_000]
    assert_whole(path)


def lying_range(handler, text, content=CONTENT):
    handler.head(206, Content_Range=text, Content_Length=len(content), ETag=handler.server.etag)
    handler.body(content)


@pytest.mark.parametrize(
    "text",
    [
        "bytes 0-199999/200000",
        "bytes 49999-199999/200000",
        "bytes 50000-49999/200000",
        "bytes 50000-200000/200000",
        "bytes 50000-199999/200001",
        "bytes -50000-199999/200000",
        "bytes 50000-1e9/200000",
        "octets 50000-199999/200000",
        f"bytes 50000-{10**30}/{10**30}",
        "",
    ],
)
def test_a_wrong_range_is_not_believed(text, server, path, capsys):
    leave_part(server, path)
    server.answers = [partial(lying_range, text=text)]
    assert download(server, path) == SHA256
    assert "begun anew: " in capsys.readouterr().err
    assert server.asked == [50_000, 0]
    assert_whole(path)


def test_ranges_shorter_than_asked_for_are_gone_on_with(server, path):
    def short(handler):
        start = handler.start
        handler.head(206, Content_Range=f"bytes {start}-{start + 59_999}/200000", ETag='"one"')
        handler.body(CONTENT[start : start + 60_000])

    leave_part(server, path)
    server.answers = [short, short]
    assert download(server, path) == SHA256
    assert server.asked == [50_000, 110_000, 170_000] and server.num_sent == 150_000


def test_what_is_here_is_kept_until_something_better_comes(server, path):
    leave_part(server, path)
    server.answers = [partial(lying_range, text="x"), lambda h: h.head(503)]
    assert download(server, path) == SHA256
    assert server.asked == [50_000, 0, 0]


def test_a_part_of_a_length_that_is_not_said_again(server, path):
    leave_part(server, path)
    server.answers = [partial(lying_range, text="bytes 50000-199999/*", content=CONTENT[50_000:])]
    assert download(server, path) == SHA256
    assert server.asked == [50_000]


def test_a_refused_range_of_another_length_is_begun_anew(server, path):
    leave_part(server, path, total=None)
    server.answers = [lambda handler: handler.head(416, Content_Range="bytes */12")]
    assert download(server, path) == SHA256
    assert server.asked == [50_000, 0]


# --- How it is sent ------------------------------------------------------------------------------


def chunked(handler, most=None):
    handler.protocol_version = "HTTP/1.1"
    handler.head(Transfer_Encoding="chunked", ETag='"one"')
    for start in range(0, len(CONTENT) if most is None else most, 50_000):
        chunk = CONTENT[start : start + 50_000]
        handler.body(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
    if most is None:
        handler.body(b"0\r\n\r\n")


def test_chunked(server, path):
    server.answers = [chunked]
    assert download(server, path) == SHA256
    assert_whole(path)


def test_chunked_and_broken_off_resumes(server, path):
    server.answers = [partial(chunked, most=100_000)]
    assert download(server, path) == SHA256
    assert server.asked == [0, 100_000]


def until_closed(handler, most=None):
    handler.head(ETag='"one"')
    handler.body(CONTENT[:most])


def test_a_length_that_nobody_says(server, path):
    server.answers = [until_closed]
    assert download(server, path, sha256=None) == SHA256
    server.answers = [partial(until_closed, most=70_000)]
    other = path.with_name("b")
    assert download(server, other, sha256=None, num_bytes=len(CONTENT)) == SHA256
    assert server.asked == [0, 0, 70_000]


def packed(handler, encoding="gzip", content=None, most=None):
    content = gzip.compress(CONTENT) if content is None else content
    handler.head(Content_Encoding=encoding, Content_Length=len(content), ETag='"zipped"')
    handler.body(content[:most])


def test_compressed_transfer_is_expanded(server, path):
    server.answers = [packed]
    assert download(server, path) == SHA256
    assert_whole(path)


def test_compressed_transfer_that_breaks(server, path):
    server.answers = [partial(packed, most=80_000), packed]
    assert download(server, path) == SHA256
    assert_whole(path)


def test_compressed_parts_are_not_put_together(server, path):
    leave_part(server, path)
    rest = gzip.compress(CONTENT[50_000:])
    headers = {"Content_Range": "bytes 50000-199999/200000", "Content_Encoding": "gzip"}
    server.answers = [lambda handler: (handler.head(206, **headers), handler.body(rest))]
    assert download(server, path) == SHA256 and server.asked == [50_000, 0]


def moved(handler, to, status=302):
    handler.head(status, Location=to, Content_Length=0)


def test_redirects_keep_the_range(server, path):
    leave_part(server, path)
    server.answers = [partial(moved, to="/elsewhere/weights.pt")]
    assert download(server, path) == SHA256
    assert server.asked == [50_000, 50_000]


# --- Lies and refusals: one line, and what is here stays ----------------------------------------

BOMB = gzip.compress(bytes(20_000_000))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda h: h.head(404), "the server answers 404, Not Found"),
        (lambda h: h.head(403), "the server answers 403"),
        (lambda h: h.head(204), "the server answers 204"),
        (lambda h: h.send_error(401), "the server answers 401"),
        (lambda h: h.send_error(501), "the server answers 501"),
        (
            lambda h: (h.head(Content_Type="text/html; charset=utf-8"), h.body(b"<html>log in")),
            "page",
        ),
        (partial(packed, encoding="br"), "compressed .br., unasked"),
        (partial(packed, content=BOMB), "swells too much"),
        (partial(packed, content=b"no gzip" * 9), "cannot be expanded"),
        (partial(moved, to="file:///etc/passwd"), "to url .file:///etc/passwd. is not allowed"),
        (partial(moved, to="ftp://127.0.0.1/a"), "leads to ftp://"),
        (partial(moved, to="/weights.pt", status=301), "redirect error|answers 301"),
    ],
)
def test_a_refusal_is_one_line_and_keeps_the_part(answer, message, server, path):
    swells = "swells" in message or "expanded" in message
    leave_part(server, path)
    server.answers = [answer] * 12
    with pytest.raises(TransferError, match=message) as raised:
        download(server, path)
    text = str(raised.value)
    assert "\n" not in text and len(text) < 600 and text.startswith(server.address)
    part = path.with_name("weights.pt.part")
    if swells:
        assert list(path.parent.iterdir()) == [] and "nothing was kept" in text
    else:
        # Received data is kept even if the server answers with a page or an error.
        assert len(set(server.asked)) == 1 and "50 kB of 200 kB are kept in " in text
        assert part.read_bytes() == CONTENT[:50_000]
    server.answers = []
    assert download(server, path) == SHA256
    assert_whole(path)


def test_from_safe_to_unsafe_is_not_followed():
    request = SimpleNamespace(type="https")
    with pytest.raises(http_answers.RefusedError, match="leads to http://a/b, which is not https"):
        http_answers._Redirects().redirect_request(request, None, 302, "", {}, "http://a/b")


@pytest.mark.parametrize("status", [429, 500, 503, 522])
def test_a_server_that_is_busy_is_asked_again(status, server, path, monkeypatch):
    waits = []
    monkeypatch.setattr(transfer.time, "sleep", waits.append)
    server.answers = [lambda h: h.head(status, Retry_After="7"), lambda h: h.head(status)]
    patience = Patience(first_wait=2.0)
    assert download(server, path, patience=patience) == SHA256
    assert waits == [7.0, 4.0]


@pytest.mark.parametrize("wait", ["99999", "-5", "nan", "tomorrow"])
def test_how_long_it_is_waited_is_not_the_servers_alone(wait, server, path, monkeypatch):
    waits = []
    monkeypatch.setattr(transfer.time, "sleep", waits.append)
    server.answers = [lambda h: h.head(503, Retry_After=wait)]
    download(server, path, patience=Patience())
    assert waits == [60.0 if wait == "99999" else 1.0]


def test_breaks_without_headway_end_it(server, path, capsys):
    server.answers = [partial(well, most=40_000)] + 5 * [partial(well, most=1)] + 9 * [well]
    with pytest.raises(TransferError, match="40 kB of 200 kB are kept in .*: the connection broke"):
        download(server, path)
    assert len(server.asked) == 6 and "going on in 0 s (5 of 5)" in capsys.readouterr().err
    assert download(server, path) == SHA256
    assert server.num_sent == len(CONTENT)


def test_a_server_that_hangs_is_left(server, path):
    until = threading.Event()
    server.answers = [lambda h: (well(h, 1000), until.wait())]
    assert download(server, path, patience=Patience(timeout=0.3, first_wait=0.0)) == SHA256
    until.set()
    assert server.asked[:2] == [0, 1000]


def test_headers_that_drip_are_cut(server, path):
    def dripping(handler):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\nX: ")
        for _ in range(300):
            time.sleep(0.01)
            handler.wfile.write(b"x")

    leave_part(server, path)
    server.answers = [dripping]
    patience = Patience(timeout=0.2, first_wait=0.0)
    assert download(server, path, patience=patience) == SHA256
    assert set(server.asked) == {50_000} and server.num_sent == 150_000


@pytest.mark.parametrize("length", [12, 30, 60, 90, 120, 150])
def test_headers_that_break_are_not_believed(length, server, path):
    """Their end by the end of the connection looks like any other."""
    head = b'HTTP/1.1 206 P\r\nContent-Range: bytes 50000-199999/200000\r\nETag: "one"\r\n'
    leave_part(server, path)
    server.answers = [lambda h: h.wfile.write((head + b"Content-Length: 150000\r\n\r\n")[:length])]
    assert download(server, path) == SHA256
    assert server.asked == [50_000, 50_000] and server.num_sent == 150_000


def test_drops_are_too_slow(server, path, capsys):
    def dripping(handler):
        well(handler, 0)
        for start in range(100):
            time.sleep(0.01)
            handler.body(CONTENT[start : start + 1])

    server.answers = [dripping]
    patience = Patience(timeout=0.3, least_rate=1e4, first_wait=0.0)
    assert download(server, path, patience=patience) == SHA256
    assert server.asked[0] == 0 < server.asked[-1] < 100
    assert "slower than 10 kB a second" in capsys.readouterr().err


def test_no_server_is_said_at_once(server, path):
    server.shutdown()
    server.server_close()
    with pytest.raises(TransferError, match="nothing was kept: no connection .*refused"):
        download(server, path, patience=Patience(first_wait=100.0))
    assert list(path.parent.iterdir()) == []


def test_an_answer_that_is_none(server, path):
    server.answers = 9 * [lambda h: h.wfile.write(b"SSH-2.0-OpenSSH_9.6\r\n")]
    with pytest.raises(TransferError, match="nothing was kept: no connection"):
        download(server, path)


# --- What it must be -----------------------------------------------------------------------------


def test_another_hash_leaves_nothing(server, path):
    server.content = CONTENT[:-1] + b"x"
    with pytest.raises(WrongContentError, match=f"must have the SHA-256 {SHA256}. Received: "):
        download(server, path)
    assert list(path.parent.iterdir()) == []


def test_another_length_is_seen_before_anything_comes(server, path):
    leave_part(server, path)
    with pytest.raises(WrongContentError, match="exactly 300,000 bytes. Received: 200,000"):
        download(server, path, num_bytes=300_000)
    assert path.with_name("weights.pt.part").read_bytes() == CONTENT[:50_000]


def test_a_server_that_never_ends(server, path):
    def endless(handler):
        handler.head(ETag='"one"')
        while True:
            handler.body(CONTENT)

    server.answers = [endless]
    with pytest.raises(
        WrongContentError, match="exactly 200,000 bytes. Received: at least "
    ) as refused:
        download(server, path, num_bytes=len(CONTENT))
    # A fast server may have sent more by then. The data is read in pieces.
    received = int(str(refused.value).rsplit(" ", 1)[1].replace(",", ""))
    assert len(CONTENT) < received < 50 * len(CONTENT)
    assert list(path.parent.iterdir()) == [] and server.num_sent < 100 * len(CONTENT)


def test_more_than_the_length_that_was_said(server, path):
    server.answers = [lambda h: (well(h), h.body(b"more" * 1000))]
    assert download(server, path) == SHA256
    assert_whole(path)


def test_a_full_disk_is_noticed_before(server, path, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=120_000)
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(OSError, match="must be 200 kB free in .* for http.*: 120 kB. Make room"):
        download(server, path)
    assert server.num_sent <= len(CONTENT) and not path.with_name("weights.pt.part").exists()
    # Data that has been received needs no more space.
    leave_part(server, path.parent / "b" / "weights.pt", CONTENT[:90_000])
    assert download(server, path.parent / "b" / "weights.pt") == SHA256


def test_a_disk_that_fills_up_meanwhile_is_named(server, path, monkeypatch):
    def full(file, chunk):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(transfer, "_write_all", full)
    with pytest.raises(OSError, match="No space left on device: '.*weights.pt.part'"):
        download(server, path)


def test_a_file_without_a_byte(server, path):
    server.content = b""
    assert download(server, path, sha256=None) == hashlib.sha256(b"").hexdigest()
    assert path.read_bytes() == b""


def test_a_proxy_of_the_environment_is_asked(server, path, monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.server_port}")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert fetch("http://nowhere.invalid/a.pt", path, Expected(SHA256), FAST) == SHA256
    assert os.listdir(path.parent) == ["weights.pt"]
