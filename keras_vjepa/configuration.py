"""Make configs of parts that take the constructors' arguments (App. C, App. D.1, Tables 9, 10).

A config is a frozen dataclass. A field holds a plain value, or a `Part`: a constructor and some
arguments for it. The constructor's signature and docstring say which arguments there are, of which
type, and what they mean. So an argument that is added to a model can be set in every config that
has the model as a part, and on the command line, without being named anywhere else.

`options` lists everything that can be set in a config, flat, by name; `replace` sets it.
"""

import dataclasses
import difflib
import functools
import inspect
import re
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import GenericAlias
from typing import Any, TypeVar

ConfigT = TypeVar("ConfigT", bound=Any)


class Part:
    """Holds a constructor and arguments for it.

    Every argument is an attribute of the part: the value that was given, or else the constructor's
    default.

    Args:
        constructors: a class or function; or several, such as kinds of masks, of which one is
            chosen when the object is made. The part then has the arguments of all of them, and
            each constructor gets those that it takes.
        prefix: prefix of the arguments' names in the names of their options.
        names: names of options that differ from the prefix and the argument's name, by argument.
        supplied: arguments that are no options, because the code that makes the object knows them.
        derived: arguments that follow from the rest of the config unless they are given, each with
            words that say where its value comes from. The value None leaves them derived.
        each: arguments that have a tuple of values, one for each of several objects; see
            `make_each`.
        arguments: the values that the config sets, by argument.

    Raises:
        ValueError: for a name that is not an argument of any constructor.

    Example:

    >>> from keras_vjepa.configuration import Part
    >>> def tower(height: int, width: int = 2) -> str:
    ...     return f"{height} x {width}"
    >>> part = Part(tower, arguments={"height": 3})
    >>> part.height, part.width, part.make(), part.replace(width=5).make()
    (3, 2, '3 x 2', '3 x 5')
    """

    def __init__(
        self,
        *constructors: Callable[..., Any],
        prefix: str = "",
        names: Mapping[str, str] | None = None,
        supplied: Collection[str] = (),
        derived: Mapping[str, str] | None = None,
        each: Collection[str] = (),
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        self.constructors = constructors
        self.prefix = prefix
        self.names = dict(names or {})
        self.supplied = frozenset(supplied)
        self.derived = dict(derived or {})
        self.each = frozenset(each)
        self.arguments = dict(arguments or {})
        self.parameters: dict[str, inspect.Parameter] = {}
        for constructor in constructors:
            self.parameters = {**_parameters(constructor), **self.parameters}
        for name in {*self.names, *self.supplied, *self.derived, *self.each, *self.arguments}:
            if name not in self.parameters:
                kinds = " or ".join(constructor.__name__ for constructor in constructors)
                raise ValueError(
                    f"`{name}` must be an argument of {kinds}{nearest(name, self.parameters)}."
                )

    def __getattr__(self, name: str) -> Any:
        parameters = self.__dict__.get("parameters", {})
        if name not in parameters or name in self.supplied:
            raise AttributeError(f"{type(self).__name__} has no argument {name!r}")
        return self.arguments.get(name, self.default(name))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Part) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((self.constructors, self.prefix))

    def __repr__(self) -> str:
        kinds = " | ".join(constructor.__name__ for constructor in self.constructors)
        return f"Part({kinds}, {self.arguments})"

    def default(self, name: str) -> Any:
        """Return the default of an argument; None if it is derived or has no default."""
        default = self.parameters[name].default
        return None if name in self.derived or default is inspect.Parameter.empty else default

    def option_name(self, argument: str) -> str:
        """Return the name of the option that sets an argument."""
        return self.names.get(argument, self.prefix + argument)

    def replace(self, **arguments: Any) -> "Part":
        """Copy the part with other arguments."""
        settings = {name: getattr(self, name) for name in _SETTINGS}
        return Part(*self.constructors, **settings, arguments={**self.arguments, **arguments})

    def make(self, constructor: Callable[..., Any] | None = None, /, **known: Any) -> Any:
        """Call the constructor.

        Args:
            constructor: the constructor to call, if the part has several.
            known: supplied and derived arguments. Values that the config sets replace them, and
                arguments that the chosen constructor does not have are left out.

        Raises:
            ValueError: if the constructor raises one; the message then has the options' names.
        """
        constructor = constructor or self.constructors[0]
        taken = set(_parameters(constructor))
        if len(self.constructors) == 1:
            # There may be a keyword for a base class, such as `name`.
            taken |= known.keys()
        with self.renaming():
            return constructor(**self._given(taken, known))

    def bind(self, function: Callable[..., Any], /, **known: Any) -> Callable[..., Any]:
        """Give a function the arguments of the part, to be called with the rest later.

        Args:
            function: a constructor of the part, or one that has some of its arguments.
            known: as in `make`.
        """
        return functools.partial(function, **self._given(set(_parameters(function)), known))

    def _given(self, taken: Collection[str], known: Mapping[str, Any]) -> dict[str, Any]:
        """Choose the arguments of some names, those of the config before those known."""
        own = {
            name: value
            for name, value in self.arguments.items()
            if not (value is None and name in self.derived)
        }
        return {k: v for k, v in {**known, **own}.items() if k in taken}

    def check(self, function: Callable[..., object], **known: Any) -> None:
        """Call a function that checks some of the part's arguments, defaults included.

        Args:
            function: the function; it gets those of the part's arguments that it takes.
            known: further arguments of the function.

        Raises:
            ValueError: if the function raises one; the message then has the options' names.
        """
        own = self.parameters.keys() - self.supplied
        given = {name: getattr(self, name) for name in _parameters(function) if name in own}
        with self.renaming():
            function(**{**known, **given})

    def without_effect(self, constructor: Callable[..., Any], given: Collection[str]) -> list[str]:
        """List the options of the part that a user sets and the chosen constructor does not have.

        Args:
            constructor: the chosen one of the part's constructors.
            given: names of the options that the user sets, of this part and others.
        """
        others = self.parameters.keys() - _parameters(constructor).keys() - self.supplied
        return sorted({self.option_name(argument) for argument in others} & set(given))

    def make_each(
        self, constructor: Callable[..., Any] | None = None, /, **known: Any
    ) -> list[Any]:
        """Make several objects, one for each value in the tuples of the arguments in `each`.

        Args:
            constructor: as in `make`; if it takes none of those arguments, it makes one object.
            known: as in `make`, the same for all objects.

        Raises:
            ValueError: if the tuples differ in length.
        """
        constructor = constructor or self.constructors[0]
        several = sorted(self.each & _parameters(constructor).keys())
        if not several:
            return [self.make(constructor, **known)]
        values = {name: tuple(getattr(self, name)) for name in several}
        if len({len(column) for column in values.values()}) > 1:
            given = ", ".join(f"`{self.option_name(k)}`={v}" for k, v in values.items())
            raise ValueError(f"These options must have equally many values. Received: {given}")
        rows = zip(*values.values(), strict=True)
        return [
            self.replace(**dict(zip(several, row, strict=True))).make(constructor, **known)
            for row in rows
        ]

    @contextmanager
    def renaming(self) -> Iterator[None]:
        """Replace the part's arguments by the names of their options in errors that a block raises.

        Raises:
            ValueError: if the block raises one.
        """
        try:
            yield
        except ValueError as error:
            raise type(error)(self._with_option_names(str(error))) from error

    def _with_option_names(self, message: str) -> str:
        own = self.parameters.keys() - self.supplied
        names = {argument: self.option_name(argument) for argument in own}
        return renamed(message, {name: f"`{option}`" for name, option in names.items()})


