"""`keras-vjepa bench`: what it measures is what its options say."""

import importlib
import sys
from types import SimpleNamespace

import pytest

from keras_vjepa import VJEPABackbone
from keras_vjepa.__main__ import COMMANDS
from keras_vjepa.models.backbone import EncoderSize
from keras_vjepa.tools import bench


@pytest.mark.data
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--growth", "--no-padding"], "--no-padding changes nothing in --growth"),
        (["--growth", "--image-size", "32"], "--image-size changes nothing in --growth"),
        (["--precision", "--steps", "9"], "--steps changes nothing in --precision"),
        (["--features", "here", "--remat"], "--remat changes nothing in --features"),
        (["--attention", "--num-frames", "4"], "--num-frames changes nothing in --attention"),
        (["--scaling", "--checkpoint"], "--checkpoint changes nothing in --scaling"),
    ],
)
def test_an_option_that_changes_nothing_is_refused(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        bench.main(["--size", "tiny", *arguments])
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"bench.py: {message}: leave one of them out\n"


@pytest.mark.data
def test_two_measurements_at_once_are_refused(capsys):
    with pytest.raises(SystemExit):
        bench.main(["--growth", "--scaling"])
    said = capsys.readouterr().err
    assert "--growth" in said and "--scaling" in said and said.count("\n") == 1


def test_precision_is_of_the_clip_that_was_asked_for(monkeypatch, capsys):
    made = []

    def from_size(size, image_size, num_frames, dtype):
        made.append((size, image_size, num_frames))
        return VJEPABackbone(
            image_size, num_frames, hidden_dim=12, num_layers=1, num_heads=1, dtype=dtype
        )

    monkeypatch.setattr(bench, "VJEPABackbone", SimpleNamespace(from_size=from_size))
    bench.main(["--precision", "--size", "tiny", "--image-size", "32", "--num-frames", "4"])
    assert set(made) == {("tiny", 32, 4)}
    assert len(capsys.readouterr().out.splitlines()) == 4


@pytest.mark.parametrize(
    ("name", "words", "missing"),
    [
        ("bench-plain", [], "plain_torch_unet"),
        ("bench-finetune", ["--size", "tiny"], "plain_torch_step"),
        ("bench-pretraining", ["here"], "plain_torch_masked"),
    ],
)
def test_plain_pytorch_that_is_missing_is_said_in_one_line(
    name, words, missing, tmp_path, monkeypatch
):
    """Who installs the package for JAX has no torch, which these compare with."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, f"keras_vjepa.tools.{missing}", None)
    monkeypatch.delattr(f"keras_vjepa.tools.{missing}", raising=False)
    module = importlib.import_module(COMMANDS[name])
    monkeypatch.setattr(module, "SIZES", {"tiny": EncoderSize(12, 1, 1)}, raising=False)
    with pytest.raises(SystemExit, match=f"keras-vjepa {name}: .*{missing}"):
        module.main(words, f"keras-vjepa {name}")
