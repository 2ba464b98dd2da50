"""V-JEPA's rivals where V-JEPA's encoder goes: pictures, attention, stochastic depth, folders."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_vjepa import VJEPAActionDetector, VJEPAVideoPreprocessor
from keras_vjepa.configuration import replace
from keras_vjepa.conversion import export_hugging_face
from keras_vjepa.data.sources.video_writing import write_motion_jpeg
from keras_vjepa.models import (
    DINOv2Backbone,
    HieraBackbone,
    IJEPABackbone,
    MVDBackbone,
    OmniMAEBackbone,
    OpenCLIPBackbone,
    VideoMAEBackbone,
    VideoMAEv2Backbone,
    adapters,
)
from keras_vjepa.presets.preset import load_backbone
from keras_vjepa.recipes import detect, finetune
from keras_vjepa.recipes.detect_configs import CONFIGS, digit_scene
from keras_vjepa.tools import detect_table, extract_features, picture
from tests.data.sources.ava_layout import write_ava
from tests.support import slow_but_on

SMALL = {"hidden_dim": 16, "num_layers": 2, "num_heads": 2, "patch_size": 8}
HIERA = {"embed_dim": 4, "embed_heads": 1, "depths": (1, 1, 1, 1)}
MADE = {
    "videomae": lambda **more: VideoMAEBackbone(32, 4, **SMALL, **more),
    "videomaev2": lambda **more: VideoMAEv2Backbone(32, 4, **SMALL, **more),
    "mvd": lambda **more: MVDBackbone(32, 4, **SMALL, **more),
    "omnimae": lambda **more: OmniMAEBackbone(32, 4, **SMALL, **more),
    "hiera": lambda **more: HieraBackbone(32, 4, **HIERA, **more),
    "hiera images": lambda **more: HieraBackbone(64, 1, **HIERA, **more),
    "dinov2": lambda **more: DINOv2Backbone(
        32, **SMALL, num_register_tokens=2, with_class_token=True, **more
    ),
    "ijepa": lambda **more: IJEPABackbone(32, **SMALL, **more),
    "openclip": lambda **more: OpenCLIPBackbone(32, **SMALL, **more),
}
QUICK = ("videomae", "dinov2")
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in MADE if name not in QUICK]


def preset(folder, family):
    keras.utils.set_random_seed(0)
    backbone = MADE[family]()
    backbone.save_to_preset(folder / "preset")
    VJEPAVideoPreprocessor(
        backbone.image_size, backbone.num_frames, mean=backbone.facts.mean, std=backbone.facts.std
    ).save_to_preset(folder / "preset")
    return str(folder / "preset")


def videos(folder):
    rng = np.random.default_rng(0)
    for name in ("a/0", "a/1", "a/2", "b/0", "b/1", "b/2"):
        path = folder / "videos" / f"{name}.avi"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_motion_jpeg(path, rng.integers(0, 256, (9, 32, 48, 3), np.uint8), 12)
    return folder / "videos"


@slow_but_on("torch")
@pytest.mark.parametrize("family", [*QUICK, *SLOW])
def test_pictures(family, tmp_path, capsys):
    name, video = preset(tmp_path, family), str(videos(tmp_path) / "a" / "0.avi")
    for kind, more in (
        ("pca", []),
        ("similarity", ["--patch", "0", "0", "0"]),
        ("attention", ["--heads", "0"]),
        ("attention", ["--patch", "0", "0", "0"]),
        ("neighbors", []),
    ):
        output = tmp_path / f"{kind}.png"
        words = [kind, video, "--preset", name, "--output", str(output), *more]
        if kind == "attention" and family.startswith("hiera"):
            with pytest.raises(SystemExit, match="2"):
                picture.main(words)
            assert "attend within windows" in capsys.readouterr().err
        else:
            assert picture.main(words) == 0 and output.is_file()


@pytest.mark.slow
@pytest.mark.parametrize("family", MADE)
def test_features_and_fine_tuning(family, tmp_path):
    name, data = preset(tmp_path, family), videos(tmp_path)
    output = tmp_path / "features"
    assert not extract_features.main([str(data), "--preset", name, "--output", str(output)])
    assert len([*output.rglob("*.npy")]) + len([*output.rglob("*.npz")]) >= 1
    words = ["--preset", name, "--data", str(data), "--workdir", str(tmp_path / "run")]
    frames = [] if MADE[family]().num_frames > 1 else ["--num_frames", "1"]
    finetune.main([*words, "--epochs", "1", "--batch_size", "2", *frames])
    tuned = load_backbone(tmp_path / "run" / "preset")
    before = load_backbone(name)
    pairs = zip(tuned.get_weights(), before.get_weights(), strict=True)
    assert not all(np.array_equal(one, other) for one, other in pairs)


@pytest.mark.slow
@pytest.mark.parametrize("family", MADE)
def test_detection(family, tmp_path):
    """Also of encoders of squares, or of one size: whole frames fit in it; in the own colours."""
    name, ava = preset(tmp_path, family), write_ava(tmp_path / "ava")
    side = MADE[family]().image_size
    words = ["--preset", name, "--data", str(ava), "--workdir", str(tmp_path / "run")]
    words += ["--crop_size", str(side), "--test_size", str(side), "--short_side", f"{side},{side}"]
    words += ["--num_frames", "4", "--batch_size", "2", "--epochs", "2", "--max_bad_share", "0.5"]
    detect.main(words)
    assert (tmp_path / "run" / "result.json").is_file()
    detector = VJEPAActionDetector.from_preset(tmp_path / "run" / "preset")
    assert detector.preprocessor.mean == VJEPAVideoPreprocessor.from_preset(name).mean
    [found] = detector.detect(ava / "videos" / "Ov0za6Xb1LM.avi", [[0.1, 0.2, 0.5, 0.9]], 1)
    assert found and all(0 <= probability <= 1 for _, probability in found)
    if family in ("omnimae", "hiera", "hiera images"):
        with pytest.raises(SystemExit, match=f"crop_size must be {side}, the one size"):
            detect.main([*words, "--crop_size", "96", "--short_side", "96,96",
                         "--workdir", str(tmp_path / "other")])  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("family", MADE)
def test_a_table_of_detectors(family, tmp_path, monkeypatch):
    """The config's size and clips are not those of the encoder, which may have no others."""
    ava = str(write_ava(tmp_path / "ava"))
    shown = {"crop_size": 16, "short_side": (16, 16), "test_size": 16, "num_frames": 2}
    config = replace(digit_scene(), data=ava, batch_size=2, max_bad_share=0.5, **shown)

    def small():
        """Show small frames."""
        return config

    monkeypatch.setitem(CONFIGS, "digit_scene", small)
    words = [str(tmp_path / "table"), "--preset", preset(tmp_path, family), "--epochs", "1"]
    detect_table.main([*words, "--seeds", "0", "--methods", "pretrained, frozen"])
    assert "| true |" in (tmp_path / "table" / "table.md").read_text()
    if family in ("omnimae", "hiera"):
        words = ["--preset", words[2], "--data", ava, "--workdir", str(tmp_path / "run")]
        words += ["--crop_size", "32", "--short_side", "32,32", "--test_size", "32"]
        with pytest.raises(SystemExit, match="num_frames must be 4, the one number of frames"):
            detect.main([*words, "--num_frames", "2", "--max_bad_share", "0.5"])


