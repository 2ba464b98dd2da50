"""Ablations: variants are what the paper says, each number is made once, the tables are read."""

import json
import os
import signal
import sys
import threading

import pytest

from keras_vjepa.configuration import values
from keras_vjepa.data.sources import labelled_sets
from keras_vjepa.data.sources.digit_motion import prepare_digit_motion
from keras_vjepa.data.sources.digit_motion_rendering import DigitMotionConfig
from keras_vjepa.evaluation.ablation_variants import ABLATIONS
from keras_vjepa.recipes import pretrain, pretrain_objects
from keras_vjepa.recipes.pretrain_derived import check_options
from keras_vjepa.tools import ablation_runs, ablations, child_runs

SMALL = "--steps 2 --batch_size 8 --hidden_dim 12 --num_heads 2 --num_layers 1".split()
SMALL += "--predictor_hidden_dim 8 --predictor_num_layers 1 --probe_epochs 1".split()
SMALL += "--probe_videos 40 --monitor_clips 4 --num_workers 2".split()


@pytest.fixture
def trained(monkeypatch):
    """Stands in for the trainings, and lists them; accuracies tell variants and seeds apart."""
    made = []

    def run(config, folder, program):
        made.append((folder.name, config))
        folder.mkdir(parents=True)
        share = 0.5 + 0.01 * config.seed + (0.2 if config.masks == "multi_block" else 0.0)
        found = {"motion_accuracy": share, "digit_accuracy": 0.3}
        names = (ablation_runs.PRETRAINED, ablation_runs.UNTRAINED)
        (folder / "probe.json").write_text(json.dumps(dict.fromkeys(names, found)))

    monkeypatch.setattr(ablation_runs.pretrain, "run", run)
    return made


@pytest.mark.data
def test_each_variant_is_trained_once(tmp_path, trained, capsys):
    ablations.main([str(tmp_path), "--table", "4", "--seeds", "3", "--steps", "7"])
    assert "4 pretrainings of 7 steps of 32 clips, 0 of them there: 28 steps" in (
        capsys.readouterr().err
    )
    ablations.main([str(tmp_path), "--table", "4", "--seeds", "3", "4", "--steps", "7"])
    assert [name for name, _ in trained] == [
        f"{run} {seed}"
        for seed in (3, 4)
        for run in ("random tube", "causal 6", "causal 12", "multi-block")
    ]
    text = (tmp_path / "table.md").read_text()
    assert capsys.readouterr().out == text
    assert "| multi-block | 73.5 ± 0.7 (2) | 30.0 ± 0.0 (2) |" in text and "| 67.4 |" in text
    assert "multi-block above causal multi-block[12]; here +20.0 ± 0.0 points (2 seeds)" in text
    # Numbers that were lost are read from the runs again.
    (tmp_path / "table.json").write_text("[")
    ablations.main([str(tmp_path), "--table", "4", "--seeds", "3", "4", "--steps", "7"])
    assert len(trained) == 8 and (tmp_path / "table.md").read_text() == text
    # One block of Fig. 8 is the multi-block of Table 4, which is there.
    ablations.main([str(tmp_path), "--table", "8", "--seeds", "4", "--steps", "7"])
    assert len(trained) == 8 + len(ABLATIONS["8"].variants) - 1


@pytest.mark.data
def test_all_masks_of_a_table_fit_its_config():
    for name, ablation in ABLATIONS.items():
        config = ablations.base_config(name, [], "ablations.py")
        configs = [ablation_runs.config_of(config, one, 5) for one in ablation.variants]
        for one in configs:
            check_options(one)
            assert (one.seed, one.run.steps) == (5, config.run.steps)
        if name == "4":
            kinds = [pretrain_objects.mask_kinds(one) for one in configs]
            assert {len(each) for each in kinds} == {2}
            assert kinds[0][0].token_counts((8, 6, 6)) == (24, 264)
            assert [kinds[i][0].num_context_steps(8) for i in (1, 2, 3)] == [3, 6, 8]
        if name == "videomae":
            [tubes], blocks = (pretrain_objects.mask_kinds(one) for one in configs)
            assert tubes.token_counts((8, 6, 6)) == (24, 264) and len(blocks) == 2
            given = [one.pretrainer for one in configs]
            assert [(one.target, one.loss_exponent) for one in given] == [
                ("pixels", 2.0),
                ("features", 1.0),
            ]
            assert all(one.normalize_targets for one in given)
            assert [one.context_variance_weight > 0 for one in given] == [False, True]
        assert {row for pair in ablation.findings for row in pair} <= {
            one.name for one in ablation.variants
        }
        assert {len(one.paper) for one in ablation.variants} <= {0, len(ablation.columns)}


