"""Clips are the authors' frames; every file gives exactly its frames, or one clear error."""

import gc
import json
import os
import pickle
import struct
import sys
import wave
import weakref
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest

from keras_vjepa.data.reading import contents
from keras_vjepa.data.reading.clip_indices import clip_frame_indices, frame_step_for_duration
from keras_vjepa.data.reading.decoders import PacketIndex
from keras_vjepa.data.reading.errors import UnreadableVideoError
from keras_vjepa.data.reading.frame_memory import lent_frames
from keras_vjepa.data.reading.opencv_decoder import OpenCVDecoder
from keras_vjepa.data.reading.video import VideoReader, open_video, read_frames, video_info
from tests.data.reading.stamped import (
    HEIGHT,
    NUM_FRAMES,
    WIDTH,
    stamped_frame,
    stamps,
    write_with_av,
    write_with_opencv,
)
from tests.support import GOLDEN

pytestmark = pytest.mark.data

CLIP_SAMPLING = json.loads((GOLDEN / "clip_sampling.json").read_text())


# ---------------------------------------------------------------------------- frames of a clip


class ReplayedEnds:
    """Stands in for a generator: returns the window ends that the authors' code drew."""

    def __init__(self, ends: list[int]) -> None:
        self.ends = list(ends)

    def integers(self, low: int, high: int) -> int:
        end = self.ends.pop(0)
        assert low <= end < high
        return end


@pytest.mark.parametrize(
    "case",
    CLIP_SAMPLING["cases"],
    ids=lambda case: "-".join(str(value) for value in list(case.values())[:6]),
)
def test_clips_are_the_authors(case):
    ends = ReplayedEnds(case["drawn_end_indices"])
    indices = clip_frame_indices(
        case["video_length"],
        case["frames_per_clip"],
        case["frame_step"],
        num_clips=case["num_clips"],
        allow_clip_overlap=case["allow_clip_overlap"],
        rng=ends if case["random_clip_sampling"] else None,
    )
    expected = np.maximum(case["clip_indices"], 0)  # the authors have -1 for one frame with overlap
    np.testing.assert_array_equal(indices, expected)
    assert indices.dtype == np.int64
    assert not ends.ends, "a window end was not drawn"


@pytest.mark.parametrize("case", CLIP_SAMPLING["duration_cases"])
def test_frame_step_for_duration_is_the_authors(case):
    step = frame_step_for_duration(case["fps"], case["duration"], case["frames_per_clip"])
    assert step == case["frame_step_used"]
    indices = clip_frame_indices(case["video_length"], case["frames_per_clip"], step)
    np.testing.assert_array_equal(indices, case["clip_indices"])


def test_frame_step_for_duration_is_never_zero():
    assert frame_step_for_duration(fps=10.0, duration=0.5, frames_per_clip=16) == 1
    with pytest.raises(ValueError, match="`fps` must be positive. Received: 0.0"):
        frame_step_for_duration(fps=0.0, duration=2.0, frames_per_clip=16)


def test_random_clips_reach_both_ends_and_repeat_with_the_seed():
    rng = np.random.default_rng(0)
    starts = {int(clip_frame_indices(67, 16, 4, rng=rng)[0, 0]) for _ in range(200)}
    assert starts == {0, 1, 2}
    first, second = (
        clip_frame_indices(1000, 16, 4, num_clips=3, rng=np.random.default_rng(5)) for _ in range(2)
    )
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("allow_clip_overlap", [False, True])
@pytest.mark.parametrize("video_length", [1, 2, 5, 63, 64, 65, 200])
@pytest.mark.parametrize("num_clips", [1, 3, 8])
def test_clips_lie_inside_any_video(video_length, num_clips, allow_clip_overlap):
    indices = clip_frame_indices(
        video_length, 16, 4, num_clips, allow_clip_overlap, np.random.default_rng(0)
    )
    assert indices.shape == (num_clips, 16)
    assert indices.min() >= 0 and indices.max() < video_length
    assert (np.diff(indices, axis=1) >= 0).all()


