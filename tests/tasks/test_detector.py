"""The detector: its map against the definition, sizes, foreign backbones, presets, training."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_vjepa import VJEPAActionDetector, VJEPABackbone, VJEPAVideoPreprocessor
from keras_vjepa.data.sources.video_writing import write_motion_jpeg
from keras_vjepa.layers import RoIAlign
from keras_vjepa.models import VideoMAEBackbone
from keras_vjepa.tasks.detection_head import DetectionHead
from keras_vjepa.training.optimizer import AdamW
from tests.support import compiled, slow_but_on

RNG = np.random.default_rng(0)
VIDEOS = RNG.normal(size=(2, 4, 16, 24, 3)).astype("float32")
BOXES = np.array([[[1, 2, 9, 14], [0, 0, 24, 16], [0, 0, 0, 0]], [[8, 3, 20, 16]] * 3], "float32")
INPUTS = {"videos": VIDEOS, "boxes": BOXES}


def backbone(num_layers=3, **arguments):
    keras.utils.set_random_seed(0)
    arguments = {"num_frames": 4, "hidden_dim": 8, "num_heads": 2, "mlp_ratio": 2.0, **arguments}
    return VJEPABackbone(16, patch_size=8, num_layers=num_layers, **arguments)


def detector(**arguments):
    given = {"backbone": backbone(), "num_classes": 5, **arguments}
    return VJEPAActionDetector(given.pop("backbone"), **given)


def numpy(x):
    return ops.convert_to_numpy(ops.cast(x, "float32"))


def logits_of(model, inputs=INPUTS):
    def call(videos, boxes):
        return model({"videos": videos, "boxes": boxes})

    return numpy(compiled(call)(*(ops.convert_to_tensor(inputs[n]) for n in ("videos", "boxes"))))


def test_equals_its_definition():
    """Layers after the final norm, mean over time, side by side; a region's largest values."""
    model = detector(layers=[0, -1], output_size=2, sampling_ratio=2)
    layers = compiled(lambda videos: model.backbone.intermediate_features(videos, [0, 2]))
    outputs = layers(ops.convert_to_tensor(VIDEOS))
    maps = [numpy(x).reshape(2, 2, 2, 3, 8).mean(axis=1) for x in outputs]
    align = RoIAlign(2, 1 / 8, 2)
    features = ops.convert_to_tensor(np.concatenate(maps, axis=-1))
    bins = numpy(compiled(align)(features, ops.convert_to_tensor(BOXES)))
    kernel, bias = (numpy(w) for w in model.head.get_weights())
    expected = bins.max(axis=(2, 3)) @ kernel + bias
    np.testing.assert_allclose(logits_of(model), expected, atol=2e-5)


@pytest.mark.data
def test_layers_of_vjepa21_are_its_levels(tmp_path):
    model = detector(backbone=backbone(7, level_layers=(0, 2, 6)))
    assert model.chosen_layers == [0, 2, 6]
    model.save_to_preset(tmp_path / "detector")
    again = VJEPAActionDetector.from_preset(tmp_path / "detector")
    np.testing.assert_array_equal(logits_of(again), logits_of(model))


@pytest.mark.data
@pytest.mark.parametrize(
    "count,expected",
    [(24, [17, 19, 21, 23]), (32, [25, 27, 29, 31]), (6, [2, 3, 4, 5]), (2, [0, 1])],
)
def test_layers_are_the_papers_or_the_last(count, expected):
    model = detector(backbone=backbone(count))
    assert model.chosen_layers == expected
    assert model.head.linear.kernel.shape == (8 * len(expected), 5)
    assert model.get_config()["layers"] is None


@pytest.mark.data
def test_a_box_sees_what_is_in_it_alone():
    """Of a backbone that mixes no tokens, and bins inside of the box."""
    frames = keras.Input((16, 24, 3))
    tokens = keras.layers.Conv2D(6, 8, 8)(frames)
    model = detector(backbone=keras.Model(frames, keras.layers.Reshape((-1, 6))(tokens)))
    changed = VIDEOS.copy()
    changed[:, :, :, 16:] += 1.0
    before, after = logits_of(model), logits_of(model, {"videos": changed, "boxes": BOXES})
    assert np.abs(after - before)[0, 0].max() == 0.0
    assert np.abs(after - before)[0, 1].max() > 1e-3


