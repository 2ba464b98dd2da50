"""Files that ended a run, or read what they should not: each is read right or named."""

import os
import shutil
import struct
import time
from contextlib import suppress

import cv2
import numpy as np
import pytest

from keras_vjepa.data.reading import gate
from keras_vjepa.data.reading.errors import UnreadableImageError, UnreadableVideoError
from keras_vjepa.data.reading.image import read_image
from keras_vjepa.data.reading.limits import ReadingLimits
from keras_vjepa.data.reading.video import VideoReader, open_video, read_frames
from tests.data.reading.stamped import (
    HEIGHT,
    NUM_FRAMES,
    WIDTH,
    stamps,
    write_with_av,
    write_with_opencv,
)

pytestmark = pytest.mark.data

both_decoders = pytest.mark.parametrize("decoder", ["opencv", "av"])


def skip_without(decoder):
    if decoder == "av":
        pytest.importorskip("av")


# ------------------------------------------------------------------------------------------ names


@both_decoders
def test_names_that_are_not_utf_8(tmp_path, decoder):
    skip_without(decoder)
    name = os.fsdecode(b"caf\xe9.mp4")
    try:
        write_with_opencv(tmp_path / "a.mp4", "mp4v", 20).rename(tmp_path / name)
    except OSError:
        pytest.skip("this file system wants UTF-8")
    before = set(os.listdir("/tmp"))
    with open_video(tmp_path / name, decoder) as video:
        assert stamps(video.read([19, 3])) == [19, 3]
    assert not {n for n in set(os.listdir("/tmp")) - before if n.startswith("keras_vjepa_")}
    (tmp_path / name).write_bytes(b"\0 no video")
    with pytest.raises(UnreadableVideoError) as caught:
        open_video(tmp_path / name, decoder)
    assert r"caf\xe9.mp4: " in str(caught.value) and str(caught.value).isascii()
    image = tmp_path / os.fsdecode(b"\xe9.png")
    image.write_bytes(cv2.imencode(".png", np.zeros((4, 5, 3), np.uint8))[1].tobytes())
    assert read_image(image).shape == (4, 5, 3)


@both_decoders
def test_long_names(tmp_path, decoder):
    skip_without(decoder)
    path = tmp_path / ("a" * 240 + ".mp4")
    write_with_opencv(tmp_path / "a.mp4", "mp4v", 5).rename(path)
    with open_video(path, decoder) as video:
        assert stamps(video.read([4])) == [4]


@both_decoders
@pytest.mark.parametrize("extension", ["mp4", "mkv"])
def test_titles_that_are_not_utf_8(tmp_path, extension, decoder):
    av = pytest.importorskip("av")
    source = write_with_av(tmp_path / f"source.{extension}", "mpeg4", num_frames=10)
    path = tmp_path / f"titled.{extension}"
    with av.open(str(source)) as original, av.open(str(path), "w") as copy:
        copy.metadata["title"] = "Cafe noir"
        target = copy.add_stream_from_template(original.streams.video[0])
        for packet in original.demux(video=0):
            if packet.dts is not None:
                packet.stream = target
                copy.mux(packet)
    content = path.read_bytes()
    assert b"Cafe" in content
    path.write_bytes(content.replace(b"Cafe", b"Caf\xe9"))
    with open_video(path, decoder) as video:
        assert stamps(video.read([9, 0])) == [9, 0]


# --------------------------------------------------------------------------- kinds of files


@both_decoders
@pytest.mark.parametrize(
    ("name", "codec", "pixels", "old"),
    [
        ("a.avi", "mpeg4", "yuv420p", b"FMP4"),
        ("a.mov", "mjpeg", "yuvj420p", b"jpeg"),
        ("a.mkv", "ffv1", "yuv420p", b"V_FFV1"),
    ],
)
def test_codecs_that_nobody_knows(tmp_path, name, codec, pixels, old, decoder):
    path = write_with_av(tmp_path / name, codec, pixel_format=pixels, num_frames=5)
    path.write_bytes(path.read_bytes().replace(old, old[:-4] + b"ZZZZ"))
    with pytest.raises(UnreadableVideoError, match="codec|no video"):
        open_video(path, decoder)


def test_pipes_are_named_at_once(tmp_path):
    for name in ("a.jpg", "a.mp4"):
        os.mkfifo(tmp_path / name)
    start = time.monotonic()
    with pytest.raises(UnreadableImageError, match="a.jpg: it is not a regular file"):
        read_image(tmp_path / "a.jpg")
    for decoder in ("auto", "opencv"):
        with pytest.raises(UnreadableVideoError, match="a.mp4: it is not a regular file"):
            open_video(tmp_path / "a.mp4", decoder)
    assert time.monotonic() - start < 5


