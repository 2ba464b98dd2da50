"""Files and folders are written complete or not at all."""

import errno
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from keras_vjepa import files
from tests.support import left_over

pytestmark = pytest.mark.data


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# --- A file --------------------------------------------------------------------------------------


def test_a_file_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "made" / "on the way" / "name.weights.h5"
    with files.unfinished_file(path) as unfinished:
        # Libraries look at the extension.
        assert unfinished.name == path.name
        unfinished.write_text("content")
        assert not path.exists()
    assert path.read_text() == "content" and names(path.parent) == [path.name]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_block_that_fails_leaves_what_was_there(tmp_path, error):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(error), files.unfinished_file(path) as unfinished:
        unfinished.write_text("half of the new")
        raise error
    assert path.read_text() == "old" and names(tmp_path) == ["file"]


def test_what_happens_to_a_file_of_that_name(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    files.write_text(path, "kept", existing="keep")
    assert path.read_text() == "old"
    with pytest.raises(FileExistsError, match=f"must not exist. Received: {path}"):
        files.write_text(path, "refused", existing="refuse")
    assert path.read_text() == "old"
    files.write_text(path, "new")
    assert path.read_text() == "new" and names(tmp_path) == ["file"]
    other = tmp_path / "other"
    files.write_text(other, "first", existing="keep")
    assert other.read_text() == "first"


def test_a_file_that_appears_in_the_meantime_is_kept_or_refused(tmp_path):
    for existing in ("keep", "refuse"):
        path = tmp_path / existing
        block = files.unfinished_file(path, existing=existing)
        with block if existing == "keep" else pytest.raises(FileExistsError) as unfinished:
            if existing == "refuse":
                with block as unfinished:
                    unfinished.write_text("late")
                    path.write_text("early")
            else:
                unfinished.write_text("late")
                path.write_text("early")
        assert path.read_text() == "early"


def test_a_file_system_without_links(tmp_path, monkeypatch):
    def link(source, target):
        raise OSError(files.errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", link)
    files.write_text(tmp_path / "file", "first", existing="keep")
    files.write_text(tmp_path / "file", "second", existing="keep")
    assert (tmp_path / "file").read_text() == "first"
    with pytest.raises(FileExistsError, match="must not exist"):
        files.move_file(tmp_path / "file", tmp_path / "file", existing="refuse")


def test_lines_are_added_to_what_is_there(tmp_path):
    path = tmp_path / "lines.jsonl"
    for name in ("one", "zwei ß", os.fsdecode(b"caf\xe9")):
        files.append_line(path, name)
    assert path.read_bytes() == "one\nzwei ß\n".encode() + b"caf\xe9\n"
    with pytest.raises(OSError):
        files.append_line(tmp_path, "a folder")


def test_only_files_are_written_over(tmp_path):
    with pytest.raises(OSError, match="must be that of a file. Received: /dev/null"):
        files.write_text("/dev/null", "would replace it for everyone")
    with pytest.raises(OSError, match="must be that of a file"):
        files.write_text(tmp_path, "a folder")


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "other disk").mkdir()
    link = tmp_path / "file"
    link.symlink_to(tmp_path / "other disk" / "file")
    files.write_text(link, "content")
    assert link.is_symlink() and (tmp_path / "other disk" / "file").read_text() == "content"


def test_permissions_follow_the_umask(tmp_path):
    for umask, file_mode, folder_mode in ((0o022, 0o644, 0o755), (0o077, 0o600, 0o700)):
        before = os.umask(umask)
        try:
            files.write_text(tmp_path / "file", "content")
            with files.unfinished_folder(tmp_path / "folder", existing="replace") as unfinished:
                (unfinished / "inner").write_text("content")
        finally:
            os.umask(before)
        assert (tmp_path / "file").stat().st_mode & 0o777 == file_mode
        assert (tmp_path / "folder").stat().st_mode & 0o777 == folder_mode
        assert (tmp_path / "folder" / "inner").stat().st_mode & 0o777 == file_mode


def test_names_that_are_not_utf_8_are_written_as_they_are(tmp_path):
    files.write_text(tmp_path / "list.txt", "gr\u00fc\u00dfe\n" + os.fsdecode(b"\xff.mp4"))
    assert (tmp_path / "list.txt").read_bytes() == "gr\u00fc\u00dfe\n".encode() + b"\xff.mp4"


def test_a_picture(tmp_path):
    pixels = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    files.write_picture(tmp_path / "a.png", pixels)
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "a.png")), pixels)
    with pytest.raises(OSError, match="cannot be written"):
        files.write_picture(tmp_path / "a.unknown", pixels)
    assert names(tmp_path) == ["a.png"]


