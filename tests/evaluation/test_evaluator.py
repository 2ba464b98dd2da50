"""Evaluations over several splits: stopped, gone on with, repeated, and never mixed up."""

import json
import logging
import os
import shutil
from dataclasses import replace

import keras
import numpy as np
import pytest

from keras_vjepa import VJEPABackbone
from keras_vjepa.data.sources.samples import Sample
from keras_vjepa.evaluation.evaluator import Evaluator
from keras_vjepa.evaluation.frozen_probe import FrozenProbe
from keras_vjepa.evaluation.sweep import ProbeSweep
from keras_vjepa.locks import FolderInUseError
from keras_vjepa.training.run_state import Checkpoints
from tests.evaluation.support import assert_close, small, weights_of
from tests.support import lock_holder, slow_but_on


def evaluator(encoder, videos, folder, single_frame=False, **changes):
    probe = FrozenProbe(encoder, small(**changes), single_frame=single_frame)
    return Evaluator(probe, *videos, folder)


@slow_but_on("torch")
def test_it_goes_on_with_the_split_that_was_stopped(
    digit_videos, small_encoder, tmp_path, monkeypatch
):
    settings = {"fraction": 0.9, "learning_rates": (1e-3, 1e-2)}
    expected = evaluator(small_encoder, digit_videos, None, **settings)(splits=2)
    assert len(expected) == 2 and expected[0] != expected[1]
    calls = []
    original = FrozenProbe.fit

    def stop_in_the_second(self, samples, index=0, checkpoints=None):
        calls.append(index)
        if calls == [0, 1]:
            raise KeyboardInterrupt
        return original(self, samples, index, checkpoints)

    monkeypatch.setattr(FrozenProbe, "fit", stop_in_the_second)
    seen = []
    with pytest.raises(KeyboardInterrupt):
        evaluator(small_encoder, digit_videos, tmp_path, **settings)(
            2, lambda index, metrics: seen.append((index, metrics))
        )
    assert seen == [(0, expected[0])]
    again = evaluator(small_encoder, digit_videos, tmp_path, **settings)
    assert not again.is_finished(2) and again.is_finished(1)
    assert again(2) == expected and calls == [0, 1, 1] and again.is_finished(2)
    # A finished evaluation computes nothing, and leaves only its metrics.
    assert again(2) == expected and calls == [0, 1, 1]
    assert all(path.suffix == ".json" for path in tmp_path.iterdir())
    with pytest.raises(ValueError, match="`splits` must be at least 1. Received: 0"):
        again(0)


@slow_but_on("torch")
def test_features_are_computed_of_the_samples_of_any_split(
    digit_videos, small_encoder, tmp_path, monkeypatch
):
    """Of no others, unless they are there; the results are those of all features."""
    train, test = ([replace(s, label=i % 2) for i, s in enumerate(part)] for part in digit_videos)
    few = {"tasks": ("digit",), "num_classes": (2,), "fraction": 0.2}

    def evaluated(cache, **changes):
        probe = FrozenProbe(small_encoder, small(**{**few, **changes}), cache)
        return Evaluator(probe, train, test)(splits=2), probe

    found, probe = evaluated(tmp_path / "few")
    used = [probe.batches.features(train).samples, *(probe.split(train, i) for i in (0, 1))]
    assert {s.path for s in used[0]} == {s.path for one in used[1:] for s in one.training}
    assert 12 < len(used[0]) < 60
    # Samples that were not planned for are found in the features of all.
    probe.fit(train, index=7)
    assert len(probe.batches.features(train).samples) == 60
    whole, _ = evaluated(tmp_path / "all", fraction=1.0)
    folders = {*(tmp_path / "all").iterdir()}
    assert evaluated(tmp_path / "all")[0] == found and {*(tmp_path / "all").iterdir()} == folders
    monkeypatch.setattr(FrozenProbe, "plan", lambda self, samples, splits: None)
    again, probe = evaluated(None)
    assert again == found and len(probe.batches.features(train).samples) == 60