@pytest.mark.parametrize("name", ["video_length", "frames_per_clip", "frame_step", "num_clips"])
def test_clip_counts_are_checked(name):
    arguments = {"video_length": 9, "frames_per_clip": 2, "frame_step": 1, "num_clips": 1}
    with pytest.raises(ValueError, match=f"`{name}` must be at least 1. Received: 0"):
        clip_frame_indices(**(arguments | {name: 0}))


# ------------------------------------------------------------------------------------ test files


def assert_exact(path: Path, decoder: str, expected: list[int] | range = range(NUM_FRAMES)):
    rng = np.random.default_rng(0)
    with open_video(path, decoder) as video:
        assert video.num_frames == len(expected)
        assert (video.info.height, video.info.width) == (HEIGHT, WIDTH)
        for indices in (
            rng.integers(0, len(expected), 9),  # in any order
            [len(expected) - 1] * 3 + [0],
            clip_frame_indices(len(expected), 16, 2, rng=rng)[0],
            range(len(expected)),
        ):
            assert stamps(video.read(list(indices))) == [expected[i] for i in indices]


# ------------------------------------------------------------------------------- exact frames


@pytest.mark.parametrize(
    ("codec", "extension"),
    [("mp4v", "mp4"), ("mp4v", "mov"), ("XVID", "avi"), ("MJPG", "avi"), ("VP80", "webm")],
)
def test_opencv_files_are_exact(tmp_path, codec, extension):
    assert_exact(write_with_opencv(tmp_path / f"stamped.{extension}", codec), "opencv")


@pytest.mark.parametrize("decoder", ["opencv", "av"])
@pytest.mark.parametrize(
    ("codec", "extension"),
    [
        ("libx264", "mp4"),
        ("libx264", "mkv"),
        ("libx264", "avi"),  # no timestamps of B-frames: must be counted by decoding
        ("libx264", "ts"),
        ("libx265", "mp4"),
        ("libvpx-vp9", "webm"),
        ("mpeg2video", "mpg"),  # two packets with the same timestamp
        ("mpeg2video", "ts"),
        ("flv", "flv"),
    ],
)
def test_av_files_are_exact(tmp_path, codec, extension, decoder):
    assert_exact(write_with_av(tmp_path / f"stamped.{extension}", codec), decoder)


@pytest.mark.parametrize("decoder", ["opencv", "av"])
@pytest.mark.parametrize("options", [{"movflags": "frag_keyframe+empty_moov"}, {}])
def test_fragmented_and_long_groups_are_exact(tmp_path, decoder, options):
    path = write_with_av(tmp_path / "a.mp4", "libx264", keyframe_distance=250, options=options)
    assert_exact(path, decoder)


@pytest.mark.parametrize("decoder", ["opencv", "av"])
@pytest.mark.parametrize("name", ["variable.mp4", "variable.mkv", "variable.webm"])
def test_variable_frame_rate_is_exact(tmp_path, name, decoder):
    gaps = np.random.default_rng(0).choice([20, 33, 50, 120], NUM_FRAMES)
    codec = "libvpx-vp9" if name.endswith("webm") else "libx264"
    path = write_with_av(tmp_path / name, codec, milliseconds=np.cumsum(gaps).tolist())
    if not name.endswith("mp4"):
        stated = cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FRAME_COUNT)
        assert stated != NUM_FRAMES, "the header was meant to lie"
    assert_exact(path, decoder)


def test_av1_needs_pyav(tmp_path, monkeypatch):
    path = write_with_av(tmp_path / "av1.mp4", "libsvtav1")
    with open_video(path, "av") as video:
        assert stamps(video.read([3, 77, 119])) == [3, 77, 119]
    try:
        open_video(path, "opencv").close()
    except UnreadableVideoError:
        assert stamps(read_frames(path, [3, 77, 119])) == [3, 77, 119]  # falls back
        monkeypatch.setitem(sys.modules, "av", None)
        with pytest.raises(UnreadableVideoError, match="pip install av"):
            open_video(path)


def test_av_decoder_says_what_it_needs(tmp_path, monkeypatch):
    path = write_with_opencv(tmp_path / "a.avi", "MJPG", num_frames=2)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match="pip install av"):
        open_video(path, "av")
    assert open_video(path).num_frames == 2


