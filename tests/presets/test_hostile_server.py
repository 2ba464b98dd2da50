"""A server that lies and breaks at random: the file is whole, or one line says why not."""

import gzip
import hashlib
import random
from functools import partial

import pytest

from keras_vjepa.presets.transfer import (
    Expected,
    Patience,
    TransferError,
    WrongContentError,
    fetch,
)
from tests.presets.web_server import serving, well

pytestmark = pytest.mark.data

CONTENT = random.Random(5).randbytes(60_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
PATIENCE = Patience(timeout=10.0, first_wait=0.0)


def breaking(handler, rng):
    well(handler, rng.randrange(len(CONTENT)))


def nothing(handler, rng):
    """Close without a word."""


def raw(handler, rng):
    lines = [b"HTTP/1.1 200 OK", b"Content-Length: 60000", b"", b"HTTP/9 x y", b"\xff\x00" * 40]
    rng.shuffle(lines)
    handler.wfile.write(b"\r\n".join(lines))


def headers(handler, rng):
    """Headers that contradict each other, the content, or any sense."""
    numbers = ["0", "-1", "59999", "60000", "60001", "9" * 30, "abc", "", " 5 ", "6e4", "0x10"]
    start = handler.server.asked[-1]
    ranges = [f"bytes {start}-59999/60000", f"bytes {start}-{start}/60000", "bytes */60000", "x"]
    ranges += [f"bytes {rng.choice(numbers)}-{rng.choice(numbers)}/{rng.choice(numbers)}"]
    found = {
        "Content_Length": rng.choice(numbers),
        "Content_Range": rng.choice(ranges),
        "Content_Encoding": rng.choice(["gzip", "identity", "br", "\u00e9"]),
        "Content_Type": rng.choice(["text/html", "multipart/byteranges", "a", "application/x"]),
        "Transfer_Encoding": rng.choice(["chunked", "gzip, chunked", "nonsense"]),
        "ETag": rng.choice(['"one"', '"two"', 'W/"one"', "x" * 3000, ""]),
        "Last_Modified": rng.choice(["yesterday", "Fri, 27 Nov 2026 20:00:00 GMT"]),
        "Retry_After": rng.choice(["0", "-1", "nan", "1e-9"]),
        "Location": rng.choice(["/weights.pt", "http://127.0.0.1:1/a", "gopher://a", "//", "\t"]),
    }
    chosen = {name: found[name] for name in rng.sample(sorted(found), rng.randrange(5))}
    handler.head(rng.choice([200, 200, 206, 206, 206, 204, 301, 302, 416, 503, 599, 404]), **chosen)
    handler.body(CONTENT[start:][: rng.randrange(60_000)])


def chunks(handler, rng):
    """Chunked, with sizes that are none."""
    handler.protocol_version = "HTTP/1.1"
    handler.head(Transfer_Encoding="chunked", ETag='"one"')
    start = 0
    while start < len(CONTENT):
        size = rng.randrange(1, 30_000)
        said = rng.choice([f"{size:x}"] * 6 + ["-5", "zz", "", f"{size + 9:x}", "f" * 20])
        handler.body(f"{said}\r\n".encode() + CONTENT[start : start + size] + b"\r\n")
        start += size
    handler.body(b"0\r\n\r\n")


def packed(handler, rng):
    content = rng.choice([gzip.compress(CONTENT), gzip.compress(bytes(9_000_000)), CONTENT])
    handler.head(Content_Encoding="gzip", Content_Length=len(content))
    handler.body(content[: rng.randrange(len(content))])


def other(handler, rng):
    """Another version of the file, which only the hash tells from the right one."""
    content = bytes(rng.randrange(100_000))
    handler.head(Content_Length=len(content), ETag=rng.choice(['"one"', '"two"', None]))
    handler.body(content)


ATTACKS = (breaking, nothing, raw, headers, headers, chunks, packed, other)


def attack(seed, path, with_hash=True):
    """Attack a download, then let it go on; return how it ended at first."""
    rng = random.Random(seed)
    path = path / str(seed) / "weights.pt"
    expected = Expected(SHA256 if with_hash else None, rng.choice([None, len(CONTENT)]))
    ended = []
    with serving(CONTENT) as server:
        for _ in range(2):
            attacks = rng.choices(ATTACKS, k=rng.randrange(1, 8))
            server.answers = [partial(one, rng=rng) for one in attacks]
            try:
                fetch(server.address, path, expected, PATIENCE)
                ended.append("whole")
                break
            except (TransferError, WrongContentError) as error:
                assert "\n" not in str(error) and len(str(error)) < 1000
                ended.append(str(error))
                assert not path.exists()
        server.answers = []
        if not path.exists():
            # Whatever the attack has left, one more honest answer completes the file. A wrong part
            # costs one attempt.
            try:
                fetch(server.address, path, expected, PATIENCE)
            except WrongContentError:
                fetch(server.address, path, expected, PATIENCE)
    assert not with_hash or path.read_bytes() == CONTENT
    assert [one.name for one in path.parent.iterdir()] == [path.name]
    return ended


@pytest.mark.parametrize("seed", range(40))
def test_a_hostile_server(seed, tmp_path):
    attack(seed, tmp_path)
