"""The preprocessor: files, images and arrays to the backbone's input (App. D.1)."""

import itertools
import json

import cv2
import keras
import numpy as np
import pytest
from keras import ops

from keras_vjepa import VJEPABackbone, VJEPAVideoClassifier, VJEPAVideoPreprocessor
from keras_vjepa.data import Sample
from keras_vjepa.data.reading.errors import UnreadableVideoError
from keras_vjepa.data.reading.image import read_image
from keras_vjepa.data.reading.video import VideoReader, read_frames
from keras_vjepa.data.sources.video_writing import write_motion_jpeg
from keras_vjepa.data.transforms.crops import normalize
from keras_vjepa.data.transforms.views import center_view, three_views

# NumPy makes clips of files. tests/models tests what a backbone makes of clips of any size.
pytestmark = pytest.mark.data

NUM_FRAMES = 150


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A video whose frames grow brighter, a short one and an image."""
    folder = tmp_path_factory.mktemp("videos")
    frames = np.full((NUM_FRAMES, 48, 64, 3), np.arange(NUM_FRAMES)[:, None, None, None], np.uint8)
    write_motion_jpeg(folder / "long.avi", frames, 24)
    write_motion_jpeg(folder / "short.avi", frames[:10], 24)
    image = np.random.default_rng(0).integers(256, size=(96, 160, 3), dtype=np.uint8)
    cv2.imwrite(str(folder / "image.png"), image)
    return folder


def small(**arguments):
    return VJEPAVideoPreprocessor(**{"image_size": 28, "num_frames": 8, **arguments})


def positions(clips):
    """Which frames of the video they are, from their brightness."""
    levels = np.arange(NUM_FRAMES, dtype=np.uint8)[:, None, None, None].repeat(3, -1)
    known = normalize(levels)[:, 0, 0, 0]
    return np.abs(clips[..., 14, 14, 0, None] - known).argmin(-1)


def test_a_video_is_the_evaluations_first_clip(folder):
    clips = small()(str(folder / "long.avi"))
    assert clips.shape == (1, 8, 28, 28, 3) and clips.dtype == np.float32
    wanted = [0, 4, 9, 13, 18, 22, 27, 31]
    expected = center_view(read_frames(folder / "long.avi", wanted), 28)
    np.testing.assert_array_equal(clips[0], expected)
    np.testing.assert_array_equal(positions(clips[0]), wanted)


def test_several_clips_and_views_are_the_evaluations(folder):
    clips = small(num_clips=2, num_views=3)(folder / "long.avi")
    assert clips.shape == (1, 2, 3, 8, 28, 28, 3)
    second = read_frames(folder / "long.avi", 75 + np.array([0, 4, 9, 13, 18, 22, 27, 31]))
    np.testing.assert_array_equal(clips[0, 1], three_views(second, 28))


def test_images_fill_the_clip_or_one_tubelet(folder):
    path = folder / "image.png"
    view = center_view(read_image(path)[None], 28, antialias=True)[0]
    whole, tubelet = small()(path), small(image_frames=2)(path)
    assert whole.shape == (1, 8, 28, 28, 3) and tubelet.shape == (1, 2, 28, 28, 3)
    for frame in itertools.chain(whole[0], tubelet[0]):
        np.testing.assert_array_equal(frame, view)
    np.testing.assert_array_equal(small()(read_image(path)), whole)
    assert small(num_clips=2, num_views=3)(path).shape == (1, 2, 3, 8, 28, 28, 3)


def test_arrays_and_lists(folder):
    frames = read_frames(folder / "long.avi", range(NUM_FRAMES))
    from_file = small()(folder / "long.avi")
    np.testing.assert_array_equal(small()(frames), from_file)
    # A video with as many frames as a clip is used as it is.
    np.testing.assert_array_equal(small()(frames[:8]), center_view(frames[:8], 28)[None])
    batch = small()([folder / "long.avi", frames, folder / "image.png"])
    assert batch.shape == (3, 8, 28, 28, 3)
    np.testing.assert_array_equal(batch[1:2], from_file)


def test_rectangles_keep_their_proportions(folder):
    clips = small(image_size=(28, 42))(folder / "image.png")
    assert clips.shape == (1, 8, 28, 42, 3)
    # The picture of 96 x 160 is resized to 32 x 53, which contains 32 x 48.
    expected = center_view(read_image(folder / "image.png")[None], (28, 42), 32, antialias=True)
    np.testing.assert_array_equal(clips[0, :1], expected)


@pytest.mark.parametrize("stride", [None, 32, 13, 50])
def test_windows_slide_over_the_whole_video(folder, stride):
    preprocessor = small()
    count, windows = preprocessor.windows(folder / "long.avi", stride)
    found = np.stack([positions(window) for window in windows])
    starts = np.arange(count) * (stride or 32)
    first = np.array([0, 4, 9, 13, 18, 22, 27, 31])
    wanted = np.minimum(starts[:, None] + first, NUM_FRAMES - 1)
    np.testing.assert_array_equal(found, wanted)
    assert starts[-1] < NUM_FRAMES <= starts[-1] + max(32, stride or 32)
    np.testing.assert_array_equal(
        next(preprocessor.windows(folder / "long.avi", stride)[1]),
        preprocessor(folder / "long.avi")[0],
    )


def test_windows_of_short_videos_and_images_are_their_clip(folder):
    for name in ("short.avi", "image.png"):
        count, windows = small().windows(folder / name)
        [window] = windows
        assert count == 1
        np.testing.assert_array_equal(window, small()(folder / name)[0])


def test_windows_decode_each_frame_once_and_in_order(folder, monkeypatch):
    read = []
    original = VideoReader.read
    monkeypatch.setattr(VideoReader, "read", lambda self, i: read.extend(i) or original(self, i))
    list(small().windows(folder / "long.avi", 6)[1])
    assert read == sorted(set(read)) and len(read) > 90


@pytest.mark.parametrize(
    "call,message",
    [
        (lambda: small(num_frames=0), "`num_frames` must be at least 1. Received: 0"),
        (lambda: small(num_views=2), "`num_views` must be 1 or 3. Received: 2"),
        (lambda: small(num_views=3, image_size=(8, 9)), "`image_size` must be one int for 3 views"),
        (lambda: small()([]), "`inputs` must hold at least one"),
        (lambda: small()(["a.mp4", 3]), "element 1 of `inputs` must be a path, .*Received: 3"),
        (lambda: small().windows("a.mp4", 0), "`stride` must be at least 1. Received: 0"),
        (lambda: small(num_clips=2).windows("a.mp4"), "must be 1 for windows. Received: 2 and 1"),
        (lambda: small()("nowhere.mp4"), "Cannot read the video nowhere.mp4: no such file"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises((ValueError, UnreadableVideoError), match=message):
        call()


def test_images_repeated_less_often_do_not_mix_with_videos(folder):
    with pytest.raises(ValueError, match="`image_frames` must be None or `num_frames`=8"):
        small(image_frames=2)([folder / "long.avi", folder / "image.png"])


def test_it_is_kept_in_the_preset(tmp_path):
    preprocessor = small(image_size=(28, 42), frame_step=2, image_frames=2)
    preprocessor.save_to_preset(tmp_path / "preset")
    restored = VJEPAVideoPreprocessor.from_preset(tmp_path / "preset", num_clips=3)
    assert restored.get_config() == {**preprocessor.get_config(), "num_clips": 3}
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(preprocessor))
    assert copy.get_config() == preprocessor.get_config()
    with pytest.raises(ValueError, match="`overrides` must be arguments of VJEPAVideoPreproc"):
        VJEPAVideoPreprocessor.from_preset(tmp_path / "preset", frames=3)
    with pytest.raises(FileNotFoundError, match="must be a folder that holds config.json"):
        VJEPAVideoPreprocessor.from_preset(tmp_path)


def test_features_in_five_lines(folder, tmp_path):
    """Any input: videos, images in a whole clip or one tubelet, other frames, rectangles."""
    arguments = {"hidden_dim": 24, "num_layers": 1, "num_heads": 2}
    VJEPABackbone(32, 4, **arguments).save_to_preset(tmp_path / "preset")
    assert "preprocessor.json" not in {path.name for path in (tmp_path / "preset").iterdir()}
    backbone = VJEPABackbone.from_preset(tmp_path / "preset")
    preprocessor = VJEPAVideoPreprocessor.from_preset(tmp_path / "preset")
    features = backbone(preprocessor(str(folder / "long.avi")))
    assert tuple(features.shape) == (1, 8, 24)
    for changes, name, tokens in (
        ({}, "image.png", 8),
        ({"image_frames": 2}, "image.png", 4),
        ({"num_frames": 8}, "long.avi", 16),
        ({"image_size": 64}, "long.avi", 32),
        ({"image_size": (32, 64)}, "long.avi", 16),
    ):
        other = VJEPAVideoPreprocessor.from_preset(tmp_path / "preset", **changes)
        outputs = ops.convert_to_numpy(backbone(other(folder / name)))
        assert outputs.shape == (1, tokens, 24) and np.isfinite(outputs).all()


def test_a_classifier_takes_its_clips_and_views(folder, tmp_path):
    backbone = VJEPABackbone(32, 4, hidden_dim=24, num_layers=1, num_heads=2)
    classifier = VJEPAVideoClassifier(backbone, 5, num_clips=2, num_views=3)
    classifier.save_to_preset(tmp_path / "preset")
    VJEPAVideoPreprocessor(32, 4, num_clips=2, num_views=3).save_to_preset(tmp_path / "preset")
    assert (
        "num_views" in json.loads((tmp_path / "preset" / "preprocessor.json").read_text())["config"]
    )
    videos = VJEPAVideoPreprocessor.from_preset(tmp_path / "preset")(folder / "long.avi")
    restored = VJEPAVideoClassifier.from_preset(tmp_path / "preset")
    assert tuple(restored(videos).shape) == (1, 5)


def test_colours_and_resizing_are_as_said(folder):
    """Another mean and deviation change numbers alone; bad ones are named."""
    image = np.random.default_rng(0).integers(256, size=(70, 90, 3), dtype=np.uint8)
    usual = small(num_frames=1)(image)
    mean, std = (0.1, 0.2, 0.3), [0.5, 0.25, 1]
    other = small(num_frames=1, mean=mean, std=std)
    assert other.std == (0.5, 0.25, 1.0) and other.get_config()["mean"] == mean
    pixels = usual * [0.229, 0.224, 0.225] + [0.485, 0.456, 0.406]
    np.testing.assert_allclose(other(image), (pixels - mean) / std, atol=1e-5)
    video = np.repeat(image[None], 8, axis=0)
    assert np.abs(small()(video) - small(interpolation="bicubic")(video)).max() > 0.05
    views = [small(num_views=3, antialias=flag)(video) for flag in (True, False)]
    assert np.abs(views[0] - views[1]).max() > 0.05

    for wrong, message in (
        ({"mean": 0.5}, "`mean` must be three numbers. Received: 0.5"),
        ({"std": (1, 0, 1)}, "`std` must be positive. Received: 0"),
        ({"antialias": 1}, "`antialias` must be True or False. Received: 1"),
        ({"interpolation": "nearest"}, "`interpolation` must be 'bilinear' or 'bicubic'"),
        ({"short_side": 27}, "`short_side` must be at least 28. Received: 27"),
        ({"short_side": 40, "num_views": 3}, "`short_side` must be None for 3 views"),
        ({"crop_rounding": "up"}, "`crop_rounding` must be 'even' or 'down'. Received: 'up'"),
    ):
        with pytest.raises(ValueError) as caught:
            small(**wrong)
        assert message in str(caught.value)
    # A random crop of a picture with one colour has this colour.
    grey = np.full((40, 40, 3), 255, np.uint8)
    cv2.imwrite(str(folder / "grey.png"), grey)
    grey_file = [Sample(str(folder / "grey.png"), 0)]
    clips, _ = other.dataset(grey_file, 1, 1, training=True, augment=True)[0]
    expected = (1 - np.array(mean)) / std
    assert np.abs(clips - expected).reshape(-1, 3).min(axis=0).max() < 1e-5
