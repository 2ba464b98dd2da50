"""The recipes of the frozen evaluation: their numbers, commands, and what a run leaves."""

import json
import os
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from keras_vjepa import (
    VJEPABackbone,
    VJEPAVideoClassifier,
    VJEPAVideoPreprocessor,
    command_line,
)
from keras_vjepa.configuration import options, replace
from keras_vjepa.data import Sample
from keras_vjepa.data.sources.digit_motion_rendering import MOTIONS
from keras_vjepa.data.sources.video_writing import write_motion_jpeg
from keras_vjepa.evaluation.evaluator import Evaluator
from keras_vjepa.evaluation.frozen_probe import FrozenProbe
from keras_vjepa.evaluation.views import evaluation_clips, evaluation_transform, training_transform
from keras_vjepa.evaluation_pixels import seen_as_by_the_preset
from keras_vjepa.recipes import probe, probe_table
from keras_vjepa.recipes.probe_configs import CONFIGS, as_in_the_paper, digit_motion
from keras_vjepa.tools import neighbors
from tests.evaluation.support import assert_close
from tests.support import BEFORE_THE_HOUSE, slow_but_on

# Settings for the fixtures `digit_videos` and `small_encoder`.
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


@pytest.fixture
def built_in(digit_videos, monkeypatch):
    monkeypatch.setattr(probe, "samples_of", lambda config: digit_videos)
    return digit_videos


def small(**changes):
    return replace(digit_motion(), **{**SMALL, **changes})


# --- Configs -------------------------------------------------------------------------------------


def test_configs_hold_the_numbers_of_table_10():
    configs = {name: CONFIGS[name]() for name in ("k400", "ssv2", "in1k", "places205", "inat21")}
    assert [c.num_classes for c in configs.values()] == [(400,), (174,), (1000,), (205,), (10000,)]
    views = [(c.classifier.num_clips, c.classifier.num_views) for c in configs.values()]
    assert views == [(8, 3), (2, 3)] + [(1, 1)] * 3
    assert [c.batch_size for c in configs.values()] == [256, 256, 1024, 1024, 1024]
    assert [c.weight_decays for c in configs.values()] == [(0.01,)] * 2 + [(0.001,)] * 3
    for config in configs.values():
        clip = config.clip
        assert (clip.frames_per_clip, clip.frame_step, config.epochs) == (16, 4, 20)
        assert clip.allow_clip_overlap and config.augment and config.auto_augment
        assert config.learning_rates == (1e-3,) and config.transform.erasing == 0.25
        assert config.transform.horizontal_flip == (0.5 if config.images else 0.0)
        paper = as_in_the_paper(config)
        assert paper.weight_decays == (0.01,) and paper.optimizer.constant_decay
        assert paper.transform.erasing == 0.0 and paper.transform.horizontal_flip == 0.5
        assert paper.auto_augment == config.images
        assert (paper.classifier.num_heads, paper.classifier.head_dim) == (12, 12)


def test_transforms_follow_the_config():
    video = training_transform(CONFIGS["k400"]())
    assert type(video.augmentation).__name__ == "RandAugment" and video.erasing == 0.25
    image = training_transform(CONFIGS["in1k"]())
    assert type(image.augmentation).__name__ == "AutoAugment" and image.horizontal_flip == 0.5
    paper = training_transform(as_in_the_paper(CONFIGS["k400"]()))
    assert paper.augmentation is None and paper.horizontal_flip == 0.5
    frames = np.zeros((4, 40, 60, 3), np.uint8)
    views = evaluation_transform(CONFIGS["k400"](), 3)(frames)
    assert views.shape == (3, 4, 224, 224, 3)


@pytest.mark.parametrize(
    ("changes", "short_side"),
    [
        ({}, 64),
        ({"image_size": (32, 48)}, 48),
        ({"short_side": 70}, 70),
        ({"data": "videos/"}, None),
    ],
)
def test_built_in_videos_are_seen_whole(changes, short_side):
    config = probe.completed(replace(digit_motion(), preset="a", **changes))
    assert config.view.short_side == short_side and config.preset == "a"


