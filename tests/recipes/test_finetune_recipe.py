"""The recipe of fine-tuning: the numbers of Table 12, shrunk runs, and one that goes on."""

import json

import numpy as np
import pytest

from keras_vjepa import VJEPABackbone, VJEPAVideoClassifier
from keras_vjepa.configuration import options, replace
from keras_vjepa.data.sources.video_writing import write_motion_jpeg
from keras_vjepa.recipes import finetune
from keras_vjepa.recipes.finetune_configs import CONFIGS, own
from keras_vjepa.training.resumable import RunCallback

SMALL = {
    "image_size": 16,
    "num_frames": 4,
    "temporal_stride": 1,
    "batch_size": 4,
    "epochs": 2,
    "warmup_epochs": 1,
    "dtype": "float32",
}


@pytest.fixture
def videos(tmp_path):
    """Six videos of each of two classes, one bright and one dark."""
    for number in range(12):
        name, level = (("dark", 30), ("light", 220))[number % 2]
        folder = tmp_path / "videos" / name
        folder.mkdir(parents=True, exist_ok=True)
        frames = np.full((8, 24, 32, 3), level + number, np.uint8)
        write_motion_jpeg(folder / f"{number}.avi", frames, 10)
    VJEPABackbone(
        16, 4, patch_size=8, hidden_dim=12, num_layers=2, num_heads=2, mlp_ratio=2.0
    ).save_to_preset(tmp_path / "encoder")
    return tmp_path


def small(folder, name="own", **changes):
    given = {"preset": str(folder / "encoder"), "data": str(folder / "videos"), **SMALL, **changes}
    return replace(CONFIGS[name](), **given)


@pytest.mark.data
def test_configs_hold_the_numbers_of_table_12():
    names = ("k400_large", "k400_huge", "ssv2_large", "ssv2_huge")
    configs = [CONFIGS[name]() for name in names]

    def column(name):
        return [getattr(config, name) for config in configs]

    assert column("drop_path_rate") == [0.1, 0.2, 0.2, 0.2]
    assert column("head_dropout") == [0, 0, 0.5, 0.5]
    assert column("batch_size") == [256, 1024, 256, 256]
    assert column("epochs") == [35, 25, 15, 15]
    assert column("learning_rate") == [2e-3, 5e-4, 5e-4, 5e-4]
    assert column("warmup_learning_rate") == [1e-6, 1e-8, 1e-6, 1e-6]
    assert column("final_learning_rate") == [1e-6, 1e-5, 1.5e-4, 1.5e-4]
    assert column("horizontal_flip") == [0.5, 0.5, 0, 0]
    assert column("test_clips") == [5, 5, 2, 2]
    assert column("sampling") == ["dense", "dense", "uniform", "uniform"]
    for config in configs:
        assert (config.layer_decay, config.weight_decay, config.warmup_epochs) == (0.75, 0.05, 5)
        assert (config.test_views, config.num_sample, config.erasing) == (3, 2, 0.25)
        mixing = config.mixing.make()
        assert (mixing.mixup, mixing.cutmix, mixing.smoothing) == (0.8, 1.0, 0.1)
        assert (config.num_frames, config.temporal_stride, config.image_size) == (16, 4, 224)
        assert config.auto_augment == "rand-m7-n4-mstd0.5-inc1"


def test_what_other_programs_leave_to_this_one_is_an_option():
    """Arguments that pretraining and probes have no option for."""
    of_fine_tuning = {"drop_path_rate", "layer_decay", "head_dropout", "encoder_norm"}
    assert of_fine_tuning <= options(own()).keys()


def test_a_folder_of_classes_is_all_that_is_needed(videos, monkeypatch, capsys):
    monkeypatch.chdir(videos)
    given = [f"--{name}={value}" for name, value in SMALL.items()]
    finetune.main(["--preset", "encoder", "--data", "videos", *given])
    folder = videos / "workdir" / "finetune_own"
    result = json.loads((folder / "result.json").read_text())
    assert result["test_videos"] == 2 and 0 <= result["accuracy"] <= 1
    classifier = VJEPAVideoClassifier.from_preset(folder / "preset")
    assert classifier.head == "fine_tuning"
    [video] = list((videos / "videos" / "dark").glob("1*.avi"))[:1]
    assert {name for name, _ in classifier.classify(str(video))} == {"dark", "light"}
    assert "accuracy" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["k400_huge", "ssv2_large"])
def test_shrunk_runs(videos, name):
    accuracy = finetune.run(small(videos, name, epochs=6, warmup_epochs=5), videos / name)
    assert 0 <= accuracy <= 1
    preset = VJEPAVideoClassifier.from_preset(videos / name / "preset")
    assert (preset.num_clips, preset.num_views) == ({"k400_huge": 5, "ssv2_large": 2}[name], 3)
    assert preset.backbone.drop_path_rate == 0.2


class Stop(Exception):
    pass


class StopAfter(RunCallback):
    def __init__(self, steps):
        super().__init__()
        self.steps = steps

    def on_train_batch_end(self, batch, logs=None):
        if batch + 1 == self.steps:
            raise Stop


def test_a_run_that_was_stopped_ends_with_the_same_weights(videos, monkeypatch):
    config = small(videos, "ssv2_huge", epochs=3, warmup_epochs=1, checkpoint_every=2)
    finetune.run(config, videos / "whole")
    run = finetune.training.run
    with monkeypatch.context() as patch:
        patch.setattr(
            finetune.training, "run", lambda *a, **k: run(*a, callbacks=[StopAfter(3)], **k)
        )
        with pytest.raises(Stop):
            finetune.run(config, videos / "stopped")
    finetune.run(config, videos / "stopped")
    whole, stopped = (
        VJEPAVideoClassifier.from_preset(videos / name / "preset") for name in ("whole", "stopped")
    )
    for one, other in zip(whole.get_weights(), stopped.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.data
def test_refused(videos):
    for changes, message in (
        ({"test_views": 2}, "`test_views` must be 1 or 3"),
        ({"auto_augment": "rand"}, "`auto_augment` must be as"),
        ({"color_jitter": 0.4}, "`color_jitter` must be 0 without"),
        ({"warmup_epochs": 2}, "`warmup_epochs` must be"),
    ):
        with pytest.raises(ValueError, match=message):
            small(videos, **changes)
    with pytest.raises(ValueError, match="`preset` must be given"):
        finetune.check(replace(own(), data=str(videos / "videos")), videos)