@pytest.mark.data
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--table 5", "argument --table: invalid choice: '5' (choose from "),
        ("--table 4 4", "--table must differ. Received: 4 4"),
        ("--table 4 --seeds 1 1", "--seeds must differ. Received: 1 1"),
        ("--table 4 --jobs 0", "--jobs must be at least 1. Received: 0"),
        ("--table 4 --jobs 99999", "--jobs must be at most the number of cores that may be used"),
        ("--table 4 --seeds -1", "--seeds must be at least 0. Received: -1"),
        ("--table 4 --seed 1", "--seed must be left out: --seeds sets it. Received: one"),
        ("--table 4 --masks random_tube", "--masks must be left out: the variants of table 4 set"),
        ("--table 1 --workdir there", "--workdir must be left out: the folder comes first"),
        ("--table 4 --num_frames 2", "--num_frames must be enough for causal masks that differ"),
        ("--table 8 --patch_size 8", "--mask_spatial_scale must give blocks of at least one"),
        ("--table 4 --patch_size 8", "--mask_ratio must leave patches to see and to predict"),
        ("--table 1 --config vitl16 --data digit_scene", "--data must be a built-in set with"),
        ("--table 1 --config digit_motion_long", "--target must be 'features' with a --teacher"),
        ("--table 1 --stepz 3", "unknown option --stepz"),
    ],
)
def test_wrong_gestures_are_refused_in_a_line(given, message, tmp_path, trained, capsys):
    with pytest.raises(SystemExit) as ended:
        ablations.main([str(tmp_path / "new"), *given.split()])
    [line] = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and not trained and not list(tmp_path.iterdir())
    assert line.startswith("ablations.py: ") and message in line


@pytest.mark.data
def test_a_folder_of_other_numbers_is_refused(tmp_path, trained):
    command = [str(tmp_path), "--seeds", "0", "--table"]
    ablations.main([*command, "1", "--steps", "7"])
    with pytest.raises(SystemExit, match=r"a folder of these options.*--steps 7 -> 8$"):
        ablations.main([*command, "1", "--steps", "8"])
    # The masks of Table 4 have a config of their own.
    ablations.main([*command, "4", "--steps", "8"])
    (tmp_path / "table.json").write_text('{"motion, top-1 in %, labels": {}}')
    with pytest.raises(SystemExit, match="must be a folder of ablations"):
        ablations.main([*command, "1", "--steps", "7"])
    assert len(trained) == 2 + 4


# --- Side by side ---------------------------------------------------------------------------------