@slow_but_on("torch")
@pytest.mark.parametrize("family", ["dinov2", "hiera"])
def test_stochastic_depth_is_drawn_in_training_alone(family):
    keras.utils.set_random_seed(0)
    backbone = MADE[family](drop_path_rate=0.9)
    plain = MADE[family]()
    plain.set_weights(backbone.get_weights())
    clips = np.random.default_rng(0).normal(size=(8, *backbone.video_shape)).astype("float32")
    expected = ops.convert_to_numpy(plain(clips, training=True))
    found = ops.convert_to_numpy(backbone(clips, training=True))
    different = np.abs(found - expected).max(axis=(1, 2)) > 1e-4
    assert different.any()
    np.testing.assert_allclose(ops.convert_to_numpy(backbone(clips)), expected, atol=1e-5)
    assert type(backbone).from_config(backbone.get_config()).drop_path_rate == 0.9
    with pytest.raises(ValueError, match="`drop_path_rate`"):
        MADE[family](drop_path_rate=1.0)
    with pytest.raises(AttributeError, match="`drop_path_rate` cannot change after"):
        backbone.drop_path_rate = 0.1


@slow_but_on("torch")
def test_attention_of_all_tokens():
    backbone = MADE["dinov2"]()
    clips = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype("float32")
    last, first = backbone.attention_weights(clips, [-1, 0], queries=[0, -1])
    # The tokens are a class token, two registers and sixteen patches.
    assert tuple(last.shape) == tuple(first.shape) == (2, 2, 2, 19)
    sums = ops.convert_to_numpy(ops.sum(first, axis=-1))
    np.testing.assert_allclose(sums, np.ones((2, 2, 2)), atol=1e-5)
    with pytest.raises(ValueError, match="`layers`"):
        backbone.attention_weights(clips, [2])


@slow_but_on("torch")
@pytest.mark.parametrize("family", ["ijepa", pytest.param("hiera images", marks=pytest.mark.slow)])
def test_many_frames_are_encoded_part_by_part(family, monkeypatch):
    backbone = MADE[family]()
    side, seen = backbone.image_size, []
    clips = np.random.default_rng(0).normal(size=(2, 3, side, side, 3)).astype("float32")
    whole = ops.convert_to_numpy(backbone.clip_tokens(clips))
    monkeypatch.setattr(adapters, "_PIXELS_AT_ONCE", 4 * side * side)
    embed = backbone.embed
    monkeypatch.setattr(backbone, "embed", lambda x: seen.append(x.shape[0]) or embed(x))
    parts = ops.convert_to_numpy(backbone.clip_tokens(clips))
    assert set(seen) == {3}
    np.testing.assert_allclose(parts, whole, atol=1e-5)
    assert adapters.images_at_once(None, 6, 2 * side * side) == 2


@pytest.mark.data
@pytest.mark.parametrize(
    "family,made",
    [
        ("dinov2", lambda: DINOv2Backbone(32, **SMALL)),
        ("ijepa", MADE["ijepa"]),
        ("videomae", MADE["videomae"]),
    ],
)
def test_a_folder_of_transformers_is_a_preset(family, made, tmp_path, monkeypatch):
    pytest.importorskip("safetensors")
    monkeypatch.setenv("KERAS_VJEPA_CACHE", str(tmp_path / "cache"))
    backbone = made()
    export_hugging_face(backbone, tmp_path / "theirs")
    found = type(backbone).from_preset(tmp_path / "theirs")
    assert all(map(np.array_equal, found.get_weights(), backbone.get_weights()))
    preprocessor = VJEPAVideoPreprocessor.from_preset(tmp_path / "theirs")
    assert preprocessor.mean == backbone.facts.mean
    assert preprocessor.num_frames == backbone.num_frames
