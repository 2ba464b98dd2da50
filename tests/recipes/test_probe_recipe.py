"""The frozen evaluation recipe: features once, probes side by side, splits, numbers, commands."""

import dataclasses
import json
import sys

import keras
import numpy as np
import pytest

from keras_vjepa import AdamW, CosineSchedule, VJEPABackbone, VJEPAProbe, VJEPAVideoClassifier
from keras_vjepa.data.batches.indexed import TooManyBadFilesError
from keras_vjepa.data.sources import labelled_sets
from keras_vjepa.data.sources.digit_motion import prepare_digit_motion
from keras_vjepa.data.sources.digit_motion_rendering import DigitMotionConfig
from keras_vjepa.data.sources.samples import Sample, list_samples
from keras_vjepa.evaluation import features as feature_cache
from keras_vjepa.evaluation.readouts import nearest_neighbors, ridge_classifier
from keras_vjepa.evaluation.sweep import ProbeSettings, ProbeSweep, labels_of, top_k
from keras_vjepa.recipes import probe, probe_evaluation, probe_table
from keras_vjepa.recipes.probe_configs import CONFIGS, as_in_the_paper, digit_motion

# 16 frames in all: a clip of 4 x 4 has one place only.
SMALL = {
    "image_size": 32,
    "num_frames": 4,
    "temporal_stride": 4,
    "batch_size": 8,
    "epochs": 1,
    "learning_rates": (3e-3,),
    "feature_batch_size": 8,
    "preset": "untrained",
    "dtype": "float32",
}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """A built-in set with few, short and small videos."""
    config = DigitMotionConfig(
        canvas_size=32, digit_size=12, num_frames=16, num_training_videos=60, num_test_videos=20
    )
    files = prepare_digit_motion(tmp_path_factory.mktemp("cache"), config, None)
    return list_samples(files.train), list_samples(files.test)


@pytest.fixture
def built_in(videos, monkeypatch):
    monkeypatch.setattr(labelled_sets, "train_and_test", lambda *_, **__: videos)
    return videos


@pytest.fixture(scope="module")
def encoder():
    keras.utils.set_random_seed(1)
    return VJEPABackbone(32, 4, patch_size=8, hidden_dim=24, num_layers=1, num_heads=2)


def small(**changes):
    return dataclasses.replace(digit_motion(), **{**SMALL, **changes})


def weights_of(sweep):
    return [array for network in sweep.probes for array in network.get_weights()]


def assert_close(left, right, tolerance):
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance)


# --- Features once -------------------------------------------------------------------------------


