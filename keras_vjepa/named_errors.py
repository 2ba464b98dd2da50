"""One gate for files of elsewhere: whatever goes wrong is one line that names the file (App. C).

A file that somebody else wrote, damaged or made to do harm, can make a library or this package
raise anything. Behind `named` all of it becomes the one error that callers expect.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from keras_vjepa.files import PathLike

_LONGEST_REASON = 300
# What an error of our own may say with the names of files, which are long themselves.
_LONGEST = 1500


@contextmanager
def named(
    path: PathLike, error: type[ValueError] = ValueError, problem: str = "cannot be read"
) -> Iterator[None]:
    """Have whatever a block raises become one error of one line that names the file.

    Args:
        path: the file or folder that is read in the block.
        error: what to raise; if the block raises it with the file's name, in one line that is not
            too long, it stays as it is.
        problem: what is wrong where the reason alone says little.

    Raises:
        ValueError: as `error` says, if the block raises anything.

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
        if text.startswith(str(path)):  # another kind, which names the file too
            raise error(text) from reason
        raise error(f"{path}: {text}") from reason
    except Exception as reason:
        text = f"{type(reason).__name__}: {one_line(reason)}"
        raise error(f"{path} {problem} ({text})") from reason


def one_line(error: Exception) -> str:
    """Write what an error says on one line, and not too long."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return reason if len(reason) <= _LONGEST_REASON else f"{reason[:_LONGEST_REASON]}..."


def _is_one_line(text: str) -> bool:
    return "\n" not in text and len(text) <= _LONGEST
