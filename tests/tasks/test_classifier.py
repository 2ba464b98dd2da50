"""The classifier: clips, views, images, training, presets; the authors' numbers (App. D.1)."""

import json

import keras
import numpy as np
import pytest
from keras import ops

from keras_vjepa import AdamW, VJEPABackbone, VJEPAPredictor, VJEPAPretrainer, VJEPAVideoClassifier
from keras_vjepa.conversion import convert_classifier
from tests.support import GOLDEN, channels_last, golden, slow_but_on

FORWARD_TOLERANCE = 2e-5


def numpy(x):
    return ops.convert_to_numpy(x)


def assert_close(actual, expected, tolerance=FORWARD_TOLERANCE):
    actual = numpy(actual)
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= tolerance


def softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


# --- The authors' numbers ------------------------------------------------------------------------


@pytest.fixture
def reference_classifier(tiny_pretrainer):
    def make(**arguments):
        backbone = tiny_pretrainer.target_encoder
        return convert_classifier(backbone, GOLDEN / "probe.pth.tar", **arguments)

    return make


def reference_videos():
    """(batch, clips, views, frames, height, width, channels)."""
    clips = golden("forward.npz")["multiclip_input"]
    return clips.transpose(2, 0, 1, 4, 5, 6, 3)


def test_several_clips_and_views_equal_the_reference(reference_classifier):
    reference, videos = golden("forward.npz"), reference_videos()
    classifier = reference_classifier(num_clips=2, num_views=2)
    features = np.swapaxes(reference["multiclip_features"], 0, 1)
    assert_close(classifier.features(videos), features)
    assert_close(
        classifier(videos, training=True), np.swapaxes(reference["multiclip_logits"], 0, 1)
    )
    assert_close(ops.softmax(classifier(videos)), reference["multiclip_probs"])
    one_view = classifier(videos[:, :, :1])
    assert_close(one_view, reference["multiclip_logits"][0])
    assert_close(classifier(videos[:, :, 0]), reference["multiclip_logits"][0])


def test_clips_by_themselves_equal_the_reference(reference_classifier):
    reference, videos = golden("forward.npz"), reference_videos()
    classifier = reference_classifier(num_clips=2, num_views=2, attend_across_clips=False)
    logits = reference["multiclip_noattend_logits"].transpose(2, 0, 1, 3).reshape(2, 4, 7)
    assert_close(classifier(videos, training=True), logits)
    assert_close(ops.softmax(classifier(videos)), reference["multiclip_noattend_probs"])


@pytest.mark.parametrize("views", [1, 2])
def test_frame_positions_equal_the_reference(reference_classifier, views):
    reference, videos = golden("forward.npz"), reference_videos()[:, :, :views]
    classifier = reference_classifier(num_clips=2, num_views=2, max_frames=100)
    indices = np.swapaxes(reference["clip_indices"], 0, 1).astype("int32")
    features = numpy(classifier.features(videos, indices))
    expected = reference["multiclip_posembed_view0_features"]
    assert_close(features[:, 0], expected)
    # Every view gets the same rows.
    plain = np.swapaxes(reference["multiclip_features"], 0, 1)[:, :views]
    assert_close(
        features - plain, np.repeat((expected - plain[:, 0])[:, None], views, axis=1), 4e-5
    )
    logits = classifier({"videos": videos, "frame_indices": indices})
    assert np.abs(numpy(logits) - reference["multiclip_logits"][0]).max() > 1e-2


def test_images_equal_the_reference(reference_classifier):
    reference = golden("forward.npz")
    images = reference["image_input"].transpose(0, 2, 3, 1)
    classifier = reference_classifier()
    assert_close(classifier.features(images)[:, 0], reference["image_features"])
    assert_close(classifier(images), reference["image_logits"])


def test_one_clip_equals_the_reference(reference_classifier):
    reference = golden("forward.npz")
    videos = channels_last(reference["clip"])
    assert_close(reference_classifier()(videos), reference["probe_logits"])


def test_no_clips_have_no_logits():
    assert tuple(VJEPAVideoClassifier(small_backbone(), 3)(clips(0, 4)).shape) == (0, 3)


# --- Training ------------------------------------------------------------------------------------


def small_backbone(num_frames=4, **arguments):
    keras.utils.set_random_seed(0)
    return VJEPABackbone(16, num_frames, 8, hidden_dim=24, num_layers=1, num_heads=2, **arguments)


