"""The table of fine-tuned, frozen and scratch: every number once, and what is there stays."""

import json
from argparse import Namespace

import pytest

from keras_vjepa import VJEPABackbone
from keras_vjepa.data.sources import labelled_sets
from keras_vjepa.data.sources.digit_motion import prepare_digit_motion
from keras_vjepa.data.sources.digit_motion_rendering import DigitMotionConfig
from keras_vjepa.data.sources.samples import Sample
from keras_vjepa.tools import finetune_table


@pytest.mark.slow
def test_a_small_table(tmp_path, monkeypatch, capsys):
    small = DigitMotionConfig(
        background_strength=0, num_training_videos=200, num_test_videos=20, frame_step=4, shrink=2
    )
    files = prepare_digit_motion(tmp_path / "cache", small, None)
    monkeypatch.setattr(labelled_sets, "prepare_digit_motion", lambda config: files)
    VJEPABackbone(32, 4, patch_size=16, hidden_dim=12, num_layers=1, num_heads=2).save_to_preset(
        tmp_path / "encoder"
    )
    command = [str(tmp_path / "table"), "--preset", str(tmp_path / "encoder"), "--steps", "2"]
    command += ["--num-videos", "200", "--num-test-videos", "20", "--task", "digit"]
    command += ["--scratch-steps", "4"]
    finetune_table.main([*command, "--seeds", "0", "--fractions", "0.5"])
    finetune_table.main([*command, "--seeds", "0", "1", "--fractions", "0.5", "1"])
    said = capsys.readouterr()
    # The table has two shares, two seeds and three methods; the first call has made three.
    assert said.err.count(", seed ") == 12
    numbers = json.loads((tmp_path / "table" / "table.json").read_text())
    numbers = numbers["digit, top-1 in %, labels"]
    assert {
        method: {share: len(c) for share, c in cells.items()} for method, cells in (numbers.items())
    } == dict.fromkeys(("frozen probe", "fine-tuned", "from scratch"), {"50 %": 2, "100 %": 2})
    assert (tmp_path / "table" / "table.md").read_text() in said.out
    assert "| 50 % |" in said.out and " (2) |" in said.out
    assert (tmp_path / "table" / "untrained" / "config.json").is_file()
    for method, steps in (("from scratch", 4), ("fine-tuned", 2)):
        [result] = (tmp_path / "table").glob(f"{method} digit 0.5 0/result.json")
        # An epoch of 100 videos has three steps, and is not cut short.
        assert json.loads(result.read_text())["config"]["steps"] == -(-steps // 3) * 3
    # Numbers of other options, or of another encoder, are no answer.
    with pytest.raises(SystemExit, match="with --num-test-videos 20 -> 10$"):
        finetune_table.main([*command, "--num-test-videos", "10"])
    VJEPABackbone(32, 4, patch_size=16, hidden_dim=12, num_layers=1, num_heads=2).save_to_preset(
        tmp_path / "other"
    )
    with pytest.raises(SystemExit, match="with --preset "):
        finetune_table.main([*command, "--preset", str(tmp_path / "other")])


@pytest.fixture
def encoder(tmp_path):
    VJEPABackbone(32, 4, patch_size=16, hidden_dim=12, num_layers=1, num_heads=2).save_to_preset(
        tmp_path / "encoder"
    )
    return str(tmp_path / "encoder")


@pytest.mark.data
def test_only_the_videos_of_the_table_are_rendered(encoder, tmp_path, monkeypatch, capsys):
    """The whole set has 8,600, of which a small table left most aside."""
    monkeypatch.setenv("KERAS_VJEPA_CACHE", str(tmp_path / "cache"))
    given = []
    for name in ("fine_tune", "probe"):
        monkeypatch.setattr(
            finetune_table.Comparison, name, lambda made, *_, **__: given.append(made) or 0.5
        )
    command = [str(tmp_path / "table"), "--preset", encoder, "--seeds", "0"]
    command += ["--fractions", "1", "--num-test-videos", "5", "--num-videos"]
    finetune_table.main([*command, "100"])
    assert "105 of 105 videos rendered" in capsys.readouterr().err
    assert {(len(made.train), len(made.test)) for made in given} == {(100, 5)}
    # What other options are refused for needs no videos.
    with pytest.raises(SystemExit, match="with --num-videos 100 -> 101$"):
        finetune_table.main([*command, "101"])
    assert "rendered" not in capsys.readouterr().err


@pytest.fixture
def listed(monkeypatch):
    """A hundred videos that nobody reads, one of each class."""
    samples = [Sample(f"{number}.mp4", number) for number in range(100)]
    monkeypatch.setattr(finetune_table, "first_of_built_in", lambda *_: (samples, samples))


@pytest.mark.data
def test_shares_too_small_for_a_probe_are_refused_before_all_trainings(
    encoder, listed, tmp_path, monkeypatch
):
    """A network was trained from scratch before, and a class named that nobody had given."""
    monkeypatch.setattr(finetune_table.Comparison, "fine_tune", None)
    command = [str(tmp_path / "table"), "--preset", encoder, "--fractions", "0.01", "1"]
    with pytest.raises(SystemExit, match="--fractions must .* larger --num-videos. Received: 0.01"):
        finetune_table.main(command)
    assert not (tmp_path / "table").exists()


@pytest.mark.data
def test_a_set_without_a_config_of_its_own_is_taken(encoder, listed, tmp_path, monkeypatch):
    """It was among the choices, and ended in a KeyError."""
    made = []
    monkeypatch.setattr(
        finetune_table.finetune, "run", lambda config, *_: made.append(config) or 0.5
    )
    command = [str(tmp_path / "table"), "--preset", encoder, "--data", "digit_motion_texture"]
    finetune_table.main([*command, "--methods", "fine-tuned", "--seeds", "0", "--fractions", "1"])
    assert [config.data.data for config in made] == ["digit_motion_texture"]
    comparison = finetune_table.Comparison(
        Namespace(data="digit_motion_texture", task="digit", steps=2),
        *finetune_table.first_of_built_in(),
    )
    comparison.check_share(1.0, 0)
