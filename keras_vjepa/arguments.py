"""Check arguments, with errors of one line: name, what it must be, what was received (App. C).

Constructors call these functions first. So a value that is out of range, of another type or not
finite is refused before it is used, wherever it comes from: code, a command line, or a
config file that someone else wrote. Each function takes the arguments by their names:

    check_whole(num_layers=num_layers, num_heads=num_heads)
    check_number("(0, 1]", ratio=ratio)
"""

import inspect
import math
import numbers
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

# The largest count allowed: the largest number of an int32, the type that backends count in.
MOST = 2**31 - 1
# The largest seed that NumPy accepts.
MOST_SEED = 2**32 - 1
# The largest length, width or height that something in memory may have.
MOST_LONG = 2**16
# The longest side of a picture, or of an encoder's input, in pixels.
MOST_SIDE = 2**13
# The largest finite float32.
_MOST_REAL = 3.4e38
_LONGEST_SHOWN = 80


def shown(value: Any) -> str:
    """Write a value for a message, on one line and not too long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # thousands of digits, or deep nesting
        text = f"a {type(value).__name__}"
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def counted(count: int, one: str, more: str = "") -> str:
    """Write a number of things: "1 clip", "1,024 clips".

    Args:
        count: how many things there are.
        one: the word for a single one.
        more: the word for several; if empty, `one` with an s.
    """
    return f"{count:,} {one if count == 1 else more or one + 's'}"


# Arguments of Keras' base classes, whatever the constructor's own arguments are.
_OF_KERAS = ("name", "trainable", "dtype", "activity_regularizer", "autocast")
# Arguments that every model of this package has too; see `keras_vjepa.layers.layer_states`.
_OF_MODELS = ("layer_states",)


def arguments_of(constructor: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return all arguments of a constructor: those given, and its defaults for the others.

    Args:
        constructor: a class or function.
        given: values by name; those for a base class of Keras are left out of the result.

    Raises:
        ValueError: for a name that the constructor does not have, and if an argument without a
            default is not given.
    """
    parameters = inspect.signature(constructor).parameters
    known = {
        name: parameter
        for name, parameter in parameters.items()
        if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    }
    for name in given:
        is_of_a_base = name in _OF_KERAS + _OF_MODELS and len(known) < len(parameters)
        if name not in known and not is_of_a_base:
            raise ValueError(f"`{shown(name)}` is no argument of {constructor.__name__}")
    for name, parameter in known.items():
        if name not in given and parameter.default is parameter.empty:
            raise ValueError(f"`{name}` must be given for {constructor.__name__}")
    return {name: given.get(name, parameter.default) for name, parameter in known.items()}


def check_whole(
    least: int = 1, most: int = MOST, /, *, optional: bool = False, **values: Any
) -> None:
    """Check that arguments are whole numbers in a range; True and False are refused.

    Args:
        least: the smallest number allowed.
        most: the largest number allowed.
        optional: whether None is allowed too.
        values: arguments by their names.

    Raises:
        ValueError: for the first argument that is not such a number.

    Example:

    >>> from keras_vjepa.arguments import check_whole
    >>> check_whole(num_layers=3, num_heads=0)
    Traceback (most recent call last):
    ValueError: `num_heads` must be at least 1. Received: 0
    """
    for name, value in values.items():
        if value is None and optional:
            continue
        if not isinstance(value, numbers.Integral) or isinstance(value, bool):
            problem = "a whole number" + (" or None" if optional else "")
        elif int(value) < least:
            problem = f"at least {least}"
        elif int(value) > most:
            problem = f"at most {most:,}"
        else:
            continue
        raise ValueError(f"`{name}` must be {problem}. Received: {shown(value)}")


def places(count: int, /, **values: Iterable[int]) -> list[int]:
    """Turn places into counts from 0; negative places count backwards from the last.

    Args:
        count: how many things there are.
        values: one argument by its name: numbers from `-count` to `count - 1`.

    Raises:
        ValueError: for a number outside this range.

    Example:

    >>> from keras_vjepa.arguments import places
    >>> places(12, layers=[-1, 0])
    [11, 0]
    """
    [(name, given)] = values.items()
    if not isinstance(given, Iterable):
        raise ValueError(f"`{name}` must be a list of whole numbers. Received: {shown(given)}")
    given = [*given]
    for number in given:
        one: dict[str, Any] = {name: number}
        check_whole(-MOST, **one)
        if not -count <= number < count:
            raise ValueError(
                f"`{name}` must be between {-count} and {count - 1}. Received: {shown([*given])}"
            )
    return [number % count for number in given]


