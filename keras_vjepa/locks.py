"""Keep a second run out of a folder in which a first one works (App. C).

The operating system keeps the lock, on an open file, so it ends with the process that holds it,
however that process ends. The file `.lock` says who holds the lock, for the error message that a
second run gets. It is removed with the lock. A file that a killed process left locks nothing, and
the next run takes it over.
"""

import errno
import logging
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK_FILE = ".lock"

_LOG = logging.getLogger(__name__)

# Errors of file systems that have no locks.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
# The locks that this thread holds: code that it runs inside a lock may ask for the same one.
_held: ContextVar[frozenset[str]] = ContextVar("held", default=frozenset())


class FolderInUseError(OSError):
    """Says that another run works in a folder."""


@contextmanager
def locked(
    folder: str | os.PathLike[str], option: str, wait: bool = False, name: str = LOCK_FILE
) -> Iterator[None]:
    """Keep other runs out of a folder for as long as the block lasts.

    Inside the block, the same thread may ask for the same lock again. If a run has several
    processes, only the first may ask. If the system has no locks, the log says so in one line.

    Args:
        folder: the folder, which must exist.
        option: the user's name for the folder, such as "--workdir", for the message.
        wait: whether to wait until the other run is done, with a line in the log, instead of
            raising an error.
        name: name of the lock's file, if runs share a folder and do different things in it.

    Raises:
        FolderInUseError: if another run works in the folder.
        OSError: if the lock's file cannot be made.

    Example:

    >>> import tempfile
    >>> from keras_vjepa.locks import locked
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with locked(folder, "--workdir"):
    ...         inside = os.listdir(folder)
    ...     inside, os.listdir(folder)
    (['.lock'], [])
    """
    path = os.path.join(os.path.realpath(folder), name)
    if path in _held.get():
        yield
        return
    descriptor = _acquire(path, str(folder), option, wait)
    before = _held.get()
    _held.set(before | {path})
    try:
        yield
    finally:
        _held.set(before)
        if descriptor is not None:
            # The file is removed while the lock is held, so that no other run can lock a file that
            # is about to disappear.
            with suppress(OSError):
                os.unlink(path)
            os.close(descriptor)


def _acquire(path: str, folder: str, option: str, wait: bool) -> int | None:
    """Lock a file, and make it if need be; return None if the system has no locks."""
    if fcntl is None:
        _say_that_there_is_none(folder, "this system has none")
        return None
    while True:
        descriptor = _opened(path, option)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 1000, 0).decode(errors="replace") or "another process"
            if not wait:
                os.close(descriptor)
                raise FolderInUseError(
                    f"{option} must be a folder in which no other run is at work. Received: "
                    f"{folder}, where {holder} is. Wait until it is done, or take another folder."
                ) from None
            _LOG.warning("Waiting for %s, which is at work in %s", holder, folder)
            _wait(descriptor)
        except OSError as error:
            os.close(descriptor)
            if error.errno not in _NO_LOCKS:
                raise
            with suppress(OSError):
                os.unlink(path)
            _say_that_there_is_none(folder, error.strerror or str(error))
            return None
        # The last holder may have removed the file meanwhile, and another run made a new one.
        if _is_at(descriptor, path):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
            return descriptor
        os.close(descriptor)


def _opened(path: str, option: str) -> int:
    """Open the lock's file, and make it if need be; follow no links, which may lead anywhere."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise
    else:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
        os.close(descriptor)
    raise OSError(
        f"{option} must be a folder that can be locked: {path} is no file, or a link to one. "
        "Remove it"
    )


def _wait(descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except BaseException:
        os.close(descriptor)
        raise


def _is_at(descriptor: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except OSError:
        return False


def _say_that_there_is_none(folder: str, reason: str) -> None:
    _LOG.warning(
        "No lock can be had in %s (%s): a second run there at once would not be noticed.",
        folder,
        reason,
    )
