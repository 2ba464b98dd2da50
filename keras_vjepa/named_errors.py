"""Turn any error about a file from elsewhere into one line that names the file (App. C).

A file that somebody else wrote may be damaged or meant to do harm, and a library that reads it may
raise any error. `named` turns all of them into the one error that callers expect.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from keras_vjepa.files import PathLike

_LONGEST_REASON = 300
# The longest message that stays as it is; it may hold names of files, which are long themselves.
_LONGEST = 1500


@contextmanager
def named(
    path: PathLike, error: type[ValueError] = ValueError, problem: str = "cannot be read"
) -> Iterator[None]:
    """Turn whatever a block raises into one error of one line that names the file.

    Args:
        path: the file or folder that is read in the block.
        error: the type of the error to raise. If the block raises this type, with the file's name,
            in one line that is not too long, the error stays as it is.
        problem: words that precede the reason if the block raises no `ValueError`.

    Raises:
        ValueError: if the block raises any error; its type is `error`.

    Example:

    >>> from keras_vjepa.named_errors import named
    >>> with named("a.pth.tar"):
    ...     {}["epoch"]
    Traceback (most recent call last):
    ValueError: a.pth.tar cannot be read (KeyError: 'epoch')
    """
    try:
        yield
    except ValueError as reason:
        text = one_line(reason)
        if str(path) in text and isinstance(reason, error):
            if _is_one_line(str(reason)):
                raise
            raise error(text) from reason
        if text.startswith(str(path)):  # The error is of another type, but names the file too.
            raise error(text) from reason
        raise error(f"{path}: {text}") from reason
    except Exception as reason:
        text = f"{type(reason).__name__}: {one_line(reason)}"
        raise error(f"{path} {problem} ({text})") from reason


def one_line(error: Exception) -> str:
    """Write an error's message on one line, and not too long."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return reason if len(reason) <= _LONGEST_REASON else f"{reason[:_LONGEST_REASON]}..."


def _is_one_line(text: str) -> bool:
    return "\n" not in text and len(text) <= _LONGEST
