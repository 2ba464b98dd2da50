"""Bytes that are lent as files are the same bytes, and gone afterwards."""

import gc
import os
import tempfile

import pytest

from keras_vjepa.data.reading import lent_files
from keras_vjepa.data.reading.lent_files import lent_copy

pytestmark = pytest.mark.data


def lend(content, size=None):
    size = len(content) if size is None else size
    return lent_copy(size, lambda place, length: content[place : place + length], ())


@pytest.fixture(params=["in memory", "on disk"])
def kind(request, monkeypatch, tmp_path):
    if request.param == "on disk":
        monkeypatch.setattr(lent_files, "_MOST_IN_MEMORY", 0)
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    elif not hasattr(os, "memfd_create"):
        pytest.skip("no files in memory")
    return request.param


def test_bytes_are_the_same(kind, monkeypatch, tmp_path):
    monkeypatch.setattr(lent_files, "_AT_ONCE", 7)
    content = os.urandom(1000)
    lent = lend(content)
    for _ in range(2):  # each time it is opened, reading starts at the beginning
        with open(lent.path, "rb") as file:
            assert file.read() == content
    assert os.path.isfile(lent.path) and os.path.getsize(lent.path) == 1000
    lent.close()
    assert not os.path.exists(lent.path) and not list(tmp_path.iterdir())


def test_what_nobody_closes_is_gone_too(kind, tmp_path):
    lent = lend(b"video")
    path = lent.path
    with pytest.warns(ResourceWarning):
        del lent
        gc.collect()
    assert not os.path.exists(path) and not list(tmp_path.iterdir())


def test_too_few_bytes_are_named(kind, tmp_path):
    with pytest.raises(ValueError, match="truncated: 5 of 1,000 bytes"):
        lend(b"video", size=1000)
    with pytest.raises(ValueError, match="empty"):
        lend(b"")
    assert not list(tmp_path.iterdir())