def renamed(message: str, names: Mapping[str, str]) -> str:
    """Replace names in backticks in a message.

    Args:
        message: such as "`every` must be at least 1".
        names: the text that replaces a name and its backticks, by name. Other names stay.

    Example:

    >>> from keras_vjepa.configuration import renamed
    >>> renamed("`every` must divide `steps`", {"every": "--log_every"})
    '--log_every must divide `steps`'
    """
    return re.sub(r"`(\w+)`", lambda found: names.get(found[1], found[0]), message)


# Matches a heading and the indented lines below it.
_ARGUMENTS = r"^(?:Args|Attributes):\n((?: +.*\n|\n)*)"
_SETTINGS = ("prefix", "names", "supplied", "derived", "each")


@dataclasses.dataclass(frozen=True)
class Option:
    """Describes one thing that can be set in a config.

    Attributes:
        name: the name of the option, without dashes.
        field: the field of the config.
        argument: the argument of the part that the field holds; None if the field is the value
            itself.
        annotation: the types that a value may have.
        value: the value in the config.
        default: the value if nobody sets one, which is the constructor's own default.
        derived: words that say where the value comes from if it is None; empty if it is not
            derived.
        description: the text about it in the docstring.
    """

    name: str
    field: str
    argument: str | None
    annotation: Any
    value: Any
    default: Any
    derived: str
    description: str