@pytest.mark.parametrize("decoder", ["opencv", "av"])
def test_frames_hidden_by_an_edit_list_are_not_counted(tmp_path, decoder):
    """As `ffmpeg -ss ... -c copy` leaves them: packets from the last keyframe on, hidden."""
    av = pytest.importorskip("av")
    source = write_with_av(tmp_path / "source.mp4", "libx264", keyframe_distance=250)
    path = tmp_path / "cut.mp4"
    with av.open(str(source)) as original, av.open(str(path), "w") as copy:
        stream = original.streams.video[0]
        target = copy.add_stream_from_template(stream)
        shift = int(20 / 30 / stream.time_base)
        for packet in original.demux(stream):
            if packet.dts is not None:
                packet.pts -= shift
                packet.dts -= shift
                packet.stream = target
                copy.mux(packet)
    assert cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FRAME_COUNT) == NUM_FRAMES
    assert_exact(path, decoder, range(20, NUM_FRAMES))

    content = bytearray(source.read_bytes())
    place, header = content.find(b"elst"), content.find(b"mvhd")
    (timescale,) = struct.unpack(">I", content[header + 16 : header + 20])
    content[place + 12 : place + 16] = struct.pack(">I", 2 * timescale)
    path.write_bytes(content)
    assert_exact(path, decoder, range(60))


def test_hidden_reference_frames_are_not_counted(tmp_path):
    """Two-pass VP8 has packets that are decoded but never shown."""
    av = pytest.importorskip("av")
    source, path = write_with_av(tmp_path / "source.webm", "libvpx"), tmp_path / "hidden.webm"
    with av.open(str(source)) as original, av.open(str(path), "w") as copy:
        stream = original.streams.video[0]
        target = copy.add_stream_from_template(stream)
        for packet in original.demux(stream):
            if packet.size:
                time, content = packet.pts, bytearray(packet)
                packet.stream = target
                copy.mux(packet)
                if not packet.is_keyframe and time % 100 == 0:
                    content[0] &= ~0x10  # the bit that says "show this frame"
                    hidden = av.Packet(bytes(content))
                    hidden.pts = hidden.dts = time + 1
                    hidden.time_base, hidden.stream = stream.time_base, target
                    copy.mux(hidden)
    with av.open(str(path)) as video:
        assert sum(packet.size > 0 for packet in video.demux(video=0)) > NUM_FRAMES + 20
    with open_video(path, "opencv") as video:
        assert video.num_frames == NUM_FRAMES
        assert len(video.read([119, 3])) == 2


@pytest.mark.parametrize("decoder", ["opencv", "av"])
def test_rotated_video_is_upright(tmp_path, decoder):
    path = write_with_av(tmp_path / "a.mp4", "libx264")
    upright = read_frames(path, [21])[0]
    content = bytearray(path.read_bytes())
    matrix = content.find(b"tkhd") + 4 + 40
    quarter_turn_clockwise = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    content[matrix : matrix + 36] = quarter_turn_clockwise
    path.write_bytes(content)
    with open_video(path, decoder) as video:
        assert (video.info.height, video.info.width) == (WIDTH, HEIGHT)
        difference = video.read([21])[0].astype(int) - np.rot90(upright, -1)
    assert abs(difference).mean() < 2


def test_colours_are_rgb_and_decoders_agree(tmp_path):
    path = tmp_path / "red.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 30, (WIDTH, HEIGHT))
    writer.write(np.full((HEIGHT, WIDTH, 3), (0, 0, 250), np.uint8))  # OpenCV writes BGR
    writer.release()
    frame = read_frames(path, [0])[0]
    assert frame[..., 0].min() > 240 and frame[..., 1:].max() < 15


# ------------------------------------------------------------------------------------- seeking


def count_calls(monkeypatch, target: object, name: str) -> list[float]:
    calls: list[float] = []
    original = getattr(target, name)
    monkeypatch.setattr(target, name, lambda *args: (calls.append(0.0), original(*args))[1])
    return calls