@slow_but_on("torch")
@pytest.mark.parametrize(("clips", "boxes"), [(0, 2), (2, 0)])
@pytest.mark.parametrize("pooling", ["max", "average"])
def test_no_clips_and_no_boxes_have_no_logits(clips, boxes, pooling):
    inputs = {"videos": VIDEOS[:clips], "boxes": BOXES[:clips, :boxes]}
    assert tuple(detector(pooling=pooling)(inputs).shape) == (clips, boxes, 5)


def test_any_size_and_single_images():
    model = detector()
    wide = {"videos": np.zeros((1, 4, 24, 40, 3), "float32"), "boxes": BOXES[:1]}
    assert model.predict_on_batch(wide).shape == (1, 3, 5)
    images = detector(backbone=backbone(2, num_frames=1))
    of_four = numpy(images.feature_map(ops.convert_to_tensor(VIDEOS)))
    each = [
        numpy(images.feature_map(ops.convert_to_tensor(VIDEOS[:, n : n + 1]))) for n in range(4)
    ]
    np.testing.assert_allclose(of_four, np.mean(each, axis=0), atol=1e-5)


@slow_but_on("torch")
@pytest.mark.parametrize("trained", [False, True])
def test_it_learns(trained):
    model = detector(trainable_backbone=trained, class_names=list("abcde"))
    model.compile(AdamW(0.02))
    frozen = [v for v in model.backbone.trainable_variables]
    assert bool(frozen) == trained
    targets = np.zeros((2, 3, 5), "float32")
    targets[0, 0, [1, 3]] = targets[0, 1, 2] = targets[1, :, 4] = 1
    weights = np.array([[1, 1, 0], [1, 1, 1]], "float32")
    before = model.backbone.get_weights()
    history = model.fit(INPUTS, targets, sample_weight=weights, epochs=12, verbose=0)
    losses = history.history["loss"]
    assert losses[-1] < 0.6 * losses[0]
    moved = [np.abs(a - b).max() for a, b in zip(before, model.backbone.get_weights(), strict=True)]
    assert (max(moved) > 0) == trained
    # Boxes with weight 0 do not affect the loss.
    other = targets.copy()
    other[0, 2] = 1
    pair = [model.test_on_batch(INPUTS, y, sample_weight=weights) for y in (targets, other)]
    assert pair[0] == pair[1]


@slow_but_on("torch")
@pytest.mark.parametrize("family", [VJEPABackbone, VideoMAEBackbone])
def test_branches_are_left_out_in_training_alone(family):
    sizes = {"hidden_dim": 8, "num_layers": 3, "num_heads": 2, "mlp_ratio": 2.0}
    if family is VideoMAEBackbone:
        sizes = {"hidden_dim": 8, "num_layers": 3, "num_heads": 2, "mlp_dim": 16}
    encoder = family(16, 4, patch_size=8, drop_path_rate=0.9, **sizes)
    model = detector(backbone=encoder, trainable_backbone=True, layers=[0, 2])
    inputs = {name: ops.convert_to_tensor(array) for name, array in INPUTS.items()}
    still = [numpy(model(inputs)) for _ in range(2)]
    moving = [numpy(model(inputs, training=True)) for _ in range(8)]
    np.testing.assert_array_equal(*still)
    assert max(np.abs(moving[0] - other).max() for other in moving) > 0


@slow_but_on("torch")
def test_presets_and_files(tmp_path):
    keras.utils.set_random_seed(1)
    model = detector(
        layers=[1, 2],
        output_size=[3, 2],
        aligned=False,
        pooling="average",
        dropout=0.25,
        class_names=list("abcde"),
        preprocessor=VJEPAVideoPreprocessor(16, 4),
    )
    expected = logits_of(model)
    model.save_to_preset(tmp_path / "preset")
    model.save(tmp_path / "model.keras")
    for again in (
        VJEPAActionDetector.from_preset(tmp_path / "preset"),
        keras.saving.load_model(tmp_path / "model.keras"),
    ):
        assert again.get_config() == model.get_config()
        np.testing.assert_array_equal(logits_of(again), expected)
    fewer = VJEPAActionDetector.from_preset(tmp_path / "preset", num_classes=2, class_names=None)
    assert fewer.head.linear.kernel.shape == (16, 2)
    with pytest.raises(ValueError, match="`pooling` must be 'average', as the probe of"):
        VJEPAActionDetector.from_preset(tmp_path / "preset", pooling="max")


