"""Files that are no plain videos: each is read right, frame by frame, or named."""

import os
import struct

import cv2
import numpy as np
import pytest
from PIL import Image

from keras_vjepa.data.reading.errors import UnreadableVideoError
from keras_vjepa.data.reading.video import open_video
from tests.data.reading.stamped import (
    stamped_frame,
    stamps,
    write_with_av,
    write_with_opencv,
)

pytestmark = pytest.mark.data

both_decoders = pytest.mark.parametrize("decoder", ["opencv", "av"])


@pytest.fixture(autouse=True)
def _installed(request):
    if request.node.callspec.params.get("decoder") == "av":
        pytest.importorskip("av")


def read_right_or_named(path, decoder):
    """The numbers that the frames show, each read alone; none if the file is named."""
    try:
        with open_video(path, decoder) as video:
            in_row = stamps(video.read(range(video.num_frames)))
        for position in {0, len(in_row) // 2, len(in_row) - 1}:
            with open_video(path, decoder) as video:
                assert stamps(video.read([position])) == [in_row[position]]
    except UnreadableVideoError as error:
        assert "\n" not in str(error) and str(path) in str(error)
        return []
    return in_row


# ------------------------------------------------------------------------------------------ names


@both_decoders
@pytest.mark.parametrize(
    "name",
    [
        "http:a.mp4",
        "file:a.mp4",
        "concat:a.mp4|b.mp4",
        "subfile,,start,9,end,99,,:a.mp4",
        "pipe:0",
        "-",
        "-i.mp4",
        "a b'\".mp4",
        "a\nb.mp4",
        "a%03d.mp4",
        "*.mp4",
        "a.sdp",
        "a.m3u8",
        "a",
        "~",
        "猫.mp4",
    ],
)
def test_names_that_mean_something_else_elsewhere(tmp_path, monkeypatch, name, decoder):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnreadableVideoError, match="no such file"):
        open_video(name, decoder)
    write_with_opencv(tmp_path / "plain.mp4", "mp4v", 9).rename(tmp_path / name)
    for path in (name, tmp_path / name):
        assert read_right_or_named(path, decoder) == list(range(9))


@both_decoders
@pytest.mark.parametrize("extension", ["gif", "jpg", "bmp", "png"])
def test_a_pattern_of_names_is_no_list_of_its_siblings(tmp_path, extension, decoder):
    for number in range(1, 4):
        picture = tmp_path / f"a{number:03}.{extension}"
        Image.fromarray(stamped_frame(number)).save(picture)
    path = write_with_opencv(tmp_path / "plain.avi", "MJPG", 9)
    path = path.rename(tmp_path / f"a%03d.{extension}")
    assert read_right_or_named(path, decoder) in ([], list(range(9)))


# --------------------------------------------------------------------------------- sound and covers


def write_sound(path, cover=False):
    """Half a second of sound, with a picture of its cover."""
    av = pytest.importorskip("av")
    codec = {"mp3": "libmp3lame", "m4a": "aac", "flac": "flac", "mka": "aac", "wav": "pcm_s16le"}
    codec = codec[path.suffix[1:]]
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    with av.open(
        str(path), "w", format={"m4a": "mp4", "mka": "matroska"}.get(path.suffix[1:])
    ) as out:
        stream = out.add_stream(codec, rate=44_100)
        if cover:
            picture = out.add_stream("mjpeg", rate=1)
            picture.width, picture.height, picture.pix_fmt = 96, 64, "yuvj420p"
            picture.disposition = av.stream.Disposition.attached_pic
            packet = av.Packet(cv2.imencode(".jpg", stamped_frame(3))[1].tobytes())
            packet.stream, packet.pts, packet.dts = picture, 0, 0
            out.mux(packet)
        silence = np.zeros((stream.codec_context.channels, 22_050), np.int16)
        frame = av.AudioFrame.from_ndarray(
            silence.T.reshape(1, -1), format="s16", layout=stream.codec_context.layout.name
        )
        frame.sample_rate = 44_100
        for resampled in av.AudioResampler(
            stream.codec_context.format, stream.codec_context.layout, 44_100
        ).resample(frame):
            out.mux(stream.encode(resampled))
        out.mux(stream.encode())
    return path


@both_decoders
@pytest.mark.parametrize(
    ("name", "cover"),
    [
        ("a.wav", False),
        ("a.mp3", False),
        ("a.mp3", True),
        ("a.m4a", False),
        ("a.m4a", True),
        ("a.flac", True),
        ("a.mka", False),
    ],
)
def test_sound_alone_is_no_video(tmp_path, name, cover, decoder):
    path = write_sound(tmp_path / name, cover)
    assert not cover or b"JFIF" in path.read_bytes()
    with pytest.raises(UnreadableVideoError, match="no video"):
        open_video(path, decoder)


# ------------------------------------------------------------------------------- pictures as videos