@pytest.mark.parametrize("clips, attend", [(1, True), (2, False)])
def test_cached_features_give_the_online_path_s_numbers(clips, attend, videos, encoder, tmp_path):
    # A window shorter than its part of the video: a clip could lie in several places.
    config = small(num_clips=clips, num_frames=4, temporal_stride=2 // clips)
    config = dataclasses.replace(config, attend_across_clips=attend)
    cached, online = (
        probe_evaluation.make_evaluator(
            dataclasses.replace(config, online=online), encoder, videos, tmp_path
        )
        for online in (False, True)
    )
    assert cached.train_features is not None and online.train_features is None
    results = [evaluator(0) for evaluator in (cached, online)]
    assert_close(weights_of(cached.sweep), weights_of(online.sweep), 1e-6)
    assert results[0]["motion"]["predictions"] == results[1]["motion"]["predictions"]
    # The quick checks, from the same features.
    pooled = [
        everything(f).mean(axis=(1, 2)) for f in (cached.train_features, cached.test_features)
    ]
    labels = [np.array([sample.label for sample in part]) % 10 for part in videos]
    for readout in (nearest_neighbors, ridge_classifier):
        right = readout(pooled[0], labels[0], pooled[1], 10).argmax(axis=1) == labels[1]
        found = results[0]["motion"]["readouts"][readout.__name__]
        assert found == pytest.approx(right.mean(), abs=1e-6)
    assert results[1]["motion"]["readouts"] == {}


def counted(monkeypatch, extractor_class=feature_cache.FeatureExtractor):
    """Batches that were encoded so far."""
    seen = []
    original = extractor_class.predict_on_batch
    monkeypatch.setattr(
        extractor_class,
        "predict_on_batch",
        lambda self, videos: seen.append(len(videos)) or original(self, videos),
    )
    return seen


def features(encoder, samples, folder, **changes):
    config = small(**changes)
    extractor = feature_cache.FeatureExtractor(
        probe_evaluation.make_classifier(config, encoder, "digit")
    )
    batches = probe_evaluation.clip_batches(config, samples, 1, config.feature_batch_size)
    return feature_cache.cached_features(
        folder, "train", extractor, batches, {}, config.feature_dtype, batches_per_shard=2
    )


def everything(found):
    return np.concatenate([np.asarray(shard) for shard in found.shards])


def test_a_cache_goes_on_where_it_was_stopped(videos, encoder, tmp_path, monkeypatch):
    samples = videos[0][:37]
    complete = everything(features(encoder, samples, tmp_path / "a"))
    assert complete.shape == (37, 1, 2 * 16, 24)
    seen = counted(monkeypatch)
    original = feature_cache.FeatureExtractor.predict_on_batch

    def stop_at_the_fourth(self, batch):
        if len(seen) == 3:
            raise KeyboardInterrupt
        return original(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(feature_cache.FeatureExtractor, "predict_on_batch", stop_at_the_fourth)
        with pytest.raises(KeyboardInterrupt):
            features(encoder, samples, tmp_path / "b")
    [folder] = (tmp_path / "b").iterdir()
    assert {path.name for path in folder.iterdir()} == {"manifest.json", "00000.json", "00000.npy"}
    seen.clear()
    np.testing.assert_array_equal(everything(features(encoder, samples, tmp_path / "b")), complete)
    assert len(seen) == 3
    seen.clear()
    features(encoder, samples, tmp_path / "b")
    assert not seen


def test_other_features_have_another_folder(videos, encoder, tmp_path):
    samples = videos[0][:9]
    other = VJEPABackbone.from_config(encoder.get_config())
    other.set_weights([weight + 0.1 for weight in encoder.get_weights()])
    same = VJEPABackbone.from_config(encoder.get_config())
    same.set_weights(encoder.get_weights())
    full = features(encoder, samples, tmp_path)
    features(same, samples, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    features(other, samples, tmp_path)
    features(encoder, samples, tmp_path, temporal_stride=2)
    features(encoder, samples[::-1], tmp_path)
    half = features(encoder, samples, tmp_path, feature_dtype="float16")
    assert len(list(tmp_path.iterdir())) == 5
    assert half.shards[0].dtype == np.float16 and full.shards[0].dtype == np.float32
    np.testing.assert_allclose(everything(half), everything(full), atol=4e-3)
    with pytest.raises(ValueError, match="`feature_dtype` must be"):
        features(encoder, samples, tmp_path, feature_dtype="float64")


def test_a_full_disk_is_named(videos, encoder, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(feature_cache.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match="The features need .* GB"):
        features(encoder, videos[0][:9], tmp_path)


# --- Probes side by side -------------------------------------------------------------------------

CANDIDATES = ((1e-3, 0.01), (1e-2, 0.3), (3e-3, 0.0))


def toy(seed=0, count=24, predictions=1):
    rng = np.random.default_rng(seed)
    tokens = rng.normal(size=(count, predictions, 5, 8)).astype("float32")
    return tokens, rng.integers(12, size=count).astype("int32")


def steps_of(tokens, labels, steps, batch_size=8):
    for step in range(steps):
        rows = np.arange(step * batch_size, (step + 1) * batch_size) % len(labels)
        yield tokens[rows], labels[rows]


def trained(settings, steps=6, sweep=None, seed=3, predictions=1):
    sweep = sweep or ProbeSweep(settings, 8, 2)
    sweep.restart(seed, steps)
    stream = steps_of(*toy(predictions=predictions), steps)
    sweep.fit(stream, steps_per_epoch=steps, shuffle=False, verbose=0)
    return sweep


@pytest.mark.parametrize(
    "options",
    [{}, {"num_layers": 2, "constant_decay": True}],
)
def test_each_probe_gets_what_it_would_get_alone(options):
    both = ProbeSettings({"a": 12, "b": 1}, CANDIDATES, **options)
    together = trained(both)
    # On its own: one task, one candidate.
    alone = trained(dataclasses.replace(both, tasks={"a": 12}, candidates=CANDIDATES[1:2]))
    assert_close(
        together.probes_of("a")[1].get_weights(), alone.probes_of("a")[0].get_weights(), 1e-5
    )
    first, second = (together.probes_of("a")[i].get_weights() for i in (0, 1))
    assert max(np.abs(x - y).max() for x, y in zip(first, second, strict=True)) > 1e-3


@pytest.mark.parametrize("constant", [False, True])
def test_a_probe_learns_as_with_plain_adamw(constant):
    steps, (tokens, labels) = 6, toy()
    settings = ProbeSettings({"a": 3, "b": 4}, ((1e-2, 0.3),), constant, clip_norm=0.5)
    sweep = trained(settings, steps)
    plain = VJEPAProbe(4, 2)
    plain.build((None, 5, 8))
    keras.utils.set_random_seed(3)
    fresh = VJEPAProbe(4, 2)
    fresh.build((None, 5, 8))
    plain.set_weights(fresh.get_weights())
    decay = 0.3 if constant else CosineSchedule(0.3, 1e-6, steps)
    plain.compile(
        AdamW(CosineSchedule(1e-2, 0.0, steps), decay, clip_norm=0.5),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    batches = steps_of(tokens[:, 0], labels % 4, steps)
    plain.fit(batches, steps_per_epoch=steps, shuffle=False, verbose=0)
    assert_close(sweep.probes_of("b")[0].get_weights(), plain.get_weights(), 1e-5)


def test_several_predictions_are_a_mean_of_losses_and_of_softmax():
    tokens, labels = toy(predictions=3)
    sweep = ProbeSweep(ProbeSettings({"a": 12}, CANDIDATES[:2]), 8, 2)
    sweep.restart(0, 4)
    sweep.probes[1].set_weights([w + 0.1 for w in sweep.probes[1].get_weights()])
    single = np.stack(
        [
            keras.ops.convert_to_numpy(
                keras.ops.log_softmax(network(tokens.reshape(-1, 5, 8)))
            ).reshape(24, 3, 12)
            for network in sweep.probes
        ]
    )
    own = np.take_along_axis(single, labels[None, :, None, None], axis=-1)
    loss = sweep.compute_loss(None, labels, sweep(tokens, training=True))
    loss = keras.ops.convert_to_numpy(loss)
    np.testing.assert_allclose(loss, -own.mean(axis=(1, 2, 3)).sum(), rtol=1e-5)
    combined = keras.ops.convert_to_numpy(sweep(tokens)["a"])
    np.testing.assert_allclose(
        np.exp(combined), np.exp(single).mean(axis=2).transpose(1, 0, 2), atol=1e-5
    )


def test_a_second_training_starts_afresh_and_compiles_nothing(monkeypatch):
    sweep = trained(ProbeSettings({"a": 3, "b": 4}, CANDIDATES[:2]))
    first = weights_of(sweep)
    traced = []
    original = ProbeSweep.call
    monkeypatch.setattr(
        ProbeSweep, "call", lambda self, *a, **k: traced.append(1) or original(self, *a, **k)
    )
    trained(None, steps=3, sweep=sweep, seed=4)
    assert max(np.abs(x - y).max() for x, y in zip(first, weights_of(sweep), strict=True)) > 1e-4
    trained(None, sweep=sweep)
    assert_close(weights_of(sweep), first, 0)
    # Torch has no compiled step: there it is called once for each.
    assert len(traced) == (9 if keras.config.backend() == "torch" else 0)


def test_labels_of_several_tasks():
    settings = ProbeSettings({"a": 3, "b": 4, "c": 2})
    found = settings.split_labels(np.array([0, 1, 2, 23]))
    assert {task: labels.tolist() for task, labels in found.items()} == {
        "a": [0, 0, 0, 2],
        "b": [0, 0, 1, 3],
        "c": [0, 1, 0, 1],
    }


# --- Splits and numbers --------------------------------------------------------------------------


def test_validation_is_spread_over_classes_and_disjoint():
    samples = [Sample(f"{i}.mp4", i % 100) for i in range(2000)]
    config = small(learning_rates=(1e-3, 3e-3))
    whole = probe_evaluation.make_split(config, samples, 0)
    assert len(whole.validation) == 200 and len(whole.training) == 1800
    assert not {s.path for s in whole.training} & {s.path for s in whole.validation}
    counts = np.bincount([s.label for s in whole.validation], minlength=100)
    assert counts.min() >= 1 and counts.max() <= 3
    few = probe_evaluation.make_split(dataclasses.replace(config, fraction=0.05), samples, 0)
    assert len(few.training) + len(few.validation) == 100 and len(few.validation) == 10
    again = probe_evaluation.make_split(dataclasses.replace(config, fraction=0.05), samples, 0)
    other = probe_evaluation.make_split(dataclasses.replace(config, fraction=0.05), samples, 1)
    assert again == few != other
    alone = probe_evaluation.make_split(small(), samples, 0)
    assert alone.training == samples and not alone.validation


def test_a_class_without_training_samples_is_named():
    samples = [Sample(f"{i}.mp4", 10 * (i % 9) + i % 10) for i in range(400)]
    with pytest.raises(ValueError, match="every class of `digit`. Missing: 9"):
        probe_evaluation.make_split(small(), samples, 0)


def test_a_missing_class_is_named_before_features_are_computed(videos, encoder, tmp_path):
    train = [sample for sample in videos[0] if sample.label % 10 != 3]
    with pytest.raises(ValueError, match="every class of `motion`. Missing: 3"):
        probe_evaluation.make_evaluator(small(), encoder, (train, videos[1]), tmp_path / "features")
    assert not (tmp_path / "features").exists()


def test_the_best_probe_is_chosen_on_validation(videos, encoder, tmp_path):
    config = small(learning_rates=(1e-3, 3e-3))
    evaluator = probe_evaluation.make_evaluator(config, encoder, videos, tmp_path)
    split = probe_evaluation.make_split(config, videos[0], 0)
    settings = evaluator.sweep.settings

    def right(samples, which):
        """Logits of two candidates, of which one is right everywhere and the other nowhere."""
        labels = labels_of(samples, settings)["motion"]
        rows = [labels, (labels + 1) % 10]
        rows = rows if which == 0 else rows[::-1]
        return np.eye(10, dtype="float32")[np.stack(rows, axis=1)]

    found = evaluator._report("motion", split, right(videos[1], 0), right(split.validation, 1), 20)
    assert found["best"] == 1 and found["top1"] == 0.0
    assert [c["test"] for c in found["candidates"]] == [1.0, 0.0]
    assert [c["validation"] for c in found["candidates"]] == [0.0, 1.0]


def test_measures():
    logits = np.array([[3, 2, 1], [3, 2, 1], [1, 2, 3], [np.nan] * 3, [0, 0, 0]], "float32")
    labels = np.array([0, 1, 2, 1, 2])
    found = probe_evaluation.measures(logits, labels, 4, 5)
    # The unreadable one is wrong, and so is one whose classes are all alike.
    assert found["top1"] == 2 / 5 and found["top5"] == 4 / 5
    assert found["per_class"] == [1.0, 0.0, 0.5, None]
    assert found["predictions"] == [0, 0, 2, None, 0]
    assert top_k(logits, labels, 2).tolist() == [True, True, True, False, False]
    matrix = probe_evaluation.confusion_matrix(labels.tolist(), found["predictions"], 4, 10)
    assert matrix.tolist() == [[1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]
    coarse = probe_evaluation.confusion_matrix(labels.tolist(), found["predictions"], 4, 2)
    assert coarse.tolist() == [[2, 0], [1, 1]]


@pytest.mark.parametrize("online", [False, True])
def test_an_unreadable_test_video_is_wrong(online, videos, encoder, tmp_path, caplog):
    train, test = videos
    test = [*test[:7], Sample(str(tmp_path / "missing.mp4"), 3), *test[7:10]]
    config = small(online=online, max_bad_share=0.5)
    results = {}
    for skip, verdict in ((False, "Counted as wrong"), (True, "Not counted")):
        changed = dataclasses.replace(config, skip_unreadable=skip)
        caplog.clear()
        evaluator = probe_evaluation.make_evaluator(changed, encoder, (train, test), tmp_path)
        results[skip] = evaluator(0)["motion"]
        assert "missing.mp4" in caplog.text and verdict in caplog.text
    assert [results[skip]["num_counted"] for skip in (False, True)] == [11, 10]
    assert results[False]["predictions"][7] is None
    assert results[False]["predictions"].count(None) == 1
    assert 11 * results[False]["top1"] == pytest.approx(10 * results[True]["top1"])
    with pytest.raises(TooManyBadFilesError):
        strict = dataclasses.replace(config, max_bad_share=0.05, num_frames=4, temporal_stride=3)
        probe_evaluation.make_evaluator(strict, encoder, (train, test), tmp_path)(0)


# --- Configs -------------------------------------------------------------------------------------


def test_configs_hold_the_numbers_of_table_10():
    configs = {name: CONFIGS[name]() for name in ("k400", "ssv2", "in1k", "places205", "inat21")}
    assert [c.num_classes for c in configs.values()] == [(400,), (174,), (1000,), (205,), (10000,)]
    assert [(c.num_clips, c.num_views) for c in configs.values()] == [(8, 3), (2, 3)] + [(1, 1)] * 3
    assert [c.batch_size for c in configs.values()] == [256, 256, 1024, 1024, 1024]
    assert [c.weight_decays for c in configs.values()] == [(0.01,)] * 2 + [(0.001,)] * 3
    for config in configs.values():
        assert (config.num_frames, config.temporal_stride, config.epochs) == (16, 4, 20)
        assert config.learning_rates == (1e-3,) and config.erasing == 0.25 and config.auto_augment
        assert config.horizontal_flip == (0.5 if config.images else 0.0)
        paper = as_in_the_paper(config)
        assert paper.weight_decays == (0.01,) and paper.constant_decay and paper.erasing == 0.0
        assert paper.horizontal_flip == 0.5 and paper.auto_augment == config.images
        assert (paper.num_heads, paper.head_dim) == (12, 12)


def test_transforms_follow_the_config():
    video = probe_evaluation.training_transform(CONFIGS["k400"]())
    assert type(video.augmentation).__name__ == "RandAugment" and video.erasing == 0.25
    image = probe_evaluation.training_transform(CONFIGS["in1k"]())
    assert type(image.augmentation).__name__ == "AutoAugment" and image.horizontal_flip == 0.5
    paper = probe_evaluation.training_transform(as_in_the_paper(CONFIGS["k400"]()))
    assert paper.augmentation is None and paper.horizontal_flip == 0.5
    frames = np.zeros((4, 40, 60, 3), np.uint8)
    views = probe_evaluation.test_transform(CONFIGS["k400"](), 3)(frames)
    assert views.shape == (3, 4, 224, 224, 3)
    moving = np.arange(4, dtype=np.uint8)[:, None, None, None] * np.ones_like(frames)
    single = probe_evaluation.still(lambda frames: frames)(moving)
    assert single.shape == moving.shape and not single.any() and moving.any()
    with pytest.raises(ValueError, match="`num_views` must be 1 or 3. Received: 2"):
        probe_evaluation.test_transform(CONFIGS["k400"](), 2)


def test_command_line():
    config, workdir = probe.parse_arguments(
        "--config in1k --variant paper --data a --test_data b --learning_rates 1e-3,1e-2 "
        "--augment false --fraction 0.05 --splits 3".split()
    )
    assert config.learning_rates == (1e-3, 1e-2) and config.constant_decay and not config.augment
    assert (config.fraction, config.splits, config.data) == (0.05, 3, "a")
    assert str(workdir) == "workdir/probe_in1k"
    # The built-in sets need no `--data`.
    config, _ = probe.parse_arguments(["--config", "digit_motion_black"])
    assert (config.data, config.image_size) == ("digit_motion_black", 32)


def refused(arguments, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["probe.py", *arguments])
    with pytest.raises(SystemExit) as exit_info:
        probe.main()
    message = str(exit_info.value.code)
    assert message.startswith("probe.py: ") and len(message.splitlines()) == 1
    return message


def test_bad_input_is_named(built_in, videos, monkeypatch, tmp_path):
    refuse = lambda *arguments: refused(list(arguments), monkeypatch, tmp_path)  # noqa: E731
    assert "`data` must be given" in refuse("--config", "k400")
    assert "`variant` must be 'paper'" in refuse("--variant", "mine")
    assert "nowhere" in refuse("--preset", "nowhere")
    encoder = VJEPABackbone(48, 4, patch_size=8, hidden_dim=24, num_layers=1, num_heads=2)
    encoder.save_to_preset(tmp_path / "preset")
    assert "`image_size` must be 48" in refuse("--preset", "preset")
    assert "`num_clips` must be" in refuse(
        "--num_frames", "4", "--image_size", "48", "--preset", "preset", "--num_clips", "0"
    )


# --- Data ----------------------------------------------------------------------------------------


@pytest.mark.data
def test_sources_of_data(tmp_path):
    for split in ("train", "val"):
        for name in ("cat", "cow"):
            (tmp_path / "set" / split / name).mkdir(parents=True)
            (tmp_path / "set" / split / name / "1.jpg").touch()
        (tmp_path / f"{split}.csv").write_text(f"/videos/{split}.mp4 4\n")
        rows = "label,youtube_id,time_start,time_end\n" + "b,x,0,10\na,y,0,10\n"
        (tmp_path / f"kinetics_{split}.csv").write_text(rows)
        (tmp_path / f"ssv2_{split}.json").write_text('[{"id": "7", "template": "Do [it]"}]')
    (tmp_path / "labels.json").write_text('{"Do it": "5"}')
    folder = str(tmp_path)
    read = labelled_sets.train_and_test
    train, test = read(f"{folder}/set", kind="image")
    assert [s.label for s in train] == [0, 1] and "val" in test[0].path
    train, test = read(f"{folder}/train.csv", f"{folder}/val.csv")
    assert (train[0].label, test[0].path) == (4, "/videos/val.mp4")
    train, _ = read(f"{folder}/kinetics_train.csv", f"{folder}/kinetics_val.csv", "/videos")
    assert [s.label for s in train] == [1, 0]
    train, _ = read(
        f"{folder}/ssv2_train.json", f"{folder}/ssv2_val.json", "/v", f"{folder}/labels.json"
    )
    assert train == [Sample("/v/7.webm", 5)]
    with pytest.raises(ValueError, match="`test_data` must be given"):
        read(f"{folder}/train.csv")
    with pytest.raises(ValueError, match="`videos` must be given"):
        read(f"{folder}/kinetics_train.csv", f"{folder}/kinetics_val.csv")


# --- The commands --------------------------------------------------------------------------------


@pytest.mark.slow
def test_run_is_saved_stopped_continued_and_repeated(built_in, encoder, tmp_path, monkeypatch):
    encoder.save_to_preset(tmp_path / "preset")
    config = small(
        preset=str(tmp_path / "preset"), fraction=0.9, splits=2, learning_rates=(1e-3, 1e-2)
    )
    expected = probe.run(config, tmp_path / "a")
    names = {path.name for path in (tmp_path / "a").iterdir()}
    tasks = ("digit", "motion")
    assert names == {"features", "result.json", "unfinished"} | {
        name for task in tasks for name in (f"confusion_{task}.png", f"classifier_{task}")
    }
    assert not any((tmp_path / "a" / "unfinished").iterdir())
    stored = json.loads((tmp_path / "a" / "result.json").read_text())
    assert stored["splits"] == expected and len(stored["splits"][0]["digit"]["per_class"]) == 10
    calls = []
    original = probe_evaluation.Evaluator.__call__

    def stop_in_the_second(self, index, progress=None):
        calls.append(index)
        if calls == [0, 1]:
            raise KeyboardInterrupt
        return original(self, index, progress)

    monkeypatch.setattr(probe_evaluation.Evaluator, "__call__", stop_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        probe.run(config, tmp_path / "b")
    assert probe.run(config, tmp_path / "b") == expected
    assert calls == [0, 1, 1]


def test_several_views_and_clips_with_augmentation(built_in, encoder, tmp_path):
    encoder.save_to_preset(tmp_path / "preset")
    config = small(
        preset=str(tmp_path / "preset"),
        num_clips=2,
        num_views=3,
        augment=True,
        temporal_stride=2,
        learning_rates=(1e-3,),
    )
    [result] = probe.run(config, tmp_path / "run")
    assert not (tmp_path / "run" / "features").exists()
    classifier = VJEPAVideoClassifier.from_preset(tmp_path / "run" / "classifier_motion")
    predictions = []
    for inputs, _, _ in probe_evaluation.clip_batches(config, built_in[1], 3, 5).stream():
        assert inputs.shape[1:4] == (2, 3, 4)
        predictions += classifier.predict_on_batch(inputs).argmax(axis=-1).tolist()
    assert predictions == result["motion"]["predictions"]


def test_an_online_training_goes_on_after_its_last_epoch(videos, encoder, tmp_path, monkeypatch):
    config = small(online=True, epochs=2, temporal_stride=2)
    make = lambda: probe_evaluation.make_evaluator(config, encoder, videos, tmp_path)  # noqa: E731
    straight, stopped, resumed = make(), make(), make()
    straight(0, tmp_path / "a.npz")
    original = ProbeSweep.train_on

    def stop_in_the_second(self, batches, start, stop, parallel):
        if start:
            raise KeyboardInterrupt
        original(self, batches, start, stop, parallel)

    with monkeypatch.context() as patch:
        patch.setattr(ProbeSweep, "train_on", stop_in_the_second)
        with pytest.raises(KeyboardInterrupt):
            stopped(0, tmp_path / "b.npz")
    resumed(0, tmp_path / "b.npz")
    assert_close(weights_of(resumed.sweep), weights_of(straight.sweep), 1e-6)


@pytest.mark.slow
def test_table(built_in, encoder, tmp_path):
    encoder.save_to_preset(tmp_path / "preset")
    config = small(preset=str(tmp_path / "preset"), splits=2)
    rows = tuple(
        dataclasses.replace(row, changes={**row.changes, "fraction": 0.9})
        if row.changes.get("fraction", 1.0) < 0.5
        else dataclasses.replace(
            row,
            changes={
                name: 2 if name == "temporal_stride" else value
                for name, value in row.changes.items()
            },
        )
        for row in probe_table.ROWS
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe_table, "ROWS", rows)
        table = probe_table.run(config, tmp_path / "run")
        lines = table.splitlines()
        assert len(lines) == 2 + len(rows) and all(line.count("|") == 4 for line in lines)
        assert (tmp_path / "run" / "table.md").read_text() == table
        patch.setattr(probe_evaluation.Evaluator, "__call__", None)
        assert probe_table.run(config, tmp_path / "run") == table


def test_untrained_row_is_what_pretraining_began_with(encoder, tmp_path):
    encoder.save_to_preset(tmp_path / "preset")
    config = small(preset=str(tmp_path / "preset"))
    fresh = probe_table.make_untrained(config, encoder)
    assert_close(fresh.get_weights(), probe_table.make_untrained(config, encoder).get_weights(), 0)
    for variable in fresh.trainable_variables:
        variable.assign(variable + 1.0)
    fresh.save_to_preset(tmp_path / "untrained")
    found = probe_table.make_untrained(config, encoder)
    assert_close(found.get_weights(), fresh.get_weights(), 0)
