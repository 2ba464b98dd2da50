"""Features computed once: the same numbers as online, kept, found again, and never mixed up."""

import json
import logging
import os
import resource
import shutil

import keras
import numpy as np
import pytest

from keras_vjepa import VJEPABackbone, VJEPAVideoClassifier
from keras_vjepa.evaluation import feature_cache
from keras_vjepa.evaluation.features import FeatureExtractor, features_in_memory
from keras_vjepa.evaluation.frozen_probe import FrozenProbe
from keras_vjepa.evaluation.probe_batches import ProbeBatches
from keras_vjepa.evaluation.readouts import nearest_neighbors, ridge_classifier
from keras_vjepa.evaluation.views import evaluation_clips
from tests.evaluation.support import assert_close, everything, small, weights_of
from tests.support import slow_but_on


@pytest.mark.parametrize(
    "clips, attend", [(1, True), pytest.param(2, False, marks=slow_but_on("torch"))]
)
def test_kept_features_give_the_online_path_s_numbers(
    clips, attend, digit_videos, small_encoder, tmp_path
):
    # The window is shorter than its segment of the video, so a clip could be in several places.
    settings = small(
        num_clips=clips, num_frames=4, temporal_stride=2 // clips, attend_across_clips=attend
    )
    train, test = digit_videos
    cached = FrozenProbe(small_encoder, settings, tmp_path)
    online = FrozenProbe(small_encoder, settings, tmp_path, online=True)
    results = [probe.fit(train).score(test) for probe in (cached, online)]
    assert cached.batches.extractor is not None and online.batches.extractor is None
    assert_close(weights_of(cached.sweep), weights_of(online.sweep), 1e-6)
    assert results[0]["motion"]["predictions"] == results[1]["motion"]["predictions"]
    # The checks without training use the same features.
    kept = [cached.batches.features(train), cached.batches.features(test, is_test=True)]
    pooled = [everything(features).mean(axis=(1, 2)) for features in kept]
    labels = [np.array([sample.label for sample in part]) % 10 for part in digit_videos]
    for readout in (nearest_neighbors, ridge_classifier):
        right = readout(pooled[0], labels[0], pooled[1], 10).argmax(axis=1) == labels[1]
        found = results[0]["motion"]["readouts"][readout.__name__]
        assert found == pytest.approx(right.mean(), abs=1e-6)
    assert results[1]["motion"]["readouts"] == {}


def counted(monkeypatch, extractor_class=FeatureExtractor):
    """Batches that were encoded so far."""
    seen = []
    original = extractor_class.predict_on_batch
    monkeypatch.setattr(
        extractor_class,
        "predict_on_batch",
        lambda self, videos: seen.append(len(videos)) or original(self, videos),
    )
    return seen


def inputs(encoder, samples, **changes):
    settings = small(**changes)
    extractor = FeatureExtractor(VJEPAVideoClassifier(encoder, 10))
    return extractor, evaluation_clips(settings, samples, 1, settings.feature_batch_size), settings


def features(encoder, samples, folder, **changes):
    extractor, batches, settings = inputs(encoder, samples, **changes)
    return feature_cache.cached_features(
        folder, "train", extractor, batches, {}, settings.feature_dtype, batches_per_shard=2
    )