CONCAT = "ffconcat version 1.0\nfile sibling.mp4\n"
SDP = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"


@both_decoders
@pytest.mark.parametrize(
    "content",
    [
        CONCAT,
        CONCAT.replace("\n", "\r\n"),
        "ID3\3\0\0\0\0\0\5" + "tag  " + CONCAT,
        CONCAT + "\0" * 5000,
        "#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\nsibling.mp4\n#EXT-X-ENDLIST\n",
        '<?xml version="1.0"?>\n<MPD profiles="urn:mpeg:dash:profile:full:2011"></MPD>',
        "\1\n" + SDP,
        SDP,
        "sibling.mp4\n" * 500,
    ],
)
def test_lists_of_other_files_are_no_videos(tmp_path, content, decoder):
    skip_without(decoder)
    write_with_opencv(tmp_path / "sibling.mp4", "mp4v", 5)
    path = tmp_path / "clip.mp4"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(UnreadableVideoError, match="no video is found in it, but (text|a list)"):
        open_video(path, decoder)


def test_pyav_is_told_to_open_no_list(tmp_path, monkeypatch):
    """Also where the first look at a file should miss one."""
    pytest.importorskip("av")
    from keras_vjepa.data.reading import video

    monkeypatch.setattr(video, "check_is_no_list", lambda path: None)
    write_with_opencv(tmp_path / "sibling.mp4", "mp4v", 5)
    path = tmp_path / "clip.mp4"
    path.write_text(CONCAT)
    with pytest.raises(UnreadableVideoError, match="no video is found in it"):
        open_video(path, "av")


# ------------------------------------------------------------------------------------ sizes


@both_decoders
def test_frames_of_too_many_pixels_are_refused_before_they_are_decoded(tmp_path, decoder):
    skip_without(decoder)
    path = write_with_opencv(tmp_path / "a.avi", "MJPG", 5)
    limits = ReadingLimits(max_frame_pixels=HEIGHT * WIDTH)
    with open_video(path, decoder, limits) as video:
        assert stamps(video.read([4])) == [4]
    with pytest.raises(UnreadableVideoError, match="96x64 pixels are more than .*=6143"):
        open_video(path, decoder, ReadingLimits(max_frame_pixels=HEIGHT * WIDTH - 1))
    # This changes the sizes 96 and 64 to 12000 in the header and in every frame.
    content = path.read_bytes()
    content = content.replace(struct.pack("<II", 96, 64), struct.pack("<II", 12000, 12000))
    frame_header = struct.pack(">HH", 64, 96)
    assert content.count(b"\x08" + frame_header) == 5
    path.write_bytes(content.replace(frame_header, struct.pack(">HH", 12000, 12000)))
    reason = "12000x12000 pixels are more than|no frame of up to 67108864 pixels can be decoded"
    with pytest.raises(UnreadableVideoError, match=reason):
        open_video(path, decoder)


