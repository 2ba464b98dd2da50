"""Read JSON files that other programs wrote, which may be damaged or hostile (App. C).

A config is a short text. So a file is refused, with one line that names it, if it is not a plain
file, is as large as weights are, is nested so deep that Python's recursion would end, has a name
twice, or holds NaN.
"""

import json
from pathlib import Path
from typing import Any, NoReturn

from keras_vjepa import files

# The largest JSON file of this package, a list of a sharded checkpoint's tensors, has 200 kB.
_MOST_BYTES = 2**25
_DEEPEST = 100


class JsonFileError(ValueError):
    """Says, in one line that names the file, that a file which exists holds no valid JSON."""


def read_json(path: files.PathLike) -> Any:
    """Read a JSON file.

    Args:
        path: the file.

    Raises:
        JsonFileError: if it is no plain file, is too large, is nested too deep, or is not JSON by
            the standard, which has no NaN; and if a name occurs twice in an object.
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
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors too
        reason = " ".join(str(error).split())
        raise JsonFileError(f"{path} cannot be read as JSON: {reason[:200]}") from None
    return found


def read_json_object(path: files.PathLike) -> dict[str, Any]:
    """Read a JSON file whose content is an object; arguments and errors are `read_json`'s."""
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
    """Raise `RecursionError` if content is nested too deep for code that reads it recursively."""
    level = [found] if isinstance(found, dict | list) else []
    for _ in range(_DEEPEST):
        if not level:
            return
        inner = (item.values() if isinstance(item, dict) else item for item in level)
        level = [one for items in inner for one in items if isinstance(one, dict | list)]
    if level:
        raise RecursionError
