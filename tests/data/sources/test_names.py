"""Outputs lie below their folder as samples do below theirs, wherever these are."""

import os
from pathlib import PurePath

import pytest

from keras_vjepa.data.sources.names import absolute_name, below, shared_root

pytestmark = pytest.mark.data


@pytest.mark.parametrize(
    ("names", "root", "expected"),
    [
        (["/v/a/1.mp4", "/v/b/2.mp4"], "/v", ["a/1.mp4", "b/2.mp4"]),
        (["/v/ab/1.mp4", "/v/a/2.mp4"], "/v", ["ab/1.mp4", "a/2.mp4"]),
        (["/v/1.mp4"], "/v", ["1.mp4"]),
        (["/1.mp4", "/v/2.mp4"], "/", ["1.mp4", "v/2.mp4"]),
        (["gs://b/x/1.mp4", "gs://b/2.mp4"], "gs://b", ["x/1.mp4", "2.mp4"]),
        (["https://h/1.mp4", "https://i/1.mp4"], "", ["https/h/1.mp4", "https/i/1.mp4"]),
        (["https://h/1.mp4", "/v/1.mp4"], "", ["https/h/1.mp4", "v/1.mp4"]),
        (["https://h/a/../../1.mp4"], "https://h/a/../..", ["1.mp4"]),
        (
            ["/v/x.tar/../../e/1.png", "/v/x.tar/2.png"],
            "/v/x.tar",
            ["%2e%2e/%2e%2e/e/1.png", "2.png"],
        ),
    ],
)
def test_names_below_what_they_share(names, root, expected):
    assert shared_root(names) == root
    assert [below(root, name) for name in names] == [PurePath(name) for name in expected]
    # No name leads out of the folder of outputs.
    assert all(".." not in below(root, name).parts for name in names)


def test_relative_paths_and_what_lies_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "b.mp4").touch()
    assert absolute_name("a/../b.mp4") == str(tmp_path / "b.mp4")
    assert absolute_name("gs://bucket//b.mp4") == "gs://bucket//b.mp4"
    assert shared_root(["b.mp4"]) == os.getcwd()
    # Names of members of a tar file are not changed.
    for member in ("x.tar//b.png", "x.tar/a/../b.png"):
        assert absolute_name(member) == f"{tmp_path}/{member}"
    with pytest.raises(ValueError, match="b.mp4 must lie below /videos"):
        below("/videos", "b.mp4")
    with pytest.raises(ValueError, match="must lie below"):
        below("/vid", "/videos/b.mp4")
