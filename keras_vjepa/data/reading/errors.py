"""Define errors that name a file which cannot be read (§3.4)."""

import os
from pathlib import Path


class UnreadableVideoError(ValueError):
    """Names a file that cannot be read as a video, with the reason, in one line.

    Attributes:
        path: the file.
        reason: what is wrong with it.
    """

    kind = "video"

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(str(path), reason)  # both arguments, so that it survives pickling
        self.path = str(path)
        self.reason = reason

    def __str__(self) -> str:
        return f"Cannot read the {self.kind} {printable(self.path)}: {self.reason}"


class UnreadableImageError(UnreadableVideoError):
    """Names a file that cannot be read as an image, with the reason, in one line.

    Attributes:
        path: the file.
        reason: what is wrong with it.
    """

    kind = "image"


class MissingPackageError(ImportError, ValueError):
    """Says which package is needed for what was asked for, and is not installed."""


def printable(path: str | Path) -> str:
    """Write a path as one line that can be printed anywhere, even if its name is not UTF-8.

    Example:

    >>> import os
    >>> printable(os.fsdecode(b"caf\\xe9.mp4"))
    'caf\\\\xe9.mp4'
    """
    try:
        shown = os.fsencode(path).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # no file can have this name, but it may be in a list
        shown = str(path).encode("utf-8", "backslashreplace").decode()
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in shown)
