"""Write files and folders complete or not at all, and find the cache folder (App. C).

Whatever is written lies first in a folder of its own beside its place, `.unfinished-...`, and is
then moved there in one step. So a reader, another process or a run that goes on after a power cut
finds all of a file or none of it. A process that was killed leaves such a folder behind; the next
one that writes to the same place removes it.

Writing code outside this module writes only to the paths that the functions here lend; they are
called `unfinished` there, which `tests/test_house.py` checks.
"""

import errno
import itertools
import os
import shutil
import socket
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Literal

import cv2
from numpy.typing import NDArray

PathLike = str | os.PathLike[str]

# What happens to something that has the name already.
Existing = Literal["replace", "keep", "refuse"]

CACHE_VARIABLE = "KERAS_VJEPA_CACHE"

_PREFIX = ".unfinished-"
# Where something lies that is being replaced, until the new has its place.
_REPLACED = ".replaced"
# What another machine writes, whose processes cannot be seen from here, is left over after a day.
_LEFT_OVER_AFTER = 24 * 60 * 60

# The disk, what one may use of it, or the longest file.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

_numbers = itertools.count()
_cleaned: set[Path] = set()
_cleaning = threading.Lock()


def cache_folder() -> Path:
    """Find the folder for all that is downloaded, converted or rendered once.

    Returns:
        What the environment variable `KERAS_VJEPA_CACHE` says, or `~/.cache/keras_vjepa`.

    Raises:
        OSError: if there is neither that variable nor a home folder.
    """
    chosen = os.environ.get(CACHE_VARIABLE)
    try:
        return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "keras_vjepa"
    except RuntimeError as error:
        raise OSError(
            f"The environment variable {CACHE_VARIABLE} must name a folder that can be written, "
            f"for the home folder is not known. Received: {chosen!r}"
        ) from error


def kind_of(path: PathLike) -> str | None:
    """Tell what lies at a path before it is opened, which of a pipe waits for ever.

    Args:
        path: of anything; links are followed.

    Returns:
        "file", "folder", "pipe", "socket" or "device"; None if there is nothing, or what there is
        cannot be seen.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):  # ValueError: no system has such a name
        return None
    kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe"}
    return {**kinds, stat.S_IFSOCK: "socket"}.get(stat.S_IFMT(mode), "device")


# --- A file --------------------------------------------------------------------------------------


def write_text(
    path: PathLike, text: str, durable: bool = False, existing: Existing = "replace"
) -> None:
    """Write a text file in UTF-8; arguments as those of `unfinished_file`."""
    # Names of files may hold bytes that are no UTF-8; they are written as the disk has them.
    write_bytes(path, text.encode("utf-8", "surrogateescape"), durable, existing)


def write_bytes(
    path: PathLike, content: bytes, durable: bool = False, existing: Existing = "replace"
) -> None:
    """Write a file from bytes; arguments as those of `unfinished_file`."""
    with unfinished_file(path, durable, existing) as unfinished:
        unfinished.write_bytes(content)


def append_line(path: PathLike, line: str) -> None:
    """Add a line to the end of a text file in UTF-8, which is made if need be.

    The one write that is not complete or not at all: of a process that is killed meanwhile, a part
    of the last line may be left, without its end. Whoever reads the file must look for that.

    Args:
        path: the file.
        line: without its end.

    Raises:
        OSError: if it cannot be written.
    """
    with open(path, "ab", buffering=0) as file:
        file.write(f"{line}\n".encode("utf-8", "surrogateescape"))


def write_picture(path: PathLike, pixels: NDArray[Any]) -> None:
    """Write a picture, in the format that the ending of its name says.

    Args:
        path: the file, such as `loss.png`.
        pixels: `(height, width)` or `(height, width, 3)`, uint8, in the order blue, green, red.

    Raises:
        OSError: if it cannot be written.
    """
    encoded = None
    with suppress(cv2.error):  # for an ending that it does not know
        # Encoded here, for OpenCV 5.0 ends the process at a path that is not UTF-8.
        _, encoded = cv2.imencode(Path(path).suffix, pixels)
    if encoded is None:
        raise OSError(f"The picture cannot be written as .png or another kind: {path}")
    write_bytes(path, encoded.tobytes())


@contextmanager
def unfinished_file(
    path: PathLike, durable: bool = False, existing: Existing = "replace"
) -> Iterator[Path]:
    """Lend a path to write a file to, which gets its own place once the block ends.

    The lent path has the file's own name, so libraries see its ending. If the block raises, there
    is no file, and one that was there before is as it was. Folders on the way are made.

    Args:
        path: the file. If this is a link, the file that it leads to.
        durable: return only when the file will survive a power cut.
        existing: what to do if the file exists. "keep" throws the new one away: another process
            was faster.

    Yields:
        The path to write to.

    Raises:
        FileExistsError: if the file exists and `existing` is "refuse".
        OSError: if it cannot be written.

    Example:

    >>> import tempfile
    >>> from keras_vjepa.files import unfinished_file
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "numbers.txt"
    ...     with unfinished_file(path) as unfinished:
    ...         _ = unfinished.write_text("1 2 3")
    ...         there_already = path.exists()
    ...     there_already, path.read_text()
    (False, '1 2 3')
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        raise OSError(f"The path must be that of a file. Received: {path}, which is something else")
    if existing == "refuse" and path.exists():
        raise FileExistsError(f"The file must not exist. Received: {path}")
    with _naming_when_full(path), scratch_folder(path.parent) as scratch:
        unfinished = scratch / path.name
        yield unfinished
        move_file(unfinished, path, durable, existing)


