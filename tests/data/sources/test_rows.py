"""Rows that other tools write are read right, or refused with their file and line."""

import os

import pytest

from keras_vjepa.data.reading.errors import printable
from keras_vjepa.data.sources.listing import list_samples, listed_class_names
from keras_vjepa.data.sources.samples import Sample

pytestmark = pytest.mark.data


def write(folder, *rows, name="list.csv"):
    path = folder / name
    path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    return path


def only(folder, row):
    """Name and label of a list's only sample."""
    (sample,) = list_samples(write(folder, row))
    return os.path.relpath(sample.path, folder), sample.label


@pytest.mark.parametrize(
    ("row", "path", "label"),
    [
        ("a.mp4;3", "a.mp4", 3),
        ("a b.mp4; 3", "a b.mp4", 3),
        ("3,a.mp4", "a.mp4", 3),
        ("3;a.mp4", "a.mp4", 3),
        ("3\ta b.mp4", "a b.mp4", 3),
        ("3::a.mp4", "a.mp4", 3),
        ("'a b.mp4' 3", "a b.mp4", 3),
        ('"a b.mp4" 3', "a b.mp4", 3),
        ('"a ""b"".mp4",3', 'a "b".mp4', 3),
        ('"a.mp4","3"', "a.mp4", 3),
        ('3,"a.mp4"', "a.mp4", 3),
        ("3 'a b.mp4'", "a b.mp4", 3),
        ('"a.mp4 3"', "a.mp4", 3),
        ("'a.b c' 3", "a.b c", 3),
        ("'tis a.mp4 3", "'tis a.mp4", 3),
        ("a.MP4\t 3", "a.MP4", 3),
        ("a.mp4 b.mp4 3", "a.mp4 b.mp4", 3),
        ("a.mp4", "a.mp4", None),
        ("7 wonders.mp4", "7 wonders.mp4", None),
        ("part 2/a.mp4 3", "part 2/a.mp4", 3),
        ("no extension 3", "no extension", 3),
        ("clip.unknown,3", "clip.unknown", 3),
        ("\ufeffa.mp4 3", "a.mp4", 3),
    ],
)
def test_read_right(tmp_path, row, path, label):
    assert only(tmp_path, row) == (path, label)


def test_two_files_in_a_row(tmp_path):
    """The first is no class of the second."""
    (tmp_path / "b.mp4").touch()
    with pytest.raises(ValueError, match="list.csv:1: Two files stand in one row"):
        list_samples(write(tmp_path, "a.mp4 b.mp4"))


def test_a_long_row_is_not_shown_whole(tmp_path):
    for row in ("a.mp4 " + "9" * 5000, "::" * 50_000):
        with pytest.raises(ValueError, match="list.csv:1: ") as error:
            list_samples(write(tmp_path, row))
        assert len(str(error.value)) < 600


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("0,a.mp4,3", "before the path and after it"),
        ('"juggling","a","3","13","train"', "More than one thing follows the path"),
        ('"a.mp4","3","4"', "More than one thing follows the path"),
        ("a.mp4 0 b.mp4 1", "Two rows stand in one line"),
        ('"a.mp4 3', "A quote is not closed"),
        ('a.mp4 3"', "A quote is not closed"),
        ("a.mp4|3", "must be a space, a comma or a semicolon"),
        ("a.mp4=3", "must be a space, a comma or a semicolon"),
        ("a.mp4:3", "must be a space, a comma or a semicolon"),
        ('""', "There is no path"),
        ('" " 3', "There is no path"),
        (",3", "There is no path"),
        ("0\ta.mp4\t3", "before the path and after it"),
        ("a.mp4 3 5", "More than one thing follows the path"),
        ("a.mp4,3,validate", "More than one thing follows the path"),
        ("a.mp4,juggling,3", "More than one thing follows the path"),
        ("a.mp4 juggling 3", "More than one thing follows the path"),
        ("frames/a 3 5", "Two numbers follow the path"),
        ("a.mp4,3.0", "whole number"),
        ("a.mp4 -1", "whole number"),
        ("a.mp4 1e3", "whole number"),
        ("-1,a.mp4", "whole number"),
        ("juggling,a.mp4", "Is 'juggling' a label or a part of the name"),
        ("path,label", "whole number.*no header"),
    ],
)
def test_refused(tmp_path, row, reason):
    source = write(tmp_path, "b.mp4", "", row)
    with pytest.raises(ValueError, match=reason) as caught:
        list_samples(source)
    message = str(caught.value)
    assert message.startswith(f"{source}:3: ") and "\n" not in message
    assert f"'{printable(row)}'" in message