def test_another_evaluation_has_another_key(digit_videos, small_encoder):
    train, test = digit_videos
    other = VJEPABackbone.from_config(small_encoder.get_config())
    other.set_weights([weight + 0.1 for weight in small_encoder.get_weights()])
    relabelled = [Sample(s.path, (s.label + 1) % 100) for s in train]
    same = evaluator(small_encoder, digit_videos, None).key
    assert evaluator(small_encoder, digit_videos, None, num_workers=1).key == same
    keys = [
        same,
        evaluator(other, digit_videos, None).key,
        evaluator(small_encoder, (train[:-1], test), None).key,
        evaluator(small_encoder, (relabelled, test), None).key,
        evaluator(small_encoder, digit_videos, None, single_frame=True).key,
        evaluator(small_encoder, digit_videos, None, mlp_ratio=2.0).key,
        evaluator(small_encoder, digit_videos, None, beta_2=0.9).key,
        evaluator(small_encoder, digit_videos, None, seed=1).key,
        evaluator(small_encoder, digit_videos, None, max_frame_pixels=10_000).key,
        evaluator(small_encoder, digit_videos, None, max_file_seconds=1.0).key,
    ]
    assert len(set(keys)) == len(keys)


@slow_but_on("torch")
@pytest.mark.parametrize("left", ["unfinished/0123456789abcdef-0.npz", "splits/0123abcd.json"])
def test_what_an_earlier_version_left_is_named(left, digit_videos, small_encoder, tmp_path, caplog):
    (tmp_path / left).parent.mkdir(parents=True)
    (tmp_path / left).write_text("[]")
    one = evaluator(small_encoder, digit_videos, tmp_path / "splits")
    results = one()
    [record] = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert record.getMessage() == (
        f"{tmp_path / left} was written by an earlier version and is not used: "
        "the evaluation begins anew."
    )
    caplog.clear()
    assert one() == results and not caplog.records
    # Files of the current version are not mistaken for old ones.
    (tmp_path / left).unlink()
    evaluator(small_encoder, digit_videos, tmp_path / "splits", seed=1)()
    assert not caplog.records


def stop_in_the_second_epoch(patch):
    original = ProbeSweep.train_on

    def train_on(self, batches, start, stop, parallel):
        if start:
            raise KeyboardInterrupt
        original(self, batches, start, stop, parallel)

    patch.setattr(ProbeSweep, "train_on", train_on)


@slow_but_on("torch")
def test_an_online_training_goes_on_after_its_last_epoch(
    digit_videos, small_encoder, tmp_path, monkeypatch
):
    settings = {"online": True, "epochs": 2, "temporal_stride": 2}
    straight = evaluator(small_encoder, digit_videos, tmp_path / "a", **settings)
    expected = straight()
    with monkeypatch.context() as patch:
        stop_in_the_second_epoch(patch)
        with pytest.raises(KeyboardInterrupt):
            evaluator(small_encoder, digit_videos, tmp_path / "b", **settings)()
    [progress] = (tmp_path / "b").iterdir()
    [step] = Checkpoints(progress).steps()
    # 60 videos in batches of 8 are 8 steps.
    assert step == 8
    # The checkpoint does not contain the encoder, which has its own preset.
    arrays = Checkpoints(progress).latest().arrays
    assert sum(array.size for array in arrays.values()) < 4 * sum(
        weights.size for weights in weights_of(straight.probe.sweep)
    )
    resumed = evaluator(small_encoder, digit_videos, tmp_path / "b", **settings)
    assert resumed() == expected
    assert_close(weights_of(resumed.probe.sweep), weights_of(straight.probe.sweep), 1e-6)
    assert not progress.exists()


@slow_but_on("torch")
def test_a_probe_that_diverges_does_not_stop_the_others(
    digit_videos, small_encoder, tmp_path, caplog
):
    settings = {"online": True, "epochs": 1, "learning_rates": (1e30, 3e-3)}
    [metrics] = evaluator(small_encoder, digit_videos, tmp_path, **settings)()
    assert "no checkpoint was written" in caplog.text
    assert [np.isfinite(c["test"]) for c in metrics["motion"]["candidates"]] == [True, True]
    assert metrics["motion"]["candidates"][0]["validation"] == 0.0


