"""Walk the help of every command: each option ends in its default, and nothing else is named."""

import importlib
import re

import pytest

from keras_vjepa import __main__ as command
from keras_vjepa.arguments import counted
from keras_vjepa.command_line import as_typed
from keras_vjepa.configuration import Option
from keras_vjepa.recipes.pretrain_configs import CONFIGS as PRETRAIN_CONFIGS
from keras_vjepa.recipes.probe_configs import CONFIGS as PROBE_CONFIGS
from tests.test_option_values import parser_of

pytestmark = pytest.mark.data

# Besides options, help may name configs, values, other commands, and files by their paths.
NAMES = {*PRETRAIN_CONFIGS, *PROBE_CONFIGS, *command.COMMANDS}
# Without these, a command does something else, so no default would be the same.
LEFT_OUT = {"--vary", "--probe"}
REQUIRED = {
    "decode": ["sample", "a.mp4", "--preset", "a", "--decoder", "a", "--output", "out.png"],
    "check-videos": ["here", "--output", "out"],
    "transcode": ["here", "out"],
    "videomix": ["--k400", "here", "--output", "out"],
    "bench-data": ["here"],
    "features": ["here", "--preset", "here", "--output", "out"],
    "convert": ["here", "out"],
    "export": ["here", "out"],
    "export-checkpoint": ["here", "out"],
    "report": ["here"],
    "compare": ["here", "out"],
    "upload": ["here", "hf://user/repo"],
    "masks": ["--output", "masks.png"],
    "picture": ["pca", "here.mp4", "--preset", "here", "--output", "out.png"],
    "sweep": ["out"],
    "ablations": ["out", "--table", "4"],
    "check-resume": ["out"],
    "bench-pretraining": ["out"],
}


@pytest.fixture(params=command.COMMANDS)
def parser(request, monkeypatch):
    monkeypatch.setenv("COLUMNS", "10000")
    module = importlib.import_module(command.COMMANDS[request.param])
    return parser_of(module.main, REQUIRED.get(request.param, []))


def help_of(action, parser):
    return (parser._get_formatter()._expand_help(action)).strip() if action.help else ""


def test_every_option_has_a_description_that_ends_in_its_default(parser):
    for action in parser._actions:
        text, name = help_of(action, parser), [*action.option_strings, action.dest][0]
        assert len(text) > 3, name
        is_flag = action.nargs == 0 or not action.option_strings
        if not (is_flag or action.required or name in LEFT_OUT):
            assert re.search(r"(\(default: .+\)|\[.*\])$", text), (name, text)


def test_nothing_is_named_that_cannot_be_typed(parser):
    options = {option for action in parser._actions for option in action.option_strings}
    choices = {str(choice) for action in parser._actions for choice in action.choices or ()}
    written = [parser.description, parser.epilog or ""]
    written += [help_of(action, parser) for action in parser._actions]
    written += [group.description or "" for group in parser._action_groups]
    for text in written:
        for name in re.findall(r"(?<![\w-])--[a-z][\w-]*", text):
            assert name in options or name in ("--config", "--steps", "--data"), (name, text)
        for name in re.findall(r"`([^`]+)`", text):
            is_path = re.search(r"[./* ]", name)
            assert is_path or name in options | choices | NAMES, (name, text)
    # Names in Python without backticks. Only options have such descriptions.
    for action in parser._actions:
        for name in re.findall(r"(?<![\w/.-])[a-z]+(?:_[a-z]+)+\d*", help_of(action, parser)):
            known = NAMES | choices | {"mixed_bfloat16", "mixed_float16", "random_tokens"}
            known |= {
                "multi_block",
                "causal_multi_block",
                "random_tube",
                "batch_min",
                "rotary_pairs",
            }
            assert name in known, (name, action.option_strings)


def test_names_are_written_as_they_are_typed():
    def option(name, field, argument, description=""):
        return Option(name, field, argument, int, 1, 1, "", description)

    text = 'width, or None; must divide `depth`. With `"low"` as `a_function` has it. See `seed`.'
    known = {
        "box_depth": option("box_depth", "box", "depth"),
        "depth": option("depth", "room", "depth"),
        "seed": option("seed", "seed", None),
        "box_width": option("box_width", "box", "width", text),
    }
    typed = "width, or none; must divide --box_depth. See --seed."
    assert as_typed(known["box_width"], known) == typed


def test_counts():
    assert [counted(n, "clip") for n in (0, 1, 1024)] == ["0 clips", "1 clip", "1,024 clips"]