@contextmanager
def continued_file(path: PathLike, durable: bool = False) -> Iterator[Path]:
    """Lend a path to write a file to that may take several goes, by one process after another.

    Once the block ends, the file gets its own place. If the block raises, or the process is killed,
    what was written stays beside that place as `NAME.part`, and whoever asks next gets it again.
    Let one at a time do that: see `locks.locked`.

    Args:
        path: the file. Folders on the way are made.
        durable: as in `unfinished_file`.

    Yields:
        The path to write to, where a part of the file may be already.

    Raises:
        OSError: if it cannot be written.

    Example:

    >>> import tempfile
    >>> from keras_vjepa.files import continued_file
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for text in "first", "first and second":
    ...         with suppress(KeyError), continued_file(Path(folder) / "a.txt") as unfinished:
    ...             before = unfinished.exists()
    ...             _ = unfinished.write_text(text)
    ...             if text == "first":
    ...                 raise KeyError("stopped")
    ...     before, os.listdir(folder)
    (True, ['a.txt'])
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.part")
    with _naming_when_full(unfinished):
        yield unfinished
        move_file(unfinished, path, durable)


def move_file(
    unfinished: Path, path: PathLike, durable: bool = False, existing: Existing = "replace"
) -> None:
    """Move a file from a scratch folder to its own place, in one step.

    What `unfinished_file` does in the end; for a file whose name follows from its content.

    Args:
        unfinished: the file in a folder of `scratch_folder`, all of it written.
        path: its own place, on the same disk.
        durable: as in `unfinished_file`.
        existing: as in `unfinished_file`.

    Raises:
        FileExistsError: if the file exists and `existing` is "refuse".
        OSError: if it cannot be moved.
    """
    path = Path(path)
    if durable:
        _sync(unfinished)
    if existing == "replace":
        os.replace(unfinished, path)
    else:
        _link(unfinished, path, existing)
    if durable:
        _sync(path.parent)


def _link(unfinished: Path, path: Path, existing: Existing) -> None:
    """Give a file its name unless there is one, whoever else tries at the same time."""
    taken = False
    try:
        os.link(unfinished, path)
    except FileExistsError:
        taken = True
    except OSError as error:
        # Not every file system has links.
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            raise
        taken = path.exists()
        if not taken:
            os.replace(unfinished, path)
    if taken and existing == "refuse":
        raise FileExistsError(f"The file must not exist. Received: {path}")


@contextmanager
def _naming_when_full(path: Path) -> Iterator[None]:
    """Have the error of a full disk name what was to be written, in one line.

    The system names no file in it, HDF5 one that is not there any more, among its addresses.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


# --- A folder ------------------------------------------------------------------------------------