@pytest.mark.data
def test_from_a_backbones_preset(tmp_path):
    given = backbone()
    given.save_to_preset(tmp_path)
    model = VJEPAActionDetector.from_preset(tmp_path, num_classes=80)
    for one, other in zip(given.get_weights(), model.backbone.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert model.preprocessor.image_size == 16 and not model.backbone.trainable
    with pytest.raises(ValueError, match="`num_classes` must be given for a preset that holds no"):
        VJEPAActionDetector.from_preset(tmp_path)


@slow_but_on("torch")
def test_half_precision():
    """Positions keep their precision, logits are of the weights' type."""
    exact = detector()
    policy = "mixed_bfloat16"
    half = detector(backbone=backbone(dtype=policy), dtype=policy)
    half.set_weights(exact.get_weights())
    outputs = half(INPUTS)
    assert keras.backend.standardize_dtype(outputs.dtype) == "float32"
    assert np.abs(numpy(outputs) - logits_of(exact)).max() < 0.05
    restored = VJEPAActionDetector.from_config(half.get_config())
    assert restored.compute_dtype == "bfloat16"


@pytest.mark.data
def test_detect_tells_names(tmp_path):
    rng = np.random.default_rng(0)
    frames = rng.integers(256, size=(30, 24, 40, 3), dtype=np.uint8)
    path = tmp_path / "video.avi"
    write_motion_jpeg(path, frames, 10)
    model = detector(class_names=list("abcde"), preprocessor=VJEPAVideoPreprocessor(16, 4, 3))
    boxes = [[0.1, 0.2, 0.5, 0.9], [0.0, 0.0, 1.0, 1.0]]
    for inputs, second in ((str(path), 1.0), (str(path), None), (frames, None)):
        found = model.detect(inputs, boxes, second, top=2)
        assert len(found) == 2 and all(len(actions) == 2 for actions in found)
        for actions in found:
            assert 1 > actions[0][1] >= actions[1][1] > 0 and actions[0][0] in "abcde"
    one, other = (model.detect(str(path), boxes, second) for second in (0.5, 2.0))
    assert one != other


@pytest.mark.data
def test_refused(tmp_path):
    with pytest.raises(ValueError, match="`layers` must be between -3 and 2"):
        detector(layers=[3])
    with pytest.raises(ValueError, match="`layers` must name a layer"):
        detector(layers=[])
    dense = keras.Sequential([keras.Input((4, 16, 24, 3)), keras.layers.Reshape((-1, 9))])
    with pytest.raises(ValueError, match="`layers` must be None for a backbone that is no"):
        detector(backbone=dense, layers=[0])
    with pytest.raises(ValueError, match="return the tokens of a grid of squares"):
        detector(backbone=dense)(INPUTS)
    for wrong, message in (
        (VIDEOS, "`inputs` must be a dictionary of `videos` and `boxes`"),
        ({"videos": VIDEOS}, "`inputs` must be a dictionary"),
        ({"videos": VIDEOS, "boxes": BOXES[0]}, "`boxes` must be \\(batch, boxes, 4\\)"),
        ({"videos": VIDEOS[:, :, :9], "boxes": BOXES}, "must be a multiple of"),
    ):
        with pytest.raises(ValueError, match=message):
            detector()(wrong)
    with pytest.raises(ValueError, match="`preprocessor` must be set to detect in files"):
        detector().detect("video.mp4", [[0, 0, 1, 1]])
    model = detector(preprocessor=VJEPAVideoPreprocessor(16, 4))
    frames = np.zeros((9, 24, 40, 3), np.uint8)
    with pytest.raises(ValueError, match="`second` must be None for frames in memory"):
        model.detect(frames, [[0, 0, 1, 1]], second=1.0)
    with pytest.raises(ValueError, match="`boxes` must be \\(boxes, 4\\)"):
        model.detect(frames, [0, 0, 1, 1])
    for boxes in ([["a", 0, 1, 1]], [[0, 0, 1], [0, 0, 1, 1]]):
        with pytest.raises(ValueError, match="`boxes` must be \\(boxes, 4\\)"):
            model.detect(frames, boxes)
    for box in ([10, 20, 50, 90], [0.5, 0.5, 0.1, 0.9], [-1, -1, -0.5, -0.5]):
        with pytest.raises(ValueError, match="must have an area within the frame.*not in pixels"):
            model.detect(frames, [[-0.1, 0, 1.2, 1], box])
    with pytest.raises(ValueError, match="`pooling` must be 'max' or 'average'"):
        DetectionHead(3, pooling="sum")
