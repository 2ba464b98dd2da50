"""Results of files are kept line by line, and found again after any end."""

import csv
import io
import os

import pytest

from keras_vjepa import files
from keras_vjepa.data.preparation.journal import Journal, state_of, table

pytestmark = pytest.mark.data

SETTINGS = {"limits": [1, 2]}


@pytest.fixture
def paths(tmp_path):
    made = [tmp_path / name for name in ("a.mp4", "b.mp4", os.fsdecode(b"caf\xe9.mp4"))]
    for path in made:
        path.write_text(path.name.encode("utf-8", "replace").decode())
    return [str(path) for path in made]


def kept(tmp_path, paths):
    journal = Journal(tmp_path / "results.jsonl", SETTINGS)
    for number, path in enumerate(paths):
        journal.add(path, state_of(path), {"number": number})
    return journal


def test_results_are_found_again(tmp_path, paths):
    kept(tmp_path, paths)
    again = Journal(tmp_path / "results.jsonl", {"limits": (1, 2)})
    assert [again.get(path) for path in paths] == [{"number": n} for n in range(3)]
    assert again.get("another.mp4") is None


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, kind in (("pipe", "pipe"), ("", "folder")):
        with pytest.raises(OSError, match=f"must be that of a file.* which is a {kind}"):
            Journal(tmp_path / name, SETTINGS)
        with pytest.raises(OSError, match=f"must be that of a file.* which is a {kind}"):
            files.append_line(tmp_path / name, "a line")


def test_those_of_other_settings_are_not(tmp_path, paths):
    kept(tmp_path, paths)
    assert Journal(tmp_path / "results.jsonl", {"limits": [1, 3]}).get(paths[0]) is None


def test_a_file_that_changed_is_not_known(tmp_path, paths):
    journal = kept(tmp_path, paths)
    os.utime(paths[0], ns=(0, 1))
    os.remove(paths[1])
    assert [journal.get(path) for path in paths] == [None, None, {"number": 2}]


def test_cut_anywhere_it_loses_one_line_and_goes_on(tmp_path, paths):
    path = kept(tmp_path, paths).path
    content = path.read_bytes()
    ends = [place for place, byte in enumerate(content) if byte == ord("\n")]
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        journal = Journal(path, SETTINGS)
        complete = sum(end < length for end in ends)
        known = [one for one in paths if journal.get(one) is not None]
        assert known == paths[:complete]
        for one in paths[complete:]:
            journal.add(one, state_of(one), {"number": 7})
        again = Journal(path, SETTINGS)
        assert all(again.get(one) for one in paths)


def test_a_table_is_read_by_others():
    row = ['a "b", c.mp4', "line\nbreak", ""]
    found = list(csv.reader(io.StringIO(table(["x", "y", "z"], [row]))))
    assert found == [["x", "y", "z"], ['a "b", c.mp4', "line\\nbreak", ""]]