def test_seeks_across_keyframes_and_only_there(tmp_path, monkeypatch):
    path = write_with_opencv(tmp_path / "a.mp4", "mp4v")  # a keyframe every 12 frames
    with open_video(path, "opencv") as video:
        seeks = count_calls(monkeypatch, video._decoder, "seek")
        advances = count_calls(monkeypatch, video._decoder, "advance")
        assert stamps(video.read([2, 7, 26])) == [2, 7, 26]
        assert not seeks, "OpenCV seeks 16 frames back: it would start at frame 0 again"
        assert stamps(video.read([100, 103])) == [100, 103]
        assert len(seeks) == 1
        assert len(advances) < 60, "frames were decoded that the seek should have skipped"


@pytest.mark.parametrize("decoder", ["opencv", "av"])
def test_a_file_that_is_known_is_read_from_its_start_without_a_seek(tmp_path, monkeypatch, decoder):
    if decoder == "av":
        pytest.importorskip("av")
    path = write_with_opencv(tmp_path / "a.mp4", "mp4v")
    open_video(path, decoder).close()
    with open_video(path, decoder) as video:
        # The contents of the file are remembered, so no frame has been decoded yet.
        assert video._position == -1
        seeks = count_calls(monkeypatch, video._decoder, "seek")
        assert stamps(video.read([2, 7])) == [2, 7]
        assert not seeks
        # Going back leads to the first keyframe.
        assert stamps(video.read([1])) == [1]


@pytest.mark.parametrize("decoder", ["opencv", "av"])
def test_a_closed_file_leaves_no_memory_to_the_garbage_collector(tmp_path, decoder):
    """A decoder holds the frames that others are predicted from, of any size."""
    if decoder == "av":
        pytest.importorskip("av")
    path = write_with_opencv(tmp_path / "a.mp4", "mp4v")
    gc.disable()
    try:
        with open_video(path, decoder) as video:
            video.read([3])
        left = weakref.ref(video._decoder)
        del video
        assert left() is None
    finally:
        gc.enable()


def test_wrong_seek_is_noticed(tmp_path, monkeypatch):
    path = write_with_opencv(tmp_path / "a.mp4", "mp4v")
    with open_video(path, "opencv") as video:
        astray = video._decoder.seek
        monkeypatch.setattr(video._decoder, "seek", lambda timestamp: astray(timestamp + 100))
        assert stamps(video.read([100, 40, 103])) == [100, 40, 103]


class ListDecoder:
    """A decoder of frames held in memory, which promises `num_promised` of them."""

    fps = 30.0
    seek_margin = 0
    passes_over = False

    def __init__(
        self, num_promised: int, num_decodable: Callable[[int], int], first_time: int = 0
    ) -> None:
        self.num_promised, self.num_decodable = num_promised, num_decodable
        self.first_time = first_time
        self.num_passes, self.position = 1, -1

    def packet_index(self) -> PacketIndex | None:
        times = range(self.num_promised)
        return PacketIndex.from_packets(times, [time == 0 for time in times])

    def rewind(self) -> None:
        self.num_passes, self.position = self.num_passes + 1, -1

    def seek(self, timestamp: float) -> None:
        self.position = -1

    def advance(self) -> float | None:
        if self.position + 1 >= self.num_decodable(self.num_passes):
            return None
        self.position += 1
        return float(self.first_time + self.position)

    def want(self, timestamps: frozenset[float]) -> None:
        pass

    def size(self) -> tuple[int, int]:
        return HEIGHT, WIDTH

    def write_frame(self, out: np.ndarray) -> None:
        out[...] = stamped_frame(self.position)

    def close(self) -> None:
        pass


def test_packets_are_looked_at_once_a_file(tmp_path, monkeypatch):
    path = tmp_path / "video.mp4"
    write_with_opencv(path, "mp4v", num_frames=20)
    looks = []
    look = OpenCVDecoder.packet_index
    monkeypatch.setattr(
        OpenCVDecoder,
        "packet_index",
        lambda decoder: looks.append(1) or look(decoder),
    )
    for _ in range(3):
        with open_video(path, "opencv") as video:
            assert video.num_frames == 20
    assert len(looks) == 1
    # Another file that replaces this one is not mistaken for it.
    write_with_opencv(path, "mp4v", num_frames=30)
    with open_video(path, "opencv") as video:
        assert video.num_frames == 30
    monkeypatch.setattr(contents, "MAX_REMEMBERED", 2)
    monkeypatch.setattr(contents, "_remembered", OrderedDict())
    for name in "abc":
        write_with_opencv(tmp_path / f"{name}.mp4", "mp4v", num_frames=5)
        open_video(tmp_path / f"{name}.mp4").close()
    assert [Path(path).stem for _, path, *_ in contents._remembered] == ["b", "c"]


