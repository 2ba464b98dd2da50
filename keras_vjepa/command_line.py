"""Parse a recipe's command line: a named config, whose options can all be set (App. C)."""

import argparse
import itertools
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from keras_vjepa.configuration import Option, nearest, options, renamed

_NONE = type(None)

# The exit code of argparse, for input that is refused before anything is done.
WRONG_USAGE = 2

# What separates the items of a tuple, and the items of a tuple within a tuple.
SEPARATORS = ",:"

# Options that are lists of names, and that no config has.
_LISTS = ("presets", "protocols", "costs")


def parse(
    program: str,
    description: str,
    configs: Mapping[str, Callable[[], Any]],
    arguments: list[str] | None = None,
    prefix: str = "",
    lists: Mapping[str, str] | None = None,
) -> tuple[str, dict[str, Any], Path]:
    """Read from a command line the name of a config, the options that it sets, and the workdir.

    `keras_vjepa.configuration.replace` makes a config from the first two. Bad input ends the
    process with exit code 2 and one line that names the option.

    Args:
        program: the name that the recipe was called by.
        description: the recipe's docstring; its first line is shown.
        configs: functions that return a config, by name; the first is the default. Their
            docstrings are shown.
        arguments: the words of the command line; None takes those of the process.
        prefix: prefix of the config's name in the name of the workdir.
        lists: help of further options that take several words and are no options of a config.
    """
    default = next(iter(configs))
    known = options(configs[default]())
    parser = OneLineParser(
        prog=program,
        usage=f"{program} [--config NAME] [--data PATH] [--workdir FOLDER] [--OPTION VALUE ...]",
        description=description.splitlines()[0],
        epilog=f"Values in brackets are those of {default}. Tuples are written 1,2.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    costs = "\n".join(
        f"{name:{max(map(len, configs)) + 2}s}{(function.__doc__ or '').splitlines()[0]}"
        for name, function in configs.items()
    )
    parser.add_argument_group("configs", costs)
    parser.add_argument(
        "--config", default=default, type=_one_of("config", configs), metavar="NAME",
        help=f"the config to begin with [{default}]",
    )  # fmt: skip
    parser.add_argument(
        "--workdir", type=_read_folder, metavar="FOLDER",
        help=f"for all results [workdir/{prefix}<config>]",
    )  # fmt: skip
    for option, help_text in (lists or {}).items():
        parser.add_argument(
            f"--{option}", nargs="+", default=argparse.SUPPRESS, metavar="NAME", help=help_text
        )
    _add_options(parser, known)
    given = vars(parser.parse_all(arguments))
    name, workdir = given.pop("config"), given.pop("workdir")
    return name, given, workdir or Path("workdir") / f"{prefix}{name}"


def explain(error: Exception, configs: Mapping[str, Callable[[], Any]]) -> str:
    """Write an error's message in one line, with the options of a recipe as they are typed.

    Args:
        error: an error whose message has names of options in backticks, as raised for configs.
        configs: as in `parse`.
    """
    known = options(next(iter(configs.values()))())
    # The last ones are options of recipes that no config has.
    return _with_dashes(error, {name: f"--{name}" for name in (*known, "workdir", *_LISTS)})


