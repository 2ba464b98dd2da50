"""What is drawn of models: features, attention, and where a predictor errs."""

import numpy as np
import pytest
from keras import ops

from keras_vjepa import (
    VJEPABackbone,
    VJEPAPredictor,
    VJEPAPretrainer,
    VJEPAVideoClassifier,
    VJEPAVideoPreprocessor,
)
from keras_vjepa.data.sources.video_writing import write_h264
from keras_vjepa.pictures import (
    WatchedVideo,
    encoder_attention,
    nearest_videos,
    patch_features,
    prediction_errors,
    probe_attention,
    surprise,
)
from keras_vjepa.pictures.neighbors import neighbor_sheet
from keras_vjepa.pictures.videos import whole_frame_size
from tests.support import compiled


def watched(backbone, count=6, height=40, width=64):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    return WatchedVideo(frames, 24.0, backbone.num_frames, token_frames=2)


@pytest.fixture(scope="module", params=["sincos", "rotary"])
def backbone(request):
    return VJEPABackbone(
        (32, 48), 4, 16, 2, 24, 2, 2, position_embedding=request.param, name="backbone"
    )


def test_features_of_whole_frames(backbone):
    video = watched(backbone)
    features = patch_features(backbone, video)
    size = whole_frame_size(backbone, 40, 64)
    assert features.shape == (2, 2, size[0] // 16, size[1] // 16, 24)
    alone = np.asarray(backbone.predict_on_batch(video.clips(size)[1:]))
    np.testing.assert_allclose(features[1].reshape(alone[0].shape), alone[0], atol=1e-5)


def test_attention_sums_to_one(backbone):
    video = watched(backbone)
    for options in ({}, {"layer": 0, "heads": [1, 0]}, {"heads": [-1], "patch": (1, 1, 0)}):
        weights = encoder_attention(backbone, video, **options)
        assert weights.shape[:3] == (2, len(options.get("heads", [0])), 2)
        np.testing.assert_allclose(weights.sum(axis=(2, 3, 4)), 1, rtol=1e-5)
    both = encoder_attention(backbone, video, heads=[0, 1])
    mean = encoder_attention(backbone, video)
    np.testing.assert_allclose(both.mean(axis=1), mean[:, 0], rtol=1e-5)
    for options, message in (
        ({"layer": 2}, "`layer` must be"),
        ({"heads": [2]}, "`heads` must be"),
        ({"patch": (0, 9, 0)}, "`patch` must be"),
    ):
        with pytest.raises(ValueError, match=message):
            encoder_attention(backbone, video, **options)


def test_attention_of_the_probe_sums_to_one(backbone):
    classifier = VJEPAVideoClassifier(backbone, num_classes=3, num_heads=3)
    weights = probe_attention(classifier, watched(backbone), [0, 2])
    assert weights.shape[:2] == (2, 2)
    np.testing.assert_allclose(weights.sum(axis=(2, 3, 4)), 1, rtol=1e-5)
    with pytest.raises(ValueError, match="`heads` must be"):
        probe_attention(classifier, watched(backbone), [3])


@pytest.mark.parametrize("known", ["past", "around"])
def test_the_error_is_where_something_was_replaced(known):
    """A predictor that says "as grey as ever": wrong where a bright square comes half-way."""
    encoder = VJEPABackbone((32, 48), 8, 16, 2, 24, 1, 2)
    predictor = VJEPAPredictor(24, encoder.grid_shape, 12, 1, 2, output_dim=encoder.patch_dim)
    predictor.output_projection.kernel.assign(0 * predictor.output_projection.kernel)
    pretrainer = VJEPAPretrainer(encoder, predictor, target="pixels", normalize_targets=False)
    frames = np.full((8, 32, 48, 3), 120, np.uint8)
    frames[:4, 0:16, 0:16] = 140
    frames[4:, 0:16, 0:16] = 255
    video = WatchedVideo(frames, 24.0, 8)
    errors = prediction_errors(pretrainer, video, known, (120 / 255,) * 3, (1.0,) * 3)
    assert errors.shape == (1, 4, 2, 3)
    highest = np.argwhere(errors[0] > 0.9 * errors.max())
    np.testing.assert_array_equal(highest, [[2, 0, 0], [3, 0, 0]])
    np.testing.assert_allclose(errors[0, :2, 0, 0], 20 / 255, rtol=1e-3)
    assert surprise(errors)[0] == errors.mean()
    again = prediction_errors(pretrainer, video, known, (120 / 255,) * 3, (1.0,) * 3)
    np.testing.assert_array_equal(again, errors)


def test_the_error_is_that_of_the_training(backbone):
    """Over a box it is the loss of a batch that hides the box."""
    predictor = VJEPAPredictor(24, backbone.grid_shape, 12, 1, 2, num_mask_tokens=1)
    pretrainer = VJEPAPretrainer(backbone, predictor)
    video = watched(backbone, count=4, height=32, width=48)
    errors = prediction_errors(pretrainer, video, "past")
    first, second = np.arange(12, dtype="int32").reshape(2, 1, 6)
    batch = {"videos": video.clips((32, 48))}
    for time, context, target in ((0, second, first), (1, first, second)):
        loss = compiled(pretrainer)(
            batch | {"context_indices_0": context, "target_indices_0": target}
        )
        np.testing.assert_allclose(ops.convert_to_numpy(loss)[0], errors[0, time].mean(), rtol=1e-4)


def test_neighbours_are_found(tmp_path, backbone):
    pytest.importorskip("av")
    rng = np.random.default_rng(0)
    for name in ("one", "other"):
        write_h264(tmp_path / f"{name}.mp4", rng.integers(0, 256, (8, 32, 48, 3), np.uint8), 8)
    (tmp_path / "copy.mp4").write_bytes((tmp_path / "one.mp4").read_bytes())
    # A file that cannot be read is left out.
    (tmp_path / "damaged.mp4").write_bytes(b"nonsense")
    preprocessor = VJEPAVideoPreprocessor((32, 48), 4, frame_step=2)
    others = sorted(tmp_path.glob("*.mp4"))
    found = nearest_videos(backbone, preprocessor, tmp_path / "one.mp4", others)
    assert [path.name for path, _ in found] == ["copy.mp4", "other.mp4"]
    assert found[0][1] == pytest.approx(1, abs=1e-6)
    assert found[1][1] < 1 - 1e-6
    neighbor_sheet(tmp_path / "sheet.png", tmp_path / "one.mp4", found)
    assert (tmp_path / "sheet.png").stat().st_size > 1000
    with pytest.raises(ValueError, match="`others` must hold a video besides"):
        nearest_videos(backbone, preprocessor, tmp_path / "one.mp4", [tmp_path / "one.mp4"])
    with pytest.raises(ValueError, match="`others` must hold a video that can be read"):
        nearest_videos(backbone, preprocessor, tmp_path / "one.mp4", [tmp_path / "damaged.mp4"])