def test_a_cache_goes_on_where_it_was_stopped(digit_videos, small_encoder, tmp_path, monkeypatch):
    samples = digit_videos[0][:37]
    complete = everything(features(small_encoder, samples, tmp_path / "a"))
    assert complete.shape == (37, 1, 2 * 16, 24)
    seen = counted(monkeypatch)
    original = FeatureExtractor.predict_on_batch

    def stop_at_the_fourth(self, batch):
        if len(seen) == 3:
            raise KeyboardInterrupt
        return original(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(FeatureExtractor, "predict_on_batch", stop_at_the_fourth)
        with pytest.raises(KeyboardInterrupt):
            features(small_encoder, samples, tmp_path / "b")
    [folder] = (tmp_path / "b").iterdir()
    assert {path.name for path in folder.iterdir()} == {"manifest.json", "00000.json", "00000.npy"}
    seen.clear()
    found = features(small_encoder, samples, tmp_path / "b")
    np.testing.assert_array_equal(everything(found), complete)
    assert len(seen) == 3
    seen.clear()
    features(small_encoder, samples, tmp_path / "b")
    assert not seen


def test_memory_holds_what_the_disk_holds(digit_videos, small_encoder, tmp_path):
    samples = [*digit_videos[0][:9], type(digit_videos[0][0])(str(tmp_path / "missing.mp4"), 0)]
    extractor, batches, _ = inputs(small_encoder, samples, max_bad_share=0.5)
    memory = features_in_memory(extractor, batches)
    disk = features(small_encoder, samples, tmp_path, max_bad_share=0.5)
    np.testing.assert_array_equal(everything(memory), everything(disk))
    assert memory.unreadable == disk.unreadable and list(disk.unreadable) == [samples[-1].path]
    assert not everything(memory)[-1].any()


def test_other_features_have_another_folder(
    digit_videos, small_encoder, tmp_path, monkeypatch, caplog
):
    # TensorFlow logs messages of its own.
    monkeypatch.setattr(logging.getLogger("tensorflow"), "propagate", False)
    samples = digit_videos[0][:9]
    other = VJEPABackbone.from_config(small_encoder.get_config())
    other.set_weights([weight + 0.1 for weight in small_encoder.get_weights()])
    same = VJEPABackbone.from_config(small_encoder.get_config())
    same.set_weights(small_encoder.get_weights())
    full = features(small_encoder, samples, tmp_path)
    features(same, samples, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1 and not caplog.records
    features(other, samples, tmp_path)
    [first] = caplog.records
    assert first.getMessage().startswith("Features are computed anew: those in ")
    assert first.getMessage().endswith(" are of another encoder.")
    features(small_encoder, samples, tmp_path, temporal_stride=2)
    assert caplog.records[-1].getMessage().endswith(" are of another clip.")
    features(small_encoder, samples[::-1], tmp_path)
    half = features(small_encoder, samples, tmp_path, feature_dtype="float16")
    assert len(list(tmp_path.iterdir())) == 5
    assert half.shards[0].dtype == np.float16 and full.shards[0].dtype == np.float32
    np.testing.assert_allclose(everything(half), everything(full), atol=4e-3)
    with pytest.raises(ValueError, match="`feature_dtype` must be"):
        features(small_encoder, samples, tmp_path, feature_dtype="float64")


def test_a_full_disk_is_named(digit_videos, small_encoder, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(feature_cache.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match="The features need .* GB"):
        features(small_encoder, digit_videos[0][:9], tmp_path)


@pytest.fixture
def copies(digit_videos, tmp_path):
    """Samples in a folder whose files may be changed, older than any features of them."""
    (tmp_path / "videos").mkdir()
    copied = []
    for sample in digit_videos[0][:33]:
        path = tmp_path / "videos" / os.path.basename(sample.path)
        shutil.copyfile(sample.path, path)
        os.utime(path, (1, 1))
        copied.append(type(sample)(str(path), sample.label))
    return copied


def replace_by_another(sample, other):
    """Another video of the same name, size and times."""
    content, size = open(other.path, "rb").read(), os.path.getsize(sample.path)
    assert len(content) <= size
    with open(sample.path, "wb") as file:
        file.write(content + bytes(size - len(content)))
    os.utime(sample.path, (1, 1))


@pytest.fixture
def replaced(copies):
    """The largest of the first samples, and one that fits into its place."""
    return max(copies[:16], key=lambda s: os.path.getsize(s.path)), copies[32]


def test_a_replaced_file_has_its_features_computed_anew(
    copies, replaced, small_encoder, tmp_path, monkeypatch, caplog
):
    before = everything(features(small_encoder, copies, tmp_path / "a"))
    row = copies.index(replaced[0])
    replace_by_another(*replaced)
    seen = counted(monkeypatch)
    found = everything(features(small_encoder, copies, tmp_path / "a"))
    [record] = caplog.records
    assert record.getMessage() == (
        f"Features are computed anew: {replaced[0].path} has another content than when its "
        "features were computed."
    )
    # Only its shard of two batches is computed again.
    assert len(seen) == 2
    changed = (found != before).any(axis=(1, 2, 3))
    assert np.flatnonzero(changed).tolist() == [row]
    np.testing.assert_allclose(found[row], found[32], atol=1e-5)
    seen.clear()
    features(small_encoder, copies, tmp_path / "a")
    assert seen == [] and len(caplog.records) == 1


def test_a_file_that_was_missing_is_read_when_it_is_there(
    copies, small_encoder, tmp_path, monkeypatch
):
    os.rename(copies[3].path, tmp_path / "away")
    assert features(small_encoder, copies, tmp_path / "a", max_bad_share=0.5).unreadable
    shutil.copyfile(tmp_path / "away", copies[3].path)
    found = features(small_encoder, copies, tmp_path / "a")
    assert not found.unreadable and everything(found)[3].any()


def test_what_could_not_be_read_is_tried_again_in_another_way(
    copies, small_encoder, tmp_path, monkeypatch, caplog
):
    """With larger limits, or with another decoder."""
    small_limit = {"max_frame_pixels": 100, "max_bad_share": 1.0}
    features(small_encoder, copies[:9], tmp_path / "a", **small_limit)
    seen = counted(monkeypatch)
    features(small_encoder, copies[:9], tmp_path / "a", **small_limit)
    assert not seen
    found = features(small_encoder, copies[:9], tmp_path / "a")
    assert not found.unreadable and everything(found).any(axis=(1, 2, 3)).all()
    assert "could not be read, and files are read in another way now" in caplog.text
    seen.clear()
    # Files that could be read are not read again.
    features(small_encoder, copies[:9], tmp_path / "a", **small_limit)
    assert not seen


def test_a_disk_that_becomes_full_is_an_error(copies, small_encoder, tmp_path, monkeypatch):
    """It would be the end of the process if the file were mapped into memory."""
    monkeypatch.setattr(feature_cache, "_check_space", lambda *_: None)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
    try:
        with pytest.raises(OSError, match=r"File too large: .*00000.npy"):
            features(small_encoder, copies[:9], tmp_path / "a")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def empty(path):
    os.truncate(path, 0)


def of_another_shape(path):
    np.save(path, np.zeros((3, 1, 32, 24), "float32"))


def a_list(path):
    path.write_text("[]")


def swap_rows(path):
    array = np.load(path)
    np.save(path, array[::-1])


def make_a_pipe(path):
    path.unlink()
    os.mkfifo(path)


def nest_deep(path):
    path.write_text('{"a":' * 3000 + "1" + "}" * 3000)


def noting(**changes):
    return lambda path: path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("00001.npy", swap_rows),
        ("00001.npy", make_a_pipe),
        ("00001.json", nest_deep),
        ("00001.json", noting(contents=[])),
        ("00001.json", noting(unreadable={"a.mp4": 5})),
        *((name, damage) for name in ("00001.npy", "00001.json") for damage in (cut, empty)),
        ("00001.npy", of_another_shape),
        ("00001.json", a_list),
        ("00001.json", os.remove),
    ],
)
def test_a_damaged_shard_is_named_and_made_anew(
    name, damage, copies, small_encoder, tmp_path, monkeypatch, caplog
):
    complete = everything(features(small_encoder, copies, tmp_path / "a"))
    [folder] = (tmp_path / "a").iterdir()
    damage(folder / name)
    seen = counted(monkeypatch)
    found = everything(features(small_encoder, copies, tmp_path / "a"))
    np.testing.assert_array_equal(found, complete)
    assert len(seen) == 2 and f"anew: {folder / name} is damaged" in caplog.text


def test_one_run_at_a_time_computes_a_cache(copies, small_encoder, tmp_path, monkeypatch):
    locks, original = [], FeatureExtractor.predict_on_batch

    def predict_on_batch(self, videos):
        locks.append(len(list((tmp_path / "a").glob("*/.lock"))))
        return original(self, videos)

    monkeypatch.setattr(FeatureExtractor, "predict_on_batch", predict_on_batch)
    features(small_encoder, copies[:9], tmp_path / "a")
    assert locks == [1, 1] and not list((tmp_path / "a").glob("*/.lock"))


def test_a_damaged_manifest_is_made_anew(copies, small_encoder, tmp_path, monkeypatch, caplog):
    features(small_encoder, copies[:9], tmp_path / "a")
    [manifest] = (tmp_path / "a").glob("*/manifest.json")
    before = manifest.read_text()
    cut(manifest)
    features(small_encoder, copies[:9], tmp_path / "a", temporal_stride=2)
    assert caplog.records[-1].getMessage().startswith("Features are computed anew: those in")
    seen = counted(monkeypatch)
    features(small_encoder, copies[:9], tmp_path / "a")
    assert seen == [] and manifest.read_text() == before


def test_shards_of_before_hold_unless_a_file_is_newer(
    copies, replaced, small_encoder, tmp_path, monkeypatch, caplog
):
    features(small_encoder, copies, tmp_path / "a")
    [folder] = (tmp_path / "a").iterdir()
    for path in folder.glob("0*.json"):
        path.write_text(json.dumps(json.loads(path.read_text())["unreadable"]))
    seen = counted(monkeypatch)
    os.utime(copies[20].path)
    features(small_encoder, copies, tmp_path / "a")
    assert len(seen) == 2 and f"{copies[20].path} is newer than the features" in caplog.text
    # From then on, the contents of the files are stored.
    assert all("contents" in json.loads(path.read_text()) for path in folder.glob("0*.json"))
    replace_by_another(*replaced)
    features(small_encoder, copies, tmp_path / "a")
    assert len(seen) == 4 and f"{replaced[0].path} has another content" in caplog.text


# Before the first release, features of this encoder were in a folder of this name, which is a hash
# of the manifest.
@pytest.mark.parametrize(
    ("changes", "short_side"),
    [({}, "crop"), ({"short_side": None}, "256/224"), ({"short_side": 40}, 40)],
)
def test_the_manifest_is_that_of_the_first_caches(
    changes, short_side, digit_videos, small_encoder, tmp_path
):
    settings = small(num_views=3, **changes)
    classifier = VJEPAVideoClassifier(small_encoder, 10, num_views=3)
    batches = ProbeBatches(settings, classifier, tmp_path)
    batches.features(digit_videos[1][:8], is_test=True)
    [path] = tmp_path.glob("test-*/manifest.json")
    assert json.loads(path.read_text()) == {
        "attend_across_clips": True,
        "backend": keras.config.backend(),
        "clip": {
            "allow_clip_overlap": True,
            "frame_step": 4,
            "frames_per_clip": 4,
            "num_clips": 1,
        },
        "dtype": "float32",
        "encoder": feature_cache.fingerprint(small_encoder),
        "image_size": 32,
        "images": False,
        "num_views": 3,
        "samples": feature_cache.hash_of_samples(digit_videos[1][:8]),
        "samples_per_shard": 128,
        "seed": 0,
        "short_side": short_side,
        "single_frame": False,
    }


def test_how_far_it_is_is_said(tmp_path, capsys):
    paths = [tmp_path / name for name in ("0.npy", "1.npy")]
    feature_cache._say_how_many("Features", paths, paths[1:])
    assert capsys.readouterr().err == "Features: 1 of 2 parts done.\n"