@contextmanager
def refusing(
    program: str,
    configs: Mapping[str, Callable[[], Any]],
    arguments: Sequence[str] | None = (),
) -> Iterator[None]:
    """End the process if a block refuses options: print one line to stderr, exit with code 2.

    Args:
        program: the name that the recipe was called by.
        configs: as in `parse`.
        arguments: the words of the command line; None takes those of the process. If the error is
            about none of the options in them, the line lists these too.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        given = _options_in(sys.argv[1:] if arguments is None else arguments)
        text = explain(error, configs)
        if given and not any(re.search(rf"{name}(?![\w-])", text) for name in given):
            text = f"{text}; given: {' '.join(f'{name} {given[name]}' for name in given)}"
        print(f"{program}: {text}", file=sys.stderr)
        sys.exit(WRONG_USAGE)


def _options_in(arguments: Sequence[str]) -> dict[str, str]:
    """Return the options of a command line, as they were typed, with their values."""
    found, name = {}, ""
    for argument in arguments:
        if argument.startswith("--"):
            name, _, value = argument.partition("=")
            found[name] = value
        elif name:
            found[name] = f"{found[name]} {argument}".strip()
    return found


def sibling(program: str, own: str, other: str) -> str:
    """Name another program in the way in which this one was called.

    Args:
        program: how this one was called: "keras-vjepa pretrain", or by the file "pretrain.py".
        own: the name of this program.
        other: the name of the other program.

    Example:

    >>> from keras_vjepa.command_line import sibling
    >>> sibling("python -m keras_vjepa pretrain", "pretrain", "probe")
    'python -m keras_vjepa probe'
    """
    before, _, after = program.rpartition(own)
    return f"{before}{other}{after}"


def _with_dashes(error: Exception, names: Mapping[str, str]) -> str:
    return renamed(" ".join(str(error).split()), names)


class OneLineParser(argparse.ArgumentParser):
    """Parses a command line, and answers bad input with one line and exit code 2."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**{"formatter_class": DefaultsLast, **arguments})

    def error(self, message: str) -> NoReturn:
        """End the process with one line, without the usage."""
        self.exit(WRONG_USAGE, f"{self.prog}: {message}\n")

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """End the process, as `error` does, if a block refuses arguments."""
        try:
            yield
        except (ValueError, OSError) as error:
            self.error(self.explain(error))

    @contextmanager
    def failing(self, *others: type[Exception]) -> Iterator[None]:
        """End the process with one line and exit code 1, if what a block does fails.

        Args:
            others: kinds of errors that end it besides wrong values, files and numbers.
        """
        kinds: tuple[type[Exception], ...] = (ValueError, OSError, FloatingPointError, *others)
        try:
            yield
        except kinds as error:
            sys.exit(f"{self.prog}: {self.explain(error)}")

    def explain(self, error: Exception) -> str:
        """Write an error's message in one line, with the options as they are typed.

        Args:
            error: an error whose message has the names of arguments in backticks.
        """
        typed = [action for action in self._actions if action.option_strings]
        return _with_dashes(error, {action.dest: action.option_strings[-1] for action in typed})

    def parse_all(self, arguments: list[str] | None = None) -> argparse.Namespace:
        """Parse a command line; for an unknown option, the error names the most similar one.

        Args:
            arguments: the words of the command line; None takes those of the process.
        """
        arguments = sys.argv[1:] if arguments is None else arguments
        known = [option for action in self._actions for option in action.option_strings]
        # This comes before parsing: if a required option was misspelt, parsing would only say that
        # it is missing.
        for argument in itertools.takewhile(lambda text: text != "--", arguments):
            name = argument.split("=")[0]
            if name.startswith("--") and name not in known:
                self.error(f"unknown option {name}{nearest(name, known)}")
        parsed, unknown = self.parse_known_args(arguments)
        if unknown:
            hint = "; in quotes, a shell leaves braces and * as they are"
            self.error(f"unknown argument {unknown[0]}{hint if os.path.exists(unknown[0]) else ''}")
        return parsed


def _add_options(parser: argparse.ArgumentParser, known: Mapping[str, Option]) -> None:
    groups: dict[str, Any] = {}
    for option in known.values():
        title = "options" if option.argument is None else f"options: {option.field}"
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        value = option.derived if option.value is None and option.derived else text_of(option.value)
        text = f"{as_typed(option, known)} ({_words_for(option.annotation)}) [{value}]"
        groups[title].add_argument(
            f"--{option.name}",
            type=reader_of(option.annotation),
            default=argparse.SUPPRESS,
            metavar="VALUE",
            # argparse would read a single per cent sign as a format.
            help=text.strip().replace("%", "%%"),
        )


def as_typed(option: Option, known: Mapping[str, Option]) -> str:
    """Write the help of an option from its docstring, with other options as they are typed.

    Clauses about arguments and functions that exist only in Python are left out.

    Args:
        option: the option.
        known: all options, by name.
    """
    siblings = {
        o.argument: o.name for o in known.values() if o.argument and o.field == option.field
    }
    names = {**dict.fromkeys(known), **siblings}
    typed = {name: f"--{found or name}" for name, found in names.items()} | {"None": "none"}

    def text(found: re.Match[str]) -> str:
        return _IDENTIFIER.sub(lambda one: typed.get(one[0], one[0]), found[1].replace('"', ""))

    def is_of_python(clause: str) -> bool:
        quoted = [text for text in re.findall(r"`([^`]*)`", clause) if text[:1] != '"']
        names = _IDENTIFIER.findall(" ".join(quoted))
        return any(name not in typed and _OF_PYTHON(name) for name in names)

    kept = []
    for sentence in re.split(r"(?<=\.)\s+(?=[A-Z`])", option.description.rstrip(".")):
        clauses = re.split(r"(?:;|, see)\s+", sentence)
        kept.append(
            "; ".join(itertools.takewhile(lambda clause: not is_of_python(clause), clauses))
        )
    description = ". ".join(sentence.rstrip(".") for sentence in kept if sentence)
    description = re.sub(r"\bNone\b", "none", re.sub(r"`([^`]*)`", text, description))
    return f"{description}." if description else ""


_IDENTIFIER = re.compile(r"[A-Za-z_]\w*")
# Text that looks like a name in Python, and not like a word or a letter of a formula.
_OF_PYTHON = re.compile(r"\w*(?:[a-z]_[a-z]|[a-z][A-Z])\w*").fullmatch


