"""The table of detectors: every number once, and what is there stays."""

import argparse
import json

import pytest

from keras_vjepa import VJEPAActionDetector, VJEPABackbone
from keras_vjepa.configuration import replace
from keras_vjepa.models import DINOv2Backbone, HieraBackbone, OmniMAEBackbone, VideoMAEBackbone
from keras_vjepa.recipes import detect
from keras_vjepa.recipes.detect_configs import CONFIGS, digit_scene
from keras_vjepa.tools import detect_table
from tests.data.sources.ava_layout import write_ava

SMALL = {"hidden_dim": 16, "num_layers": 2, "num_heads": 2, "patch_size": 16}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder in AVA's layout in place of the built-in set, and an encoder."""
    ava = write_ava(tmp_path / "ava")

    def small():
        return replace(
            digit_scene(),
            data=str(ava),
            boxes=str(ava / "detected_val.csv"),
            crop_size=16,
            short_side=(16, 16),
            test_size=16,
            num_frames=4,
            batch_size=2,
            max_bad_share=0.5,
        )

    monkeypatch.setitem(CONFIGS, "digit_scene", small)
    VJEPABackbone(
        16, 4, patch_size=8, hidden_dim=8, num_layers=2, num_heads=2, mlp_ratio=2.0
    ).save_to_preset(tmp_path / "encoder")
    return tmp_path


@pytest.mark.slow
def test_a_small_table(folder, capsys):
    command = [str(folder / "table"), "--preset", str(folder / "encoder"), "--epochs", "1"]
    detect_table.main([*command, "--seeds", "0"])
    detect_table.main([*command, "--seeds", "0", "1"])
    said = capsys.readouterr()
    # The table has four detectors, two kinds of boxes and two seeds; the first call has made one.
    assert said.err.count(", seed ") == 16
    numbers = json.loads((folder / "table" / "table.json").read_text())["mAP in %, boxes"]
    assert numbers.keys() == detect_table.METHODS.keys()
    for cells in numbers.values():
        assert {kind: len(cell) for kind, cell in cells.items()} == {"true": 2, "detected": 2}
    assert (folder / "table" / "table.md").read_text() in said.out
    assert "| true |" in said.out and " (2) |" in said.out
    # Numbers of other options, or of another encoder, are no answer.
    with pytest.raises(SystemExit, match="with --epochs 1 -> 2$"):
        detect_table.main([*command, "--epochs", "2"])
    VJEPABackbone(16, 4, patch_size=8, hidden_dim=8, num_layers=2, num_heads=2).save_to_preset(
        folder / "other"
    )
    with pytest.raises(SystemExit, match="with --preset "):
        detect_table.main([*command, "--preset", str(folder / "other")])


def test_rates_of_a_layer_alone_and_of_an_encoder(folder):
    """A linear layer learns at a higher rate than an encoder, and a run is tested once."""
    options = argparse.Namespace(
        data="digit_scene", preset="p", epochs=3, learning_rate=1e-3, frozen_learning_rate=1e-2,
        layer_decay=0.5,
    )  # fmt: skip
    made = {
        method: detect_table.configured(options, *switches, seed=0)
        for method, switches in detect_table.METHODS.items()
    }
    rates = {method: config.learning_rate for method, config in made.items()}
    assert [*rates.values()] == [1e-2, 1e-2, 1e-3, 1e-3]
    assert {config.validate_every for config in made.values()} == {3}
    assert [config.layer_decay for config in made.values()] == [None, None, 0.5, 0.5]


@pytest.mark.parametrize(
    "encoder,size,frames,stride",
    [
        (lambda: OmniMAEBackbone(48, 16, **SMALL), 48, 16, 2),
        (lambda: HieraBackbone(96, 1, embed_dim=4, depths=(1, 1, 1, 1)), 96, 8, 5),
        (lambda: VideoMAEBackbone(48, 16, **SMALL), 64, 8, 5),
    ],
)
def test_clips_are_those_of_an_encoder_that_has_one_size(encoder, size, frames, stride):
    """They span the same time, 40 frames, or as much of it as whole steps allow."""
    config = detect_table.fitted(digit_scene(), encoder())
    assert config.crop_size == config.test_size == size and config.short_side == (size, size)
    assert (config.clip.num_frames, config.clip.frame_step) == (frames, stride)


@pytest.mark.data
def test_training_frames_are_enlarged_to_whole_patches():
    """Those of 64 pixels had none of 14; frames of the test are padded."""
    encoder = DINOv2Backbone(28, **{**SMALL, "patch_size": 14})
    config = detect_table.fitted(digit_scene(), encoder)
    assert (config.crop_size, config.short_side) == (70, (70, 70))
    detector = VJEPAActionDetector(encoder, class_names=["sit"])
    detector.check_crop_size(config.crop_size)
    with pytest.raises(ValueError, match="`crop_size` must be a multiple .* of 14 pixels"):
        detector.check_crop_size(digit_scene().crop_size)


@pytest.mark.data
def test_fewer_key_frames_than_a_batch_has_are_one_batch(folder, monkeypatch):
    """The run would ask for a smaller --batch_size, an option that this command has not."""
    made = []
    monkeypatch.setattr(
        detect_table.detect,
        "run",
        lambda config, *others: made.append(config) or {"true": 0.5, "detected": 0.5},
    )
    command = [str(folder / "table"), "--preset", str(folder / "encoder"), "--num-key-frames"]
    detect_table.main([*command, "1", "--seeds", "0", "--methods", "pretrained, frozen"])
    assert {config.batches.batch_size for config in made} == {1}


@pytest.mark.data
def test_an_encoder_of_other_shapes_is_named_before_data_are_listed(folder, monkeypatch):
    """The line named `crop_size`, which this command has not, after 1,500 scenes were rendered."""
    encoder = HieraBackbone((64, 96), 1, embed_dim=4, depths=(1, 1, 1, 1))
    encoder.save_to_preset(folder / "wide")
    monkeypatch.setitem(CONFIGS, "digit_scene", None)
    with pytest.raises(SystemExit, match="--preset must be .* squares, .* one size is 64 x 96$"):
        detect_table.main([str(folder / "table"), "--preset", str(folder / "wide")])
    assert not (folder / "table").exists()


@pytest.mark.data
def test_what_is_refused_late_leaves_nothing(folder, monkeypatch):
    """Some of it is known only when a detector is made: weights that cannot learn, say."""

    def refuse(*arguments, **others):
        raise ValueError("`preset` must hold weights that can learn")

    monkeypatch.setattr(detect, "load_encoder", refuse)
    with pytest.raises(SystemExit, match="weights that can learn"):
        detect_table.main([str(folder / "table"), "--preset", str(folder / "encoder")])
    assert not (folder / "table").exists()


@pytest.mark.data
def test_a_part_of_the_key_frames(folder):
    """What is left out of the test does not count as missed."""
    whole = CONFIGS["digit_scene"]().data.make()
    part = detect_table.shortened(whole, 2, 1)
    assert len(part.train) == 2 and len(part.test["true"]) == 1 < len(whole.test["true"])
    [key] = {sample.key for samples in part.test.values() for sample in samples}
    assert set(part.truth.key_frames) - set(part.excluded) == {key}
