"""Search folders for videos and images, and say what is left out (§3.4, App. D)."""

import logging
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from keras_vjepa.arguments import counted
from keras_vjepa.data.reading.errors import printable
from keras_vjepa.data.reading.kinds import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS, extension

# With "frames", each folder that contains pictures is one video; "any" accepts videos and images.
Kind = Literal["video", "image", "any", "frames"]
EXTENSIONS: dict[str, frozenset[str]] = {
    "video": VIDEO_EXTENSIONS,
    "image": IMAGE_EXTENSIONS,
    "any": VIDEO_EXTENSIONS | IMAGE_EXTENSIONS,
    "frames": IMAGE_EXTENSIONS,
}
IN_WORDS: dict[str, str] = {
    "video": "videos",
    "image": "images",
    "any": "videos or images",
    "frames": "folders of frames",
}

_LOG = logging.getLogger(__name__)
# The log names at most this many types of files, and of folders that cannot be read.
_MOST_NAMED = 5


@dataclass
class FolderContents:
    """Holds what a search of a folder found, and what it passed over.

    Attributes:
        paths: files with a fitting extension, sorted; or the folders that hold such files.
        other_types: number of files for each extension that does not fit, "" if they have none.
        unreadable_folders: reason for each folder that cannot be read.
    """

    paths: list[str] = field(default_factory=list)
    other_types: Counter[str] = field(default_factory=Counter)
    unreadable_folders: dict[str, str] = field(default_factory=dict)

    def left_out(self) -> str:
        """Describe in one line what was left out; the line is empty if nothing was."""
        parts = []
        if self.other_types:
            count, most = self.other_types.total(), self.other_types.most_common(_MOST_NAMED)
            types = ", ".join(f"{printable(name) or 'none'} ({many:,})" for name, many in most)
            more = ", ..." if len(self.other_types) > _MOST_NAMED else ""
            parts.append(f"{counted(count, 'file')} of other types: {types}{more}")
        if self.unreadable_folders:
            named = list(self.unreadable_folders.items())[:_MOST_NAMED]
            folders = ", ".join(f"{printable(path)} ({reason})" for path, reason in named)
            more = ", ..." if len(self.unreadable_folders) > _MOST_NAMED else ""
            count = len(self.unreadable_folders)
            parts.append(f"{counted(count, 'folder')} that cannot be read: {folders}{more}")
        return "; ".join(parts)


def search_folder(folder: str | Path, kind: Kind = "video") -> FolderContents:
    """Find all videos or images in a folder and in the folders in it.

    Folders are entered once, even if links lead to them; one that can be reached without a link is
    listed under its own name. Hidden files and folders are passed over: macOS puts a "._clip.mp4"
    that is no video next to each video, and editors keep copies in hidden folders. One line of the
    log says what else is left out.

    Args:
        folder: where to search.
        kind: `"video"`, `"image"`, `"any"` for both, or `"frames"` for the folders that hold
            images, each of which is a video.

    Returns:
        The files, and what was left out.

    Example:

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("a.mp4", "b.srt", ".c.mp4"):
    ...         Path(folder, name).touch()
    ...     contents = search_folder(folder)
    >>> len(contents.paths), contents.left_out()
    (1, '1 file of other types: .srt (1)')
    """
    contents = FolderContents()
    paths: dict[str, None] = {}
    for entry in visible_files(folder, contents.unreadable_folders):
        if extension(entry.name) in EXTENSIONS[kind]:
            paths[os.path.dirname(entry.path) if kind == "frames" else entry.path] = None
        else:
            contents.other_types[extension(entry.name)] += 1
    contents.paths = sorted(paths)
    if contents.left_out():
        _LOG.warning("Left out of %s: %s", printable(str(folder)), contents.left_out())
    return contents


def visible_files(
    folder: str | Path, unreadable: dict[str, str] | None = None
) -> Iterator[os.DirEntry[str]]:
    """Yield the files in a folder and in the folders in it, each folder once and none that hides.

    Args:
        folder: where to search.
        unreadable: is given the reason for each folder that cannot be read.
    """
    entered, links, ahead = set[tuple[int, int]](), list[str](), [str(folder)]
    while ahead or links:
        # Links come last, because a folder that a link leads to may also be found under its own
        # name.
        parent = ahead.pop() if ahead else links.pop(0)
        try:
            status = os.stat(parent)
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            with os.scandir(parent) as entries:
                visible = sorted((e for e in entries if e.name[0] != "."), key=lambda e: e.name)
        except OSError as error:
            if unreadable is not None:
                unreadable[parent] = error.strerror or type(error).__name__
            continue
        for entry in visible:
            if _is_folder(entry):
                (links if entry.is_symlink() else ahead).append(entry.path)
            else:
                yield entry


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself: taken for a file, so that the reader names it
        return False


def check_kind(kind: str) -> None:
    """Check that `kind` is one that a folder can be searched for.

    Raises:
        ValueError: if it is not.
    """
    if kind not in EXTENSIONS:
        raise ValueError(f'`kind` must be "video", "image", "any" or "frames". Received: {kind!r}')
