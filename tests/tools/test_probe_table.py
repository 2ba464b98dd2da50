"""One table of several encoders, V-JEPA's and its rivals', evaluated alike."""

import json

import keras
import numpy as np
import pytest

from keras_vjepa import VJEPAVideoPreprocessor
from keras_vjepa.configuration import replace
from keras_vjepa.data.sources.samples import Sample
from keras_vjepa.evaluation.evaluator import Evaluator
from keras_vjepa.models import DINOv2Backbone, HieraBackbone, OpenCLIPBackbone, VideoMAEBackbone
from keras_vjepa.models.backbone_preset import load_backbone_to_evaluate
from keras_vjepa.monitoring.pretraining_effort import (
    draw_effort,
    pretraining_hours,
    read_costs,
    samples_seen,
)
from keras_vjepa.recipes import probe
from keras_vjepa.recipes.probe_configs import CONFIGS, digit_motion
from keras_vjepa.tools import probe_table
from tests.evaluation.support import assert_close
from tests.support import slow_but_on

SMALL = {"hidden_dim": 8, "num_layers": 1, "num_heads": 2, "patch_size": 8}
MADE = {
    "videomae": lambda: VideoMAEBackbone(32, 8, **SMALL),
    "dinov2": lambda: DINOv2Backbone(24, **SMALL),
    "openclip": lambda: OpenCLIPBackbone(16, **SMALL),
    "hiera": lambda: HieraBackbone(32, 4, embed_dim=4, embed_heads=1, depths=(1, 1, 1, 1)),
}


def small(tmp_path, **changes):
    options = {"epochs": 1, "batch_size": 16, "learning_rates": (3e-3,), "feature_batch_size": 16}
    options |= {"num_frames": 4, "temporal_stride": 4, "readouts": False, "image_size": 32}
    return replace(digit_motion(), cache=str(tmp_path / "cache"), **{**options, **changes})


def presets(tmp_path, *names):
    for name in names:
        backbone = MADE[name]()
        backbone.save_to_preset(tmp_path / name)
        facts = backbone.facts
        frames = backbone.num_frames
        preprocessor = VJEPAVideoPreprocessor(
            backbone.image_size, frames, mean=facts.mean, std=facts.std
        )
        preprocessor.save_to_preset(tmp_path / name)
    return [str(tmp_path / name) for name in names]


@pytest.fixture
def built_in(digit_videos, monkeypatch):
    monkeypatch.setattr(probe, "samples_of", lambda config: digit_videos)
    keras.utils.set_random_seed(0)


