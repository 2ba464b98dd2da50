"""Every manifest in use is understood, and what is wrong with one is named in one line."""

from pathlib import Path

import numpy as np
import pytest

from keras_vjepa.data.sources.listing import list_samples
from keras_vjepa.data.sources.samples import Sample, class_folders, list_class_folders

pytestmark = pytest.mark.data


def write_list(folder: Path, content: str | bytes, name: str = "list.csv") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_folder_is_searched_recursively_and_sorted(tmp_path):
    for name in ("b/2.MP4", "b/10.webm", "a.mkv", "notes.txt", "._a.mkv", "c d/é.avi", "mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    expected = ["a.mkv", "b/10.webm", "b/2.MP4", "c d/é.avi"]
    assert list_samples(str(tmp_path)) == [Sample(str(tmp_path / name), None) for name in expected]


@pytest.mark.parametrize(
    ("row", "path", "label"),
    [
        ("/v/a.mp4 3", "/v/a.mp4", 3),
        ("/v/a b c.mp4 12", "/v/a b c.mp4", 12),
        ("/v/a.mp4\t3", "/v/a.mp4", 3),
        ("/v/a.mp4   3  ", "/v/a.mp4", 3),
        ("/v/a.mp4::3", "/v/a.mp4", 3),
        ("/v/a b.mp4::3", "/v/a b.mp4", 3),
        ("/v/x::y.mp4 5", "/v/x::y.mp4", 5),
        ("/v/a.mp4,3", "/v/a.mp4", 3),
        ("/v/a b,c.mp4,3", "/v/a b,c.mp4", 3),
        ("/v/a.mp4, 3", "/v/a.mp4", 3),
        ('"/v/a,b.mp4",3', "/v/a,b.mp4", 3),
        ("/v/a.mp4", "/v/a.mp4", None),
        ("/v/a b 7.mp4", "/v/a b 7.mp4", None),
        ("/v/a,7.webm", "/v/a,7.webm", None),
        ("/v/without_extension", "/v/without_extension", None),
        ("/v/-Jx_1.mp4 0", "/v/-Jx_1.mp4", 0),
    ],
)
@pytest.mark.parametrize("name", ["list.csv", "list.txt"])
def test_rows(tmp_path, name, row, path, label):
    assert list_samples(write_list(tmp_path, row + "\n", name)) == [Sample(path, label)]


def test_order_blank_rows_windows_line_ends_and_byte_order_mark(tmp_path):
    source = write_list(tmp_path, "\ufeff/v/b.mp4 1\r\n\r\n/v/a\u2028.mp4 0\r\n/v/b.mp4 1")
    expected = [Sample("/v/b.mp4", 1), Sample("/v/a\u2028.mp4", 0), Sample("/v/b.mp4", 1)]
    assert list_samples(source) == expected


def test_relative_paths(tmp_path, monkeypatch):
    lists, work = tmp_path / "lists", tmp_path / "work"
    lists.mkdir()
    work.mkdir()
    (work / "here.mp4").touch()
    source = write_list(lists, "here.mp4 0\nthere.mp4 1\n")
    monkeypatch.chdir(work)
    expected = [Sample("here.mp4", 0), Sample(str(lists / "there.mp4"), 1)]
    assert list_samples(source) == expected
    np.save(lists / "paths.npy", np.array(["here.mp4", "there.mp4"]))
    assert [sample.path for sample in list_samples(lists / "paths.npy")] == [
        sample.path for sample in expected
    ]


def test_array_of_paths(tmp_path):
    np.save(tmp_path / "paths.npy", np.array(["/v/ü 1.mp4", "/v/b.mp4"]))
    assert list_samples(tmp_path / "paths.npy") == [Sample("/v/ü 1.mp4"), Sample("/v/b.mp4")]


@pytest.mark.parametrize("label", ["cat", "1.5", "-1", "3x"])
def test_label_that_is_no_number_names_the_row(tmp_path, label):
    source = write_list(tmp_path, f"/v/a.mp4 1\n\n/v/b.mp4 {label}\n")
    with pytest.raises(ValueError) as caught:
        list_samples(source)
    message = str(caught.value)
    assert f"'{label}'" in message and message.startswith(f"{source}:3: ") and "\n" not in message


def test_header_is_named_as_a_possible_cause(tmp_path):
    with pytest.raises(ValueError, match="list.csv:1: .*no header.*'class'"):
        list_samples(write_list(tmp_path, "clip,class\n/v/a.mp4,1\n"))


@pytest.mark.parametrize(
    ("content", "name", "reason"),
    [
        ("", "list.csv", "No videos in .*list.csv. Write one row"),
        ("\n \n", "list.txt", "No videos in .*list.txt. Write one row"),
        (b"\xff\xfe\x00\x01", "list.csv", "list.csv is not a text file"),
        (b"a\x00b 1\n", "list.csv", "list.csv is not a text file"),
        (
            b'\n<!DOCTYPE html>\n<a href="x/a.mp4">',
            "list.csv",
            "list.csv is a web page, not a list",
        ),
        (b'<HTML><a href="x/a.mp4">', "list.txt", "list.txt is a web page, not a list"),
        ("{}", "list.json", "must be a folder, .csv, .txt or .npy, .*list. Received: .*list.json"),
        ("no array", "paths.npy", "paths.npy is not a readable array"),
        (b"", "paths.npy", "paths.npy is not a readable array"),
    ],
)
def test_useless_lists(tmp_path, content, name, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        list_samples(write_list(tmp_path, content, name))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("array", [np.arange(3), np.array([["a.mp4"]]), np.array(["a"], object)])
def test_arrays_of_anything_else(tmp_path, array):
    np.save(tmp_path / "paths.npy", array)
    with pytest.raises(ValueError, match="paths.npy .*np.save"):
        list_samples(tmp_path / "paths.npy")


def test_empty_array(tmp_path):
    np.save(tmp_path / "paths.npy", np.array([], dtype=str))
    with pytest.raises(ValueError, match="No videos in"):
        list_samples(tmp_path / "paths.npy")


def test_folder_without_videos(tmp_path):
    (tmp_path / "a.srt").touch()
    with pytest.raises(ValueError, match=f"No videos in {tmp_path}. Its files must end with"):
        list_samples(tmp_path)


def test_missing_source(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.csv"):
        list_samples(tmp_path / "nowhere.csv")


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_images(tmp_path):
    touch(tmp_path, "b/2.JPEG", "a.png", "c.mp4", "._a.png")
    expected = [Sample(str(tmp_path / "a.png")), Sample(str(tmp_path / "b/2.JPEG"))]
    assert list_samples(tmp_path, kind="image") == expected
    source = write_list(tmp_path, "/i/a b.jpg 3\n/i/a b 7.jpg\n")
    expected = [Sample("/i/a b.jpg", 3), Sample("/i/a b 7.jpg", None)]
    assert list_samples(source, kind="image") == expected
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="No images in .*Its files must end with one of .bmp"):
        list_samples(tmp_path / "empty", kind="image")
    with pytest.raises(ValueError, match="`kind` must be .*\"frames\". Received: 'gif'"):
        list_samples(tmp_path, kind="gif")


def test_class_folders(tmp_path, caplog):
    train, test = tmp_path / "train", tmp_path / "test"
    touch(
        train, "b/2.mp4", "a c/x/1.webm", "a c/notes.txt", "loose.mp4", ".hidden/1.mp4", "d/1.txt"
    )
    touch(test, "d/1.mp4", "b/1.mp4")
    names = class_folders(train)
    assert names == ["a c", "b", "d"]
    list_class_folders(train)
    assert f"Left out of {train}: 1 video(s) in no class folder" in caplog.messages
    assert list_class_folders(train) == [
        Sample(str(train / "a c/x/1.webm"), 0),
        Sample(str(train / "b/2.mp4"), 1),
    ]
    assert [s.label for s in list_class_folders(test, names)] == [1, 2]
    assert [s.label for s in list_class_folders(test)] == [0, 1]
    with pytest.raises(ValueError, match="`class_names` must hold .*Received: none of 'a c', 'd'"):
        list_class_folders(train, ["b"])
    with pytest.raises(ValueError, match="No images below the class folders of"):
        list_class_folders(train, kind="image")
    with pytest.raises(ValueError, match="one folder for each class. Received: none in"):
        class_folders(train / "b")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        list_class_folders(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("one\n", "nothing in this one looks like a path"),
        ("milk\n\nbread\n", "nothing in this one looks like a path. Received: 'milk'"),
        ("Buy milk\nand bread\n", "The label of a row must be a whole number"),
    ],
)
def test_a_text_that_is_no_list_is_refused_with_its_line(content, reason, tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text(content)
    with pytest.raises(ValueError, match=reason) as raised:
        list_samples(path)
    assert str(raised.value).startswith(f"{path}:1: ") and "\n" not in str(raised.value)


def test_one_row_of_a_file_is_enough(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("without_extension\na.mp4\n")
    assert len(list_samples(path)) == 2
    path.write_text("without_extension\n")
    (tmp_path / "without_extension").touch()
    assert len(list_samples(path)) == 1
