"""Sound files of odd kinds: every frame is right, alone and among others, or the file is named."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from keras_vjepa.data.reading.errors import UnreadableVideoError
from keras_vjepa.data.reading.video import open_video
from tests.data.reading.stamped import NUM_FRAMES, stamps, write_with_av

pytestmark = pytest.mark.data

X264 = "x264-params"
VARIABLE = np.cumsum(np.random.default_rng(0).choice([20, 33, 50, 120], NUM_FRAMES)).tolist()
LATE = (1_000_000 + 33 * np.arange(NUM_FRAMES)).tolist()
B_FRAMES = {"bf": "2", "b_strategy": "0"}


def kind(name: str, codec: str, **settings: Any) -> Any:
    return pytest.param(name, codec, settings, id=name)


KINDS = [
    *(
        kind(f"h264.{extension}", "libx264")
        for extension in "mp4 mkv mov avi flv ts m2ts 3gp nut f4v mxf asf".split()
    ),
    kind("raw.h264", "libx264", container_format="h264"),
    kind("b-frames.mp4", "libx264", codec_options={"bf": "8", "b_strategy": "0"}),
    kind("open.mp4", "libx264", codec_options={X264: "open-gop=1:bframes=4:b-adapt=0"}),
    kind("open.ts", "libx264", codec_options={X264: "open-gop=1:bframes=4:b-adapt=0"}),
    kind("refresh.mp4", "libx264", codec_options={X264: "intra-refresh=1:bframes=0"}),
    kind("interlaced.mp4", "libx264", codec_options={X264: "tff=1:interlaced=1"}),
    kind("keyframes.mp4", "libx264", keyframe_distance=1),
    kind("baseline.mp4", "libx264", codec_options={"profile": "baseline"}),
    kind("444.mp4", "libx264", pixel_format="yuv444p", size=(101, 67)),
    kind("ten-bits.mp4", "libx264", pixel_format="yuv420p10le"),
    kind("grey.mp4", "libx264", pixel_format="gray"),
    kind("cropped.mp4", "libx264", size=(98, 66)),
    kind("slow.mp4", "libx264", rate=1),
    kind("fast.mp4", "libx264", rate=1000),
    kind("ntsc.mp4", "libx264", rate=Fraction(30000, 1001)),
    kind("variable.mp4", "libx264", milliseconds=VARIABLE),
    kind("late.mkv", "libx264", milliseconds=LATE),
    kind("fragments.mp4", "libx264", options={"movflags": "frag_keyframe+empty_moov"}),
    kind("hevc.mp4", "libx265"),
    kind("hevc.mkv", "libx265"),
    kind("hevc.ts", "libx265", keyframe_distance=60),
    kind("raw.hevc", "libx265", container_format="hevc"),
    *(kind(f"mpeg4.{extension}", "mpeg4") for extension in "mp4 avi mkv m4v ts".split()),
    kind("mpeg4-b.avi", "mpeg4", codec_options=B_FRAMES),
    kind("mpeg4-b.mkv", "mpeg4", codec_options=B_FRAMES),
    *(kind(f"mpeg2.{extension}", "mpeg2video") for extension in "mpg vob ts m2ts mxf avi".split()),
    kind("mpeg2-b.mpg", "mpeg2video", codec_options={"bf": "2"}),
    kind("raw.m2v", "mpeg2video", container_format="mpeg2video"),
    kind("mpeg1.mpe", "mpeg1video", container_format="mpeg"),
    kind("flv1.flv", "flv"),
    kind("wmv1.wmv", "wmv1"),
    kind("wmv2.asf", "wmv2"),
    kind("h263.3gp", "h263", size=(128, 96)),
    kind("rv20.rm", "rv20"),
    kind("vp8.webm", "libvpx"),
    kind("vp9.mkv", "libvpx-vp9"),
    kind(
        "hidden.webm",
        "libvpx-vp9",
        codec_options={"auto-alt-ref": "1", "lag-in-frames": "16"},
        keyframe_distance=60,
    ),
    kind("av1.webm", "libsvtav1"),
    kind("ffv1.nut", "ffv1"),
    kind("huffyuv.avi", "huffyuv", pixel_format="yuv422p"),
    kind("mjpeg.avi", "mjpeg", pixel_format="yuvj420p"),
    kind("mjpeg.mov", "mjpeg", pixel_format="yuvj420p"),
    kind("prores.mov", "prores", pixel_format="yuv422p10le"),
    kind("qtrle.mov", "qtrle", pixel_format="rgb24"),
    kind("alpha.mov", "png", pixel_format="rgba"),
    kind("a.gif", "gif", pixel_format="rgb8"),
    kind("words.y4m", "rawvideo", container_format="yuv4mpegpipe"),
    kind("dv.dv", "dvvideo", size=(720, 576), rate=25, num_frames=20, container_format="dv"),
]
# Files that OpenCV cannot read, for want of a decoder, or because it does not convert interlaced
# frames (from 4.13 on).
NAMED_BY_OPENCV = {"av1.webm", "interlaced.mp4", "dv.dv"}


@pytest.mark.parametrize("decoder", ["opencv", "av"])
@pytest.mark.parametrize(("name", "codec", "settings"), KINDS)
def test_every_frame_or_the_file_is_named(tmp_path, name, codec, settings, decoder):
    path = write_with_av(tmp_path / name, codec, **settings)
    count = settings.get("num_frames", NUM_FRAMES)
    try:
        with open_video(path, decoder) as video:
            assert video.num_frames == count
            assert stamps(video.read(range(count))) == list(range(count))
    except UnreadableVideoError:
        assert decoder == "opencv" and name in NAMED_BY_OPENCV
        return
    rng = np.random.default_rng(0)
    for indices in (
        [count - 1],
        [count // 2],
        [count // 3 + 1],
        list(range(9, count, 4)),
        rng.integers(0, count, 9).tolist(),
    ):
        with open_video(path, decoder) as video:
            assert stamps(video.read(indices)) == indices


def test_there_are_enough_of_them():
    assert len(KINDS) >= 39


def test_one_frame_after_another_as_windows_are_read(tmp_path):
    """What is passed over for one read is there for the next."""
    path = write_with_av(tmp_path / "a.mp4", "libx264", keyframe_distance=60)
    with open_video(path, "av") as video:
        for step in (1, 3):
            positions = list(range(0, NUM_FRAMES, step))
            assert [stamps(video.read([i]))[0] for i in positions] == positions
        assert [stamps(video.read([i]))[0] for i in (50, 49, 7, 8)] == [50, 49, 7, 8]
        assert not video._in_order


def test_frames_that_nobody_needs_are_not_decoded(tmp_path, monkeypatch):
    path = write_with_av(
        tmp_path / "a.mp4", "libx264", keyframe_distance=120, codec_options=B_FRAMES
    )
    with open_video(path, "av") as video:
        times = []
        advance = video._decoder.advance

        def noted():
            times.append(advance())
            return times[-1]

        monkeypatch.setattr(video._decoder, "advance", noted)
        wanted = list(range(1, 60, 4))
        assert stamps(video.read(wanted)) == wanted
        assert not video._in_order
    assert len(times) < 50


def test_both_decoders_give_the_same_pixels(tmp_path):
    """So that it does not matter to a run whether PyAV is installed."""
    for name, codec, settings in (
        ("a.mp4", "libx264", {}),
        ("b.mp4", "libx264", {"pixel_format": "yuv444p", "size": (101, 67)}),
        ("c.avi", "mjpeg", {"pixel_format": "yuvj420p"}),
        ("d.webm", "libvpx-vp9", {}),
    ):
        path = write_with_av(tmp_path / name, codec, num_frames=12, **settings)
        frames = []
        for decoder in ("opencv", "av"):
            with open_video(path, decoder) as video:
                frames.append(video.read([0, 5, 11]).astype(int))
        # The frames come from two builds of one library. With OpenCV 4.10 to 5.0 they were equal.
        assert np.abs(frames[0] - frames[1]).max() <= 2