def test_a_picture_in_a_folder_whose_name_is_not_utf_8(tmp_path):
    """In a process of its own: OpenCV 5.0 would end it."""
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)
    # Only this module is loaded, because importing Keras takes seconds.
    code = (
        "import importlib.util, sys; import numpy as np;"
        "spec = importlib.util.spec_from_file_location('files', sys.argv[1]);"
        "files = importlib.util.module_from_spec(spec); spec.loader.exec_module(files);"
        "files.write_picture(sys.argv[2] + '/a.png', np.zeros((4, 5, 3), np.uint8))"
    )
    done = subprocess.run([sys.executable, "-c", code, files.__file__, folder])
    assert done.returncode == 0 and os.listdir(folder) == [b"a.png"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_names_what_was_to_be_written(number, tmp_path):
    for lend in (files.unfinished_file, files.unfinished_folder):
        with pytest.raises(OSError) as error, lend(tmp_path / "new"):
            raise OSError(number, "words of a library\non several lines")
        assert error.value.errno == number
        assert str(error.value).endswith(f": '{tmp_path / 'new'}'")
        assert "\n" not in str(error.value) and names(tmp_path) == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_is_written_in_several_goes_has_its_place_in_the_end(error, tmp_path):
    path = tmp_path / "new" / "a.bin"
    with pytest.raises(error), files.continued_file(path) as unfinished:
        assert not unfinished.exists()
        unfinished.write_bytes(b"half")
        raise error
    assert [p.name for p in path.parent.iterdir()] == ["a.bin.part"]
    files.write_text(path, "an older one")
    with files.continued_file(path) as unfinished:
        assert unfinished.read_bytes() == b"half" and path.read_text() == "an older one"
        with open(unfinished, "ab") as file:
            file.write(b" and half")
    assert path.read_bytes() == b"half and half"
    assert [p.name for p in path.parent.iterdir()] == ["a.bin"]


def test_a_disk_that_is_full_on_the_way_names_the_part(tmp_path):
    with pytest.raises(OSError, match="No space left on device: .*a.bin.part"):
        with files.continued_file(tmp_path / "a.bin"):
            raise OSError(errno.ENOSPC, "No space left on device")


def test_durable_files_are_synchronised_before_they_get_their_name(tmp_path, monkeypatch):
    synchronised = []
    monkeypatch.setattr(files, "_sync", lambda path: synchronised.append((path, path.exists())))
    path = tmp_path / "file"
    with files.unfinished_file(path, durable=True) as unfinished:
        unfinished.write_text("content")
    assert synchronised == [(unfinished, True), (tmp_path, True)]
    synchronised.clear()
    with files.unfinished_folder(tmp_path / "folder", durable=True) as unfinished:
        (unfinished / "inner").mkdir()
        (unfinished / "inner" / "file").write_text("content")
    inner = unfinished / "inner"
    expected = {unfinished, inner, inner / "file", tmp_path}
    assert {path for path, _ in synchronised} == expected
    files.write_text(path, "not durable")
    assert len(synchronised) == len(expected)


def test_a_disk_that_does_not_synchronise_is_an_error(tmp_path, monkeypatch):
    def fsync(descriptor):
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match=r"No space left on device: .*file"):
        files.write_text(tmp_path / "file", "content", durable=True)
    assert names(tmp_path) == []


# --- A folder ------------------------------------------------------------------------------------


def test_a_folder_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "made" / "folder"
    with files.unfinished_folder(path) as unfinished:
        (unfinished / "a").write_text("1")
        assert not path.exists()
    assert names(path) == ["a"] and names(path.parent) == ["folder"]


def test_what_happens_to_a_folder_of_that_name(tmp_path):
    path = tmp_path / "folder"
    path.mkdir()
    # An empty folder counts as none.
    with files.unfinished_folder(path) as unfinished:
        (unfinished / "old").touch()
    with pytest.raises(FileExistsError, match="must not exist, or be empty"):
        files.unfinished_folder(path).__enter__()
    with files.unfinished_folder(path, existing="keep") as unfinished:
        (unfinished / "late").touch()
    assert names(path) == ["old"]
    with files.unfinished_folder(path, existing="replace") as unfinished:
        (unfinished / "new").touch()
        assert names(path) == ["old"]
    assert names(path) == ["new"] and names(tmp_path) == ["folder"]