def check_table(tmp_path, names, expected, **changes):
    """Evaluate, look at the table, and read it again without computing anything."""
    given, config = presets(tmp_path, *names), small(tmp_path, **changes)
    table = probe_table.run(given, config, tmp_path / "run")
    lines = table.splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == [f"| {name}" for name in given]
    assert {line.count("|") for line in lines} == {lines[0].count("|")}
    rows = json.loads((tmp_path / "run" / "table.json").read_text())
    assert [row["input"] for row in rows] == expected
    assert all(0 <= top1 <= 1 for row in rows for top1 in row["top1"]["motion"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Evaluator, "_metrics", None)
        assert probe_table.run(given, config, tmp_path / "run") == table
    return rows


@slow_but_on("torch")
def test_encoders_of_clips_and_of_images(built_in, tmp_path):
    rows = check_table(tmp_path, ["videomae", "dinov2"], [[8, 32, 32], [4, 24, 24]])
    assert [row["samples_seen"] for row in rows] == [None, None]
    assert rows[0]["parameters"] == MADE["videomae"]().count_params()


@pytest.mark.slow
def test_other_families_and_what_is_untrained(built_in, tmp_path):
    check_table(tmp_path, ["openclip", "hiera"], [[4, 16, 16], [4, 32, 32]], splits=2)
    table = probe_table.run(["untrained"], small(tmp_path), tmp_path / "other")
    assert table.splitlines()[2].startswith("| untrained | ")


@pytest.mark.slow
def test_protocols_are_rows(built_in, tmp_path):
    """With a probe each, on the same features."""
    names = ["attentive", "average", "two-layers", "10-percent"]
    given, config = presets(tmp_path, "dinov2"), small(tmp_path)
    table = probe_table.run(given, config, tmp_path / "run", names)
    assert [line.split(" | ")[1] for line in table.splitlines()[2:]] == names
    rows = json.loads((tmp_path / "run" / "table.json").read_text())
    assert [row["protocol"] for row in rows] == names
    # Each has results of its own.
    assert len([*(tmp_path / "run" / "rows").glob("*-split0.json")]) == len(names)
    assert probe_table.run(given, config, tmp_path / "run", names) == table


@pytest.mark.data
def test_clips_span_the_same_time(tmp_path):
    config = small(tmp_path, num_frames=8, temporal_stride=8)
    of_clips = probe_table.fitted(config, VideoMAEBackbone(32, 16, **SMALL))
    assert (of_clips.clip.frames_per_clip, of_clips.clip.frame_step) == (16, 4)
    of_images = probe_table.fitted(config, DINOv2Backbone(24, **SMALL))
    assert (of_images.clip.frames_per_clip, of_images.clip.frame_step) == (8, 8)
    assert (of_clips.image_size, of_images.image_size) == (32, 24)


@pytest.mark.data
def test_clips_span_the_same_time_where_no_number_of_frames_is_given():
    """Encoders of images saw one frame of a video of `--data`, and short clips spanned less."""
    encoders = DINOv2Backbone(24, **SMALL), *(VideoMAEBackbone(32, n, **SMALL) for n in (8, 16))
    clips = [probe_table.fitted(CONFIGS["own"](), encoder).clip for encoder in encoders]
    assert [(c.frames_per_clip, c.frame_step) for c in clips] == [(16, 4), (8, 8), (16, 4)]


@pytest.mark.data
@pytest.mark.parametrize(
    ("second", "message"),
    [
        ("videomae_base_patch16_224_kinetics400", "cannot be downloaded from here"),
        ("empty", "must be a folder that holds config.json"),
    ],
)
def test_all_presets_are_fetched_before_the_first_row(second, message, tmp_path, monkeypatch):
    """The last of them cost the hours of all rows before it."""
    monkeypatch.setenv("KERAS_VJEPA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(probe_table, "_row", None)
    (tmp_path / "empty").mkdir()
    given = [*presets(tmp_path, "videomae"), second if "_" in second else str(tmp_path / second)]
    with pytest.raises((ValueError, OSError), match=message):
        probe_table.run(given, small(tmp_path), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.data
def test_samples_seen(tmp_path):
    assert samples_seen("vjepa_large_patch16_224") == 270_000_000
    assert samples_seen(str(tmp_path)) is None
    (tmp_path / "steps.jsonl").write_text('{"step": 7, "loss": 0.5}\n')
    (tmp_path / "config.json").write_text('{"batch_size": 6}')
    assert samples_seen(str(tmp_path / "preset")) == 42
    assert samples_seen(f"{tmp_path}@7") == 42


@pytest.mark.data
def test_hours_of_pretraining(tmp_path):
    """Of a run from its log, of a released model from a measured step."""
    rows = [{"step": i, "loss": 0.5, "clips_per_second": speed} for i, speed in ((1, 2), (2, 6))]
    (tmp_path / "steps.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "config.json").write_text('{"batch_size": 6}')
    assert pretraining_hours(str(tmp_path / "preset"), {}) == pytest.approx((3 + 1) / 3600)
    assert pretraining_hours(f"{tmp_path}@1", {}) == pytest.approx(3 / 3600)
    costs = tmp_path / "costs.json"
    costs.write_text(json.dumps([{"preset": "vjepa_large_patch16_224", "seconds": 0.36}]))
    found = dict(read_costs(str(costs)))
    assert pretraining_hours("vjepa_large_patch16_224", found) == pytest.approx(27_000)
    assert pretraining_hours("dinov2_giant_patch14", found) is None


@pytest.mark.data
def test_figures_of_what_pretraining_took(tmp_path):
    row = {"preset": "a", "protocol": "average", "samples_seen": 20, "hours": None}
    row |= {"top1": {"motion": [0.25, 0.75], "digit": [0.5, 0.5]}}
    draw_effort([row], ["motion", "digit"], tmp_path)
    drawn = (tmp_path / "samples_seen.svg").read_text()
    assert drawn.count("a average") == 2 and "motion, top-1 in %" in drawn
    # Nobody knows the hours.
    assert not (tmp_path / "pretraining_hours.svg").exists()
    draw_effort([{**row, "samples_seen": None}], ["motion", "digit"], tmp_path)
    assert [*tmp_path.iterdir()] == []


@pytest.mark.data
def test_a_released_dinov2_is_evaluated_at_224(tmp_path):
    """And sees each image once."""
    backbone = DINOv2Backbone(518, **{**SMALL, "patch_size": 14})
    backbone.save_to_preset(tmp_path)
    encoder = load_backbone_to_evaluate(tmp_path)
    assert encoder.image_size == 224
    assert load_backbone_to_evaluate(tmp_path, 98).image_size == 98
    config = CONFIGS["k400"]()
    of_videos = probe_table.fitted(config, encoder)
    assert (of_videos.image_size, of_videos.clip.frames_per_clip) == (224, 16)
    of_images = probe_table.fitted(CONFIGS["in1k"](), encoder)
    assert of_images.clip.frames_per_clip == 1
    # The numbers are those of the encoder that stretches its positions in each call.
    image = np.random.default_rng(0).normal(size=(1, 224, 224, 3)).astype("float32")
    expected = keras.ops.convert_to_numpy(backbone(image))
    assert_close(keras.ops.convert_to_numpy(encoder(image)), expected, 1e-5)


@pytest.mark.data
def test_every_config_takes_presets(tmp_path, monkeypatch):
    words = ["--presets", "untrained", "--config", "k400", "--data", "a.csv", "--protocols"]
    asked = probe_table.parse_arguments([*words, "5-clips", "average"])
    assert (asked.config.num_classes, asked.config.classifier.num_views) == ((400,), 3)
    assert probe_table.PROTOCOLS["5-clips"] == {"num_clips": 5}
    asked = probe_table.parse_arguments(["--presets", "untrained", "--data", str(tmp_path)])
    assert asked.config.tasks == ("class",)


@pytest.mark.data
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a_preset_that_is_not"], "--presets must be a folder, hf://user/repo"),
        (["untrained", "untrained"], "--presets must differ. Received: untrained twice"),
        (["untrained", "--image_size", "32"], "--image_size must be left out with --presets"),
        (["untrained", "--protocols", "other"], "--protocols must be"),
        (["untrained", "--protocols", "average", "average"], "--protocols must differ"),
        (["untrained", "--preset", "untrained"], "--preset must be left out with --presets"),
        (
            ["untrained", "--costs", "none.json"],
            "--costs must be a costs.json",
        ),
        (["untrained", "--config", "k400"], "--data must be given with the config k400"),
    ],
)
def test_what_is_refused(words, message, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        probe_table.main(["--presets", *words, "--workdir", str(tmp_path / "run")])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.data
def test_classes_that_are_not_the_built_in_ones_are_named_with_the_remedy(tmp_path):
    """The line named a task that no user had given, and an empty folder was left."""
    for name in ("dark", "light"):
        (tmp_path / "videos" / name).mkdir(parents=True)
        for number in range(4):
            (tmp_path / "videos" / name / f"{number}.mp4").touch()
    words = ["--data", str(tmp_path / "videos"), "--workdir", str(tmp_path / "new" / "run")]
    with pytest.raises(SystemExit) as ended:
        probe_table.main(words)
    said = str(ended.value.code)
    assert "every class of `digit`. Missing: 1 (and 8 more). Received: labels of --data" in said
    assert "with --presets instead of --preset" in said and "\n" not in said
    assert not (tmp_path / "new").exists()
    (tmp_path / "list.csv").write_text(f"{tmp_path}/videos/dark/0.mp4\n")
    words = ["--data", str(tmp_path / "list.csv"), "--test_data", str(tmp_path / "list.csv")]
    with pytest.raises(SystemExit, match="Every sample must have a `label`"):
        probe_table.main([*words, "--workdir", str(tmp_path / "run")])


@pytest.mark.data
@pytest.mark.parametrize("words", [["--presets", "untrained", "--protocols", "average"], []])
def test_too_few_videos_for_a_row_are_said_before_the_first_is_computed(
    words, tmp_path, monkeypatch
):
    """It was said once the rows before it were there."""
    samples = [Sample(f"{number}.mp4", number % 2) for number in range(40)]
    monkeypatch.setattr(probe, "samples_of", lambda config: (samples, samples))
    monkeypatch.setattr(probe_table, "_row", None)
    monkeypatch.setattr(probe, "make_encoder", None)
    given = [*words, *(["10-percent"] if words else []), "--data", str(tmp_path), "--num_classes"]
    given += ["2", "--tasks", "class", "--splits", "1", "--learning_rates", "1e-3,1e-2"]
    given += ["--workdir", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as ended:
        probe_table.main(given)
    said = str(ended.value.code)
    assert "--validation_share must be at least one of the 4 samples" in said
    assert not (tmp_path / "run").exists()
