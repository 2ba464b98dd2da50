"""Evaluations that older code left: their caches are found, the rest is made anew, and said."""

import json
import logging
import shutil

import keras
import numpy as np
import pytest

from keras_vjepa.evaluation.features import FeatureExtractor
from keras_vjepa.recipes import probe
from tests.support import BEFORE_THE_HOUSE

BACKEND = keras.config.backend()
# The `README.md` beside the files has these options.
OPTIONS = """--preset runs/torch/finished/preset --data data/train.csv --test_data data/test.csv
    --tasks action --num_classes 2 --image_size 16 --num_frames 4 --temporal_stride 2 --num_clips 1
    --batch_size 4 --feature_batch_size 4 --epochs 4 --learning_rates 1e-3,1e-2
    --validation_share 0.25 --augment false --readouts true --num_workers 1
    --dtype float32""".split()


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """What these evaluations need, as working directory; paths are part of what is compared."""
    for part in ("data", "runs/torch/finished", f"probes/{BACKEND}"):
        shutil.copytree(BEFORE_THE_HOUSE / part, tmp_path / part)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "probes" / BACKEND


def evaluated(workdir, *options):
    before = keras.config.dtype_policy()
    try:
        return probe.run(*probe.parse_arguments([*OPTIONS, *options, f"--workdir={workdir}"]))
    finally:
        keras.config.set_dtype_policy(before)


def assert_same_metrics(found, expected):
    """Equal, but for what another machine may round otherwise."""
    assert set(found) == set(expected)
    for name, value in expected.items():
        if name == "candidates":
            pairs = zip(found[name], value, strict=True)
            for one, other in pairs:
                assert one == pytest.approx(other)
        elif name == "readouts":
            assert found[name] == pytest.approx(value)
        else:
            assert found[name] == value, name


def test_a_finished_evaluation_s_features_are_found(copied, monkeypatch, capsys):
    workdir = copied / "finished"
    expected = json.loads((workdir / "result.json").read_text())["splits"]
    monkeypatch.setattr(FeatureExtractor, "predict_on_batch", None)
    views = "1" if BACKEND == "tensorflow" else "3"
    [found] = evaluated(workdir, "--num_views", views)
    assert (
        "result.json is of another evaluation, or of an earlier version" in capsys.readouterr().err
    )
    assert_same_metrics(found["action"], expected[0]["action"])
    assert len(list((workdir / "features").iterdir())) == 2


def test_a_stopped_evaluation_begins_anew_and_says_so(copied, caplog):
    workdir = copied / "online_stopped"
    expected = json.loads((workdir / "expected_result.json").read_text())["splits"]
    options = "--online true --learning_rates 1e-2 --readouts false --pooling average".split()
    with caplog.at_level(logging.WARNING):
        [found] = evaluated(workdir, *options, "--num_views", "1")
    assert caplog.text.count("was written by an earlier version and is not used") == 1
    assert_same_metrics(found["action"], expected[0]["action"])
    # Nothing is deleted.
    [left] = (workdir / "unfinished").iterdir()
    assert np.load(left)["done"] == 4