def test_predictions_are_those_of_the_policy(digit_videos, small_encoder, tmp_path):
    """The precision of the probes is a part of what the numbers depend on."""
    keys = [evaluator(small_encoder, digit_videos, tmp_path).key]
    before = keras.config.dtype_policy()
    try:
        keras.config.set_dtype_policy("mixed_bfloat16")
        keys.append(evaluator(small_encoder, digit_videos, tmp_path).key)
    finally:
        keras.config.set_dtype_policy(before)
    assert keys[0] != keys[1]


# --- Damage, and others at work ------------------------------------------------------------------


@pytest.fixture
def counted(digit_videos, small_encoder, tmp_path, monkeypatch):
    """An evaluator that makes its metrics up, and the splits that it was asked for."""
    asked = []

    def metrics(self, index, checkpoints, after_split):
        asked.append(index)
        return {task: {"top1": index} for task in self.probe.settings.tasks}

    monkeypatch.setattr(Evaluator, "_metrics", metrics)
    return evaluator(small_encoder, digit_videos, tmp_path), asked


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def empty(path):
    os.truncate(path, 0)


def of_no_task(path):
    path.write_text(json.dumps({"digit": {}}))


def a_list(path):
    path.write_text("[1]")


def another_number(path):
    path.write_text(path.read_text().replace('"top1": 1', '"top1": 3'))


@pytest.mark.data
@pytest.mark.parametrize("damage", [cut, empty, of_no_task, a_list, another_number])
def test_a_damaged_split_is_named_and_computed_anew(damage, counted, caplog):
    one, asked = counted
    expected = one(splits=3)
    assert asked == [0, 1, 2] and one(splits=3) == expected and asked == [0, 1, 2]
    damage(one._path(1))
    assert not one.is_finished(3) and one.is_finished(1)
    assert one(splits=3) == expected and asked == [0, 1, 2, 1]
    assert caplog.messages == [f"Damaged, and computed anew: {one._path(1)}"]
    assert one.is_finished(3)


@pytest.mark.data
def test_a_pipe_in_the_place_of_a_split_is_not_waited_for(counted):
    one, _ = counted
    os.mkfifo(one._path(0))
    with pytest.raises(OSError, match=f"must be that of a file. Received: {one._path(0)}"):
        one()


@pytest.mark.data
def test_a_split_can_be_forgotten(counted):
    one, asked = counted
    one(splits=2)
    one.forget(0)
    assert not one.is_finished(1)
    one(splits=2)
    assert asked == [0, 1, 0]


@pytest.mark.data
def test_replaced_videos_are_another_evaluation(digit_videos, small_encoder, tmp_path):
    """Of the same name and size, and with the times of before; a copy of all is the same."""
    train, test = digit_videos
    key = evaluator(small_encoder, (train, test), None).key
    copied = []
    for sample in test:
        copied.append(Sample(str(tmp_path / os.path.basename(sample.path)), sample.label))
        shutil.copyfile(sample.path, copied[-1].path)
    assert evaluator(small_encoder, (train, copied), None).key == key
    status = os.stat(copied[3].path)
    with open(copied[3].path, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        [last] = file.read()
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    os.utime(copied[3].path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert os.stat(copied[3].path).st_size == status.st_size
    assert evaluator(small_encoder, (train, copied), None).key != key


@pytest.mark.data
def test_the_same_evaluation_at_once_is_refused_and_another_is_not(
    counted, digit_videos, small_encoder, tmp_path
):
    one, asked = counted
    with lock_holder(tmp_path, f".{one.key}.lock") as holder:
        with pytest.raises(FolderInUseError) as error:
            one()
        [line] = str(error.value).splitlines()
        assert line.startswith("the folder of an evaluation must be a folder in which no other")
        assert f"{tmp_path}, where process {holder.pid} on " in line and asked == []
        evaluator(small_encoder, digit_videos, tmp_path, seed=1)()
        assert asked == [0]
    one()
    assert asked == [0, 0]