def write_growing(path):
    """Motion JPEG whose frames are a hundred times as large from the fifth on."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=30)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuvj420p"
        stream.codec_context.open()
        for i in range(8):
            size = (HEIGHT, WIDTH, 3) if i < 4 else (10 * HEIGHT, 10 * WIDTH, 3)
            image = cv2.imencode(".jpg", np.full(size, 30 * i, np.uint8))[1].tobytes()
            packet = av.Packet(image)
            packet.stream, packet.time_base = stream, stream.codec_context.time_base
            packet.pts = packet.dts = i
            packet.is_keyframe = True
            container.mux(packet)
    return path


def test_frames_that_grow_are_refused(tmp_path):
    path = write_growing(tmp_path / "a.avi")
    with open_video(path, "av", ReadingLimits(max_frame_pixels=HEIGHT * WIDTH)) as video:
        assert video.read([1]).shape == (1, HEIGHT, WIDTH, 3)
        with pytest.raises(UnreadableVideoError, match="only 4 can be decoded"):
            video.read([6])
    with open_video(path, "av") as video:
        with pytest.raises(UnreadableVideoError, match="its frames change size"):
            video.read([1, 6])


@both_decoders
def test_frames_that_are_far_too_oblong(tmp_path, decoder):
    """Their shorter side, made 256 pixels long, would make a longer one of gigabytes."""
    path = write_with_av(tmp_path / "a.mkv", "ffv1", num_frames=3, size=(6002, 60))
    with pytest.raises(UnreadableVideoError, match="more than 100 times as long as short"):
        open_video(path, decoder)


def test_a_repeated_frame_is_decoded_and_kept_once(tmp_path, monkeypatch):
    path = write_with_opencv(tmp_path / "a.avi", "MJPG", 5)
    with open_video(path) as video:
        decoded = []
        write = video._decoder.write_frame
        monkeypatch.setattr(
            video._decoder, "write_frame", lambda out: decoded.append(1) or write(out)
        )
        assert stamps(video.read([3] * 50 + [1] * 50)) == [3] * 50 + [1] * 50
    assert len(decoded) == 2


# ------------------------------------------------------------------------------------- time


class SlowDecoder:
    """One that does not come back from the second frame."""

    fps, seek_margin, passes_over = 30.0, 0, False

    def __init__(self):
        self.is_closed = self.is_woken = False

    def packet_index(self):
        return None

    def advance(self):
        self.place = getattr(self, "place", -1) + 1
        return float(self.place) if self.place < 3 else None

    def rewind(self):
        while not self.is_woken:
            time.sleep(0.01)

    def size(self):
        return 4, 4

    def close(self):
        self.is_closed = True


def test_a_file_that_hangs_is_named_and_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(gate, "_GRACE_SECONDS", 0.0)
    path = tmp_path / "a.mp4"
    path.touch()
    decoder = SlowDecoder()
    with pytest.raises(UnreadableVideoError, match="a.mp4: it takes longer than 0.1 seconds"):
        with VideoReader(str(path), decoder, ReadingLimits(max_file_seconds=0.1)) as video:
            video.read([1])
    # The thread that hangs still uses the decoder.
    assert not decoder.is_closed
    with pytest.raises(UnreadableVideoError, match="an earlier call has not returned"):
        video.read([1])
    decoder.is_woken = True
    for _ in range(500):
        time.sleep(0.01)
        if decoder.is_closed:
            break
    assert decoder.is_closed


# ------------------------------------------------------------------- errors of PyAV's own


@pytest.mark.parametrize("where", ["seek", "close", "demux"])
def test_errors_of_pyav_while_seeking_reading_and_closing(tmp_path, monkeypatch, where):
    av = pytest.importorskip("av")
    path = write_with_av(tmp_path / "a.mp4", "libx264")

    def fail(*arguments, **settings):
        raise av.error.PermissionError(1, "x")

    class Failing:
        """A container that fails in one of its methods."""

        def __init__(self, container):
            self._container = container

        def __getattr__(self, name):
            return fail if name == where else getattr(self._container, name)

    with open_video(path, "av") as video:
        assert stamps(video.read([1])) == [1]
        sound = video._decoder._container
        video._decoder._container = Failing(sound)
        if where == "seek":
            # The video is read in order instead.
            assert stamps(video.read([100])) == [100]
            return
        if where == "demux":
            # Going back opens the file again, which fails from now on.
            monkeypatch.setattr(av, "open", lambda *arguments, **settings: Failing(sound))
        with pytest.raises(UnreadableVideoError, match="PermissionError|only 0 can be decoded"):
            video.close() if where == "close" else video.read([0])
        video._decoder._container = sound


# ----------------------------------------------------------------------------- false indices


@both_decoders
@pytest.mark.parametrize(("codec", "pixels"), [("mjpeg", "yuvj420p"), ("mpeg4", "yuv420p")])
def test_flipped_bits_in_the_index_of_an_avi_file(tmp_path, codec, pixels, decoder):
    """A frame read alone is never its neighbour."""
    path = write_with_av(tmp_path / "a.avi", codec, pixel_format=pixels, num_frames=40)
    content = path.read_bytes()
    start = content.rindex(b"idx1")
    rng = np.random.default_rng(0)
    outcomes = {"right": 0, "named": 0}
    for i in range(150):
        # Most damage is in the first entries, which describe the frames that are read below.
        place = start + int(rng.integers(8 + 16 * (40 if i % 3 else 8)))
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            for positions in ([3], [20, 21, 39], [7]):
                with open_video(path, decoder) as video:
                    assert stamps(video.read(positions)) == positions
            outcomes["right"] += 1
        except UnreadableVideoError:
            outcomes["named"] += 1
    assert outcomes["right"] > 100, outcomes


@both_decoders
@pytest.mark.parametrize(("codec", "pixels"), [("mjpeg", "yuvj420p"), ("mpeg4", "yuv420p")])
def test_an_index_of_an_avi_file_that_begins_elsewhere(tmp_path, codec, pixels, decoder):
    """FFmpeg takes all places from the first one, and so reads each frame from within another."""
    path = write_with_av(tmp_path / "a.avi", codec, pixel_format=pixels, num_frames=40)
    content = bytearray(path.read_bytes())
    for bit in range(2, 8):
        damaged = content.copy()
        damaged[content.rindex(b"idx1") + 16] ^= 1 << bit
        path.write_bytes(damaged)
        for positions in ([0], [3], [20, 21, 39]):
            with suppress(UnreadableVideoError), open_video(path, decoder) as video:
                assert stamps(video.read(positions)) == positions


@both_decoders
def test_a_false_keyframe_in_the_index_of_an_mp4_file(tmp_path, decoder):
    path = write_with_av(tmp_path / "a.mp4", "mpeg4", keyframe_distance=12)
    content = bytearray(path.read_bytes())
    start = content.index(b"stss") + 12
    numbers = list(struct.unpack_from(">10I", content, start))
    assert numbers[:3] == [1, 13, 25]
    struct.pack_into(">10I", content, start, *(n + 2 for n in numbers))
    path.write_bytes(content)
    for position in (50, 100, NUM_FRAMES - 1):
        with open_video(path, decoder) as video:
            assert stamps(video.read([position])) == [position]


def test_an_avi_file_that_is_cut_gives_what_it_holds(tmp_path):
    path = write_with_opencv(tmp_path / "a.avi", "MJPG", 40)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 6 // 10])
    for decoder in ("auto", "opencv"):
        with open_video(path, decoder) as video:
            assert 10 < video.num_frames < 40
            shown = stamps(video.read(range(video.num_frames)))
        assert shown == list(range(len(shown)))


@pytest.mark.parametrize("is_cut", [False, True])
def test_a_motion_jpeg_picture_that_is_cut(tmp_path, is_cut):
    """A decoder shows in the missing part what it was last used for. No end mark is no cut."""
    skip_without("av")
    path = write_with_opencv(tmp_path / "a.avi", "MJPG", 8)
    content = bytearray(path.read_bytes())
    begin = content.rindex(b"\xff\xd8")
    end = content.index(b"\xff\xd9", begin)
    if is_cut:
        middle = begin + 3 * (end - begin) // 4
        content[middle:end] = b"\xff\xd9" * ((end - middle) // 2) + bytes((end - middle) % 2)
    else:
        content[end : end + 2] = bytes(2)
    path.write_bytes(content)
    with open_video(path, "av") as video:
        if not is_cut:
            assert stamps(video.read(range(8))) == list(range(8))
            return
        with pytest.raises(UnreadableVideoError, match=r"a\.avi"):
            video.read(range(8))


def test_a_file_in_the_place_of_another(tmp_path):
    """Of the same name, size and time of writing."""
    first, second = (
        write_with_opencv(tmp_path / f"{n}.avi", "MJPG", n).read_bytes() for n in (6, 5)
    )
    path = tmp_path / "a.avi"
    path.write_bytes(first)
    status = os.stat(path)
    assert open_video(path).num_frames == 6
    path.write_bytes(second.ljust(len(first), b"\0"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert os.stat(path).st_mtime_ns == status.st_mtime_ns
    assert open_video(path).num_frames == 5


def test_a_cover_picture_is_not_the_video(tmp_path):
    av = pytest.importorskip("av")
    source = write_with_av(tmp_path / "source.mp4", "mpeg4", num_frames=10)
    path = tmp_path / "covered.mp4"
    cover = cv2.imencode(".png", np.zeros((200, 200, 3), np.uint8))[1].tobytes()
    with av.open(str(source)) as original, av.open(str(path), "w") as copy:
        picture = copy.add_stream("png", rate=1)
        picture.width, picture.height, picture.pix_fmt = 200, 200, "rgb24"
        picture.disposition = av.stream.Disposition.attached_pic
        target = copy.add_stream_from_template(original.streams.video[0])
        packet = av.Packet(cover)
        packet.stream, packet.pts, packet.dts = picture, 0, 0
        copy.mux(packet)
        for packet in original.demux(video=0):
            if packet.dts is not None:
                packet.stream = target
                copy.mux(packet)
    assert stamps(read_frames(path, [9, 0])) == [9, 0]
    shutil.rmtree(tmp_path)