def check_number(interval: str, /, *, optional: bool = False, **values: Any) -> None:
    """Check that arguments are finite numbers in an interval.

    Args:
        interval: in mathematical notation: "[0, 1)" holds 0 and not 1; "inf" stands for the
            largest float32.
        optional: whether None is allowed too.
        values: arguments by their names.

    Raises:
        ValueError: for the first argument that is not such a number.

    Example:

    >>> from keras_vjepa.arguments import check_number
    >>> check_number("(0, 1]", ratio=float("nan"))
    Traceback (most recent call last):
    ValueError: `ratio` must be in (0, 1]. Received: nan
    """
    for name, value in values.items():
        if not (value is None and optional) and not _is_inside(value, interval):
            none = " or None" if optional else ""
            raise ValueError(
                f"`{name}` must be {_words_for(interval, value)}{none}. Received: {shown(value)}"
            )


def check_range(interval: str, /, **values: Any) -> None:
    """Check that arguments are (low, high) ranges within an interval.

    Args:
        interval: as in `check_number`.
        values: arguments by their names.

    Raises:
        ValueError: for the first argument that is not such a range.
    """
    for name, value in values.items():
        is_pair = isinstance(value, tuple | list) and len(value) == 2
        inside = is_pair and all(_is_inside(one, interval) for one in value)
        if not inside or value[0] > value[1]:
            raise ValueError(
                f"`{name}` must be a (low, high) range {_words_for(interval, 0)}. "
                f"Received: {shown(value)}"
            )


def check_colour(interval: str, **values: Any) -> tuple[float, float, float]:
    """Check that an argument is three numbers in an interval, one for each channel.

    Args:
        interval: as in `check_number`.
        values: the argument, by its name.

    Returns:
        The numbers of red, green and blue.

    Raises:
        ValueError: if it is not.

    Example:

    >>> from keras_vjepa.arguments import check_colour
    >>> check_colour("(0, inf)", std=[0.5, 0.5, 1])
    (0.5, 0.5, 1.0)
    """
    [(name, value)] = values.items()
    if not isinstance(value, list | tuple) or len(value) != 3:
        raise ValueError(f"`{name}` must be three numbers. Received: {shown(value)}")
    for one in value:
        check_number(interval, **{name: one})
    red, green, blue = (float(one) for one in value)
    return red, green, blue


def check_size(most: int = MOST_SIDE, /, *, optional: bool = False, **values: Any) -> None:
    """Check that arguments are one side, or a height and a width, in pixels.

    Args:
        most: the longest side allowed.
        optional: whether None is allowed too.
        values: arguments by their names.

    Raises:
        ValueError: for the first argument that is not such a size.
    """
    for name, value in values.items():
        if isinstance(value, tuple | list) and len(value) == 2:
            check_whole(1, most, **{name: value[0]})
            check_whole(1, most, **{name: value[1]})
        elif isinstance(value, tuple | list):
            raise ValueError(
                f"`{name}` must be one side, or height and width. Received: {shown(value)}"
            )
        else:
            check_whole(1, most, optional=optional, **{name: value})


def check_flag(**values: Any) -> None:
    """Check that arguments are True or False; raise `ValueError` for the first that is not."""
    for name, value in values.items():
        if not isinstance(value, bool):
            raise ValueError(f"`{name}` must be True or False. Received: {shown(value)}")


def check_choice(choices: Collection[str], /, **values: Any) -> None:
    """Check that arguments are among the choices; raise `ValueError` for the first that is not."""
    for name, value in values.items():
        if not isinstance(value, str) or value not in choices:
            *others, last = map(repr, choices)
            words = f"{', '.join(others)} or {last}" if others else last
            raise ValueError(f"`{name}` must be {words}. Received: {shown(value)}")


def check_text(**values: Any) -> None:
    """Check that arguments are text, not empty; raise `ValueError` for the first that is not."""
    for name, value in values.items():
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"`{name}` must be text, and not empty. Received: {shown(value)}")


def _as_float(value: Any) -> float:
    """Convert a value to a float; to NaN if it is no number, or too large for float32."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return math.nan
    try:
        number = float(value)
    except OverflowError:  # the text is a number of hundreds of digits
        return math.nan
    return number if abs(number) <= _MOST_REAL else math.nan


def _is_inside(value: Any, interval: str) -> bool:
    number = _as_float(value)
    low, high = (float(text) for text in interval[1:-1].split(","))
    above = number > low if interval[0] == "(" else number >= low
    return above and (number < high if interval[-1] == ")" else number <= high)


def _words_for(interval: str, received: Any) -> str:
    low, high = (text.strip() for text in interval[1:-1].split(","))
    if high != "inf":
        return f"in {interval}"
    if low == "-inf":
        return "a finite number"
    words = "positive" if interval[0] == "(" and low == "0" else f"at least {low}"
    return f"{words}, and finite" if math.isnan(_as_float(received)) else words