def test_files_that_exist_decide(tmp_path):
    for name in ("a.mp4", "3,a.mp4", "old, new.mp4"):
        (tmp_path / name).touch()
    assert only(tmp_path, "3,a.mp4") == ("3,a.mp4", None)
    assert only(tmp_path, "3,a.mp4,5") == ("3,a.mp4", 5)
    assert only(tmp_path, "old, new.mp4") == ("old, new.mp4", None)
    assert only(tmp_path, "4 a.mp4") == ("a.mp4", 4)
    assert only(tmp_path, "juggling,a.mp4") == ("a.mp4", 0)
    assert listed_class_names(write(tmp_path, "juggling,a.mp4")) == ["juggling"]


def test_class_names(tmp_path):
    rows = ("b.mp4 juggling", "a.mp4,playing guitar", 'c.mp4 "level 2"', "d.mp4::juggling")
    train = write(tmp_path, *rows)
    names = listed_class_names(train)
    assert names == ["juggling", "level 2", "playing guitar"]
    assert [sample.label for sample in list_samples(train)] == [0, 2, 1, 0]
    test = write(tmp_path, "e.mp4 playing guitar", name="test.csv")
    assert list_samples(test, class_names=names) == [Sample(str(tmp_path / "e.mp4"), 2)]
    odd = write(tmp_path, "e.mp4 juggling", "e.mp4 diving", name="odd.csv")
    with pytest.raises(ValueError, match="odd.csv:2: .*`class_names`.*Received: 'diving'"):
        list_samples(odd, class_names=names)
    numbered = write(tmp_path, "e.mp4 1", name="numbers.csv")
    with pytest.raises(ValueError, match="numbers.csv:1: .*`class_names`.*Received: 1"):
        list_samples(numbered, class_names=names)
    # Names are refused if the training list has numbers.
    with pytest.raises(ValueError, match="test.csv:1: .*Received: 'playing guitar'"):
        list_samples(test, class_names=listed_class_names(numbered))


def test_names_and_numbers_do_not_mix(tmp_path):
    source = write(tmp_path, "a.mp4 0", "b.mp4", "c.mp4 cat")
    with pytest.raises(ValueError, match="list.csv:3: .*all be whole numbers.*'cat' beside"):
        list_samples(source)


def test_what_has_no_class_names(tmp_path):
    assert listed_class_names(write(tmp_path, "a.mp4 1", "b.mp4")) == []
    assert listed_class_names(tmp_path) == []
    with pytest.raises(FileNotFoundError, match="nowhere.csv"):
        listed_class_names(tmp_path / "nowhere.csv")


def test_names_of_files_that_are_not_utf_8(tmp_path):
    name = os.fsdecode(b"caf\xe9.mp4")
    source = tmp_path / "list.csv"
    source.write_bytes(b"a.mp4 1\ncaf\xe9.mp4 3\n")
    with pytest.raises(ValueError, match="list.csv:2: It is not UTF-8") as caught:
        list_samples(source)
    assert str(caught.value).isascii()
    try:
        (tmp_path / name).touch()
    except OSError:
        pytest.skip("this file system wants UTF-8")
    assert list_samples(source)[1] == Sample(str(tmp_path / name), 3)
