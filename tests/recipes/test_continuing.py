"""A run that goes on with more steps, another schedule or other parts of a step."""

import shutil

import pytest

from keras_vjepa.configuration import replace
from keras_vjepa.data.sources.digit_motion import prepare_digit_motion
from keras_vjepa.data.sources.digit_motion_rendering import DigitMotionConfig
from keras_vjepa.monitoring.tables import read_rows
from keras_vjepa.recipes import pretrain
from keras_vjepa.recipes.pretrain_configs import digit_motion
from keras_vjepa.tools import neighbors
from keras_vjepa.tools.check_resume import result_of
from keras_vjepa.training import Checkpoints
from tests.recipes.test_resume import SMALL
from tests.support import slow_but_on


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Of two steps, whose schedules are not over then."""
    made = DigitMotionConfig(num_training_videos=5, num_test_videos=2)
    files = prepare_digit_motion(tmp_path_factory.mktemp("cache"), made, None)
    changes = {**SMALL, "steps": 2, "checkpoint_every": 3, "monitor_every": 2, "monitor_clips": 4}
    return replace(digit_motion(), **changes, data=str(files.folder / "train"))


@pytest.fixture(scope="module")
def short(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("short")
    pretrain.run(config, workdir)
    return workdir


def test_a_finished_run_goes_on_as_one_that_was_longer(config, short, tmp_path, capsys):
    shutil.copytree(short, tmp_path / "longer")
    capsys.readouterr()
    pretrain.run(replace(config, steps=4), tmp_path / "longer")
    said = capsys.readouterr().err
    assert "Schedules stay those of 2 steps" in said and "Going on from step 2" in said
    assert "--schedule_steps 4 stretches them" in said
    assert "They end at step 2, after which the learning rate rises again." in said
    pretrain.run(replace(config, steps=4, schedule_steps=2), tmp_path / "whole")
    # The name of the last checkpoint contains a hash of its contents.
    assert result_of(tmp_path / "longer") == result_of(tmp_path / "whole")
    assert len(result_of(tmp_path / "longer")[0]) == 1 + 4
    steps = [row["step"] for row in read_rows(tmp_path / "longer" / "steps.jsonl")]
    assert steps == [1, 2, 3, 4]
    capsys.readouterr()
    pretrain.run(replace(config, steps=4), tmp_path / "longer")
    assert "holds this run, finished: 4 steps" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_of_20_steps_goes_on_to_40_as_one_that_was_made_at_once(config, tmp_path):
    """With warm-up, looks and checkpoints in between."""
    config = replace(config, warmup_steps=5, checkpoint_every=7, monitor_every=6)
    pretrain.run(replace(config, steps=20), tmp_path / "longer")
    pretrain.run(replace(config, steps=40), tmp_path / "longer")
    pretrain.run(replace(config, steps=40, schedule_steps=20), tmp_path / "whole")
    longer, whole = tmp_path / "longer", tmp_path / "whole"
    assert result_of(longer) == result_of(whole)
    assert len(result_of(longer)[0]) == 1 + 40
    # The longer one looked at its features once more, where it had ended at first.
    looks = {row["step"]: row for row in read_rows(longer / "monitor.jsonl")}
    at_once = {row["step"]: row for row in read_rows(whole / "monitor.jsonl")}
    assert looks.keys() - at_once.keys() == {20}
    assert all(
        looks[step]["target_clip_rank"] == row["target_clip_rank"] for step, row in at_once.items()
    )


@slow_but_on("torch")
def test_schedules_are_stretched_when_that_is_asked_for(config, short, tmp_path, capsys):
    shutil.copytree(short, tmp_path / "run")
    pretrain.run(replace(config, steps=3, schedule_steps=30), tmp_path / "run")
    assert "Schedules are of 30 steps from here on, and were of 2 so" in capsys.readouterr().err
    rates = [row["learning_rate"] for row in read_rows(tmp_path / "run" / "steps.jsonl")]
    # During two steps of the short schedule the rate falls; then it is near the peak of the long
    # one.
    assert rates[1] < rates[0] < 5.1e-4 and rates[2] > 4.9e-4


def test_a_checkpoint_is_measured_as_it_was_while_it_was_trained(short, capsys):
    """By command, from its file, and with all numbers of the clips that the monitor looks at."""
    online = next(row for row in read_rows(short / "monitor.jsonl") if row["step"] == 2)
    neighbors.main(["--preset", f"{short}@2"])
    lines = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert len(lines) > 30 and lines.keys() == online.keys() - {"loss", "state", "words"}
    for name, value in lines.items():
        # NaN is written as null in JSON.
        expected = float("nan") if online[name] is None else online[name]
        assert float(value) == pytest.approx(expected, rel=1e-5, abs=1e-7, nan_ok=True), name


def test_fewer_steps_than_are_done_are_refused(config, short, tmp_path):
    with pytest.raises(
        ValueError, match="`steps` must be at least 2, as many as .* has done. Rec.* 1"
    ):
        pretrain.run(replace(config, steps=1), short)
    shutil.copytree(short / "checkpoints", tmp_path / "checkpoints")
    one = replace(config, steps=1)
    with pytest.raises(
        ValueError, match="`steps` must be at least 2, as many as .* has done. Rec.* 1"
    ):
        pretrain.run(one, tmp_path)


def test_more_steps_need_a_checkpoint(config, short, tmp_path):
    shutil.copytree(short, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(FileExistsError, match="hold the checkpoints of its run"):
        pretrain.run(replace(config, steps=4), tmp_path / "run")


@slow_but_on("torch")
def test_parts_of_a_step_and_memory_may_change(config, short, tmp_path):
    shutil.copytree(short, tmp_path / "run")
    changes = {"accumulation_steps": 2, "remat": True, "monitor_every": 1}
    pretrain.run(replace(config, steps=3, **changes), tmp_path / "run")
    described = Checkpoints(tmp_path / "run" / "checkpoints").latest().description["run"]
    assert "remat" not in described and described["schedule_steps"] == 2