@contextmanager
def unfinished_folder(
    path: PathLike, durable: bool = False, existing: Existing = "refuse"
) -> Iterator[Path]:
    """Lend an empty folder to write to, which gets its own place once the block ends.

    If the block raises, there is no folder, and one that was there before is as it was.

    Args:
        path: the folder. If this is a link, the folder that it leads to.
        durable: return only when the files will survive a power cut.
        existing: what to do if something is there, an empty folder aside. "keep" throws the new
            one away: another process was faster. With "replace" there is, for an instant, neither
            the old nor the new.

    Yields:
        The folder to write to.

    Raises:
        FileExistsError: if the folder exists, is not empty, and `existing` is "refuse".
        OSError: if it cannot be written.
    """
    path = Path(os.path.realpath(path))
    if existing == "refuse" and _is_taken(path):
        raise FileExistsError(f"The folder must not exist, or be empty. Received: {path}")
    with _naming_when_full(path), scratch_folder(path.parent) as scratch:
        unfinished = scratch / path.name
        unfinished.mkdir()
        yield unfinished
        if durable:
            for folder, _, names in os.walk(unfinished):
                for name in (*names, "."):
                    _sync(Path(folder) / name)
        if existing == "replace" and _is_taken(path):
            replaced = scratch / _REPLACED
            replaced.mkdir()
            os.rename(path, replaced / path.name)
        with suppress(OSError):
            path.rmdir()  # an empty one, which Windows does not replace
        try:
            os.rename(unfinished, path)
        except OSError:
            if existing != "keep" or not path.exists():
                _put_back(scratch, path.parent)
                raise
        if durable:
            _sync(path.parent)


def _is_taken(path: Path) -> bool:
    return path.exists() and not (path.is_dir() and not any(path.iterdir()))


def copy(source: PathLike, unfinished: Path) -> None:
    """Have a file, a link or a folder with all that is in it at a second place.

    Files are not copied but get a second name, where the disk can do that.

    Args:
        source: what there is.
        unfinished: its second place, in a folder that is lent.

    Raises:
        OSError: if it cannot be written.
    """
    if os.path.isdir(source) and not os.path.islink(source):
        shutil.copytree(source, unfinished, symlinks=True, copy_function=_second_name)
    else:
        _second_name(source, unfinished)


def _second_name(source: PathLike, path: PathLike) -> None:
    try:
        os.link(source, path, follow_symlinks=False)
    except OSError:  # not on every disk
        shutil.copy2(source, path, follow_symlinks=False)


# --- The folders in between ----------------------------------------------------------------------


@contextmanager
def scratch_folder(parent: PathLike) -> Iterator[Path]:
    """Lend a folder for as long as the block lasts; it and all that is in it are then removed.

    Args:
        parent: the folder in which to make it, itself made if need be. For what is too large for
            the system's temporary folder, or is to be moved within `parent`.

    Yields:
        The empty folder.

    Raises:
        OSError: if it cannot be made.
    """
    parent = Path(os.path.realpath(parent))
    parent.mkdir(parents=True, exist_ok=True)
    with _cleaning:
        if parent not in _cleaned:
            _cleaned.add(parent)
            remove_left_over(parent)
    scratch = None
    while scratch is None:
        # Not `tempfile`: its files are private whatever the umask says, and a cache may be shared.
        made = parent / f"{_PREFIX}{os.getpid()}-{next(_numbers)}-{socket.gethostname()}"
        with suppress(FileExistsError):
            made.mkdir()
            scratch = made
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def unfinished_in(folder: PathLike) -> list[Path]:
    """List what is being written in a folder, or was left unfinished there.

    Args:
        folder: where to look; not in the folders below it.

    Returns:
        The folders in which it lies.
    """
    return sorted(Path(folder).glob(f"{_PREFIX}*"))


def remove_left_over(folder: PathLike) -> None:
    """Remove what processes that were killed left unfinished in a folder.

    The first write of a process to a folder does this by itself. What a living process writes is
    left alone, and so is what was made less than a day ago on another machine that sees the folder.

    Args:
        folder: where to look; not in the folders below it.
    """
    for scratch in unfinished_in(folder):
        if _is_left_over(scratch):
            # Killed in the instant in which a folder was replaced: the old one is still whole.
            with suppress(OSError):
                _put_back(scratch, Path(folder))
            shutil.rmtree(scratch, ignore_errors=True)


def _put_back(scratch: Path, parent: Path) -> None:
    for replaced in (scratch / _REPLACED).glob("*"):
        if not (parent / replaced.name).exists():
            os.rename(replaced, parent / replaced.name)


def _is_left_over(scratch: Path) -> bool:
    process, _, rest = scratch.name.removeprefix(_PREFIX).partition("-")
    # Windows has no signal that only asks.
    if rest.partition("-")[2] != socket.gethostname() or os.name == "nt" or not process.isdigit():
        with suppress(OSError):
            return time.time() - scratch.stat().st_mtime > _LEFT_OVER_AFTER
        return False
    # Of this number, but from before this process began: a container's are the same every time.
    if int(process) == os.getpid():
        return True
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False  # alive, and another user's
    return False


def _sync(path: Path) -> None:
    """Have a file or a folder written to the disk itself; not every system can with folders."""
    is_folder = path.is_dir()
    with suppress(OSError) if is_folder else nullcontext():
        descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
