"""Pixels, names of classes and features against the transformers package's own processor."""

import json
import logging

import cv2
import numpy as np
import pytest
import torch
from keras import ops

from keras_vjepa import VJEPABackbone, VJEPAVideoClassifier, VJEPAVideoPreprocessor
from keras_vjepa.conversion import (
    CheckpointError,
    convert,
    convert_preprocessor,
    export_hugging_face,
)
from tests.conversion.oracle import torchvision, transformers
from tests.conversion.test_hugging_face import assert_close, channels_second, oracle

# NumPy makes the pixels, and weights are the same on each backend.
pytestmark = pytest.mark.data
with_torchvision = pytest.mark.skipif(torchvision is None, reason="torchvision is not installed")

SIZES = {"256p": (256, 340), "720p": (720, 1280), "1080p": (1080, 1920), "upright": (360, 203)}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Where folders are converted to."""
    monkeypatch.setenv("KERAS_VJEPA_CACHE", str(tmp_path / "cache"))


NAMES = ["to fall", "to rise", "to turn", "nothing", "to wait"]


def video(height, width, num_frames=2):
    """Smooth shapes, edges and noise, as a camera has them all."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(256, size=(num_frames, height // 16, width // 16, 3), dtype=np.uint8)
    frames = np.stack([cv2.resize(frame, (width, height)) for frame in coarse])
    frames[:, height // 3 :: 40] = 255
    noise = rng.integers(-30, 31, size=frames.shape)
    return np.clip(frames + noise, 0, 255).astype(np.uint8)


def processor(folder, **config):
    """That package's, written into a folder and read from there, as everybody does."""
    made = transformers.VJEPA2VideoProcessor(**config)
    made.save_pretrained(folder)
    return transformers.VJEPA2VideoProcessor.from_pretrained(folder)


def pixels_of(theirs, frames):
    """What that package's processor makes of a video, with the channels last."""
    pixels = theirs(list(frames), return_tensors="pt").pixel_values_videos
    return pixels.numpy().transpose(0, 1, 3, 4, 2)


def model_folder(folder, name="VJEPA2Model", **config):
    model = oracle("square", name)
    model.save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return model


def grey_levels(actual, expected, std=(0.229, 0.224, 0.225)):
    return np.abs(actual - expected).mean(axis=(0, 1, 2, 3)) * std * 255


@with_torchvision
@pytest.mark.parametrize("size", SIZES)
def test_pixels(size, tmp_path):
    """At most a grey level apart on average; without antialiasing, several."""
    model_folder(tmp_path, frames_per_clip=2)
    frames = video(*SIZES[size])
    expected = pixels_of(processor(tmp_path), frames)
    ours = VJEPAVideoPreprocessor.from_preset(tmp_path)
    assert (ours.antialias, ours.crop_rounding, ours.image_size) == (True, "down", 256)
    assert ours(frames).shape == expected.shape == (1, 2, 256, 256, 3)
    assert grey_levels(ours(frames), expected).max() < 0.5
    if size.endswith("0p"):
        plain = VJEPAVideoPreprocessor.from_preset(tmp_path, antialias=False)
        assert grey_levels(plain(frames), expected).max() > 3


@with_torchvision
@pytest.mark.parametrize(
    "config",
    [
        {"crop_size": 48, "resample": 3},
        {"crop_size": {"height": 48, "width": 48}, "image_mean": [0.5, 0.4, 0.3]},
        {"crop_size": 48, "image_std": [0.5, 0.5, 0.6], "rescale_factor": 1 / 127.5},
        {"crop_size": 48, "do_normalize": False},
        {"crop_size": 48, "do_rescale": False, "image_mean": [100.0, 110.0, 120.0]},
    ],
    ids=["bicubic", "mean", "std", "not_normalized", "not_rescaled"],
)
def test_what_its_processor_says_is_taken(config, tmp_path):
    model_folder(tmp_path, frames_per_clip=2)
    theirs, frames = processor(tmp_path, **config), video(90, 121)
    expected = pixels_of(theirs, frames)
    ours = convert_preprocessor(tmp_path)
    assert grey_levels(ours(frames), expected, ours.std).max() < 0.5
    usual = VJEPAVideoPreprocessor(48, 2, antialias=True, crop_rounding="down")
    assert grey_levels(usual(frames), expected).max() > 0.5

    # The export gives a file that transformers reads, and with which it makes the same pixels.
    backbone = VJEPABackbone.from_preset(tmp_path)
    export_hugging_face(backbone, tmp_path / "back", ours)
    again = transformers.VJEPA2VideoProcessor.from_pretrained(tmp_path / "back")
    found = pixels_of(again, frames)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    assert convert_preprocessor(tmp_path / "back").get_config() == ours.get_config()


@pytest.mark.parametrize(
    "name", ["video_preprocessor_config.json", "preprocessor_config.json", "processor_config.json"]
)
def test_each_name_of_the_file(name, tmp_path):
    model_folder(tmp_path)
    described = {"crop_size": 32, "size": {"shortest_edge": 36}, "image_mean": 0.5}
    nested = {"processor_class": "Some", "video_processor": described}
    content = nested if name == "processor_config.json" else described
    (tmp_path / name).write_text(json.dumps(content))
    found = convert_preprocessor(tmp_path)
    assert (found.image_size, found.num_frames, found.mean) == (32, 8, (0.5, 0.5, 0.5))


def test_a_folder_without_a_processor_has_the_usual_one_at_its_size(tmp_path):
    model_folder(tmp_path)
    found = convert_preprocessor(tmp_path)
    assert (found.image_size, found.num_frames, found.antialias) == (48, 8, True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"video_processor_type": "VideoMAEVideoProcessor"},
            "it must be of a VJEPA2VideoProcessor; change or remove the file: without one, the "
            "usual VJEPA2VideoProcessor is meant. Received: 'VideoMAEVideoProcessor'",
        ),
        ({"image_processor_type": "ViTImageProcessor"}, "Received: 'ViTImageProcessor'"),
        ({"do_resize": False}, "`do_resize` must be true; change or remove the file"),
        ({"do_center_crop": False}, "`do_center_crop` must be true; change or remove the file"),
        ({"do_rescale": "no"}, "`do_rescale` must be True or False. Received: 'no'"),
        ({"resample": 1}, "`resample` must be 2 (bilinear) or 3 (bicubic); change"),
        ({"crop_size": {"height": 32, "width": 48}}, "`crop_size` must be a square; change"),
        (
            {"crop_size": {"shortest_edge": 32}},
            "`crop_size` must be a whole number. Received: None",
        ),
        ({"rescale_factor": 0}, "`rescale_factor` must be positive. Received: 0"),
        ({"image_std": [1, 1]}, "`std` must be three numbers. Received: [1.0, 1.0]"),
        ({"image_mean": ["a", 1, 1]}, "`image_mean` must be"),
    ],
)
def test_a_processor_that_ours_cannot_be_is_named(change, message, tmp_path):
    model_folder(tmp_path)
    path = tmp_path / "video_preprocessor_config.json"
    path.write_text(json.dumps(change))
    for load in (convert_preprocessor, VJEPABackbone.from_preset):
        with pytest.raises(CheckpointError) as caught:
            load(tmp_path)
        assert message in str(caught.value) and str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_what_that_processor_does_not_use_is_told(tmp_path, caplog):
    model_folder(tmp_path)
    described = {"crop_size": 48, "size": {"shortest_edge": 48}, "do_sample_frames": True}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(described))
    with caplog.at_level(logging.WARNING):
        assert convert_preprocessor(tmp_path).image_size == 48
    assert "`size` is not used, as by that package: frames get a shorter side of 54" in caplog.text
    assert "`do_sample_frames` is not used" in caplog.text