@pytest.mark.data
@pytest.mark.parametrize("name", ABLATIONS)
def test_a_child_has_the_config_of_its_variant(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--learning_rate", "1e-3", "--batch_size=8", "--callbacks", "none", "--steps", "7"]
    config = ablations.base_config(name, words, "ablations.py")
    runs = ablation_runs.AblationRuns(child_runs.Path("there"), config, None)
    monkeypatch.setattr(ablation_runs.AblationRuns, "_shortened", lambda _, share: f"{share}.csv")
    for variant in ABLATIONS[name].variants:
        child = runs.child(variant, 5, ablations._pretraining_words(name, words))
        start = len((sys.executable, *child_runs.RECIPE))
        given, workdir = pretrain.parse_arguments([*child.command[start:]])
        expected = values(ablation_runs.config_of(config, variant, 5))
        if variant.share < 1:
            expected["data"] = f"{variant.share}.csv"
        assert repr(values(given)) == repr(expected)
        assert workdir == tmp_path / "there" / "runs" / f"{variant.run} 5"
        assert child.log.name == f"{variant.run} 5.log"


@pytest.fixture
def children(monkeypatch):
    """Stands in for the processes; lists their names for each call, and how many at a time."""
    made = []

    def run_side_by_side(runs, jobs, ended):
        made.append((jobs, [run.name for run in runs]))
        for run in runs:
            run.folder.mkdir(parents=True)
            found = {"motion_accuracy": 0.5, "digit_accuracy": 0.25}
            names = (ablation_runs.PRETRAINED, ablation_runs.UNTRAINED)
            (run.folder / "probe.json").write_text(json.dumps(dict.fromkeys(names, found)))
            ended(run, 0, "")

    monkeypatch.setattr(ablations, "run_side_by_side", run_side_by_side)
    monkeypatch.setattr(ablations, "render_sets", lambda names: None)
    monkeypatch.setattr(child_runs, "usable_cores", lambda: 3)
    return made


@pytest.mark.data
def test_only_what_lacks_is_pretrained_side_by_side(tmp_path, trained, children):
    command = [str(tmp_path), "--steps", "7", "--table"]
    ablations.main([*command, "4", "--seeds", "3", "--jobs", "1"])
    assert not children and len(trained) == 4
    # What is there is left; a lost folder is not made again for numbers that the table has.
    (tmp_path / "runs" / "multi-block 3").rename(tmp_path / "elsewhere")
    ablations.main([*command, "4", "videomae", "8", "--seeds", "3", "4", "--jobs", "3"])
    [(jobs, names)] = children
    shared = ["random-tube[0.9], seed 4", "multi-block, seed 4"]
    assert jobs == 3 and names[0] == shared[0] and shared[1] in names
    # Table 8 needs the lost one, as Table 4 did.
    assert len({*names}) == len(names) == 4 + 4 + 2 * len(ABLATIONS["8"].variants) - 1
    assert len(trained) == 4
    ablations.main([*command, "4", "--seeds", "3", "4"])
    assert len(children) == 1 and len(trained) == 4


@pytest.mark.data
def test_a_child_that_fails_ends_the_command_in_a_line(tmp_path, monkeypatch):
    script = "import sys; sys.exit('python -m keras_vjepa pretrain: the features are one')"
    monkeypatch.setattr(ablation_runs, "RECIPE", ("-S", "-c", script))
    monkeypatch.setattr(child_runs, "usable_cores", lambda: 2)
    monkeypatch.setattr(ablations, "render_sets", lambda names: None)
    with pytest.raises(SystemExit) as ended:
        ablations.main([str(tmp_path), "--table", "3", "--seeds", "0", "--jobs", "2"])
    log = tmp_path / "runs" / "features 0.log"
    assert ended.value.code == (
        f"ablations.py: average, seed 0: the features are one ({log} has all that it said)"
    )
    assert not (tmp_path / "table.md").exists() and not (tmp_path / ".lock").exists()


# --- Whole tables ---------------------------------------------------------------------------------

# Pretrains in a process of its own on a small set, whose folder and lists follow.
PRETRAIN_ON = """
import sys
from pathlib import Path
import keras_vjepa
from keras_vjepa.data.sources import labelled_sets
from keras_vjepa.data.sources.digit_motion import DigitMotionFiles
from keras_vjepa.recipes import pretrain, pretrain_objects
files = DigitMotionFiles(*map(Path, sys.argv[1:4]))
for module in (labelled_sets, pretrain_objects):
    module.prepare_digit_motion = lambda config: files
pretrain.main(sys.argv[4:], "python -m keras_vjepa pretrain")
"""


@pytest.fixture
def small_set(tmp_path, monkeypatch):
    """Takes the place of the built-in set, in this process and in those that it starts."""
    small = DigitMotionConfig(
        background_strength=0, num_training_videos=200, num_test_videos=20, frame_step=4, shrink=2
    )
    files = prepare_digit_motion(tmp_path / "cache", small, None)
    for module in (labelled_sets, pretrain_objects):
        monkeypatch.setattr(module, "prepare_digit_motion", lambda config: files)
    given = map(str, (files.folder, files.train, files.test))
    monkeypatch.setattr(ablation_runs, "RECIPE", ("-c", PRETRAIN_ON, *given))


@pytest.mark.slow
def test_side_by_side_is_as_one_after_the_other(tmp_path, small_set, monkeypatch, capsys):
    """The numbers are the same, and each way continues what the other one left."""
    monkeypatch.setattr(child_runs, "usable_cores", lambda: 2)

    def made(folder, *jobs):
        command = [str(tmp_path / folder), "--table", "1", "2", "--seeds", "0", *SMALL]
        ablations.main([*command, "--steps", "6", "--checkpoint_every", "2", *jobs])
        runs = [*(tmp_path / folder / "runs").glob("* 0")]
        assert len(runs) == 4
        curves = {run.name: (run / "loss.csv").read_text() for run in runs}
        return capsys.readouterr().out, curves

    def stop():
        log = tmp_path / "stopped" / "runs" / "pixels 0.log"
        while not (log.exists() and " parameters, " in log.read_text()):
            threading.Event().wait(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    expected = made("one")
    assert made("two", "--jobs", "2") == expected
    # Those that were made one after the other are there.
    assert made("one", "--jobs", "2") == expected
    threading.Thread(target=stop, daemon=True).start()
    with pytest.raises(SystemExit, match="75"):
        made("stopped", "--jobs", "2")
    capsys.readouterr()
    assert made("stopped") == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", ABLATIONS)
def test_a_small_table(name, tmp_path, small_set, capsys):
    command = [str(tmp_path / "table"), "--table", name, "--seeds", "0", *SMALL]
    command += ["--fine-tune-steps", "2"] if name == "1" else []
    ablations.main(command)
    text = capsys.readouterr().out
    ablations.main(command)
    said = capsys.readouterr()
    assert said.out == text == (tmp_path / "table" / "table.md").read_text()
    assert ": 0 steps to do" in said.err and ", seed 0: " not in said.err
    rows = [line.split("|")[1].strip() for line in text.splitlines() if "(1)" in line]
    assert rows == [one.name for one in ABLATIONS[name].variants]
    assert text.count("the paper has ") >= 2 * len(ABLATIONS[name].findings)
    if name == "2":
        assert (tmp_path / "table" / "0.05 of the videos.csv").read_text().count("\n") == 10
