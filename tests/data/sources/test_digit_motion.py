"""The built-in set is the same everywhere, and one frame of it does not show the motion."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from keras_vjepa.data.reading.av_decoder import has_av
from keras_vjepa.data.reading.video import open_video
from keras_vjepa.data.sources import digit_motion, digit_motion_rendering, rendered_sets
from keras_vjepa.data.sources.digit_motion import prepare_digit_motion
from keras_vjepa.data.sources.digit_motion_rendering import (
    MOTIONS,
    SETS,
    DigitMotionConfig,
    MovingBackgroundConfig,
    render_digit_masks,
    render_digit_motion,
    split_label,
)
from keras_vjepa.data.sources.listing import list_samples
from keras_vjepa.data.sources.video_writing import write_h264, write_motion_jpeg

pytestmark = pytest.mark.data
# Only PyAV can write H.264.
needs_av = pytest.mark.skipif(not has_av(), reason="PyAV is not installed")

SMALL = DigitMotionConfig(num_frames=12, num_training_videos=20, num_test_videos=10)
CLEAN = DigitMotionConfig(noise=0.0, background_strength=0)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def test_pixels_and_labels_are_pinned():
    videos = [render_digit_motion("train", index) for index in range(20)]
    videos += [render_digit_motion("test", index) for index in range(20)]
    pixels = b"".join(video.frames.tobytes() for video in videos)
    labels = bytes(video.label for video in videos)
    assert (sha256(pixels), sha256(labels)) == ("93fa6f35f0fe70b0", "eaf3e2184b1c737f")


def test_digits_are_those_of_scikit_learn():
    expected = pytest.importorskip("sklearn.datasets").load_digits()
    images, labels = digit_motion_rendering.digit_images()
    np.testing.assert_array_equal(images, expected.images)
    np.testing.assert_array_equal(labels, expected.target)


def test_config_changes_the_frames():
    video = render_digit_motion("train", 3)
    assert video.frames.shape == (72, 64, 64, 3) and video.frames.dtype == np.uint8
    other = DigitMotionConfig(canvas_size=32, digit_size=16, num_frames=10)
    assert render_digit_motion("train", 3, other).frames.shape == (10, 32, 32, 3)
    reseeded = render_digit_motion("train", 3, DigitMotionConfig(seed=1))
    assert (reseeded.frames != video.frames).mean() > 0.5
    assert reseeded.motion == video.motion


def test_fewer_and_smaller_frames_are_those_of_the_whole_video():
    whole = render_digit_motion("train", 3)
    video = render_digit_motion("train", 3, DigitMotionConfig(frame_step=4, shrink=2))
    assert video.frames.shape == (18, 32, 32, 3) and video.label == whole.label
    squares = whole.frames[::4].reshape(18, 32, 2, 32, 2, 3).astype(float)
    assert abs(video.frames - squares.mean(axis=(2, 4))).max() <= 0.5
    for wrong in ({"shrink": 64}, {"frame_step": 5}):
        (name,) = wrong
        with pytest.raises(ValueError, match=f"multiple of `{name}`. Received: {wrong[name]}"):
            DigitMotionConfig(**wrong)


def test_no_image_is_in_both_splits(monkeypatch):
    chosen: dict[str, set[bytes]] = {"train": set(), "test": set()}
    enlarge = digit_motion_rendering.enlarged

    def remember(image, size):
        if size == CLEAN.digit_size:
            chosen[split].add(image.tobytes())
        return enlarge(image, size)

    monkeypatch.setattr(digit_motion_rendering, "enlarged", remember)
    short = DigitMotionConfig(num_frames=1)
    for split in ("train", "test"):
        for index in range(800):
            render_digit_motion(split, index, short)
    assert len(chosen["train"]) > 500 and len(chosen["test"]) > 350
    assert not chosen["train"] & chosen["test"]


def centres(frames: np.ndarray) -> np.ndarray:
    """Centre of the bright pixels on the torus: (num_frames, 2) in pixels, rows and columns."""
    mass = frames.sum(axis=-1, dtype=np.float64)
    circle = np.exp(2j * np.pi * np.arange(64) / 64)
    sums = np.stack([mass.sum(axis=2) @ circle, mass.sum(axis=1) @ circle], axis=1)
    return np.angle(sums) * 64 / (2 * np.pi)


def steps(video: digit_motion_rendering.DigitMotionVideo) -> np.ndarray:
    difference = np.diff(centres(video.frames), axis=0)
    return np.round((difference + 32) % 64 - 32).astype(int)


@pytest.mark.parametrize(
    ("motion", "first", "last"),
    [
        (0, (0, 1), (0, 1)),
        (1, (0, -1), (0, -1)),
        (2, (1, 0), (1, 0)),
        (3, (-1, 0), (-1, 0)),
        (8, (0, 1), (1, 0)),
        (9, (1, 0), (0, 1)),
    ],
)
def test_straight_motions(motion, first, last):
    for index in range(motion, 60, 10):
        moved = steps(render_digit_motion("train", index, CLEAN))
        assert (moved[:36] == first).all() and (moved[36:] == last).all()


@pytest.mark.parametrize(("motion", "sense"), [(4, 1), (5, -1)])
def test_circles_turn_the_right_way_round_and_close(motion, sense):
    for index in range(motion, 60, 10):
        moved = steps(render_digit_motion("train", index, CLEAN))
        rows, columns = moved.T
        turning = columns[:-3] * rows[3:] - rows[:-3] * columns[3:]  # > 0: clockwise on screen
        assert np.sign(turning.sum()) == sense
        assert abs(moved[:36].sum(axis=0)).max() <= 1
        assert abs(moved.cumsum(axis=0)).max(axis=0).min() >= 10


@pytest.mark.parametrize(("motion", "moving_axis"), [(6, 1), (7, 0)])
def test_shakes_return_and_keep_their_axis(motion, moving_axis):
    for index in range(motion, 60, 10):
        moved = steps(render_digit_motion("train", index, CLEAN))
        assert not moved[:, 1 - moving_axis].any()
        assert abs(moved[:24].sum(axis=0)).max() <= 1
        assert np.ptp(moved[:, moving_axis].cumsum()) >= 22


def test_place_of_the_digit_does_not_depend_on_the_motion(monkeypatch):
    """Chi-squared of 4 x 4 places in each of 10 motions: 150 degrees of freedom."""
    paths = []

    def remember(background, alpha, colour, path):
        paths.append(path)
        return np.zeros((1, 1, 1, 3), np.uint8)

    monkeypatch.setattr(digit_motion_rendering, "_paste", remember)
    motions = [render_digit_motion("train", index).motion for index in range(4000)]
    cells = np.stack(paths) % 64 // 16
    for time in (0, 20, 36, 71):
        table = np.zeros((len(MOTIONS), 4, 4))
        np.add.at(table, (motions, cells[:, time, 0], cells[:, time, 1]), 1)
        expected = table.sum() / table.size
        assert ((table - expected) ** 2 / expected).sum() < 210  # p = 0.001


def test_background_moves_by_a_velocity_that_does_not_depend_on_the_motion():
    moving = MovingBackgroundConfig(num_frames=2, noise=0.0, digit_size=8)
    speeds: dict[int, set[tuple[int, int]]] = {motion: set() for motion in range(10)}
    for index in range(400):
        video = render_digit_motion("train", index, moving)
        empty = ~render_digit_masks("train", index, moving)[:2].any(axis=0)[..., None]
        first, second = video.frames[:2].astype(int)
        found = [
            (down, right)
            for down in range(-2, 3)
            for right in range(-2, 3)
            # The digit hides little of the background, in both frames together.
            if ((np.roll(first, (down, right), (0, 1)) != second) & empty).mean() < 0.1
        ]
        assert len(found) == 1
        speeds[video.motion].add(found[0])
    assert min(len(seen) for seen in speeds.values()) >= 15  # of 25, in 40 videos
    still = render_digit_motion("train", 3, MovingBackgroundConfig(background_speed=0, noise=0.0))
    assert (still.frames[0] == still.frames[1]).mean() > 0.8


def test_textured_set_is_pinned():
    video = render_digit_motion("test", 4, SETS["digit_motion_texture"])
    assert video.frames.shape == (18, 32, 32, 3) and video.label == 24
    assert sha256(video.frames.tobytes()) == "7d56d9cdf5a89f13"


def test_noise_and_labels():
    noisy = render_digit_motion("train", 0, DigitMotionConfig(background_strength=255))
    clean = render_digit_motion("train", 0, DigitMotionConfig(background_strength=255, noise=0.0))
    difference = noisy.frames.astype(int) - clean.frames
    assert abs(difference[:, 16:48].std() - 2.0) < 0.1
    assert np.corrcoef(difference[0].ravel(), difference[1].ravel())[0, 1] < 0.05
    assert [split_label(7 * 10 + motion) for motion in range(10)] == [(7, m) for m in range(10)]
    assert split_label(noisy.label) == (noisy.digit, noisy.motion)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"num_frames": 0}, "`num_frames` must be at least 1. Received: 0"),
        ({"canvas_size": 63}, "`canvas_size` must be even"),
        ({"canvas_size": 20}, "at least `digit_size`"),
        ({"background_strength": 256}, "`background_strength` must lie in"),
        ({"noise": -1.0}, "`noise` must lie in"),
        ({"seed": -1}, "`seed` must be at least 0"),
    ],
)
def test_config_is_checked(arguments, reason):
    with pytest.raises(ValueError, match=reason):
        DigitMotionConfig(**arguments)


@pytest.mark.parametrize("arguments", [{"background_cells": 0}, {"background_speed": 65}])
def test_moving_background_is_checked(arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=f"`{name}` must lie in .*64"):
        MovingBackgroundConfig(**arguments)


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="`split` must be"):
        render_digit_motion("val", 0)
    with pytest.raises(ValueError, match="`index` must be at least 0. Received: -1"):
        render_digit_motion("train", -1)
    with pytest.raises(ValueError, match="`label` must lie in"):
        split_label(100)


# ------------------------------------------------------------------------------------------- files


def luma(frames: np.ndarray) -> np.ndarray:
    return frames @ np.array([0.299, 0.587, 0.114])


@pytest.mark.parametrize(("extension", "least_psnr"), [(".mp4", 40.5), (".avi", 42.0)])
def test_files_are_close_to_the_rendering_frame_by_frame(tmp_path, extension, least_psnr):
    if extension == ".mp4":
        pytest.importorskip("av")
    write = write_h264 if extension == ".mp4" else write_motion_jpeg
    frames = render_digit_motion("train", 2).frames
    path = tmp_path / f"video{extension}"
    write(path, frames, 24)
    with open_video(path, "opencv") as video:
        assert (video.num_frames, video.fps) == (72, 24.0)
        decoded = video.read(range(72))
    error = ((luma(decoded)[:, None] - luma(frames)[None]) ** 2).mean(axis=(2, 3))
    assert (error.argmin(axis=1) == np.arange(72)).all(), "frames out of order"
    psnr = 10 * np.log10(255**2 / np.diagonal(error))
    assert psnr.min() > least_psnr
    assert np.ptp(psnr) < 4, "some frames are compressed much harder than others"


def test_fallback_compresses_each_frame_by_itself(tmp_path):
    frames = render_digit_motion("train", 2).frames
    for name, order in (("forward", slice(None)), ("backward", slice(None, None, -1))):
        write_motion_jpeg(tmp_path / f"{name}.avi", frames[order], 24)
    with open_video(tmp_path / "forward.avi") as video:
        forward = video.read(range(72))
    with open_video(tmp_path / "backward.avi") as video:
        np.testing.assert_array_equal(video.read(range(72))[::-1], forward)


def assert_complete(files: digit_motion.DigitMotionFiles) -> None:
    for split, source, count in (("train", files.train, 20), ("test", files.test, 10)):
        samples = list_samples(source)
        expected = [render_digit_motion(split, index, SMALL).label for index in range(count)]
        assert [sample.label for sample in samples] == expected
        for sample in samples:
            assert Path(sample.path).is_file()
    with open_video(list_samples(files.test)[7].path) as video:
        decoded = video.read(range(12)).astype(int)
    assert abs(decoded - render_digit_motion("test", 7, SMALL).frames).mean() < 6


@pytest.mark.parametrize("with_av", [True, False])
def test_set_is_rendered_once(tmp_path, monkeypatch, with_av):
    if with_av:
        pytest.importorskip("av")
    else:
        monkeypatch.setattr(rendered_sets.importlib.util, "find_spec", lambda name: None)
    seen = []
    files = prepare_digit_motion(tmp_path, SMALL, progress=lambda *counts: seen.append(counts))
    assert seen == [(done, 30) for done in range(1, 31)]
    assert_complete(files)
    assert {path.suffix for path in files.folder.glob("*/*")} == {".mp4" if with_av else ".avi"}
    monkeypatch.setattr(digit_motion, "_render_files", None)
    assert prepare_digit_motion(tmp_path, SMALL) == files


@needs_av
def test_cache_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("KERAS_VJEPA_CACHE", str(tmp_path / "from environment"))
    files = prepare_digit_motion(config=SMALL)
    assert files.folder.parent == tmp_path / "from environment" / "digit_motion"
    assert "30 of 30 videos" in capsys.readouterr().err
    other = DigitMotionConfig(num_frames=12, num_training_videos=1, num_test_videos=1)
    assert prepare_digit_motion(config=other, progress=None).folder != files.folder
    assert capsys.readouterr().err == ""
    monkeypatch.delenv("KERAS_VJEPA_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    files = prepare_digit_motion(config=other, progress=None)
    assert files.folder.parent == tmp_path / "home" / ".cache" / "keras_vjepa" / "digit_motion"


@needs_av
def test_failed_rendering_leaves_nothing(tmp_path):
    def fail(num_done: int, num_videos: int) -> None:
        if num_done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_digit_motion(tmp_path, SMALL, progress=fail)
    assert list((tmp_path / "digit_motion").iterdir()) == []
    assert_complete(prepare_digit_motion(tmp_path, SMALL, progress=None))


@needs_av
def test_killed_rendering_is_not_trusted(tmp_path, monkeypatch):
    def fail(num_done: int, num_videos: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:  # a killed process does not clean up
        killed.setattr(rendered_sets.files.shutil, "rmtree", lambda *arguments, **options: None)
        with pytest.raises(KeyboardInterrupt):
            prepare_digit_motion(tmp_path, SMALL, progress=fail)
    (left_over,) = (tmp_path / "digit_motion").iterdir()
    files = prepare_digit_motion(tmp_path, SMALL, progress=None)
    assert files.folder != left_over
    assert_complete(files)


@needs_av
def test_two_at_once_get_the_same_complete_files(tmp_path):
    with ThreadPoolExecutor(3) as executor:
        jobs = [executor.submit(prepare_digit_motion, tmp_path, SMALL, None) for _ in range(3)]
        results = {job.result() for job in jobs}
    (files,) = results
    assert_complete(files)
    assert list(files.folder.parent.iterdir()) == [files.folder]
