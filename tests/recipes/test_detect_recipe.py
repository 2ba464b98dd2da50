"""The recipe of detection: Table 11's numbers, shrunk runs on official files, one that goes on."""

import json

import numpy as np
import pytest

from keras_vjepa import VJEPAActionDetector, VJEPABackbone
from keras_vjepa.configuration import options, replace
from keras_vjepa.data.sources.ava_files import read_actions, read_key_frames
from keras_vjepa.evaluation.detection import mean_average_precision
from keras_vjepa.recipes import detect
from keras_vjepa.recipes.detect_configs import CONFIGS
from keras_vjepa.training.resumable import RunCallback
from tests.data.sources.ava_layout import write_ava
from tests.support import slow_but_on

SMALL = {
    "crop_size": 16,
    "short_side": (16, 24),
    "test_size": 16,
    "num_frames": 4,
    "batch_size": 2,
    "test_batch_size": 2,
    "max_boxes": 2,
    "epochs": 3,
    "warmup_epochs": 1,
    "dtype": "float32",
    "max_bad_share": 0.5,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("detect")
    write_ava(root / "ava")
    VJEPABackbone(
        16, 4, patch_size=8, hidden_dim=8, num_layers=2, num_heads=2, mlp_ratio=2.0
    ).save_to_preset(root / "encoder")
    return root


def small(folder, name="ava", **changes):
    given = {"preset": str(folder / "encoder"), "data": str(folder / "ava")}
    return replace(CONFIGS[name](), **{**given, **SMALL, **changes})


@pytest.mark.data
def test_configs_hold_the_numbers_of_table_11():
    for name, size in (("ava", 224), ("ava_384", 384)):
        config = CONFIGS[name]()
        rates = config.learning_rate, config.warmup_learning_rate, config.final_learning_rate
        assert rates == (1e-4, 1e-6, 1e-6)
        assert (config.weight_decay, config.epsilon) == (0.05, 1e-7)
        assert (config.batch_size, config.epochs, config.warmup_epochs) == (64, 30, 2)
        assert config.crop_size == size and not config.trainable_backbone
        clip = config.clip.make()
        assert (clip.num_frames, clip.frame_step, clip.fps) == (16, 4, 30.0)
        assert config.layers is None and config.data.actions == "60"


@pytest.mark.data
def test_open_choices_are_options():
    wanted = {
        "layers", "output_size", "sampling_ratio", "aligned", "box_pooling", "dropout", "actions",
        "least_score", "box_scores", "jitter", "extension", "rule", "warmup_epochs", "clip_fps",
        "first_second", "kind", "trainable_backbone", "layer_decay",
    }  # fmt: skip
    assert wanted <= options(CONFIGS["ava"]()).keys()


def test_a_shrunk_run_from_official_files(folder, capsys):
    workdir = folder / "run"
    boxes = str(folder / "ava" / "detected_val.json")
    scores = detect.run(small(folder, boxes=boxes), workdir)
    assert scores.keys() == {"true", "detected"} and scores["true"] > scores["detected"] > 0
    result = json.loads((workdir / "result.json").read_text())
    annotations = folder / "ava" / "annotations"
    # What is written gives the same number to whoever reads it.
    truth = read_actions(annotations / "ava_val_v2.2.csv")
    excluded = read_key_frames(annotations / "ava_val_excluded_timestamps_v2.2.csv")
    for kind, score in scores.items():
        assert result[kind]["mean_average_precision"] == score
        rows = read_actions(workdir / f"detections_{kind}.csv")
        assert mean_average_precision(truth, rows, [1, 17, 80], excluded).mean == score
    preset = VJEPAActionDetector.from_preset(workdir / "preset")
    assert preset.class_names == ["bend", "ride", "watch"]
    [video] = (folder / "ava" / "videos").glob("1j*.avi")
    [actions] = preset.detect(str(video), [[0.1, 0.1, 0.5, 0.9]], second=2)
    assert {name for name, _ in actions} == {"bend", "ride", "watch"}
    assert "mAP" in capsys.readouterr().out


class Stop(Exception):
    pass


class StopAfter(RunCallback):
    def __init__(self, steps):
        super().__init__()
        self.steps = steps

    def on_train_batch_end(self, batch, logs=None):
        if batch + 1 == self.steps:
            raise Stop


@slow_but_on("torch")
def test_a_run_that_was_stopped_ends_with_the_same_weights(folder, tmp_path, monkeypatch):
    config = small(
        folder,
        "ava_384",
        checkpoint_every=2,
        trainable_backbone=True,
        layer_decay=0.75,
        dropout=0.3,
    )
    detect.run(config, tmp_path / "whole")
    run = detect.training.run
    with monkeypatch.context() as patch:
        patch.setattr(
            detect.training, "run", lambda *a, **k: run(*a, callbacks=[StopAfter(3)], **k)
        )
        with pytest.raises(Stop):
            detect.run(config, tmp_path / "stopped")
    detect.run(config, tmp_path / "stopped")
    whole, stopped = (
        VJEPAActionDetector.from_preset(tmp_path / name / "preset") for name in ("whole", "stopped")
    )
    for one, other in zip(whole.get_weights(), stopped.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@slow_but_on("torch")
def test_the_untrained_encoder_is_another(folder, tmp_path):
    for untrained in (False, True):
        detect.run(small(folder, epochs=2, untrained=untrained), tmp_path / str(untrained))
    one, other = (
        VJEPAActionDetector.from_preset(tmp_path / name / "preset") for name in ("False", "True")
    )
    kernel = [m.backbone.blocks[0].mlp_hidden.kernel for m in (one, other)]
    assert np.abs(np.asarray(kernel[0]) - np.asarray(kernel[1])).max() > 1e-3


@pytest.mark.data
def test_refused(folder):
    for changes, message in (
        ({"short_side": (8, 24)}, "`short_side` must be at least `crop_size`=16"),
        ({"rule": "coco"}, "`rule` must be"),
        ({"box_pooling": "sum"}, "`box_pooling` must be 'max' or 'average'"),
        ({"warmup_epochs": 3}, "`warmup_epochs` must be"),
        ({"layer_decay": 0.5}, "`layer_decay` must be None without `trainable_backbone`"),
    ):
        with pytest.raises(ValueError, match=message):
            small(folder, **changes)
    with pytest.raises(ValueError, match="`preset` must be given"):
        detect.check(replace(CONFIGS["ava"](), data=str(folder / "ava")), folder)
