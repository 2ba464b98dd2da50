"""The command line: values of every type, help, and what is said of bad input."""

import dataclasses
import importlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pytest

from keras_vjepa.__main__ import COMMANDS
from keras_vjepa.command_line import parse, read_value, text_of
from keras_vjepa.configuration import Part

pytestmark = pytest.mark.data


def shelf(width: float, depth: int = 30, colours: Sequence[str] | None = None) -> None:
    """Put up a shelf.

    Args:
        width: in centimetres; 50 % of it is board.
        depth: of one box.
        colours: of the boxes.
    """


@dataclasses.dataclass(frozen=True)
class Room:
    seed: int = 0
    shelf: Part = Part(shelf, derived={"depth": "the room's"}, arguments={"width": 3.0})


def small() -> Room:
    """A small room.

    More of it.
    """
    return Room()


def large() -> Room:
    """A large room."""
    return Room(seed=1)


def parsed(*arguments):
    configs = {"small": small, "large": large}
    return parse("room.py", "Make a room.\n\nAnd more.", configs, list(arguments), prefix="room_")


@pytest.mark.parametrize(
    ("text", "annotation", "value"),
    [
        ("7", int, 7),
        ("1e-3", float, 1e-3),
        ("none", str, "none"),
        ("None", float | None, None),
        ("7", float | None, 7.0),
        ("7", int | str, 7),
        ("seven", str | int, "seven"),
        ("TRUE", bool, True),
        ("budget", Literal["budget", "batch_min"], "budget"),
        ("64", int | tuple[int, int], 64),
        ("64,96", int | tuple[int, int], (64, 96)),
        ("8", tuple[int, ...], (8,)),
        ("368,none", Sequence[int | None] | None, (368, None)),
        ("none", Sequence[int | None] | None, None),
        ("0.1:0.2,0.7", tuple[float | tuple[float, float], ...], ((0.1, 0.2), 0.7)),
    ],
)
def test_values(text, annotation, value):
    found = read_value(text, annotation)
    assert found == value and type(found) is type(value)
    assert read_value(text_of(value), annotation) == value


@pytest.mark.parametrize(
    ("text", "annotation", "message"),
    [
        ("1.5", int, "must be whole number. Received: 1.5"),
        ("6,7,8", int | tuple[int, int], "must be whole number or whole number,whole number"),
        ("maybe", bool, "must be true or false"),
        ("no", Literal["budget", "batch_min"], "must be budget or batch_min. Received: no"),
        ("1,x", Sequence[int | None] | None, "must be whole number or none,... or none"),
    ],
)
def test_values_of_another_type_are_refused(text, annotation, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        read_value(text, annotation)


def test_options_go_to_the_config_that_is_named():
    assert parsed() == ("small", {}, Path("workdir/room_small"))
    name, given, workdir = parsed(
        "--config=large", "--width", "2", "--colours", "red,blue", "--workdir", "here"
    )
    assert (name, workdir) == ("large", Path("here"))
    assert given == {"width": 2.0, "colours": ("red", "blue")}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--widht", "3"], "unknown option --widht; did you mean --width?"),
        (["--worcdir=x"], "unknown option --worcdir; did you mean --workdir?"),
        (["more"], "unknown argument more"),
        (["/"], "unknown argument /; in quotes, a shell leaves braces and * as they are"),
        (["--config", "smal"], "argument --config: unknown config smal; did you mean small?"),
        (["--config", "x"], "argument --config: unknown config x; there are small, large"),
        (["--seed", "many"], "argument --seed: must be whole number. Received: many"),
        (["--seed"], "argument --seed: expected one argument"),
    ],
)
def test_bad_input_is_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_info:
        parsed(*arguments)
    assert exit_info.value.code == 2
    assert capsys.readouterr().err == f"room.py: {message}\n"


def test_help_says_what_every_option_is(capsys):
    with pytest.raises(SystemExit) as exit_info:
        parsed("--help")
    assert exit_info.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for expected in (
        "Make a room.",
        "small A small room. large A large room.",
        "--width VALUE in centimetres; 50 % of it is board. (number) [3.0]",
        "--depth VALUE of one box. (whole number or none) [the room's]",
        "--colours VALUE of the boxes. (text,... or none) [none]",
    ):
        assert expected in text
    assert "More of it" not in text


@pytest.mark.parametrize(
    "name",
    [
        "ablations",
        "check-resume",
        "detect-table",
        "finetune-table",
        "sweep",
        "decode",
        "dense-probe",
    ],
)
def test_an_empty_word_is_no_folder_of_results(name, tmp_path, monkeypatch, capsys):
    """It was the current folder, in which results were written, and which check-resume emptied."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kept").touch()
    words = {"decode": ["table", ""], "dense-probe": ["preset", "--output", ""]}.get(name, [""])
    module = importlib.import_module(COMMANDS[name])
    monkeypatch.setattr(shutil, "rmtree", None)
    with pytest.raises(SystemExit, match="2"):
        module.main(words, "keras-vjepa")
    said = capsys.readouterr().err
    argument = "--output" if name == "dense-probe" else "workdir"
    assert f"argument {argument}: must be a folder. Received: nothing" in said
    assert said.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