@both_decoders
@pytest.mark.parametrize("extension", ["gif", "webp", "png", "tif"])
@pytest.mark.parametrize("count", [1, 9])
def test_animated_pictures(tmp_path, extension, count, decoder):
    pictures = [Image.fromarray(stamped_frame(i + 1)) for i in range(count)]
    path = tmp_path / f"a.{extension}"
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=40, lossless=True)
    path = path.rename(tmp_path / "a.mp4")
    found = read_right_or_named(path, decoder)
    assert found in ([], list(range(1, count + 1)))
    if extension == "gif" and count == 9:
        assert found


@both_decoders
@pytest.mark.parametrize("extension", ["jp2", "ppm", "bmp", "jpg", "avif", "tif", "exr", "hdr"])
def test_still_pictures_of_other_names(tmp_path, extension, decoder):
    pixels = stamped_frame(5)
    try:
        is_float = extension in ("exr", "hdr")
        encoded, content = cv2.imencode(
            f".{extension}", pixels.astype(np.float32) / 255 if is_float else pixels
        )
    except cv2.error:
        encoded = False
    if not encoded:
        pytest.skip(f"this OpenCV writes no {extension}")
    path = tmp_path / "a.mp4"
    path.write_bytes(content.tobytes())
    with pytest.raises(UnreadableVideoError, match="a.mp4: "):
        open_video(path, decoder)


# ------------------------------------------------------------------------------------------- times


@both_decoders
@pytest.mark.parametrize("name", ["a.mkv", "a.mp4", "a.nut", "a.ts", "a.avi"])
@pytest.mark.parametrize("first", [-2_000, -1, 2**31 + 5, 2**40])
def test_times_that_are_negative_or_huge(tmp_path, name, first, decoder):
    times = (first + 33 * np.arange(30)).tolist()
    try:
        path = write_with_av(tmp_path / name, "mpeg4", times, num_frames=30)
    except (OSError, ValueError):
        pytest.skip("this container has no room for such times")
    found = read_right_or_named(path, decoder)
    # Frames before the beginning may be hidden.
    assert found == list(range(found[0], 30) if found else [])


@both_decoders
@pytest.mark.parametrize("duration", [0, 2**31, 2**32 - 1])
def test_durations_that_are_not_true(tmp_path, duration, decoder):
    path = write_with_opencv(tmp_path / "a.mp4", "mp4v", 20)
    content = bytearray(path.read_bytes())
    for box, offset in ((b"mvhd", 20), (b"mdhd", 20), (b"tkhd", 24)):
        struct.pack_into(">I", content, content.index(box) + offset, duration)
    path.write_bytes(content)
    assert read_right_or_named(path, decoder) in ([], list(range(20)))


@both_decoders
@pytest.mark.parametrize("claimed", [0, 7, 2**20, 2**32 - 1])
def test_numbers_of_frames_that_are_not_true(tmp_path, claimed, decoder):
    path = write_with_opencv(tmp_path / "a.avi", "MJPG", 20)
    content = bytearray(path.read_bytes())
    struct.pack_into("<I", content, content.index(b"avih") + 8 + 16, claimed)
    struct.pack_into("<I", content, content.index(b"strh") + 8 + 32, claimed)
    path.write_bytes(content)
    assert read_right_or_named(path, decoder) in ([], list(range(20)))


# ------------------------------------------------------------------------------------ spliced files


@both_decoders
@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp4", "mpeg4"),
        ("a.mkv", "mpeg4"),
        ("a.ts", "mpeg2video"),
        ("a.avi", "mpeg4"),
        ("a.mpg", "mpeg2video"),
        ("a.gif", "gif"),
        ("a.flv", "flv"),
    ],
)
def test_two_files_in_one(tmp_path, name, codec, decoder):
    """What follows may be read or not; what is read is the same alone and in a row."""
    pixels = "rgb8" if codec == "gif" else "yuv420p"
    first = write_with_av(tmp_path / name, codec, num_frames=30, pixel_format=pixels)
    second = write_with_av(tmp_path / f"b{name}", codec, num_frames=20, pixel_format=pixels)
    content = first.read_bytes() + second.read_bytes()
    rng = np.random.default_rng(0)
    for start in (len(content), *rng.integers(1, len(first.read_bytes()), 4).tolist()):
        first.write_bytes(content[:start] + content[len(content) - second.stat().st_size :])
        read_right_or_named(first, decoder)


@both_decoders
def test_files_cut_anywhere(tmp_path, decoder):
    rng = np.random.default_rng(0)
    for name, codec in (("a.mp4", "mp4v"), ("a.avi", "MJPG"), ("a.webm", "VP80")):
        path = write_with_opencv(tmp_path / name, codec, 30)
        content = path.read_bytes()
        for length in (0, 1, 7, *rng.integers(8, len(content), 9).tolist()):
            path.write_bytes(content[:length])
            found = read_right_or_named(path, decoder)
            assert found == list(range(len(found)))


@both_decoders
def test_what_is_no_file(decoder):
    for path in ("/dev/null", "/dev/stdin", "/proc/self/status", "/proc/self/mem", os.curdir):
        if os.path.exists(path):
            with pytest.raises(UnreadableVideoError):
                open_video(path, decoder)
