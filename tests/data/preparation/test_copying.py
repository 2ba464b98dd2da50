"""Copies have the frames of their originals at their times; nothing is lost or done twice."""

import os
import tarfile
from fractions import Fraction

import cv2
import numpy as np
import pytest

from keras_vjepa.data.preparation.copying import copy_videos, measured_gain, names_of_copies
from keras_vjepa.data.preparation.transcoding import Transcoding
from keras_vjepa.data.reading.video import VideoReader, open_video
from keras_vjepa.data.sources.listing import list_samples
from keras_vjepa.data.sources.samples import Sample
from tests.data.reading.stamped import stamped_frame, stamps, write_with_av, write_with_opencv

pytestmark = pytest.mark.data
pytest.importorskip("av")


@pytest.fixture
def originals(tmp_path):
    (tmp_path / "in/cat").mkdir(parents=True)
    write_with_opencv(tmp_path / "in/cat/a b.avi", "MJPG", num_frames=30)
    write_with_av(tmp_path / "in/b.mp4", "libx264", num_frames=40)
    (tmp_path / "in/bad.mp4").write_text("no video")
    return tmp_path / "in"


@pytest.mark.parametrize("size", [(96, 64), (150, 34), (34, 50)])
@pytest.mark.parametrize("milliseconds", [None, [40 * i + 7 * (i % 3) for i in range(40)]])
def test_a_copy_has_the_same_frames_at_the_same_times(size, milliseconds, tmp_path):
    path = str(tmp_path / "a.mp4")
    write_with_av(tmp_path / "a.mp4", "libx264", milliseconds, 40, num_frames=40, size=size)
    copied = Transcoding(short_side=32, keyframe_distance=8)((path, str(tmp_path / "b.mp4")))
    assert (copied.reason, copied.num_frames) == ("", 40)
    with open_video(path) as original, open_video(tmp_path / "b.mp4") as copy:
        times, expected = copy.times(), original.times()
        np.testing.assert_allclose(times - times[0], expected - expected[0], atol=2e-3)
        assert min(copy.info.height, copy.info.width) == 32
        assert abs(copy.info.width / copy.info.height / (size[0] / size[1]) - 1) < 0.06
        assert np.diff(copy.keyframes()).max() <= 8 < 40
        assert copy.codec == "h264" and abs(copy.fps - original.fps) < 0.5
        assert copied.num_bytes == os.path.getsize(tmp_path / "b.mp4")


def test_frames_stay_in_their_order_and_odd_rates_stay(tmp_path):
    rate = Fraction(30000, 1001)
    path = write_with_av(tmp_path / "a.mkv", "libx264", num_frames=70, rate=rate)
    assert Transcoding()((str(path), str(tmp_path / "b.mp4"))).reason == ""
    with open_video(tmp_path / "b.mp4") as copy:
        assert stamps(copy.read(np.arange(70))) == list(range(70))
        assert abs(copy.fps - float(rate)) < 0.01 and copy.num_frames == 70


def test_a_copy_that_is_not_the_same_is_not_kept(tmp_path, monkeypatch):
    path = write_with_av(tmp_path / "a.mp4", "libx264", num_frames=40)
    frames = VideoReader._read

    def other(reader, wanted, out=None):
        found = frames(reader, wanted, out)
        return found if reader.path == str(path) else 255 - found

    monkeypatch.setattr(VideoReader, "_read", other)
    copied = Transcoding()((str(path), str(tmp_path / "b.mp4")))
    assert copied.reason == "its copy has frames that look different, and was not kept"
    monkeypatch.undo()
    monkeypatch.setattr(VideoReader, "decode_on", lambda reader, count: 39)
    copied = Transcoding()((str(path), str(tmp_path / "b.mp4")))
    assert copied.reason == "its copy has 39 of 40 frames, and was not kept"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.mp4"]


def test_a_data_set(originals, tmp_path, alone):
    before = {path: path.read_bytes() for path in originals.rglob("*.*")}
    samples = [Sample(s.path, n) for n, s in enumerate(list_samples(originals))]
    out = tmp_path / "out"
    done = copy_videos(samples, originals, out, Transcoding())
    assert {path: path.read_bytes() for path in originals.rglob("*.*")} == before
    assert done.copies == list_samples(out / "copies.csv")
    assert done.copies == [Sample(f"{out}/b.mp4", 0), Sample(f"{out}/cat/a b.mp4", 2)]
    assert [*done.bad_files.values()] == ["no video is found in it, but text"]
    assert "bad.mp4" in (out / "reasons.csv").read_text() and done.made == 2
    again = copy_videos(samples, originals, out, Transcoding())
    assert again.made == 0 and again.copies == done.copies and set(alone.read.values()) == {1}
    (out / "b.mp4").write_text("replaced")
    assert copy_videos(samples, originals, out, Transcoding()).made == 1
    assert copy_videos(samples, originals, out, Transcoding(quality=30)).made == 2
    gain = measured_gain(done.originals, done.copies, 1)
    assert gain.clips == 2 and gain.before > 0 and gain.after > 0


def test_stopped_it_goes_on(originals, tmp_path, alone):
    def stop(done, count):
        raise KeyboardInterrupt

    samples = list_samples(originals)
    with pytest.raises(KeyboardInterrupt):
        copy_videos(samples, originals, tmp_path / "out", Transcoding(), progress=stop)
    assert copy_videos(samples, originals, tmp_path / "out", Transcoding()).made == 1
    assert set(alone.read.values()) == {1} and len(alone.read) == 3


def test_no_original_is_replaced(tmp_path):
    with pytest.raises(ValueError, match="`folder` must be another than that of the originals"):
        copy_videos([Sample(f"{tmp_path}/a.mp4")], tmp_path, tmp_path, Transcoding())
    names = names_of_copies(["v/a.mp4", "v/a.MP4", "v/b.jpg"], "v", tmp_path)
    assert len(set(names.values())) == 3 and names["v/b.jpg"].endswith("b.jpg")


@pytest.mark.parametrize("wrong", [{"short_side": 8}, {"keyframe_distance": 0}, {"quality": 41}])
def test_arguments(wrong):
    with pytest.raises(ValueError, match=f"`{next(iter(wrong))}` must be"):
        Transcoding(**wrong)


def test_members_of_shards_folders_of_frames_and_images_are_copied_too(originals, tmp_path, alone):
    (tmp_path / "all/v1").mkdir(parents=True)
    for number in range(6):
        cv2.imwrite(f"{tmp_path}/all/v1/{number}.png", stamped_frame(number))
    with tarfile.open(tmp_path / "all/b.tar", "w") as tar:
        tar.add(originals / "cat/a b.avi", "x.avi")
    names = ("v1", "b.tar/x.avi", "v1/3.png")
    samples = [Sample(f"{tmp_path}/all/{name}", 1) for name in names]
    done = copy_videos(samples, tmp_path / "all", tmp_path / "out", Transcoding())
    assert not done.bad_files and done.made == 3
    assert [copy.path for copy in done.copies] == [
        f"{tmp_path}/out/{name}" for name in ("v1.mp4", "b.tar/x.mp4", "v1/3.png")
    ]
    with open_video(f"{tmp_path}/out/v1.mp4") as copy:
        assert stamps(copy.read(np.arange(6))) == list(range(6))
    assert copy_videos(samples, tmp_path / "all", tmp_path / "out", Transcoding()).made == 0