def read_folder(text: str) -> Path:
    """Make a path of a word of the command line; an empty one would be the current folder.

    Raises:
        argparse.ArgumentTypeError: for an empty word, as of a variable that is not set.
    """
    if not text.strip():
        raise argparse.ArgumentTypeError("must be a folder. Received: nothing")
    return Path(text)


def _read_folder(text: str) -> Path:
    # No shell replaces the tilde in `--workdir=~/runs`.
    return read_folder(text).expanduser()


def _one_of(what: str, known: Mapping[str, Any]) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in known:
            hint = nearest(text, known) or f"; there are {', '.join(known)}"
            raise argparse.ArgumentTypeError(f"unknown {what} {text}{hint}")
        return text

    return read


def reader_of(annotation: Any) -> Callable[[str], Any]:
    """Make of an annotated type what an option's `type` may be, whose errors say what it must be.

    Args:
        annotation: a type that `read_value` knows.

    Example:

    >>> from keras_vjepa.command_line import reader_of
    >>> reader_of(tuple[float, float])("0.3,1")
    (0.3, 1.0)
    """

    def read(text: str) -> Any:
        try:
            return read_value(text, annotation)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


class DefaultsLast(argparse.RawDescriptionHelpFormatter):
    """Prints help as it was written, and ends every option that has a default with it."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text, default = action.help or "", action.default
        # Flags are off unless given, and options without a default for argparse name theirs
        # themselves.
        has_none = default in (None, argparse.SUPPRESS, [], (), "") or isinstance(default, bool)
        if not action.option_strings or has_none or "(default: " in text:
            return text
        values = default if isinstance(default, list | tuple) else [default]
        written = " ".join(
            f"{value:,}" if isinstance(value, int | float) else str(value) for value in values
        )
        return f"{text} (default: {written})"


# --- Values as text ------------------------------------------------------------------------------


def text_of(value: Any) -> str:
    """Write a value as it is typed on the command line."""
    if isinstance(value, tuple | list):
        inner = [text_of(item).replace(SEPARATORS[0], SEPARATORS[1]) for item in value]
        return SEPARATORS[0].join(inner)
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def read_value(text: str, annotation: Any, separators: str = SEPARATORS) -> Any:
    """Read a value of an annotated type: numbers, text, true or false, none, tuples of them.

    Args:
        text: a word of the command line.
        annotation: a type. If it is several types, the first that can hold the value is taken;
            None is tried before all others, and text after them.
        separators: what separates the items of a tuple, and of a tuple within a tuple.

    Raises:
        ValueError: if the text is no such value; the message says what it must be.

    Example:

    >>> from keras_vjepa.command_line import read_value
    >>> read_value("64,96", int | tuple[int, int]), read_value("none", float | None)
    ((64, 96), None)
    """
    for member in sorted(_members(annotation), key=lambda one: (one is not _NONE, one is str)):
        try:
            return _read_one(text, member, separators)
        except ValueError:
            continue
    raise ValueError(f"must be {_words_for(annotation)}. Received: {text}")


def _members(annotation: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if is_union else (annotation,)


def _read_one(text: str, kind: Any, separators: str) -> Any:
    named: dict[Any, dict[str, Any]] = {
        _NONE: {"none": None},
        bool: {"true": True, "false": False},
        typing.Literal: {str(value): value for value in typing.get_args(kind)},
    }
    origin = typing.get_origin(kind) or kind
    if origin in named:
        lowered = text if origin is typing.Literal else text.lower()
        if lowered not in named[origin]:
            raise ValueError(text)
        return named[origin][lowered]
    if _is_tuple(kind):
        items = text.split(separators[0])
        item_types = typing.get_args(kind)
        if len(item_types) == 1 or item_types[-1] is Ellipsis:
            item_types = item_types[:1] * len(items)
        return tuple(
            read_value(item, item_type, separators[1:])
            for item, item_type in zip(items, item_types, strict=True)
        )
    if kind in (int, float, str):
        return kind(text)
    raise ValueError(f"{kind} cannot be given on a command line")


def _is_tuple(kind: Any) -> bool:
    return typing.get_origin(kind) in (tuple, Sequence)


def _words_for(annotation: Any) -> str:
    """Describe a type in words, for help and errors."""
    words = {int: "whole number", float: "number", str: "text", bool: "true or false"}
    found = []
    for kind in _members(annotation):
        items = [_words_for(one) for one in typing.get_args(kind) if one is not Ellipsis]
        if typing.get_origin(kind) is typing.Literal:
            found += [str(value) for value in typing.get_args(kind)]
        elif _is_tuple(kind):
            # A tuple of two items has two types; a tuple of any length has one.
            found.append(",".join(items) if len(items) > 1 else f"{items[0]},...")
        else:
            found.append("none" if kind is _NONE else words.get(kind, ""))
    return " or ".join(filter(None, found))
