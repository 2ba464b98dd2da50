"""One encoder's evaluation, in a few lines: fit, score, choose, and what is said of bad input."""

import keras
import numpy as np
import pytest

from keras_vjepa import VJEPABackbone, VJEPAVideoClassifier
from keras_vjepa.data.batches.indexed import TooManyBadFilesError
from keras_vjepa.data.sources.samples import Sample
from keras_vjepa.evaluation.frozen_probe import FrozenProbe
from keras_vjepa.evaluation.task_labels import labels_of
from keras_vjepa.evaluation.views import evaluation_clips
from tests.evaluation.support import assert_close, small, weights_of
from tests.support import slow_but_on


def test_a_few_lines(digit_videos, small_encoder, tmp_path):
    """As in a notebook: clips and sizes are the encoder's, nothing touches the disk."""
    small_encoder.save_to_preset(tmp_path / "preset")
    train, test = ([Sample(s.path, s.label % 10) for s in part] for part in digit_videos)
    probe = FrozenProbe(
        tmp_path / "preset", num_classes=(10,), temporal_stride=2, num_views=3, epochs=2
    )
    assert (probe.settings.image_size, probe.settings.clip.frames_per_clip) == (32, 4)
    metrics = probe.fit(train).score(test)["action"]
    assert metrics["num_counted"] == len(metrics["predictions"]) == 20
    right = np.mean(np.array(metrics["predictions"]) == [sample.label for sample in test])
    assert metrics["top1"] == pytest.approx(right) and metrics["top5"] >= metrics["top1"]
    # The classifier has the number of classes that was counted.
    classifier = probe.classifier("action")
    assert (classifier.num_classes, classifier.num_views) == (10, 3)
    batches = evaluation_clips(probe.settings, test, 3, 10)
    predictions = [
        classifier.predict_on_batch(videos).argmax(-1) for videos, _, _ in batches.stream()
    ]
    assert np.concatenate(predictions).tolist() == metrics["predictions"]
    assert {path.name for path in tmp_path.iterdir()} == {"preset"}


@slow_but_on("torch")
def test_fit_begins_anew(digit_videos, small_encoder):
    train, test = digit_videos
    probe = FrozenProbe(small_encoder, small())
    first = probe.fit(train).score(test)
    weights = weights_of(probe.sweep)
    other = probe.fit(train, 1).score(test)
    assert max(np.abs(a - b).max() for a, b in zip(weights, weights_of(probe.sweep), strict=True))
    assert other["motion"]["labels"] == first["motion"]["labels"]
    assert probe.fit(train).score(test) == first
    assert_close(weights_of(probe.sweep), weights, 0)
    # The compiled probes also work for another encoder of the same width.
    twin = VJEPABackbone.from_config(small_encoder.get_config())
    twin.set_weights(small_encoder.get_weights())
    again = FrozenProbe(twin, small(fraction=1.0), sweep=probe.sweep)
    assert again.fit(train).score(test) == first


def test_single_frames_hide_the_motion(digit_videos, small_encoder):
    train, test = digit_videos
    moving, still = (
        FrozenProbe(small_encoder, small(), single_frame=single) for single in (False, True)
    )
    features = [probe.batches.features(test, is_test=True).pooled() for probe in (moving, still)]
    assert np.abs(features[0] - features[1]).max() > 1e-3
    with pytest.raises(ValueError, match="`single_frame` must be False with `augment`"):
        FrozenProbe(small_encoder, small(online=True), single_frame=True)


