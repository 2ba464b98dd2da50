"""Steps of V-JEPA and VideoMAE are timed, and their table and figures are written."""

import json

import keras
import pytest

if keras.config.backend() != "torch":
    pytest.skip("the steps are torch's", allow_module_level=True)

import torch

from keras_vjepa.tools import bench_pretraining, plain_torch_masked


def test_patches_are_normalised():
    videos = torch.randn(2, 3, 4, 32, 48) * 3 + 1
    patches = plain_torch_masked.patches_of(videos)
    assert patches.shape == (2, 2 * 2 * 3, 1536)
    # Each colour of a patch has mean 0 and deviation 1.
    colours = patches.unflatten(2, (512, 3))
    assert colours.mean(2).abs().max() < 1e-5
    torch.testing.assert_close(colours.var(2), torch.ones(2, 12, 3), rtol=0, atol=1e-4)
    # The second patch of the second time step, in the order of frame, row, column.
    own = videos[1, :, 2:4, :16, 16:32].permute(1, 2, 3, 0).flatten(0, 2)
    own = (own - own.mean(0)) / (own.std(0) + 1e-6)
    torch.testing.assert_close(patches[1, 7], own.flatten(), rtol=0, atol=1e-5)


def test_table_and_figures(tmp_path, monkeypatch, capsys):
    """With times that are given, since machines differ."""
    monkeypatch.setattr(plain_torch_masked, "vjepa_step", lambda *_: lambda: 0.0)
    monkeypatch.setattr(plain_torch_masked, "videomae_step", lambda *_: lambda: 0.0)
    monkeypatch.setattr(bench_pretraining, "in_turns", lambda *_, **__: [[(3.0, 2.0)]])
    bench_pretraining.main([str(tmp_path), "--size", "large", "--batch-size", "2"])
    rows = json.loads((tmp_path / "costs.json").read_text())
    assert [row["seconds"] for row in rows[:2]] == [1.0, 1.0]
    # VideoMAEv2 is computed from the speed of VideoMAE.
    assert rows[2]["is_computed"]
    assert rows[2]["seconds"] == pytest.approx(rows[2]["flops"] / rows[1]["flops"])
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert lines[2].endswith("| 1.000 | 270 | 75,000 |") and "(computed)" in lines[4]
    assert "VideoMAE ViT-L/16" in (tmp_path / "figure_5a.svg").read_text()
    drawn = (tmp_path / "figure_5b.svg").read_text()
    assert "vjepa_large_patch16_224" in drawn and "hybrid (computed)" in drawn


def test_an_output_that_is_no_folder_is_named(tmp_path, monkeypatch, capsys):
    """Without a name, the files would lie in the current folder."""
    monkeypatch.setattr(bench_pretraining, "measured", lambda *_: pytest.fail("it is measured"))
    (tmp_path / "file").write_text("")
    for given, message in (
        ("", "nothing"), (str(tmp_path / "file"), str(tmp_path / "file"))
    ):  # fmt: skip
        with pytest.raises(SystemExit) as ended:
            bench_pretraining.main([given])
        said = capsys.readouterr().err
        assert ended.value.code == 2 and said.endswith(f"Received: {message}\n")
        assert "`OUTPUT` must be a folder" in said and "workdir" not in said


@pytest.mark.slow
def test_steps_of_videomae_learn():
    """With the smallest encoder; a prediction of zeros has an error of one."""
    step = plain_torch_masked.videomae_step("small", 1, False)
    losses = [step() for _ in range(3)]
    assert losses[2] < losses[1] < losses[0] < 2
