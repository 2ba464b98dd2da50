"""What follows from the config fits what is given, or the refusal names what was given."""

import re

import pytest

from keras_vjepa.configuration import values
from keras_vjepa.recipes import pretrain, probe, supervised
from keras_vjepa.recipes.pretrain_configs import CONFIGS

pytestmark = pytest.mark.data


def parsed(line, capsys):
    config, _ = pretrain.parse_arguments(line.split(), "keras-vjepa pretrain")
    return values(config), capsys.readouterr().err.splitlines()


@pytest.mark.parametrize(
    ("line", "expected", "said"),
    [
        # The warm-up has the same share of the steps as in the config: 15 of 100, 12,000 of 90,000.
        ("--steps 12", {"warmup_steps": 2, "clip_after": 2}, "--warmup_steps is 2 in place of"),
        ("--steps 1", {"warmup_steps": 0}, "the config's 15, which does not fit into 1 step."),
        ("--schedule_scale 0.1", {"warmup_steps": 1}, "--warmup_steps is 1 in"),
        ("--config vitl16 --steps 1000", {"warmup_steps": 133, "clip_after": None}, "12,000"),
        ("--steps 12 --clip_after 5", {"warmup_steps": 2, "clip_after": 5}, "--warmup_steps is 2"),
        ("--masks causal_multi_block", {"max_context_frames": 6}, "12, which does not fit 8 fra"),
        ("--learning_rate 1e-5", {"start_learning_rate": 1e-4}, "1e-04|0.0001, which is more than"),
        # If the value fits, nothing is changed or printed, so that earlier runs continue.
        ("--steps 13", {"warmup_steps": 15, "clip_after": 15}, None),
        ("--steps 12 --warmup_steps 14", {"warmup_steps": 14, "clip_after": 15}, None),
        ("--max_context_frames 12", {"max_context_frames": 12}, "^--max_.* has no effect with .*$"),
        ("--learning_rate 1e-5 --start_learning_rate 1e-4", {}, None),
    ],
)
def test_what_nobody_gave_is_fitted_to_what_was_given(line, expected, said, capsys):
    found, lines = parsed(line, capsys)
    assert {name: found[name] for name in expected} == expected
    assert bool(lines) == (said is not None)
    if said is not None:
        assert re.search(said, "\n".join(lines))


def test_configs_as_they_are_fit(capsys):
    for name in CONFIGS:
        assert parsed(f"--config {name}", capsys)[1] == []


def test_another_command_says_nothing_of_a_schedule_that_it_does_not_have(capsys, monkeypatch):
    asked = []
    monkeypatch.setattr(supervised, "run", lambda config, workdir: asked.append(config))
    supervised.main(["--steps", "12"], "keras-vjepa supervised")
    assert len(asked) == 1 and capsys.readouterr().err == ""


def refused(module, line, capsys):
    with pytest.raises(SystemExit) as ended:
        module.main(line.split(), "keras-vjepa x")
    assert ended.value.code == 2
    [text] = capsys.readouterr().err.splitlines()
    return text


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--steps 12 --warmup_steps 15", "leave it out for 2, or take more --steps"),
        ("--warmup_steps=200", "--schedule_scale, 100 x 1.25. Received: 200; leave it out for 15"),
        ("--image_size 16", "--mask_spatial_scale must give .*; given: --image_size 16$"),
        ("--patch_size=32", "--mask_spatial_scale must give .*; given: --patch_size 32$"),
        (
            "--num_heads 5 --hidden_dim 100",
            "--predictor_hidden_dim must.*; given: --num_heads 5 --",
        ),
        (
            "--masks causal_multi_block --max_context_frames 9",
            r"\[1, --num_frames=8\]. Received: 9$",
        ),
        # The message names an option that the user has given.
        ("--image_size 100", "must be a multiple of --patch_size=8. Received: 100$"),
        ("--tubelet_size 3", "--num_frames must be a multiple of --tubelet_size=3. Received: 8$"),
    ],
)
def test_a_refusal_names_an_option_that_was_given(line, message, capsys):
    text = refused(pretrain, line, capsys)
    assert re.search(message, text)
    given = [word.split("=")[0] for word in line.split() if word.startswith("--")]
    assert any(name in text for name in given)


def test_a_refusal_of_a_probe_does_too(capsys, tmp_path):
    (tmp_path / "list.csv").write_text("a.mp4 0\n")
    line = f"--config k400 --workdir {tmp_path}"
    assert refused(probe, line, capsys).endswith(f"Received: none; given: {line}")