def clips(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=(*shape, 16, 16, 3)).astype("float32")


def compiled(classifier, learning_rate=1e-2):
    classifier.compile(
        AdamW(learning_rate),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return classifier


@pytest.mark.parametrize(
    "dtype", [pytest.param("float32", marks=slow_but_on("torch")), "mixed_bfloat16"]
)
def test_fit_with_a_frozen_backbone(dtype):
    backbone = small_backbone(dtype=dtype)
    classifier = compiled(VJEPAVideoClassifier(backbone, 3, num_views=2, dtype=dtype))
    before = backbone.get_weights()
    videos, labels = clips(6, 1, 1, 4), np.array([0, 1, 2, 0, 1, 2])
    # The class is a tint of the colours.
    videos[np.arange(6), ..., labels] += 2.0
    validation = clips(4, 1, 2, 4, seed=1), labels[:4]
    history = classifier.fit(
        videos, labels, batch_size=3, epochs=12, validation_data=validation, verbose=0
    ).history
    assert history["loss"][-1] < 0.5 * history["loss"][0] and history["accuracy"][-1] > 0.8
    for actual, expected in zip(backbone.get_weights(), before, strict=True):
        np.testing.assert_array_equal(actual, expected)
    assert {id(v) for v in classifier.trainable_variables} == {
        id(v) for v in classifier.probe.trainable_variables
    }
    # The optimizer has its iteration, its learning rate, and two moments for every weight of the
    # probe.
    assert len(classifier.optimizer.variables) == 2 + 2 * len(classifier.probe.variables)
    predictions = numpy(classifier(validation[0]))
    assert predictions.dtype == np.float32
    accuracy = np.mean(predictions.argmax(axis=1) == validation[1])
    assert history["val_accuracy"][-1] == pytest.approx(accuracy)


class Gradients(keras.optimizers.SGD):
    """Counts the variables that it is given gradients of."""

    def apply(self, grads, trainable_variables=None):
        self.count = sum(g is not None for g in grads)
        return super().apply(grads, trainable_variables)


@pytest.mark.parametrize("trainable", [False, pytest.param(True, marks=slow_but_on("torch"))])
def test_the_backbone_learns_only_when_told(trainable):
    backbone = small_backbone()
    classifier = VJEPAVideoClassifier(backbone, 3, trainable_backbone=trainable)
    classifier.compile(
        Gradients(0.1), loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    before = backbone.get_weights()
    classifier.fit(clips(2, 4), np.array([0, 1]), verbose=0)
    changed = sum(
        np.abs(after - old).max() > 0
        for after, old in zip(backbone.get_weights(), before, strict=True)
    )
    probe, trained = len(classifier.probe.trainable_variables), len(backbone.trainable_variables)
    assert classifier.optimizer.count == probe + trained
    assert trained > 0 if trainable else trained == 0
    assert changed == trained


@slow_but_on("torch")
@pytest.mark.parametrize("attend", [True, False])
def test_the_loss_is_the_mean_over_predictions(attend):
    classifier = VJEPAVideoClassifier(
        small_backbone(), 3, num_clips=2, num_views=3, attend_across_clips=attend
    )
    videos, labels, weights = clips(2, 2, 3, 4), np.array([2, 0]), np.array([1.0, 3.0], "float32")
    logits = numpy(classifier(videos, training=True))
    assert logits.shape == (2, 3 if attend else 6, 3)
    losses = -np.log(softmax(logits))[np.arange(2), :, labels].mean(axis=1)
    combined = softmax(logits).mean(axis=1)
    np.testing.assert_allclose(softmax(numpy(classifier(videos))), combined, atol=1e-6)
    compiled(classifier, 0.0)
    logs = classifier.train_on_batch(videos, labels, return_dict=True)
    assert logs["loss"] == pytest.approx(losses.mean(), abs=2e-6)
    assert logs["accuracy"] == pytest.approx(np.mean(combined.argmax(axis=1) == labels))
    classifier.reset_metrics()
    logs = classifier.train_on_batch(videos, labels, sample_weight=weights, return_dict=True)
    assert logs["loss"] == pytest.approx((losses * weights).mean(), abs=5e-6)


# --- Other backbones -----------------------------------------------------------------------------


def test_image_backbones_see_every_frame():
    backbone = small_backbone(1, tubelet_size=1)
    classifier = VJEPAVideoClassifier(backbone, 3, num_clips=2)
    videos = clips(2, 2, 3)
    features = numpy(classifier.features(videos))
    assert features.shape == (2, 1, 2 * 3 * 4, 24)
    np.testing.assert_allclose(features[:, 0, 16:20], numpy(backbone(videos[:, 1, 1])), atol=1e-5)
    alone = VJEPAVideoClassifier(backbone, 3)
    images = clips(2)
    np.testing.assert_allclose(
        numpy(alone.features(images))[:, 0], numpy(backbone(images)), atol=1e-6
    )


def functional_backbone(frames=None):
    shape = (16, 16, 3) if frames is None else (frames, 16, 16, 3)
    inputs = keras.Input(shape, name="images")
    tokens = keras.layers.Reshape((-1, 48 * 8))(inputs)
    named = inputs if frames else {"images": inputs}  # The second as in keras-hub.
    return keras.Model(named, keras.layers.Dense(10)(tokens))


@pytest.mark.filterwarnings("error:The structure of `inputs`")
@pytest.mark.parametrize("frames", [None, 4])
def test_any_keras_model_is_a_backbone(frames, tmp_path):
    backbone = functional_backbone(frames)
    with pytest.raises(ValueError, match="`num_heads` must be given for attentive pooling"):
        VJEPAVideoClassifier(backbone, 3)
    classifier = VJEPAVideoClassifier(backbone, 3, num_clips=2, num_heads=5)
    videos = clips(2, 2, 4)
    if frames is None:
        tokens = numpy(backbone({"images": videos.reshape(-1, 16, 16, 3)}))
    else:
        tokens = numpy(backbone(videos[:, 0]))
    features = numpy(classifier.features(videos))[:, 0]
    assert features.shape == (2, 16, 10)
    first = tokens[:4].reshape(8, 10) if frames is None else tokens[0]
    np.testing.assert_allclose(features[0, :8], first, atol=1e-6)
    classifier.save_to_preset(tmp_path / "preset")
    restored = VJEPAVideoClassifier.from_preset(tmp_path / "preset")
    np.testing.assert_allclose(numpy(restored(videos)), numpy(classifier(videos)), atol=1e-6)
    with pytest.raises(ValueError, match="`max_frames` must be None for a backbone without"):
        VJEPAVideoClassifier(backbone, 3, num_heads=5, max_frames=10)


def test_the_papers_heads_are_an_argument():
    classifier = VJEPAVideoClassifier(small_backbone(), 3, num_heads=12, head_dim=12)
    assert classifier.probe.pooler.query.units == 144
    assert tuple(classifier(clips(1, 4)).shape) == (1, 3)


# --- Saving --------------------------------------------------------------------------------------


@slow_but_on("torch")
def test_save_and_load_with_the_optimizer(tmp_path):
    classifier = compiled(
        VJEPAVideoClassifier(small_backbone(), 3, num_clips=2, num_layers=2, max_frames=40)
    )
    inputs = {
        "videos": clips(2, 2, 4),
        "frame_indices": np.arange(16, dtype="int32").reshape(2, 2, 4),
    }
    labels = np.array([0, 1])
    classifier.fit(inputs, labels, verbose=0)
    classifier.save(tmp_path / "model.keras")
    restored = keras.saving.load_model(tmp_path / "model.keras")
    assert restored.get_config() == classifier.get_config()
    json.dumps(classifier.get_config())
    assert len(restored.trainable_variables) == len(classifier.probe.trainable_variables)
    np.testing.assert_array_equal(numpy(restored(inputs)), numpy(classifier(inputs)))
    losses = [
        m.fit(inputs, labels, epochs=2, verbose=0).history["loss"] for m in (classifier, restored)
    ]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-6)


def test_a_classifier_preset_restores_the_whole(tmp_path):
    classifier = VJEPAVideoClassifier(
        small_backbone(), 5, num_clips=2, num_layers=2, mlp_ratio=2.0, max_frames=30
    )
    classifier.save_to_preset(tmp_path / "preset")
    names = {"config.json", "metadata.json", "model.weights.h5", "task.json", "task.weights.h5"}
    assert {path.name for path in (tmp_path / "preset").iterdir()} == names
    restored = VJEPAVideoClassifier.from_preset(tmp_path / "preset", num_views=3)
    assert restored.num_views == 3 and restored.num_layers == 2
    for actual, expected in zip(restored.get_weights(), classifier.get_weights(), strict=True):
        np.testing.assert_array_equal(actual, expected)
    backbone = VJEPABackbone.from_preset(tmp_path / "preset")
    assert len(backbone.trainable_variables) > 0
    half = VJEPAVideoClassifier.from_preset(tmp_path / "preset", dtype="mixed_bfloat16")
    assert half.backbone.compute_dtype == half.probe.compute_dtype == "bfloat16"
    fresh = VJEPAVideoClassifier.from_preset(tmp_path / "preset", load_weights=False, num_classes=2)
    assert fresh.probe.num_classes == 2
    with pytest.raises(ValueError, match="`mlp_ratio` must be 2.0, as the probe of .*Received: 3"):
        VJEPAVideoClassifier.from_preset(tmp_path / "preset", mlp_ratio=3)


@pytest.mark.parametrize("kind", ["backbone", "pretrainer"])
def test_other_presets_get_a_fresh_probe(kind, tmp_path):
    backbone = small_backbone()
    model = backbone
    if kind == "pretrainer":
        model = VJEPAPretrainer(backbone, VJEPAPredictor(24, backbone.position_axes, 12, 1, 2))
        for variable in model.target_encoder.variables:
            variable.assign(variable + 0.1)
        backbone = model.target_encoder
    model.save_to_preset(tmp_path / "preset")
    classifier = VJEPAVideoClassifier.from_preset(
        tmp_path / "preset", num_classes=4, num_clips=2, trainable_backbone=True
    )
    for actual, expected in zip(
        classifier.backbone.get_weights(), backbone.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(actual, expected)
    # A target encoder can be fine-tuned too.
    assert len(classifier.trainable_variables) > len(classifier.probe.trainable_variables)
    assert tuple(classifier(clips(1, 2, 4)).shape) == (1, 4)
    with pytest.raises(ValueError, match="`num_classes` must be given for a preset that holds no"):
        VJEPAVideoClassifier.from_preset(tmp_path / "preset")
    with pytest.raises(FileNotFoundError, match="`preset` must be the folder of a preset"):
        VJEPAVideoClassifier.from_preset(tmp_path / "none", num_classes=4)


# --- Bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape,message",
    [
        ((4,), "`videos` must hold `num_clips`=2 clips. Received: 1"),
        ((3, 4), "`videos` must hold `num_clips`=2 clips. Received: 3"),
        ((2, 2, 4), "`videos` must hold 1 view or `num_views`=3. Received: 2"),
        ((2, 3, 5), "`num_frames` must be a multiple of `tubelet_size`=2. Received: 5"),
        ((1, 2, 3, 4), "`videos` must be .* Received 8 axes"),
    ],
)
def test_videos_that_do_not_fit_are_named(shape, message):
    classifier = VJEPAVideoClassifier(small_backbone(), 3, num_clips=2, num_views=3)
    with pytest.raises(ValueError, match=message):
        classifier(clips(2, *shape))


def test_frame_indices_that_do_not_fit_are_named():
    videos, indices = clips(2, 2, 4), np.zeros((2, 2, 4), "int32")
    plain = VJEPAVideoClassifier(small_backbone(), 3, num_clips=2)
    with pytest.raises(ValueError, match="`frame_indices` must be given if, and only if"):
        plain({"videos": videos, "frame_indices": indices})
    counting = VJEPAVideoClassifier(small_backbone(), 3, num_clips=2, max_frames=9)
    with pytest.raises(ValueError, match="`frame_indices` must be given if, and only if"):
        counting(videos)
    with pytest.raises(ValueError, match=r"`frame_indices` must be \(batch, `num_clips`=2, 4"):
        counting({"videos": videos, "frame_indices": indices[:, :, ::2]})
    with pytest.raises(ValueError, match="`inputs` must be a dictionary of .*'clip'"):
        plain({"clip": videos})


@pytest.mark.parametrize("name", ["num_clips", "num_views", "num_classes", "num_layers"])
def test_counts_below_one_are_named(name):
    with pytest.raises(ValueError, match=f"`{name}` must be at least 1. Received: 0"):
        VJEPAVideoClassifier(small_backbone(), **{"num_classes": 3, name: 0})


def test_backbones_that_return_something_else_are_named():
    inputs = keras.Input((4, 16, 16, 3))
    pooled = keras.Model(inputs, keras.layers.GlobalAveragePooling3D()(inputs))
    classifier = VJEPAVideoClassifier(pooled, 3, num_heads=1)
    with pytest.raises(ValueError, match=r"`backbone` must return \(batch, tokens, dim\)"):
        classifier(clips(2, 4))