# --- Names of classes ----------------------------------------------------------------------------


def test_a_classifier_keeps_names_and_processor(tmp_path):
    """From that package, through a preset, and back into a folder that it reads."""
    labels = {str(number): name for number, name in enumerate(NAMES)}
    folder = tmp_path / "folder"
    model = model_folder(folder, "VJEPA2ForVideoClassification", id2label=labels)
    described = {"crop_size": 48, "image_mean": [0.5, 0.4, 0.3]}
    (folder / "video_preprocessor_config.json").write_text(json.dumps(described))

    for classifier in (convert(folder), VJEPAVideoClassifier.from_preset(folder)):
        assert classifier.class_names == NAMES
        assert classifier.preprocessor.mean == (0.5, 0.4, 0.3)
    frames = video(60, 80, 8)
    clips = classifier.preprocessor(frames)
    pixels = channels_second(clips)
    with torch.no_grad():
        logits = model(pixels).logits
    assert_close(classifier(clips), logits)
    assert classifier.classify(frames, top=1)[0][0] == NAMES[int(logits.argmax())]

    export_hugging_face(classifier, tmp_path / "back")
    again = transformers.VJEPA2ForVideoClassification.from_pretrained(tmp_path / "back").eval()
    assert again.config.id2label == dict(enumerate(NAMES))
    assert again.config.label2id == {name: number for number, name in enumerate(NAMES)}
    with torch.no_grad():
        assert_close(again(pixels).logits.numpy(), logits)
    written = json.loads((tmp_path / "back" / "video_preprocessor_config.json").read_text())
    assert (written["image_mean"], written["size"]) == ([0.5, 0.4, 0.3], {"shortest_edge": 54})
    assert convert(tmp_path / "back").class_names == NAMES


