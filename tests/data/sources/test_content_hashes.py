"""Files are known by what is in them: replaced ones are seen, moved ones are the same."""

import os
import shutil

import numpy as np
import pytest

from keras_vjepa import files
from keras_vjepa.data.reading.media import NO_CONTENT
from keras_vjepa.data.sources import content_hashes
from keras_vjepa.data.sources.content_hashes import content_hash

pytestmark = pytest.mark.data


@pytest.mark.parametrize("size", [0, 1, 1000, 160 * 1024, 160 * 1024 + 1, 5_000_000])
def test_size_beginning_middle_and_end_count(size, tmp_path):
    content = bytearray(np.random.default_rng(0).bytes(size))
    path = tmp_path / "a"
    path.write_bytes(content)
    before = content_hash(path)
    path.write_bytes(content + b"0")
    assert content_hash(path) != before
    for place in {0, size // 2, size - 1} - {-1, size}:
        content[place] ^= 1
        path.write_bytes(content)
        assert content_hash(path) != before, place
        content[place] ^= 1
    path.write_bytes(content)
    assert content_hash(path) == before


def test_times_and_places_do_not_count(tmp_path):
    (tmp_path / "a").write_text("video")
    shutil.copyfile(tmp_path / "a", tmp_path / "b")
    os.utime(tmp_path / "b", (1, 1))
    assert content_hash(tmp_path / "a") == content_hash(tmp_path / "b") != NO_CONTENT


def test_what_is_no_file_has_no_content(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path in (tmp_path, tmp_path / "none", tmp_path / "pipe", tmp_path / "loop", "a\0b"):
        assert content_hash(path) == NO_CONTENT


def test_a_name_that_is_not_utf_8(tmp_path):
    path = os.fsencode(tmp_path) + b"/caf\xe9"
    with open(path, "wb") as file:
        file.write(b"video")
    assert content_hash(os.fsdecode(path)) != NO_CONTENT


@pytest.fixture
def many(tmp_path, monkeypatch):
    """A list long enough to be kept, and the files that are read."""
    monkeypatch.setenv(files.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(content_hashes, "_KEPT_FROM", 3)
    monkeypatch.setattr(content_hashes, "_CLOCK_NS", 0)
    paths, read, original = [], [], content_hashes._hash_of
    for name in ("a", "b", "c", "d"):
        (tmp_path / name).write_text(f"video {name}")
        paths.append(str(tmp_path / name))
    monkeypatch.setattr(
        content_hashes, "_hash_of", lambda path: read.append(path) or original(path)
    )
    return paths, read


def test_a_long_list_is_read_once(many, tmp_path):
    paths, read = many
    first = content_hashes.content_hashes(paths)
    assert [bytes(row) for row in first] == [content_hash(path) for path in paths]
    read.clear()
    np.testing.assert_array_equal(content_hashes.content_hashes(paths), first)
    assert read == []
    # Size and modification time are the same as before; only the time of change (ctime) shows it.
    status = os.stat(paths[1])
    (tmp_path / "b").write_text("VIDEO b")
    os.utime(paths[1], ns=(status.st_atime_ns, status.st_mtime_ns))
    second = content_hashes.content_hashes(paths)
    assert read == [paths[1]]
    assert (second != first).any(axis=1).tolist() == [False, True, False, False]


def test_a_link_to_another_old_file_is_another(many, tmp_path):
    """None of the files has changed since, and both are of one size."""
    paths, read = many
    os.remove(paths[3])
    os.symlink(paths[0], paths[3])
    first = content_hashes.content_hashes(paths)
    os.remove(paths[3])
    os.symlink(paths[1], paths[3])
    read.clear()
    second = content_hashes.content_hashes(paths)
    assert read == [paths[3]] and bytes(second[3]) == bytes(first[1]) != bytes(first[3])


def test_files_that_have_just_changed_are_read_again(many, monkeypatch):
    """Their times do not tell one change from the next."""
    paths, read = many
    monkeypatch.setattr(content_hashes, "_CLOCK_NS", 10**12)
    content_hashes.content_hashes(paths)
    content_hashes.content_hashes(paths)
    assert sorted(read) == sorted(2 * paths)


@pytest.mark.parametrize("content", [b"", b"no archive", None])
def test_a_damaged_list_costs_time_alone(content, many, tmp_path, caplog):
    paths, read = many
    first = content_hashes.content_hashes(paths)
    [kept] = (tmp_path / "cache" / "content_hashes").iterdir()
    if content is None:
        np.savez(kept, statuses=np.zeros((2, 4), int), hashes=np.zeros((2, 16)), looked_at=0)
    else:
        kept.write_bytes(content)
    read.clear()
    np.testing.assert_array_equal(content_hashes.content_hashes(paths), first)
    assert sorted(read) == paths
    # A cache that cannot be written does no harm either.
    kept.unlink()
    kept.mkdir()
    np.testing.assert_array_equal(content_hashes.content_hashes(paths), first)
    assert "The next start looks at the files again" in caplog.text


def test_no_files():
    assert content_hashes.content_hashes([]).shape == (0, 16)