def options(config: Any) -> dict[str, Option]:
    """List what can be set in a config: its plain fields, and the arguments of its parts.

    Args:
        config: an instance of a dataclass.

    Raises:
        ValueError: if two options have the same name.

    Example:

    >>> import dataclasses
    >>> from keras_vjepa.configuration import Part, options, replace, values
    >>> def tower(height: int, width: int = 2) -> str:
    ...     return f"{height} x {width}"
    >>> @dataclasses.dataclass(frozen=True)
    ... class Config:
    ...     seed: int = 0
    ...     tower: Part = Part(tower, prefix="tower_", arguments={"height": 3})
    >>> list(options(Config()))
    ['seed', 'tower_height', 'tower_width']
    >>> values(replace(Config(), tower_height=9))
    {'seed': 0, 'tower_height': 9, 'tower_width': 2}
    """
    types, described = typing.get_type_hints(type(config)), descriptions(type(config))
    found: dict[str, Option] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, Part):
            new = _options_of(field.name, value)
        else:
            description = described.get(field.name, "")
            kind, default = types[field.name], field.default
            new = [Option(field.name, field.name, None, kind, value, default, "", description)]
        for option in new:
            if option.name in found:
                raise ValueError(f"Two options are called `{option.name}`.")
            found[option.name] = option
    return found


def _options_of(field: str, part: Part) -> list[Option]:
    types: dict[str, Any] = {}
    described: dict[str, str] = {}
    for constructor in reversed(part.constructors):
        types |= _annotations(constructor)
        described |= descriptions(constructor)
    for name in part.each:
        types[name] = GenericAlias(tuple, (types[name], ...))
    for name in part.derived:
        types[name] = types[name] | None
    return [
        Option(
            part.option_name(name),
            field,
            name,
            types[name],
            getattr(part, name),
            part.default(name),
            part.derived.get(name, ""),
            described.get(name, ""),
        )
        for name in part.parameters
        if name not in part.supplied
    ]


def replace(config: ConfigT, **changes: Any) -> ConfigT:
    """Copy a config with other values for some options, whether of a field or within a part.

    Args:
        config: an instance of a dataclass.
        changes: values by the names of `options`.

    Raises:
        ValueError: for a name that is not an option.
    """
    known = options(config)
    plain: dict[str, Any] = {}
    arguments: dict[str, dict[str, Any]] = {}
    for name, value in changes.items():
        if name not in known:
            raise ValueError(f"There is no option `{name}`{nearest(name, known)}.")
        option = known[name]
        if option.argument is None:
            plain[name] = value
        else:
            arguments.setdefault(option.field, {})[option.argument] = value
    parts = {field: getattr(config, field).replace(**new) for field, new in arguments.items()}
    return dataclasses.replace(config, **plain, **parts)


def values(config: Any) -> dict[str, Any]:
    """Return the value of every option by its name; None for those that are derived."""
    return {name: option.value for name, option in options(config).items()}


def defaults(config: Any) -> dict[str, Any]:
    """Return the value that every option has if nobody sets it.

    Configs that were stored before an option existed behave as this value of it says.
    """
    return {name: option.default for name, option in options(config).items()}


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint at the known name that is most like a given one: "; did you mean ...?".

    Returns:
        The hint, or an empty text if no known name is like it.
    """
    found = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {found[0]}?" if found else ""


def descriptions(documented: Callable[..., Any]) -> dict[str, str]:
    """Read what a docstring says of each argument, under "Args:" or "Attributes:".

    For arguments that a class does not describe itself, the docstrings of its bases are read.
    """
    return dict(_described(documented))


@functools.lru_cache
def _described(documented: Any) -> dict[str, str]:
    found: dict[str, str] = {}
    for one in reversed(getattr(documented, "__mro__", (documented,))):
        text = inspect.cleandoc(one.__doc__ or "") + "\n"
        section = re.search(_ARGUMENTS, text, re.MULTILINE)
        entries = re.split(r"^ {4}(?=\w)", section[1] if section else "", flags=re.MULTILINE)
        for entry in entries[1:]:
            names, _, text = entry.partition(":")
            found |= dict.fromkeys(re.split(r",\s*", names), " ".join(text.split()))
    return found


def _parameters(constructor: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """List the arguments that a constructor names; those in its `**kwargs` are Keras' own."""
    return {
        name: parameter
        for name, parameter in inspect.signature(constructor).parameters.items()
        if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    }


@functools.lru_cache
def _annotations(constructor: Any) -> dict[str, Any]:
    is_class = isinstance(constructor, type)
    return typing.get_type_hints(constructor.__init__ if is_class else constructor)