@slow_but_on("torch")
def test_the_best_probe_is_chosen_on_validation(digit_videos, small_encoder, monkeypatch):
    train, test = digit_videos
    probe = FrozenProbe(small_encoder, small(learning_rates=(1e-3, 3e-3), epochs=1))
    validation = probe.split(train).validation
    assert len(validation) == 6

    def logits(batches):
        """Of two candidates, of which one is right everywhere and the other nowhere."""
        is_validation = [s.path for s in batches.samples] == [s.path for s in validation]
        found = {}
        for task, labels in labels_of(batches.samples, {"digit": 10, "motion": 10}).items():
            rows = [(labels + 1) % 10, labels] if is_validation else [labels, (labels + 1) % 10]
            found[task] = np.eye(10, dtype="float32")[np.stack(rows, axis=1)]
        return found

    monkeypatch.setattr(probe.sweep, "logits", logits)
    found = probe.fit(train).score(test)["motion"]
    assert found["best"] == probe.best("motion") == 1 and found["top1"] == 0.0
    assert [c["test"] for c in found["candidates"]] == [1.0, 0.0]
    assert [c["validation"] for c in found["candidates"]] == [0.0, 1.0]
    weights = probe.classifier("motion").probe.get_weights()
    assert_close(weights, probe.sweep.probes_of("motion")[1].get_weights(), 0)


@slow_but_on("torch")
@pytest.mark.parametrize("online", [False, True])
def test_an_unreadable_test_video_is_wrong(online, digit_videos, small_encoder, tmp_path, caplog):
    train, test = digit_videos
    test = [*test[:7], Sample(str(tmp_path / "missing.mp4"), 3), *test[7:10]]
    settings = {"online": online, "max_bad_share": 0.5}
    results = {}
    for skip, verdict in ((False, "Counted as wrong"), (True, "Not counted")):
        caplog.clear()
        probe = FrozenProbe(small_encoder, small(**settings, skip_unreadable=skip), tmp_path)
        results[skip] = probe.fit(train).score(test)["motion"]
        assert "missing.mp4" in caplog.text and verdict in caplog.text
    assert [results[skip]["num_counted"] for skip in (False, True)] == [11, 10]
    assert results[False]["predictions"][7] is None
    assert results[False]["predictions"].count(None) == 1
    assert 11 * results[False]["top1"] == pytest.approx(10 * results[True]["top1"])
    with pytest.raises(TooManyBadFilesError):
        strict = small(**{**settings, "max_bad_share": 0.05, "temporal_stride": 3})
        FrozenProbe(small_encoder, strict, tmp_path).fit(train).score(test)


def test_a_missing_class_is_named_before_features_are_computed(
    digit_videos, small_encoder, tmp_path
):
    train = [sample for sample in digit_videos[0] if sample.label % 10 != 3]
    probe = FrozenProbe(small_encoder, small(), tmp_path / "features")
    with pytest.raises(ValueError, match="every class of `motion`. Missing: 3"):
        probe.fit(train)
    assert not (tmp_path / "features").exists()


@slow_but_on("torch")
def test_an_encoder_of_rectangles_with_frame_positions(digit_videos, tmp_path):
    encoder = VJEPABackbone((16, 32), 4, patch_size=8, hidden_dim=24, num_layers=1, num_heads=2)
    train, test = digit_videos
    results = []
    for online in (False, True):
        probe = FrozenProbe(
            encoder,
            small(image_size=(16, 32), max_frames=16, temporal_stride=2, online=online),
            tmp_path,
        )
        results.append(probe.fit(train).score(test)["motion"]["predictions"])
    assert results[0] == results[1]
    # The features differ from those without positions.
    plain = FrozenProbe(encoder, small(image_size=None, temporal_stride=2), tmp_path)
    positions = probe.settings.classifier.make(backbone=encoder, num_classes=10)
    assert positions.frame_table.shape == (16, 24)
    plain.batches.features(test, is_test=True)
    assert len(list(tmp_path.glob("test-*"))) == 2