def test_a_folder_that_cannot_be_replaced_is_put_back(tmp_path, monkeypatch):
    path = tmp_path / "folder"
    with files.unfinished_folder(path) as unfinished:
        (unfinished / "old").touch()
    rename = os.rename

    def fail(source, target):
        if ".replaced" not in str(source) and Path(target) == path:
            raise OSError(files.errno.EIO, "the disk is gone")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail)
    with (
        pytest.raises(OSError, match="the disk is gone"),
        files.unfinished_folder(path, existing="replace") as unfinished,
    ):
        (unfinished / "new").touch()
    assert names(path) == ["old"] and names(tmp_path) == ["folder"]


def test_of_several_writers_one_wins_and_all_see_it_complete(tmp_path):
    path, barrier, contents = tmp_path / "folder", threading.Barrier(4), []

    def write(number):
        with files.unfinished_folder(path, existing="keep") as unfinished:
            for name in "abc":
                (unfinished / name).write_text(str(number))
            barrier.wait()
        contents.append([(path / name).read_text() for name in "abc"])

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(contents) == 4 and all(content == [contents[0][0]] * 3 for content in contents)
    assert names(tmp_path) == ["folder"]


# --- What killed processes leave -----------------------------------------------------------------


KILLED = """
import os, sys
from keras_vjepa import files
with files.unfinished_folder(sys.argv[1]) as unfinished:
    (unfinished / "half").write_text("half")
    os.kill(os.getpid(), 9)
"""


def test_what_a_killed_process_left_goes_with_the_next_write(tmp_path):
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "folder")], check=False)
    [killed] = files.unfinished_in(tmp_path)
    assert names(tmp_path) == [killed.name] and names(killed) == ["folder"]
    files.write_text(tmp_path / "file", "content")
    assert names(tmp_path) == ["file"]


def test_what_living_processes_write_is_left_alone(tmp_path):
    ours = tmp_path / f".unfinished-{os.getppid()}-0-{socket.gethostname()}"
    elsewhere, long_ago = (tmp_path / f".unfinished-7-{i}-another-host" for i in range(2))
    before_us = tmp_path / f".unfinished-{os.getpid()}-0-{socket.gethostname()}"
    for folder in (ours, elsewhere, long_ago, before_us):
        folder.mkdir()
    yesterday = time.time() - 25 * 60 * 60
    for folder in (ours, long_ago):
        os.utime(folder, (yesterday, yesterday))
    left_over(tmp_path)
    files.write_text(tmp_path / "file", "content")
    assert names(tmp_path) == sorted([ours.name, elsewhere.name, "file"])


def test_a_process_does_not_remove_what_it_writes_itself(tmp_path):
    with files.unfinished_file(tmp_path / "slow") as unfinished:
        files.write_text(tmp_path / "fast", "content")
        unfinished.write_text("content")
    assert names(tmp_path) == ["fast", "slow"]


def test_a_folder_whose_replacement_was_killed_is_put_back(tmp_path):
    """Killed between the two renames: the old folder lies beside the new one."""
    killed = left_over(tmp_path)
    (killed / ".replaced" / "folder").mkdir(parents=True)
    (killed / ".replaced" / "folder" / "old").touch()
    files.write_text(tmp_path / "file", "content")
    assert names(tmp_path) == ["file", "folder"] and names(tmp_path / "folder") == ["old"]


# --- The cache -----------------------------------------------------------------------------------


def test_the_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KERAS_VJEPA_CACHE", raising=False)
    assert files.cache_folder() == tmp_path / ".cache" / "keras_vjepa"
    monkeypatch.setenv("KERAS_VJEPA_CACHE", "~/elsewhere")
    assert files.cache_folder() == tmp_path / "elsewhere"
    monkeypatch.delenv("KERAS_VJEPA_CACHE")

    def home():
        raise RuntimeError("could not determine home directory")

    monkeypatch.setattr(Path, "home", home)
    with pytest.raises(OSError, match="KERAS_VJEPA_CACHE must name a folder"):
        files.cache_folder()


def test_a_line_for_which_there_is_no_room_is_an_error_that_names_the_file(tmp_path):
    """The system writes the part that fits, and tells no error."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (25, limits[1]))
    try:
        files.append_line(tmp_path / "a.txt", "0123456789")
        with pytest.raises(OSError, match="a.txt"):
            files.append_line(tmp_path / "a.txt", "0123456789012345")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "a.txt").read_text() == "0123456789\n01234567890123"