def test_missing_frames_are_tried_once_more_in_order(tmp_path):
    path = tmp_path / "flaky"
    path.touch()
    decoder = ListDecoder(10, num_decodable=lambda num_passes: 6 if num_passes == 1 else 10)
    assert stamps(VideoReader(str(path), decoder).read([1, 8])) == [1, 8]
    assert decoder.num_passes == 2


def test_broken_promise_is_an_error_not_a_loop(tmp_path):
    path = tmp_path / "short"
    path.touch()
    decoder = ListDecoder(10, num_decodable=lambda num_passes: 6)
    with pytest.raises(UnreadableVideoError, match="promises 10 frames, but only 6 can"):
        VideoReader(str(path), decoder).read([1, 8])
    assert decoder.num_passes == 2


def test_index_that_disagrees_with_the_first_frame_is_not_believed(tmp_path):
    path = tmp_path / "shifted"
    path.touch()
    decoder = ListDecoder(10, num_decodable=lambda num_passes: 6, first_time=4)
    assert VideoReader(str(path), decoder).num_frames == 6


@pytest.mark.parametrize("times", [[], [0.0, 1.0, 1.0], [0.0, float("nan"), 2.0]])
def test_index_needs_a_time_for_each_frame(times):
    assert PacketIndex.from_packets(times, [True] * len(times)) is None


def test_index_is_in_display_order():
    index = PacketIndex.from_packets([0, 3, 1, 2, 4], [True, False, False, False, True])
    assert index is not None
    assert (index.timestamps.tolist(), index.keyframes.tolist()) == ([0, 1, 2, 3, 4], [0, 4])


# -------------------------------------------------------------------------------- damaged files


@pytest.mark.parametrize("name", ["faststart.mp4", "cut.mkv", "cut.ts"])
@pytest.mark.parametrize("decoder", ["opencv", "av"])
def test_truncated_files_give_what_they_hold(tmp_path, name, decoder):
    options = {"movflags": "faststart"} if name.endswith("mp4") else {}
    path = write_with_av(tmp_path / name, "libx264", options=options)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 6 // 10])
    with open_video(path, decoder) as video:
        assert 20 < video.num_frames < NUM_FRAMES
        shown = stamps(video.read(range(video.num_frames)))
    assert shown[:20] == list(range(20))


def test_truncated_mp4_without_its_index(tmp_path):
    path = write_with_opencv(tmp_path / "cut.mp4", "mp4v")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 6 // 10])
    with pytest.raises(UnreadableVideoError, match="cut.mp4: it is truncated"):
        open_video(path)


