"""What a file claims is checked before a decoder makes room for it."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from keras_vjepa.data.reading import video
from keras_vjepa.data.reading.claims import check_claims
from keras_vjepa.data.reading.errors import UnreadableVideoError
from keras_vjepa.data.reading.limits import DEFAULT_LIMITS, ReadingLimits
from keras_vjepa.data.reading.video import open_video
from tests.data.reading.stamped import HEIGHT, WIDTH, stamps, write_with_av, write_with_opencv

pytestmark = pytest.mark.data

SIZE = HEIGHT * WIDTH
both_decoders = pytest.mark.parametrize("decoder", ["opencv", "av"])


def most_mib_more(action):
    """How much more memory than before this process has had at a time, in MiB."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # this resets the peak of memory
    except OSError:
        pytest.skip("this system does not say")
    before, _ = _memory()
    action()
    return (_memory()[1] - before) >> 10


def _memory():
    status = Path("/proc/self/status").read_text().split()
    return tuple(int(status[status.index(name) + 1]) for name in ("VmRSS:", "VmHWM:"))


@pytest.mark.parametrize(
    ("name", "codec", "pixels"),
    [
        ("a.mp4", "mpeg4", "yuv420p"),
        ("a.mov", "mjpeg", "yuvj420p"),
        ("a.mkv", "mpeg4", "yuv420p"),
        ("a.webm", "libvpx", "yuv420p"),
        ("a.avi", "mpeg4", "yuv420p"),
        ("a.gif", "gif", "rgb8"),
        ("fragments.mp4", "mpeg4", "yuv420p"),
    ],
)
def test_too_large_frames_are_named_before_a_decoder_sees_them(
    tmp_path, monkeypatch, name, codec, pixels
):
    flags = {"movflags": "frag_keyframe+empty_moov"} if name == "fragments.mp4" else None
    path = write_with_av(
        tmp_path / name, codec, pixel_format=pixels, num_frames=5, size=(98, 66), options=flags
    )
    check_claims(str(path), ReadingLimits(max_frame_pixels=98 * 66))

    def decode(*arguments):
        raise AssertionError("opened before its claims were checked")

    monkeypatch.setattr(video, "AVDecoder", decode)
    monkeypatch.setattr(video, "OpenCVDecoder", decode)
    for decoder in ("opencv", "av"):
        with pytest.raises(UnreadableVideoError, match="98x66 pixels are more than .*=6467$"):
            open_video(path, decoder, ReadingLimits(max_frame_pixels=98 * 66 - 1))


def test_claims_of_damaged_headers_do_no_harm(tmp_path):
    """Whatever they are, they are read in no time."""
    rng = np.random.default_rng(0)
    for name in ("a.mp4", "a.avi"):
        path = write_with_opencv(tmp_path / name, "MJPG", 3)
        content = path.read_bytes()
        for _ in range(300):
            damaged = bytearray(content[: rng.integers(1, len(content))])
            for place in rng.integers(len(damaged), size=9):
                damaged[place] = rng.integers(256)
            path.write_bytes(damaged)
            try:
                check_claims(str(path), DEFAULT_LIMITS)
            except ValueError as error:
                assert "claims to hold" in str(error) or "pixels are more than" in str(error)


def write_two_large_frames(path, width=12_000, height=12_000):
    """A sound video of PNG pictures with a bit for each pixel: 37 kB, and 432 MB decoded."""
    av = pytest.importorskip("av")

    def chunk(kind, data):
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    rows = zlib.compress(height * (b"\0" + b"\xaa" * (width // 8)), 1)
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    picture = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("png", rate=30)
        stream.width, stream.height, stream.pix_fmt = width, height, "monob"
        stream.codec_context.open()
        for i in range(2):
            packet = av.Packet(picture + chunk(b"IEND", b""))
            packet.stream, packet.time_base = stream, stream.codec_context.time_base
            packet.pts = packet.dts = i
            packet.is_keyframe = True
            container.mux(packet)
    return path


@both_decoders
def test_two_frames_of_144_million_pixels(tmp_path, decoder):
    path = write_two_large_frames(tmp_path / "a.mov")
    small = write_two_large_frames(tmp_path / "b.mov", 96, 64)
    with open_video(small, decoder) as opened:
        assert opened.read([0, 1]).shape == (2, 64, 96, 3)

    def read():
        with pytest.raises(UnreadableVideoError, match="12000x12000 pixels are more than"):
            open_video(path, decoder)

    assert path.stat().st_size < 1_000_000
    assert most_mib_more(read) < 30


def test_pyav_refuses_large_frames_that_no_header_claims(tmp_path, monkeypatch):
    pytest.importorskip("av")
    monkeypatch.setattr(video, "check_claims", lambda path, limits: None)
    path = write_two_large_frames(tmp_path / "a.mov")

    def read():
        with pytest.raises(UnreadableVideoError, match="a.mov: "):
            open_video(path, "av")

    assert most_mib_more(read) < 100


def replaced(content, box, offset, layout, *numbers):
    """The content of an MP4 file with other numbers in a box, at an offset from its kind."""
    place = content.index(box) + offset
    packed = struct.pack(layout, *numbers)
    return content[:place] + packed + content[place + len(packed) :]


@both_decoders
@pytest.mark.parametrize("claimed", [2**20, 2**26, 2**32 - 1])
def test_more_frames_than_bytes(tmp_path, decoder, claimed):
    if decoder == "av":
        pytest.importorskip("av")
    path = write_with_opencv(tmp_path / "a.mp4", "mp4v", 5)
    content = path.read_bytes()
    assert len(content) < 2**20
    content = replaced(content, b"stsz", 8, ">II", 1, claimed)  # each of one byte
    content = replaced(content, b"stts", 12, ">I", claimed)
    path.write_bytes(replaced(content, b"stsc", 16, ">I", claimed))

    def read():
        with pytest.raises(UnreadableVideoError, match=f"claims to hold {claimed} frames in"):
            open_video(path, decoder)

    assert most_mib_more(read) < 30


@both_decoders
def test_more_frames_than_bytes_in_a_fragment(tmp_path, decoder):
    flags = {"movflags": "frag_keyframe+empty_moov"}
    path = write_with_av(tmp_path / "a.mp4", "mpeg4", num_frames=5, options=flags)
    with open_video(path, decoder) as opened:
        assert stamps(opened.read([4])) == [4]
    # The table claims many samples without listing anything for them, so nothing is missing.
    path.write_bytes(replaced(path.read_bytes(), b"trun", 4, ">II", 0, 2**26))

    def read():
        with pytest.raises(UnreadableVideoError, match=f"claims to hold {2**26} frames in"):
            open_video(path, decoder)

    assert most_mib_more(read) < 30


def test_a_box_that_reaches_beyond_the_one_around_it_hides_nothing(tmp_path):
    path = write_with_opencv(tmp_path / "a.mp4", "mp4v", 5)
    content = path.read_bytes()
    content = replaced(content, b"stsz", 12, ">I", 2**26)
    place = content.index(b"moov")
    empty = struct.pack(">I4s", 8 + 2**20, b"free")
    moov = struct.pack(">I4s", 8 + len(empty), b"moov") + empty
    path.write_bytes(content[: place - 4] + moov + content[place - 4 :])
    with pytest.raises(ValueError, match="claims to hold"):
        check_claims(str(path), DEFAULT_LIMITS)