@slow_but_on("torch")
def test_an_image_model_sees_every_frame(digit_videos):
    keras.utils.set_random_seed(0)
    images = keras.Input((32, 32, 3))
    tokens = keras.layers.Dense(12)(keras.layers.Reshape((16, -1))(images))
    encoder = keras.Model(images, tokens)
    train, test = digit_videos
    probe = FrozenProbe(encoder, small(num_heads=2, image_size=None))
    metrics = probe.fit(train).score(test)
    assert probe.batches.features(test, is_test=True).shape == (1, 4 * 16, 12)
    assert set(metrics) == {"digit", "motion"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 48}, "`image_size` must be 32, as the encoder's. Received: 48"),
        ({"num_frames": 8}, "`num_frames` must be 4, as the encoder's. Received: 8"),
        ({"num_classes": (10,)}, r"`num_classes` must hold a number for each of the `tasks`="),
        ({"num_clips": 0}, "`num_clips` must be at least 1. Received: 0"),
        ({"num_layer": 3}, "no option `num_layer`; did you mean num_layers"),
        ({"clip_norm": -1.0}, "`clip_norm` must be positive or None"),
    ],
)
def test_settings_that_do_not_fit_are_named(options, message, small_encoder):
    with pytest.raises(ValueError, match=message):
        FrozenProbe(
            small_encoder,
            small(**options) if "num_layer" not in options else None,
            **(options if "num_layer" in options else {}),
        )


def test_sizes_that_nobody_says_are_asked_for(digit_videos):
    inputs = keras.Input((None, None, None, 3))
    encoder = keras.Model(inputs, keras.layers.Reshape((-1, 8))(inputs))
    with pytest.raises(ValueError, match="`image_size` must be given for this"):
        FrozenProbe(encoder, num_heads=1)
    with pytest.raises(ValueError, match="`num_frames` must be given for this"):
        FrozenProbe(encoder, num_heads=1, image_size=32)


@slow_but_on("torch")
def test_three_views_are_square(digit_videos):
    encoder = VJEPABackbone((16, 32), 4, patch_size=8, hidden_dim=24, num_layers=1, num_heads=2)
    probe = FrozenProbe(encoder, small(image_size=None, num_views=3))
    with pytest.raises(ValueError, match=r"one number with `num_views`=3. Received: \(16, 32\)"):
        probe.fit(digit_videos[0]).score(digit_videos[1])


@slow_but_on("torch")
@pytest.mark.parametrize("online", [False, True])
def test_validation_in_one_view_and_test_in_three(online, digit_videos, small_encoder):
    """TensorFlow made one function for both, in which the number of views was not known."""
    train, test = digit_videos
    settings = small(num_views=3, learning_rates=(1e-3, 3e-3), online=online, readouts=False)
    probe = FrozenProbe(small_encoder, settings)
    metrics = probe.fit(train).score(test)["motion"]
    assert len(metrics["predictions"]) == 20 and len(metrics["candidates"]) == 2
    assert all(c["validation"] is not None for c in metrics["candidates"])


def test_the_classifier_of_a_probe_is_a_preset(digit_videos, small_encoder, tmp_path):
    train, test = digit_videos
    options = {"num_layers": 2, "self_attention": "tokens", "mlp_ratio": 2.0, "head_dim": 5}
    probe = FrozenProbe(small_encoder, small(**options)).fit(train)
    probe.classifier("digit").save_to_preset(tmp_path / "classifier")
    restored = VJEPAVideoClassifier.from_preset(tmp_path / "classifier")
    found = restored.get_config()
    assert {name: found[name] for name in options} == options
    assert_close(restored.probe.get_weights(), probe.sweep.probes_of("digit")[0].get_weights(), 0)


def test_a_probe_that_is_not_finite_is_never_the_best(small_encoder):
    probe = FrozenProbe(small_encoder, num_classes=(5,), learning_rates=(1e-3, 1e-2))
    probe._validation_accuracy = {"action": np.array([0.0, 0.0])}
    for finite, best in (([False, True], 1), ([True, True], 0)):
        probe._finite = {"action": np.array(finite)}
        assert probe.best("action") == best
