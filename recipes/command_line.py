"""The command line of a recipe: a named config, any field of which is an option."""

import argparse
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def parse(
    program: str,
    description: str,
    configs: Mapping[str, Callable[[], Any]],
    arguments: list[str] | None = None,
    prefix: str = "",
) -> tuple[str, dict[str, Any], Path]:
    """Which config a command line asks for, which of its fields it changes, and the workdir.

    Args:
        program: file name of the recipe.
        description: its docstring; the first line is shown.
        configs: functions that return a config, by name; the first is the default. Their
            docstrings are shown.
        arguments: those of the process if None.
        prefix: of the workdir's name, in front of the config's.
    """
    default, example = next(iter(configs)), next(iter(configs.values()))()
    width = max(map(len, configs)) + 2
    costs = "\n".join(
        f"  {name:{width}s}{(function.__doc__ or '').splitlines()[0]}"
        for name, function in configs.items()
    )
    fields = "\n".join(f"  --{name} {value}" for name, value in vars(example).items())
    parser = argparse.ArgumentParser(
        prog=program,
        usage=f"{program} [--config NAME] [--data PATH] [--workdir FOLDER] [--FIELD VALUE ...]",
        description=description.splitlines()[0],
        epilog=f"configs:\n{costs}\n\nfields, as {default} has them (tuples: 1,2):\n{fields}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", default=default, choices=list(configs))
    parser.add_argument("--workdir", type=Path, help=f"default: workdir/{prefix}<config>")
    for field in dataclasses.fields(example):
        value = getattr(example, field.name)
        parser.add_argument(
            f"--{field.name}", type=_parser_of(value), help=argparse.SUPPRESS, metavar="VALUE"
        )
    values = vars(parser.parse_args(arguments))
    name, workdir = values.pop("config"), values.pop("workdir")
    overrides = {key: value for key, value in values.items() if value is not None}
    return name, overrides, workdir or Path("workdir") / f"{prefix}{name}"


def _parser_of(value: Any) -> Callable[[str], Any]:
    if isinstance(value, tuple):
        kind = type(value[0])

        def items(text: str) -> tuple[Any, ...]:
            return tuple(kind(part) for part in text.split(","))

        return items
    return _true_or_false if isinstance(value, bool) else type(value)


def _true_or_false(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"must be true or false. Received: {text}")
    return text.lower() == "true"
