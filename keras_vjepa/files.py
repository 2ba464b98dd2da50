"""Write files and folders complete or not at all, and find the cache folder (App. C).

Everything is first written to a folder of its own, `.unfinished-...`, beside its final place, and
then moved there in one step. So a reader, another process or a run that resumes after a power cut
finds a complete file or no file. A process that was killed leaves such a folder behind; the
next one that writes to the same place removes it.

Code outside this module writes only to the paths that the functions here lend. It calls them
`unfinished`, which `tests/test_house.py` checks.
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

# What to do with a file or folder that has the name already.
Existing = Literal["replace", "keep", "refuse"]

CACHE_VARIABLE = "KERAS_VJEPA_CACHE"

_PREFIX = ".unfinished-"
# Holds a folder that is being replaced, until the new one is in its place.
_REPLACED = ".replaced"
# The processes of another machine cannot be seen from here. A folder that one of them made counts
# as left over after a day.
_LEFT_OVER_AFTER = 24 * 60 * 60

# Errors that say: the disk is full, a quota is used up, or a file would be too long.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

_numbers = itertools.count()
_cleaned: set[Path] = set()
_cleaning = threading.Lock()


def cache_folder() -> Path:
    """Find the folder for all that is downloaded, converted or rendered once.

    Returns:
        The folder that the environment variable `KERAS_VJEPA_CACHE` names, or
        `~/.cache/keras_vjepa`.

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
    """Tell the kind of the file at a path, without opening it: opening a pipe may never end.

    Args:
        path: any path; links are followed.

    Returns:
        "file", "folder", "pipe", "socket" or "device"; None if there is nothing, or it cannot be
        seen.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):  # ValueError for a name that no system allows
        return None
    kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe"}
    return {**kinds, stat.S_IFSOCK: "socket"}.get(stat.S_IFMT(mode), "device")


def check_is_file(path: PathLike) -> None:
    """Check that a path is a file's or nobody's, before it is opened: a pipe may never answer.

    Args:
        path: any path; links are followed.

    Raises:
        OSError: if a folder, pipe, socket or device is there; one line names the path and which.
    """
    kind = kind_of(path)
    if kind not in (None, "file"):
        raise OSError(f"The path must be that of a file. Received: {path}, which is a {kind}")


# --- A file --------------------------------------------------------------------------------------


def write_text(
    path: PathLike, text: str, durable: bool = False, existing: Existing = "replace"
) -> None:
    """Write a text file in UTF-8; the other arguments are those of `unfinished_file`."""
    # A text may have names of files in it, whose bytes need not be UTF-8; they are kept.
    write_bytes(path, text.encode("utf-8", "surrogateescape"), durable, existing)


def write_bytes(
    path: PathLike, content: bytes, durable: bool = False, existing: Existing = "replace"
) -> None:
    """Write bytes to a file; the other arguments are those of `unfinished_file`."""
    with unfinished_file(path, durable, existing) as unfinished:
        unfinished.write_bytes(content)


def append_line(path: PathLike, line: str) -> None:
    """Add a line to the end of a text file in UTF-8, and make the file if need be.

    This is the one write that may be left incomplete: if the process is killed meanwhile, the file
    may end in a part of the line, without a line break. Code that reads the file must expect that.

    Args:
        path: the file.
        line: the line, without a line break.

    Raises:
        OSError: if the file cannot be written.
    """
    check_is_file(path)
    rest = f"{line}\n".encode("utf-8", "surrogateescape")
    with _naming_when_full(Path(path)), open(path, "ab", buffering=0) as file:
        while rest:  # on a disk that becomes full, a part is written without an error
            rest = rest[file.write(rest) :]


def write_picture(path: PathLike, pixels: NDArray[Any]) -> None:
    """Write a picture, in the format that the ending of its name says.

    Args:
        path: the file, such as `loss.png`.
        pixels: `(height, width)` or `(height, width, 3)`, uint8, in the order blue, green, red.

    Raises:
        OSError: if the file cannot be written, or its ending is not known.
    """
    encoded = None
    with suppress(cv2.error):  # raised for an ending that OpenCV does not know
        # OpenCV only encodes: given a path that is not UTF-8, OpenCV 5.0 ends the process.
        _, encoded = cv2.imencode(Path(path).suffix, pixels)
    if encoded is None:
        raise OSError(f"The picture cannot be written as .png or another kind: {path}")
    write_bytes(path, encoded.tobytes())


@contextmanager
def unfinished_file(
    path: PathLike, durable: bool = False, existing: Existing = "replace"
) -> Iterator[Path]:
    """Lend a path to write a file to, and move the file to its own place once the block ends.

    The lent path has the file's own name, so libraries see its ending. If the block raises an
    error, no file is left, and one that was there before stays as it was. Missing folders are made.

    Args:
        path: the file. If this is a link, the file that it leads to.
        durable: whether to return only when the file will survive a power cut.
        existing: what to do if the file exists. "keep" throws the new one away, for the case that
            another process was faster.

    Yields:
        The path to write to.

    Raises:
        FileExistsError: if the file exists and `existing` is "refuse".
        OSError: if the file cannot be written.

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
    """Lend a path to write a file to that may take several tries, even by several processes.

    Once the block ends, the file is moved to its own place. If the block raises an error, or the
    process is killed, the part that was written stays beside that place as `NAME.part`, and the
    next call for the same file lends it again. Only one process at a time may do this: see
    `locks.locked`.

    Args:
        path: the file. Missing folders are made.
        durable: as in `unfinished_file`.

    Yields:
        The path to write to, which may hold a part of the file already.

    Raises:
        OSError: if the file cannot be written.

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

    `unfinished_file` ends with this; call it yourself for a file whose name depends on its content.

    Args:
        unfinished: the file, completely written, in a folder of `scratch_folder`.
        path: its own place, on the same disk.
        durable: as in `unfinished_file`.
        existing: as in `unfinished_file`.

    Raises:
        FileExistsError: if the file exists and `existing` is "refuse".
        OSError: if the file cannot be moved.
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
    """Give a file its name unless the name is taken, even if others try at the same time."""
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
    """Turn the error of a full disk into one line that names the file to be written.

    The system's own error names no file, and HDF5's names one that is gone by then, among memory
    addresses.
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
    """Lend an empty folder to write to, and move it to its own place once the block ends.

    If the block raises an error, no folder is left, and one that was there before stays as it was.

    Args:
        path: the folder. If this is a link, the folder that it leads to.
        durable: whether to return only when the files will survive a power cut.
        existing: what to do if something other than an empty folder is there. "keep" throws the new
            folder away, for the case that another process was faster. With "replace", neither the
            old nor the new folder is there for an instant.

    Yields:
        The folder to write to.

    Raises:
        FileExistsError: if the folder exists, is not empty, and `existing` is "refuse".
        OSError: if the folder cannot be written.
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
            path.rmdir()  # removes an empty folder, which Windows would not replace
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
    """Put a file, a link or a folder with all its content at a second place too.

    If the disk allows it, files get a second name instead of being copied.

    Args:
        source: the file, link or folder.
        unfinished: its second place, within a folder that is lent.

    Raises:
        OSError: if the second place cannot be written.
    """
    if os.path.isdir(source) and not os.path.islink(source):
        shutil.copytree(source, unfinished, symlinks=True, copy_function=_second_name)
    else:
        _second_name(source, unfinished)


def _second_name(source: PathLike, path: PathLike) -> None:
    try:
        os.link(source, path, follow_symlinks=False)
    except OSError:  # raised on a disk that has no second names
        shutil.copy2(source, path, follow_symlinks=False)


# --- The folders in between ----------------------------------------------------------------------


@contextmanager
def scratch_folder(parent: PathLike) -> Iterator[Path]:
    """Lend a folder while a block lasts, and remove it with all its content afterwards.

    It is for files that are too large for the system's temporary folder, or that are to be moved
    into `parent`.

    Args:
        parent: the folder in which to make it; `parent` itself is made if need be.

    Yields:
        The empty folder.

    Raises:
        OSError: if the folder cannot be made.
    """
    parent = Path(os.path.realpath(parent))
    parent.mkdir(parents=True, exist_ok=True)
    with _cleaning:
        if parent not in _cleaned:
            _cleaned.add(parent)
            remove_left_over(parent)
    scratch = None
    while scratch is None:
        # `tempfile` is not used, because its files are private whatever the umask says, and a
        # cache may be shared.
        made = parent / f"{_PREFIX}{os.getpid()}-{next(_numbers)}-{socket.gethostname()}"
        with suppress(FileExistsError):
            made.mkdir()
            scratch = made
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def unfinished_in(folder: PathLike) -> list[Path]:
    """List the scratch folders in a folder, in use or left over.

    Args:
        folder: the folder; those below it are not searched.

    Returns:
        The paths of the scratch folders.
    """
    return sorted(Path(folder).glob(f"{_PREFIX}*"))


def remove_left_over(folder: PathLike) -> None:
    """Remove unfinished files and folders that killed processes left in a folder.

    The first write of a process to a folder does this by itself. Files of a living process are left
    alone, and so are those made less than a day ago by another machine that shares the folder.

    Args:
        folder: the folder; those below it are not searched.
    """
    for scratch in unfinished_in(folder):
        if _is_left_over(scratch):
            # If the process was killed while it replaced a folder, the old one is whole, in here.
            with suppress(OSError):
                _put_back(scratch, Path(folder))
            shutil.rmtree(scratch, ignore_errors=True)


def _put_back(scratch: Path, parent: Path) -> None:
    for replaced in (scratch / _REPLACED).glob("*"):
        if not (parent / replaced.name).exists():
            os.rename(replaced, parent / replaced.name)


def _is_left_over(scratch: Path) -> bool:
    process, _, rest = scratch.name.removeprefix(_PREFIX).partition("-")
    # Windows has no signal that only asks whether a process is alive.
    if rest.partition("-")[2] != socket.gethostname() or os.name == "nt" or not process.isdigit():
        with suppress(OSError):
            return time.time() - scratch.stat().st_mtime > _LEFT_OVER_AFTER
        return False
    # An earlier process with this number left it: in a container, numbers are the same every time.
    if int(process) == os.getpid():
        return True
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False  # The process is alive and belongs to another user.
    return False


def _sync(path: Path) -> None:
    """Flush a file or a folder to the disk itself; ignore systems that cannot do it for folders."""
    is_folder = path.is_dir()
    with suppress(OSError) if is_folder else nullcontext():
        descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
