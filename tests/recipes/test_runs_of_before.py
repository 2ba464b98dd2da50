"""Runs that began before the modules moved go on and are recognised (tests/golden/README.md)."""

import json
import shutil

import keras
import numpy as np
import pytest

from keras_vjepa import VJEPABackbone
from keras_vjepa.monitoring import feature_statistics
from keras_vjepa.recipes import pretrain, pretrain_objects
from keras_vjepa.training import Checkpoints
from tests.support import BEFORE_THE_HOUSE, slow_but_on

# The options of the command that began these runs.
OPTIONS = (
    "--data data/train --image_size 16 --num_frames 4 --temporal_stride 2 --patch_size 4 "
    "--hidden_dim 8 --num_layers 1 --num_heads 2 --predictor_hidden_dim 6 "
    "--predictor_num_layers 1 --context_budgets 14,4 --target_budgets 10,22 --batch_size 2 "
    "--steps 6 --warmup_steps 1 --clip_after 2 --checkpoint_every 2 --keep_last 1 "
    "--monitor_every 2 --monitor_clips 2"
).split()


@pytest.fixture(autouse=True)
def copied(tmp_path, monkeypatch):
    """The files in a folder that can be written; their paths are relative to it."""
    shutil.copytree(BEFORE_THE_HOUSE / "data", tmp_path / "data")
    for name in ("runs/torch/finished", "runs_built_in"):
        shutil.copytree(BEFORE_THE_HOUSE / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)


def run(*more):
    pretrain.main([*OPTIONS, *more])


def rows(text):
    return np.array([[float(cell) for cell in row.split(",")] for row in text.splitlines()[1:]])


def features_at(workdir):
    """Spread of the first clips' features at the last step, as those runs have written it."""
    config, _ = pretrain.parse_arguments(OPTIONS)
    encoder = VJEPABackbone.from_preset(f"{workdir}@6")
    clips = pretrain_objects.make_batches(config, encoder.grid_shape).first(2)
    found = feature_statistics(keras.ops.convert_to_numpy(encoder(clips)))
    return [found.std, found.effective_rank]


@slow_but_on("torch", "tensorflow")
def test_a_stopped_run_goes_on_to_the_same_end(tmp_path, capsys):
    backend = keras.config.backend()
    shutil.copytree(BEFORE_THE_HOUSE / "runs" / backend / "stopped", tmp_path / "run")
    run("--workdir", "run")
    assert "Going on from step 3" in capsys.readouterr().err
    expected = json.loads((BEFORE_THE_HOUSE / "runs" / "expected.json").read_text())[backend]
    losses = expected["losses_of_steps_1_to_3"] + expected["losses_of_steps_4_to_6"]
    found = rows((tmp_path / "run" / "loss.csv").read_text())
    np.testing.assert_allclose(found, np.stack([range(1, 7), losses], axis=1), rtol=0, atol=1e-5)
    assert features_at(tmp_path / "run") == pytest.approx(
        rows(expected["features.csv"])[-1, 1:], rel=1e-4
    )
    # From here on, the run has a description of the current version.
    described = Checkpoints(tmp_path / "run" / "checkpoints").latest().description["run"]
    assert (described["hidden_dim"], described["beta_2"]) == (8, 0.999)


@pytest.mark.parametrize(
    "option, difference",
    [("--learning_rate", "learning_rate 0.0005 -> 0.75"), ("--beta_1", "beta_1 0.9 -> 0.75")],
)
def test_another_config_is_refused(option, difference, tmp_path):
    stopped = BEFORE_THE_HOUSE / "runs" / keras.config.backend() / "stopped"
    shutil.copytree(stopped, tmp_path / "run")
    with pytest.raises(SystemExit, match=f"holds a run of another config: {difference}. Take"):
        run("--workdir", "run", option, "0.75")


@pytest.mark.parametrize(
    ("workdir", "options"),
    [
        ("runs/torch/finished", []),
        (
            "runs_built_in",
            ["--data", "digit_motion", "--temporal_stride", "16", "--probe_epochs", "1"],
        ),
    ],
)
def test_a_finished_run_says_so(workdir, options, tmp_path, capsys):
    before = {path: path.read_bytes() for path in (tmp_path / workdir).rglob("*.*")}
    run("--workdir", workdir, *options)
    assert "holds this run, finished: 6 steps" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (tmp_path / workdir).rglob("*.*")} == before
    with pytest.raises(SystemExit, match="another config: mask_max_keep None -> 3. Take"):
        run("--workdir", workdir, *options, "--mask_max_keep", "3")
