"""A second run in a folder is refused; a run that was killed is in nobody's way."""

import errno
import os
import threading
import time

import pytest

from keras_vjepa import locks
from keras_vjepa.locks import FolderInUseError, locked
from tests.support import lock_holder

pytestmark = pytest.mark.data


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of a folder until its input is closed."""
    with lock_holder(tmp_path) as process:
        yield process


def test_a_second_run_is_refused_in_one_line(holder, tmp_path):
    with pytest.raises(FolderInUseError) as error, locked(tmp_path, "--workdir"):
        pass
    [line] = str(error.value).splitlines()
    assert line.startswith("--workdir must be a folder in which no other run is at work.")
    assert f"{tmp_path}, where process {holder.pid} on " in line
    holder.communicate("")
    with locked(tmp_path, "--workdir"):
        assert os.listdir(tmp_path) == [".lock"]
    assert os.listdir(tmp_path) == []


def test_a_killed_run_holds_nothing(holder, tmp_path):
    holder.kill()
    holder.wait()
    assert os.listdir(tmp_path) == [".lock"]
    with locked(tmp_path, "--workdir"):
        assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} on ")
    assert os.listdir(tmp_path) == []


def make_a_link(path):
    (path.parent / "precious").write_text("what a link leads to")
    path.symlink_to("precious")


@pytest.mark.parametrize("make", [make_a_link, os.mkfifo, os.mkdir])
def test_what_is_no_lock_is_not_written_to(make, tmp_path):
    make(tmp_path / ".lock")
    with pytest.raises(OSError, match="^--workdir must be a folder that can be locked: .*.lock is"):
        with locked(tmp_path, "--workdir"):
            pass
    if make is make_a_link:
        assert (tmp_path / "precious").read_text() == "what a link leads to"


def test_waiting_for_another_run(holder, tmp_path, caplog):
    threading.Timer(0.3, holder.kill).start()
    start = time.perf_counter()
    with locked(tmp_path, "`cache`", wait=True):
        assert time.perf_counter() - start > 0.2
    assert f"Waiting for process {holder.pid} on " in caplog.text and str(tmp_path) in caplog.text


def test_the_same_thread_may_ask_again_and_another_may_not(tmp_path):
    refused = []

    def ask():
        try:
            with locked(tmp_path, "--workdir"):
                refused.append(False)
        except FolderInUseError:
            refused.append(True)

    def ask_in_a_thread():
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()

    with locked(tmp_path, "--workdir"):
        with locked(tmp_path / ".", "`workdir`"):
            pass
        ask_in_a_thread()
    ask_in_a_thread()
    assert refused == [True, False]


def test_a_lock_on_a_file_that_has_gone_is_none(tmp_path, monkeypatch):
    """Whoever held it has removed it just before: a third could lock a new one beside this."""
    lock, gone = locks.fcntl.flock, []

    def flock(descriptor, how):
        if not gone:
            gone.append(os.unlink(tmp_path / ".lock"))
        lock(descriptor, how)

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    with locked(tmp_path, "--workdir"):
        assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} on ")


def test_an_error_ends_the_lock(tmp_path):
    with pytest.raises(RuntimeError), locked(tmp_path, "--workdir"):
        raise RuntimeError
    assert os.listdir(tmp_path) == []
    with locked(tmp_path, "--workdir"):
        pass


@pytest.mark.parametrize("name", [".a.lock", ".b.lock"])
def test_locks_of_other_names_do_not_meet(name, tmp_path, holder):
    with locked(tmp_path, "--workdir", name=name):
        assert sorted(os.listdir(tmp_path)) == sorted([".lock", name])


def test_where_there_are_no_locks_it_is_said(tmp_path, monkeypatch, caplog):
    def flock(descriptor, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    with locked(tmp_path, "--workdir"):
        assert os.listdir(tmp_path) == []
    monkeypatch.setattr(locks, "fcntl", None)
    with locked(tmp_path, "--workdir"):
        pass
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [
        f"No lock can be had in {tmp_path} ({reason}): "
        "a second run there at once would not be noticed."
        for reason in ("No locks available", "this system has none")
    ]
