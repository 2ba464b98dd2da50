"""Name samples, also those at addresses, by paths below a folder that they share (§3.4, App. D).

So the features or the copy of a sample have the same place below an output folder as the sample has
below its root.
"""

import itertools
import os
from collections.abc import Sequence
from pathlib import Path, PurePath

from keras_vjepa.data.reading.remote import ADDRESS


def absolute_name(name: str | Path) -> str:
    """Write a path from the root of the file system; an address stays as it is.

    Args:
        name: path of a file or of a member of a tar file, or an address.
    """
    text = os.fspath(name)
    if ADDRESS.match(text):
        return text
    # A member of a tar file may have any name, even one with "..". Shortening it could give the
    # name of a file outside of the tar file.
    is_plain = not {"..", ""} & {*text.lstrip("/").split("/")} or os.path.lexists(text)
    return os.path.abspath(text) if is_plain else os.path.join(os.getcwd(), text)


def shared_root(names: Sequence[str | Path]) -> str:
    """Find the folder, here or at an address, that all of some files have in common.

    Args:
        names: paths or addresses of the files, at least one.

    Returns:
        The folder; empty if the files are at addresses that share none.

    Example:

    >>> shared_root(["gs://bucket/a/1.mp4", "gs://bucket/b/2.mp4"])
    'gs://bucket'
    >>> shared_root(["/videos/a/1.mp4", "/videos/a/2.mp4"])
    '/videos/a'
    """
    folders = sorted({absolute_name(name).rpartition("/")[0] for name in names})
    # In a sorted list, the prefix that the first and the last entry share is shared by all.
    first, last = folders[0].split("/"), folders[-1].split("/")
    pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    shared = [part for part, _ in pairs]
    if any(map(ADDRESS.match, folders)):
        # An address has at least a protocol and a host.
        return "/".join(shared) if len(shared) >= 3 else ""
    return "/".join(shared) or "/"


def below(root: str | Path, name: str | Path) -> PurePath:
    """Return the path of a file below a folder.

    Args:
        root: the folder, also at an address; empty for one that holds all paths and addresses.
        name: path or address of the file.

    Returns:
        A relative path, with nothing in it that leads out of a folder.

    Raises:
        ValueError: if the file does not lie below the folder.

    Example:

    >>> below("gs://bucket", "gs://bucket/a/1.mp4"), below("", "https://host/1.mp4?version=2")
    (PurePosixPath('a/1.mp4'), PurePosixPath('https/host/1.mp4?version=2'))
    """
    text = absolute_name(name)
    folder = absolute_name(root) if os.fspath(root) else ""
    if folder and not text.startswith(os.path.join(folder, "")):
        raise ValueError(f"{text} must lie below {folder}.")
    rest = text.removeprefix(folder)
    parts = rest.replace("://", "/", 1).split("/") if not folder else rest.split("/")
    return PurePath(*("%2e%2e" if part == ".." else part for part in parts if part))