def test_odd_names(tmp_path, caplog):
    model_folder(tmp_path, "VJEPA2ForVideoClassification")
    assert convert(tmp_path).class_names is None  # the default names LABEL_0 to LABEL_4
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())

    def with_labels(*names, first=0):
        labels = {str(number + first): name for number, name in enumerate(names)}
        path.write_text(json.dumps({**config, "id2label": labels}))
        return convert(tmp_path)

    with caplog.at_level(logging.WARNING):
        assert with_labels("a", "b", "a", "c", "d").class_names is None
    assert "`id2label` of config.json has some twice" in caplog.text
    with pytest.raises(CheckpointError, match="`id2label` must have 5 names, as `classifier.bias`"):
        with_labels("a", "b")
    with pytest.raises(CheckpointError, match="`id2label` must name the classes 0, 1, 2 and so on"):
        with_labels(*NAMES, first=1)


# --- What the other package cannot be ------------------------------------------------------------


def test_an_export_tells_of_other_pixels_and_refuses_several_clips(tmp_path, caplog):
    rotary = {"position_embedding": "rotary", "hidden_dim": 48, "num_layers": 1, "num_heads": 2}
    backbone = VJEPABackbone(32, 4, **rotary)
    plain = VJEPAVideoPreprocessor(32, 4)
    with caplog.at_level(logging.WARNING):
        export_hugging_face(backbone, tmp_path / "usual")
        assert not caplog.records
        export_hugging_face(backbone, tmp_path / "plain", plain)
    assert "other pixels than one with antialias=False, crop_rounding='even'" in caplog.text
    written = json.loads((tmp_path / "plain" / "video_preprocessor_config.json").read_text())
    assert written["crop_size"] == {"height": 32, "width": 32}

    probe = {"num_classes": 3, "layer_norm_epsilon": 1e-6}
    for name, value in (("num_clips", 2), ("num_views", 3), ("max_frames", 8)):
        classifier = VJEPAVideoClassifier(backbone, **probe, **{name: value})
        with pytest.raises(CheckpointError, match=f"`{name}` must be"):
            export_hugging_face(classifier, tmp_path / "refused")
    with pytest.raises(CheckpointError, match="`crop_size` must be a square"):
        export_hugging_face(backbone, tmp_path / "refused", VJEPAVideoPreprocessor((32, 48), 4))
    assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize("kind", ["timesformer", "vit", "bert"])
@pytest.mark.parametrize("load", [VJEPABackbone, VJEPAVideoClassifier, VJEPAVideoPreprocessor])
def test_a_folder_of_another_model_is_named(kind, load, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, "hidden_size": 8}))
    with pytest.raises(ValueError) as caught:
        load.from_preset(tmp_path)
    message = str(caught.value)
    assert f"{tmp_path}/config.json describes another package's model, '{kind}'" in message
    assert "these can be read: vjepa2, videomae, dinov2" in message
    assert "keras-vjepa convert FILE FOLDER --family FAMILY" in message
    with pytest.raises(CheckpointError, match=f"VJEPAVideoClassifier. Received: '{kind}'$"):
        convert(tmp_path)


def test_an_empty_config_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="config.json is damaged: it describes no VJEPABackbone"):
        VJEPABackbone.from_preset(tmp_path)
    with pytest.raises(CheckpointError, match="must be of `model_type` vjepa2: .* Received: None"):
        convert(tmp_path)


# --- Clips of another size -----------------------------------------------------------------------


@with_torchvision
@pytest.mark.parametrize("size", [48, 64, 32])
def test_features_of_a_video_at_the_size_of_a_folder_and_at_another(size, tmp_path):
    """The same features of the same pixels, and close ones where each makes its own of a video."""
    folder = tmp_path / "folder"
    model = model_folder(folder)
    theirs, frames = processor(folder, crop_size=size), video(90, 121, 8)
    pixels = pixels_of(theirs, frames)
    backbone = VJEPABackbone.from_preset(folder)
    with torch.no_grad():
        expected = model(channels_second(pixels), skip_predictor=True).last_hidden_state
    assert_close(backbone(pixels), expected)
    ours = VJEPAVideoPreprocessor.from_preset(folder)
    assert ours.image_size == size
    actual = ops.convert_to_numpy(backbone(ours(frames)))
    # Pixels differ by at most one grey level, which is .017 after normalisation.
    assert np.abs(actual - expected.numpy()).mean() < 0.02
