"""Folders of frames are videos: in the order of numbers, exact, and named where they are not."""

import logging
import os
import pickle

import cv2
import numpy as np
import pytest

from keras_vjepa.data.batches.clips import ClipSettings, read_clips
from keras_vjepa.data.reading.errors import UnreadableImageError, UnreadableVideoError
from keras_vjepa.data.reading.frame_folder import FrameFolder, numbered_frames
from keras_vjepa.data.reading.image import read_image
from keras_vjepa.data.reading.limits import ReadingLimits
from keras_vjepa.data.reading.locating import is_image, media_at
from keras_vjepa.data.reading.media import NO_CONTENT
from keras_vjepa.data.reading.video import open_video, video_info
from tests.data.reading.stamped import stamped_frame, stamps

pytestmark = pytest.mark.data


def write_frames(folder, numbers, name="img_{:05d}.png", size=(96, 64)):
    """Frames that show their own numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        frame = cv2.resize(stamped_frame(number), size)
        cv2.imwrite(str(folder / name.format(number)), frame)
    return folder


@pytest.mark.parametrize("name", ["img_{:05d}.png", "{}.jpg", "clip2-{}.bmp", "f{}_left.jpeg"])
@pytest.mark.parametrize("first", [0, 1, 95])
def test_frames_in_the_order_of_their_numbers(tmp_path, caplog, first, name):
    write_frames(tmp_path, range(first, first + 12), name)
    (tmp_path / "sound.wav").touch()
    (tmp_path / "._img_00001.png").touch()
    with open_video(tmp_path) as video:
        assert (video.num_frames, video.fps) == (12, 30.0)
        assert (video.info.height, video.info.width) == (64, 96)
        assert stamps(video.read([0, 11, 3, 3, 10])) == [first + i for i in (0, 11, 3, 3, 10)]
        assert stamps(video.read(range(12))) == [*range(first, first + 12)]
    assert caplog.messages == []


def test_pixels_are_those_of_the_pictures(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "7.png"), picture)
    with open_video(tmp_path) as video:
        np.testing.assert_array_equal(video.read([0])[0], picture[..., ::-1])
    assert not is_image(str(tmp_path))
    with pytest.raises(UnreadableImageError, match="it is a folder, not a file"):
        read_image(tmp_path)


def test_fps_is_what_is_given(tmp_path):
    folder = FrameFolder(str(write_frames(tmp_path / "a.jpg", [1, 2])), fps=12.5)
    assert video_info(folder).fps == 12.5
    assert pickle.loads(pickle.dumps(folder)) == folder
    # A folder is not an image, even if its name looks like that of one.
    assert not is_image(folder)


def test_clips_of_a_folder(tmp_path):
    write_frames(tmp_path, range(40))
    seen = []

    def transform(frames):
        seen.append(stamps(frames))
        return frames.astype("float32")

    clips = read_clips(tmp_path, ClipSettings(4, 2, 2), transform, np.random.default_rng(0))
    assert seen == clips.frame_indices.tolist()
    assert clips.videos.shape == (2, 4, 64, 96, 3)


def test_gaps_are_named_once(tmp_path, caplog):
    write_frames(tmp_path, [3, 4, 7, 8, 20])
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            with open_video(tmp_path) as video:
                assert stamps(video.read([0, 1, 2, 3, 4])) == [3, 4, 7, 8, 20]
    (message,) = caplog.messages
    assert message == (
        f"{tmp_path} lacks frames between others, and is read without them: 5, 6, 9, ..."
    )


def test_every_fifth_frame_is_no_gap(tmp_path):
    assert numbered_frames([f"{5 * i}.jpg" for i in range(9)]).missing == []
    assert numbered_frames(["0.jpg", "5.jpg", "15.jpg"]).missing == [10]
    # Names may be times in nanoseconds.
    assert numbered_frames([f"{10**18 + i}.png" for i in (0, 33, 67, 100)]).missing == []


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["img_1.jpg", "flow_x_1.jpg", "flow_y_1.jpg"], r"flow_x_\* \(1\), flow_y_\* \(1\), img_"),
        (["1.jpg", "01.jpg"], "01.jpg and 1.jpg do not"),
        (["1.jpg", "1.png"], "1.jpg and 1.png do not"),
        (["1.jpg", "cover.jpg"], "numbered frames, and cover.jpg is none"),
        (["a.mp4", "b.txt"], "it is a folder, and holds no pictures"),
        ([], "it is a folder, and holds no pictures"),
    ],
)
def test_what_is_no_video_is_named(tmp_path, names, message):
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(UnreadableVideoError, match=f"{tmp_path}: .*{message}"):
        open_video(tmp_path)
    assert FrameFolder(str(tmp_path)).content_hash() == NO_CONTENT


def test_mixed_sizes_are_refused(tmp_path):
    write_frames(tmp_path, range(5))
    write_frames(tmp_path, [3], size=(48, 64))
    with open_video(tmp_path) as video:
        video.read([0, 1, 2])
        message = "one size, 96x64 as its first. img_00003.png is 48x64"
        with pytest.raises(UnreadableVideoError, match=message):
            video.read([2, 3])


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n"])
def test_a_damaged_frame_is_named(tmp_path, content):
    write_frames(tmp_path, range(5))
    (tmp_path / "img_00002.png").write_bytes(content)
    with open_video(tmp_path) as video, pytest.raises(UnreadableVideoError, match="img_00002.png"):
        video.read([1, 2])


def test_limits_are_those_of_files(tmp_path):
    write_frames(tmp_path, range(3))
    with pytest.raises(UnreadableVideoError, match="img_00000.png: 96x64 pixels are more than"):
        open_video(tmp_path, limits=ReadingLimits(max_frame_pixels=1000))


def test_a_frame_that_goes_or_comes_is_seen(tmp_path):
    write_frames(tmp_path, range(3))
    before = media_at(tmp_path).content_hash()
    assert video_info(tmp_path).num_frames == 3
    write_frames(tmp_path, [3])
    assert video_info(tmp_path).num_frames == 4
    assert media_at(tmp_path).content_hash() != before
    os.remove(tmp_path / "img_00003.png")
    assert media_at(tmp_path).content_hash() == before