def test_samples_are_those_of_the_data_options(tmp_path):
    for split, count in (("train", 3), ("val", 2)):
        for name in ("cat", "cow"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                (tmp_path / split / name / f"{i}.jpg").touch()
            (tmp_path / split / name / "1.mp4").touch()
    config = replace(digit_motion(), data=str(tmp_path))
    for images, counts in ((True, [6, 4]), (False, [2, 2])):
        parts = probe.samples_of(replace(config, images=images))
        assert [len(part) for part in parts] == counts


# --- The command line ----------------------------------------------------------------------------


def test_command_line():
    config, workdir = probe.parse_arguments(
        "--config in1k --variant paper --data a --test_data b --learning_rates 1e-3,1e-2 "
        "--augment false --fraction 0.05 --splits 3".split()
    )
    assert config.learning_rates == (1e-3, 1e-2) and config.optimizer.constant_decay
    assert not config.augment and config.data.test_data == "b"
    assert (config.fraction, config.splits, config.data.data) == (0.05, 3, "a")
    assert str(workdir) == "workdir/probe_in1k"
    # The built-in sets need no `--data`.
    config, _ = probe.parse_arguments(["--config", "digit_motion_black"])
    assert (config.data.data, config.image_size) == ("digit_motion_black", 32)


def test_every_option_can_be_given():
    """The names that were options before there were parts are among them."""
    before = """preset variant data test_data videos label_names tasks num_classes images fraction
        splits max_bad_share skip_unreadable num_workers image_size num_frames temporal_stride
        num_clips num_views attend_across_clips augment random_resize_scale
        random_resize_aspect_ratio horizontal_flip auto_augment erasing online cache feature_dtype
        feature_batch_size pooling num_layers num_heads head_dim readouts batch_size epochs
        learning_rates weight_decays constant_decay clip_norm validation_share dtype seed"""
    known = options(digit_motion())
    assert not set(before.split()) - set(known)
    for name, option in known.items():
        if option.value is not None:
            text = command_line.text_of(option.value)
            config, _ = probe.parse_arguments([f"--{name}", text])
            assert options(config)[name].value == option.value, name
        assert option.description, name


@slow_but_on("torch")
def test_the_probe_of_v_jepa_2_can_be_asked_for(small_encoder):
    config, _ = probe.parse_arguments(
        "--self_attention tokens --num_layers 4 --mlp_ratio 2 --layer_norm_epsilon 1e-4 "
        "--max_frames 16 --num_heads 2 --image_size 32,32 --num_frames 4".split()
    )
    sweep = FrozenProbe(small_encoder, config).sweep
    expected = {
        "self_attention": "tokens",
        "num_layers": 4,
        "mlp_ratio": 2.0,
        "layer_norm_epsilon": 1e-4,
        "num_heads": 2,
    }
    found = sweep.probes[0].pooler.get_config()
    assert {name: found[name] for name in expected} == expected


def refused(arguments, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["probe.py", *arguments])
    before = set(tmp_path.iterdir())
    with pytest.raises(SystemExit) as exit_info:
        probe.main()
    message = capsys.readouterr().err
    if exit_info.value.code == 2:
        assert set(tmp_path.iterdir()) == before
    else:
        message = f"{exit_info.value.code}\n"
    assert message.startswith("probe.py: ") and message.count("\n") == 1
    return message


def test_bad_input_is_named(built_in, monkeypatch, tmp_path, capsys):
    refuse = lambda *arguments: refused(list(arguments), monkeypatch, tmp_path, capsys)  # noqa: E731
    assert "--data must be given" in refuse("--config", "k400")
    assert "--preset must be a folder, " in refuse("--preset", "nowhere")
    assert "--label_names must be left out" in refuse("--label_names", "/nope")
    assert "--data must be text, and not empty" in refuse("--data", "")
    missing = ("--config", "ssv2", "--data", ".", "--label_names", "/nope")
    assert "--label_names must be a file or folder that exists" in refuse(*missing)
    encoder = VJEPABackbone(48, 4, patch_size=8, hidden_dim=24, num_layers=1, num_heads=2)
    encoder.save_to_preset(tmp_path / "preset")
    assert "--image_size must be 48" in refuse("--preset", "preset")
    assert "--num_clips must be" in refuse(
        "--num_frames", "4", "--image_size", "48", "--preset", "preset", "--num_clips", "0"
    )
    with pytest.raises(SystemExit):
        probe_table.main(["--temporal_stride", "1", "--workdir", str(tmp_path / "table")])
    message = "probe_table.py: --temporal_stride must be at least 2, for the rows of half the time."
    assert capsys.readouterr().err == f"{message} Received: 1\n"
    assert not (tmp_path / "table").exists()
    with pytest.raises(SystemExit):
        probe.parse_arguments(["--variant", "mine"])
    assert "argument --variant: must be reference or paper" in capsys.readouterr().err


def assert_sees_files_as(result, preset, samples):
    """A saved classifier makes of files what its evaluation made of them."""
    classifier = VJEPAVideoClassifier.from_preset(preset)
    assert classifier.class_names == [*MOTIONS]
    clips = classifier.preprocessor([sample.path for sample in samples])
    found = np.asarray(classifier.predict(clips, batch_size=5, verbose=0)).argmax(axis=-1)
    assert found.tolist() == result["predictions"]


@pytest.mark.data
def test_pixels_are_those_of_the_preset_unless_an_option_says_otherwise(tmp_path):
    VJEPABackbone(16, 4, 8, hidden_dim=8, num_layers=1, num_heads=1).save_to_preset(tmp_path)
    half = (0.5, 0.5, 0.5)
    own = {"mean": half, "std": half, "interpolation": "bicubic", "short_side": 20}
    VJEPAVideoPreprocessor(16, 4, antialias=True, **own).save_to_preset(tmp_path)
    config = replace(CONFIGS["k400"](), preset=str(tmp_path), image_size=32, std=(1.0, 1.0, 1.0))
    view = seen_as_by_the_preset(config, tmp_path).view
    assert (view.mean, view.std, view.interpolation) == (half, (1.0, 1.0, 1.0), "bicubic")
    assert view.antialias and view.short_side == 40
    # Training and testing see the same pixels, with any augmentation.
    grey = np.full((4, 60, 80, 3), 255, np.uint8)
    config = replace(config, mean=half, auto_augment=False, erasing=0.0)
    trained = training_transform(config)(grey, np.random.default_rng(0))
    for clip in (trained, *(evaluation_transform(config, num_views)(grey) for num_views in (1, 3))):
        np.testing.assert_allclose(clip, 0.5, atol=1e-6)
    image = training_transform(replace(config, images=True))(grey, np.random.default_rng(0))
    np.testing.assert_allclose(image, 0.5, atol=1e-6)


# --- The commands --------------------------------------------------------------------------------


@slow_but_on("torch")
def test_a_folder_of_classes_and_a_preset_say_all_that_is_needed(
    tmp_path, monkeypatch, capsys, caplog
):
    monkeypatch.chdir(tmp_path)
    VJEPABackbone(16, 4, 8, hidden_dim=8, num_layers=1, num_heads=1).save_to_preset("preset")
    rng = np.random.default_rng(0)
    for number in range(10):
        # Classes differ in brightness.
        dark = rng.integers(60, size=(12, 20, 30, 3), dtype=np.uint8)
        path = tmp_path / "mine" / ("bright", "dark")[number % 2] / f"{number}.avi"
        write_motion_jpeg(path, dark if number % 2 else 255 - dark, 24)
    options = ["--preset", "preset", "--data", "mine"]
    probe.main([*options, "--epochs", "2"])
    said = capsys.readouterr()
    assert "8 samples of 2 classes train, and 2 are held out to test" in caplog.text
    assert said.out.startswith("class: top-1 ") and "of 2 samples" in said.out
    model = VJEPAVideoClassifier.from_preset("workdir/probe_own/classifier_class")
    assert model.class_names == ["bright", "dark"]
    assert sorted(name for name, _ in model.classify("mine/dark/1.avi", top=2)) == [
        "bright",
        "dark",
    ]
    neighbors.main(options)
    expected = "class: nearest neighbors 100.0 %, ridge classifier 100.0 %"
    assert capsys.readouterr().out.strip() == expected


def test_what_is_found_out_of_own_data(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "1.jpg").touch()
    config, workdir = probe.parse_arguments(["--data", str(tmp_path)])
    assert config.images and config.num_classes is None and config.image_size is None
    assert str(workdir) == "workdir/probe_own"
    config, _ = probe.parse_arguments(["--data", str(tmp_path), "--images", "false"])
    assert not config.images
    with pytest.raises(ValueError, match="`num_classes` must be given. Received: None"):
        assert config.classes
    samples = [Sample("a", 4), Sample("b", 0)]
    assert config.for_samples(samples).classes == {"class": 5}
    # A config that the user names is used, whatever the data.
    config, workdir = probe.parse_arguments(
        ["--config", "digit_motion", "--data", str(tmp_path), "--workdir", "here"]
    )
    assert config.tasks == ("digit", "motion") and str(workdir) == "here"


@slow_but_on("torch")
def test_run_is_saved_stopped_continued_and_repeated(
    built_in, small_encoder, tmp_path, monkeypatch, capsys
):
    small_encoder.save_to_preset(tmp_path / "preset")
    config = small(
        preset=str(tmp_path / "preset"), fraction=0.9, splits=2, learning_rates=(1e-3, 1e-2)
    )
    expected = probe.run(config, tmp_path / "a")
    names = {path.name for path in (tmp_path / "a").iterdir()}
    tasks = ("digit", "motion")
    assert names == {"features", "result.json", "splits"} | {
        name for task in tasks for name in (f"confusion_{task}.png", f"classifier_{task}")
    }
    assert len(list((tmp_path / "a" / "splits").iterdir())) == 2
    stored = json.loads((tmp_path / "a" / "result.json").read_text())
    assert stored["splits"] == expected and len(stored["splits"][0]["digit"]["per_class"]) == 10
    assert stored["config"]["num_frames"] == 4 and stored["config"]["fraction"] == 0.9
    assert_sees_files_as(expected[0]["motion"], tmp_path / "a" / "classifier_motion", built_in[1])
    calls = []
    original = FrozenProbe.fit

    def stop_in_the_second(self, samples, index=0, checkpoints=None):
        calls.append(index)
        if calls == [0, 1]:
            raise KeyboardInterrupt
        return original(self, samples, index, checkpoints)

    monkeypatch.setattr(FrozenProbe, "fit", stop_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        probe.run(config, tmp_path / "b")
    assert (tmp_path / "b" / "classifier_motion").is_dir()
    assert probe.run(config, tmp_path / "b") == expected
    assert calls == [0, 1, 1]
    # A finished evaluation is found, and the log says if another one takes its place.
    capsys.readouterr()
    assert probe.run(config, tmp_path / "b") == expected and calls == [0, 1, 1]
    said = capsys.readouterr()
    assert "holds this evaluation, finished." in said.err and "motion: top-1" in said.out
    probe.run(replace(config, splits=1, seed=1), tmp_path / "b")
    assert "result.json is of another evaluation" in capsys.readouterr().err


@pytest.mark.data
@pytest.mark.parametrize("damage", ["cut", "missing", "none"])
def test_a_damaged_classifier_is_named_and_its_split_evaluated_again(damage, tmp_path, capsys):
    forgotten = []
    evaluator = SimpleNamespace(is_finished=lambda splits: True, forget=forgotten.append)
    classifier = tmp_path / "classifier_motion"
    shutil.copytree(BEFORE_THE_HOUSE / "presets" / "classifier_attentive", classifier)
    if damage == "cut":
        os.truncate(classifier / "task.weights.h5", 1000)
    elif damage == "missing":
        shutil.rmtree(classifier)
    Evaluator.forget_if_damaged(evaluator, [classifier])
    said = capsys.readouterr().err
    if damage == "none":
        assert said == "" and forgotten == []
    else:
        named = classifier / "task.weights.h5" if damage == "cut" else classifier
        assert said.startswith(f"{named} is ") and said.endswith(": it is made anew.\n")
        assert forgotten == [0]


@slow_but_on("torch")
def test_a_probe_that_diverges_ends_the_command(
    built_in, small_encoder, tmp_path, monkeypatch, capsys
):
    small_encoder.save_to_preset(tmp_path / "preset")
    options = {
        **{**SMALL, "preset": str(tmp_path / "preset"), "workdir": str(tmp_path / "run")},
        **{"short_side": 32, "epochs": 2, "learning_rates": (1e30,)},
    }
    line = [f"--{name}={command_line.text_of(value)}" for name, value in options.items()]
    message = refused(line, monkeypatch, tmp_path, capsys)
    assert message.startswith("probe.py: The loss is ")
    assert message.endswith("; the --learning_rates must be lower\n")
    assert not list((tmp_path / "run").glob("result.json"))
    assert not list((tmp_path / "run").glob("classifier_*"))


@slow_but_on("torch")
def test_several_views_and_clips_with_augmentation(built_in, small_encoder, tmp_path):
    small_encoder.save_to_preset(tmp_path / "preset")
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
    for inputs, _, _ in evaluation_clips(config, built_in[1], 3, 5).stream():
        assert inputs.shape[1:4] == (2, 3, 4)
        predictions += classifier.predict_on_batch(inputs).argmax(axis=-1).tolist()
    assert predictions == result["motion"]["predictions"]
    assert_sees_files_as(result["motion"], tmp_path / "run" / "classifier_motion", built_in[1])


@slow_but_on("torch")
def test_table(built_in, small_encoder, tmp_path):
    small_encoder.save_to_preset(tmp_path / "preset")
    config = small(preset=str(tmp_path / "preset"), splits=2, readouts=False)
    rows = tuple(
        probe_table.Row(
            row.name,
            {k: max(v, 0.9) if k == "fraction" else v for k, v in row.changes.items()},
            row.half_the_time,
            row.untrained,
            row.single_frame,
        )
        for row in probe_table.ROWS
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe_table, "ROWS", rows)
        table = probe_table.run(config, tmp_path / "run")
        lines = table.splitlines()
        assert len(lines) == 2 + len(rows) and all(line.count("|") == 4 for line in lines)
        assert (tmp_path / "run" / "table.md").read_text() == table
        patch.setattr(Evaluator, "_metrics", None)
        assert probe_table.run(config, tmp_path / "run") == table


def test_untrained_row_is_what_pretraining_began_with(small_encoder, tmp_path):
    small_encoder.save_to_preset(tmp_path / "preset")
    config = small(preset=str(tmp_path / "preset"))
    fresh = probe_table.make_untrained(config, small_encoder)
    again = probe_table.make_untrained(config, small_encoder)
    assert_close(fresh.get_weights(), again.get_weights(), 0)
    for variable in fresh.trainable_variables:
        variable.assign(variable + 1.0)
    fresh.save_to_preset(tmp_path / "untrained")
    found = probe_table.make_untrained(config, small_encoder)
    assert_close(found.get_weights(), fresh.get_weights(), 0)
