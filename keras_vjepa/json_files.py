"""Read JSON files that something else wrote, perhaps damaged or hostile (App. C).

A config is a page of text. What is not a plain file, is as large as weights are, is nested so deep
that it would end Python's recursion, says one thing twice, or holds NaN where a number must be, is
refused in one line that names the file.
"""

import json
from pathlib import Path
from typing import Any, NoReturn

from keras_vjepa import files

# Of the package's own, the largest is the list of a sharded checkpoint's tensors: 200 kB.
_MOST_BYTES = 2**25
_DEEPEST = 100


class JsonFileError(ValueError):
    """Raised for a file that is there and holds no JSON; one line that names the file."""


def read_json(path: files.PathLike) -> Any:
    """Read a JSON file.

    Args:
        path: the file.

    Raises:
        JsonFileError: if it is no plain file, too large, nested too deep, or not JSON as the
            standard has it, without NaN and without a name that occurs twice.
        OSError: if it does not exist or cannot be read.

    Example:

    >>> import tempfile
    >>> from keras_vjepa.json_files import read_json
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "config.json"
    ...     _ = path.write_text('{"hidden_dim": 24, "hidden_dim": 12}')
    ...     try:
    ...         read_json(path)
    ...     except ValueError as error:
    ...         print(str(error).replace(folder, ""))
    /config.json cannot be read as JSON: 'hidden_dim' occurs twice
    """
    path = Path(path)
    kind = files.kind_of(path)
    if kind not in ("file", None):
        raise JsonFileError(f"{path} must be a file. Received: a {kind}")
    with open(path, "rb") as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise JsonFileError(f"{path} must have at most {_MOST_BYTES:,} bytes, as a JSON file here")
    try:
        found = json.loads(content, object_pairs_hook=_once, parse_constant=_no_constant)
        _check_depth(found)
    except RecursionError:
        raise JsonFileError(f"{path} cannot be read as JSON: nested too deep") from None
    except ValueError as error:  # of which UnicodeDecodeError and JSONDecodeError are kinds
        reason = " ".join(str(error).split())
        raise JsonFileError(f"{path} cannot be read as JSON: {reason[:200]}") from None
    return found


def read_json_object(path: files.PathLike) -> dict[str, Any]:
    """Read a JSON file whose content is an object; arguments and errors as of `read_json`."""
    found = read_json(path)
    if not isinstance(found, dict):
        raise JsonFileError(f"{path} must hold a JSON object. Received: {type(found).__name__}")
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"{twice[:80]!r} occurs twice")
    return found


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON")


def _check_depth(found: Any) -> None:
    """Raise `RecursionError` for what others, who read it by recursion, could not bear."""
    level = [found] if isinstance(found, dict | list) else []
    for _ in range(_DEEPEST):
        if not level:
            return
        inner = (item.values() if isinstance(item, dict) else item for item in level)
        level = [one for items in inner for one in items if isinstance(one, dict | list)]
    if level:
        raise RecursionError
