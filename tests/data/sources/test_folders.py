"""Folders are searched once each, and what is left out is said."""

import logging
import os
from collections import Counter

import pytest

from keras_vjepa.data.reading.kinds import VIDEO_EXTENSIONS
from keras_vjepa.data.sources.folders import FolderContents, search_folder
from keras_vjepa.data.sources.listing import list_samples
from keras_vjepa.data.sources.samples import list_class_folders

pytestmark = pytest.mark.data


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def found(folder, kind="video"):
    return [os.path.relpath(path, folder) for path in search_folder(folder, kind).paths]


def test_linked_folders_are_followed_once(tmp_path):
    data = tmp_path / "data"
    touch(tmp_path, "elsewhere/far.mp4", "data/z/near.mp4")
    (data / "linked").symlink_to(tmp_path / "elsewhere")
    (data / "again").symlink_to(tmp_path / "elsewhere")
    (data / "a").symlink_to(data / "z")
    (data / "z" / "loop").symlink_to(data)
    (data / "self").symlink_to(data / "self")
    (data / "dangling.mp4").symlink_to(tmp_path / "nowhere.mp4")
    (data / "copy.mp4").symlink_to(tmp_path / "elsewhere" / "far.mp4")
    # A file that is reached both directly and by a link has its own name, and a linked folder is
    # listed once.
    assert found(data) == ["again/far.mp4", "copy.mp4", "dangling.mp4", "z/near.mp4"]
    # Each listing starts anew.
    assert found(data) == found(data)


def test_hidden_files_and_folders_are_skipped(tmp_path, caplog):
    touch(tmp_path, ".ipynb_checkpoints/a.mp4", "._a.mp4", "a.mp4", ".hidden/x/b.mp4")
    (tmp_path / ".data").mkdir()
    touch(tmp_path / ".data", "c.mp4")
    assert found(tmp_path) == ["a.mp4"]
    assert not caplog.messages
    # A hidden folder is searched if it is named.
    assert found(tmp_path / ".data") == ["c.mp4"]


def test_other_types_are_counted_and_said_once(tmp_path, caplog):
    touch(tmp_path, "a.mp4", "b/x.XYZ", "b/y.xyz", "z.srt", "README", "p.jpg")
    with caplog.at_level(logging.WARNING):
        contents = search_folder(tmp_path)
    assert contents.other_types == {".xyz": 2, ".srt": 1, "": 1, ".jpg": 1}
    (message,) = caplog.messages
    assert message.startswith(f"Left out of {tmp_path}: 5 files of other types: .xyz (2), ")
    assert "none (1)" in message and ".jpg (1)" in message
    caplog.clear()
    assert found(tmp_path, "any") == ["a.mp4", "p.jpg"]
    assert "4 files of other types" in caplog.text and ".jpg" not in caplog.text


def test_large_numbers_can_be_read():
    contents = FolderContents(other_types=Counter({".mts": 12_345, ".xyz": 1}))
    assert contents.left_out() == "12,346 files of other types: .mts (12,345), .xyz (1)"


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="POSIX")
def test_unreadable_folders_are_said(tmp_path, caplog, monkeypatch):
    touch(tmp_path, "a.mp4", "locked/b.mp4")
    scan = os.scandir

    def refuse(path):
        if os.path.basename(path) == "locked":
            raise PermissionError(13, "Permission denied")
        return scan(path)

    # Refusal is simulated, because root may read anything and tests often run as root.
    monkeypatch.setattr(os, "scandir", refuse)
    assert [os.path.basename(sample.path) for sample in list_samples(tmp_path)] == ["a.mp4"]
    assert caplog.messages == [
        f"Left out of {tmp_path}: 1 folder that cannot be read: {tmp_path}/locked "
        "(Permission denied)"
    ]


@pytest.mark.parametrize("extension", "mts m2ts vob mxf 3g2 mpe asf f4v rm m2v MTS Vob".split())
def test_more_kinds_of_videos(tmp_path, extension):
    touch(tmp_path, f"a.{extension}")
    assert found(tmp_path) == [f"a.{extension}"]
    assert f".{extension.lower()}" in VIDEO_EXTENSIONS


def test_class_folders_share_nothing(tmp_path):
    """A link from one class into another, or up, does not label a file twice."""
    touch(tmp_path, "cat/1.mp4", "dog/2.mp4", "elsewhere/3.mp4")
    root = tmp_path / "root"
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        (root / name / "files").symlink_to(tmp_path / name)
    (root / "cat" / "up").symlink_to(root)
    (root / "owl").symlink_to(tmp_path / "elsewhere")
    samples = list_class_folders(root)
    assert [(os.path.relpath(s.path, root), s.label) for s in samples] == [
        ("cat/files/1.mp4", 0),
        ("dog/files/2.mp4", 1),
        ("owl/3.mp4", 2),
    ]