def test_flipped_bits_lose_few_frames(tmp_path):
    path = write_with_av(tmp_path / "flipped.mp4", "libx264", options={"movflags": "faststart"})
    content = bytearray(path.read_bytes())
    rng = np.random.default_rng(0)
    for place in rng.integers(len(content) // 3, len(content), 30):
        content[place] ^= 1 << int(rng.integers(8))
    path.write_bytes(content)
    with open_video(path, "opencv") as video:
        assert 90 < video.num_frames < NUM_FRAMES
        frames = video.read(range(video.num_frames))
        np.testing.assert_array_equal(video.read([video.num_frames - 1])[0], frames[-1])


def test_many_random_damages_end_in_frames_or_one_error(tmp_path):
    path = write_with_opencv(tmp_path / "a.avi", "MJPG", num_frames=20)
    content = path.read_bytes()
    rng = np.random.default_rng(1)
    for _ in range(20):
        damaged = bytearray(content)
        for place in rng.integers(0, len(damaged), 200):
            damaged[place] = int(rng.integers(256))
        path.write_bytes(damaged)
        try:
            with open_video(path, "opencv") as video:
                assert len(video.read(range(video.num_frames))) == video.num_frames
        except UnreadableVideoError as error:
            assert "\n" not in str(error)


# --------------------------------------------------------------------------------- odd files


def test_one_frame(tmp_path):
    path = write_with_opencv(tmp_path / "one.mp4", "mp4v", num_frames=1)
    indices = clip_frame_indices(video_info(path).num_frames, 16, 4)[0]
    assert read_frames(path, indices).shape == (16, HEIGHT, WIDTH, 3)


def test_two_pixels(tmp_path):
    path = write_with_opencv(tmp_path / "tiny.avi", "MJPG", num_frames=5, size=(2, 2))
    assert read_frames(path, [4, 0]).shape == (2, 2, 2, 3)


@pytest.mark.parametrize("name", ["kätzchen spielt.mp4", "猫.mp4", "take2:b 100%d.mp4"])
def test_any_name(tmp_path, monkeypatch, name):
    write_with_opencv(tmp_path / "plain.mp4", "mp4v", num_frames=3).rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    with open_video(name, "opencv") as video:
        assert stamps(video.read([2, 0])) == [2, 0]


def make_missing(path: Path) -> None:
    pass


def make_audio(path: Path) -> None:
    with path.open("wb") as file, wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(b"\0" * 16000)


def make_jpeg(path: Path) -> None:
    path.write_bytes(cv2.imencode(".jpg", stamped_frame(3))[1].tobytes())


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (make_missing, "no such file"),
        (Path.mkdir, "folder"),
        (Path.touch, "empty"),
        (make_audio, "no video"),
        (make_jpeg, "still image"),
        (lambda path: path.write_text("not a video\n" * 99), "no video"),
    ],
)
def test_what_is_no_video_is_named_in_one_line(tmp_path, make, reason):
    path = tmp_path / "clip.mp4"
    make(path)
    with pytest.raises(UnreadableVideoError) as caught:
        open_video(path)
    message = str(caught.value)
    assert reason in message and str(path) in message and "\n" not in message
    copy = pickle.loads(pickle.dumps(caught.value))  # it is sent between processes
    assert (str(copy), copy.path) == (message, str(path))


def test_arguments_are_checked(tmp_path):
    path = write_with_opencv(tmp_path / "a.avi", "MJPG", num_frames=4)
    with pytest.raises(ValueError, match="`decoder` must be"):
        open_video(path, decoder="decord")
    with open_video(path) as video:
        for indices in ([4], [-1], [0, 99]):
            with pytest.raises(ValueError, match=r"`indices` must lie in \[0, 4\)"):
                video.read(indices)
        for indices in ([], [0.5], [[0]]):
            with pytest.raises(ValueError, match="non-empty list of integers"):
                video.read(indices)


def test_readers_in_threads_do_not_disturb_each_other(tmp_path):
    path = write_with_opencv(tmp_path / "a.mp4", "mp4v")
    clips = [
        clip_frame_indices(NUM_FRAMES, 8, 4, rng=np.random.default_rng(i))[0] for i in range(24)
    ]
    with ThreadPoolExecutor(4) as executor:
        for indices, frames in zip(
            clips, executor.map(lambda indices: read_frames(path, indices), clips), strict=True
        ):
            assert stamps(frames) == list(indices)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files in /proc")
def test_closes_its_files(tmp_path):
    path = write_with_opencv(tmp_path / "a.avi", "MJPG", num_frames=4)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        video_info(path)
    assert len(os.listdir("/proc/self/fd")) <= before + 1


def test_frames_in_memory_that_is_lent(tmp_path):
    path = write_with_opencv(tmp_path / "a.avi", "MJPG", 9)
    with open_video(path) as video:
        with lent_frames((2, HEIGHT, WIDTH, 3)) as first:
            frames = video.read([7, 3, 7], first)
            assert stamps(frames) == [7, 3, 7] and stamps(first) == [3, 7]
            with lent_frames(first.shape) as second:
                assert not np.shares_memory(first, second)
        with lent_frames((1, HEIGHT, WIDTH, 3)) as again:
            assert np.shares_memory(again, first)
            with pytest.raises(ValueError, match=r"`out` must have the shape \(2, 64, 96, 3\)"):
                video.read([1, 2], again)
    # A thread that is too late may still write to the memory.
    with pytest.raises(KeyError), lent_frames(first.shape) as late:
        raise KeyError
    with lent_frames(first.shape) as other:
        assert not np.shares_memory(late, other)
