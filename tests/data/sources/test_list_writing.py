"""What is written as a list is read as it was."""

import os

import pytest

from keras_vjepa.data.reading.frame_folder import FrameFolder
from keras_vjepa.data.sources.list_writing import why_not_listed, write_list
from keras_vjepa.data.sources.listing import list_samples
from keras_vjepa.data.sources.samples import Sample

pytestmark = pytest.mark.data

NAMES = (
    *("a.mp4", "a b.mp4", "a,b.mp4", "a::b.mp4", "-6l2Y_000003_000013.mp4", "ä ö.webm", "7 a.mp4"),
    *('say "hi".mp4', "it's.mp4", "a.mp4 3", "b.mp4;c.mp4", "a\tb.mp4", "a.mp4.mp4", "x\u2028.mp4"),
    os.fsdecode(b"caf\xe9.mp4"),
)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("label", [None, 0, 709])
def test_every_name_comes_back(name, label, tmp_path):
    path = tmp_path / name
    path.touch()
    samples = [Sample(str(path), label), Sample("/videos/other.mp4", label)]
    assert not why_not_listed(samples[0])
    write_list(tmp_path / "list.csv", samples)
    assert list_samples(tmp_path / "list.csv") == samples


@pytest.mark.parametrize("label", [None, 3])
def test_addresses_stay(label, tmp_path):
    samples = [Sample("https://host/a b.mp4", label), Sample("s3://bucket/c.webm", label)]
    write_list(tmp_path / "list.csv", samples)
    assert [(s.path, s.label) for s in list_samples(tmp_path / "list.csv")] == [
        (s.path, label) for s in samples
    ]


def test_what_no_list_can_name():
    assert "line break" in why_not_listed(Sample("/v/a\nb.mp4", 1))
    assert "line break" in why_not_listed(Sample(" a.mp4", 1))
    for sample in (Sample("/v/clip 1"), Sample("/v/frames_1"), Sample("/v/clip", 1)):
        assert why_not_listed(sample) == ""


def test_a_list_that_would_be_another_is_not_written(tmp_path):
    (tmp_path / "list.csv").write_text("before")
    with pytest.raises(ValueError, match="must name files that a list can name"):
        write_list(tmp_path / "list.csv", [Sample("/v/a\nb.mp4", 1)])
    assert (tmp_path / "list.csv").read_text() == "before"


def test_frames_per_second_of_folders_come_back(tmp_path):
    (tmp_path / 'a "b", c').mkdir()
    (tmp_path / "d").mkdir()
    samples = [
        Sample(str(tmp_path / 'a "b", c'), 3, FrameFolder(str(tmp_path / 'a "b", c'), 12.5)),
        Sample(str(tmp_path / "d"), None, FrameFolder(str(tmp_path / "d"))),
        Sample("/videos/e.mp4", 0),
    ]
    write_list(tmp_path / "list.csv", samples)
    for fps in (30.0, 25.0):
        # The list takes precedence, and the argument is used for what the list does not say.
        found = list_samples(tmp_path / "list.csv", fps=fps)
        assert found == samples
        assert [getattr(s.media, "fps", 30.0) for s in found] == [12.5, fps, 30.0]


@pytest.mark.parametrize("fps", [30.0, 12.0])
@pytest.mark.parametrize("label", [None, 1])
def test_folders_of_frames_may_have_spaces(label, fps, tmp_path):
    paths = [str(tmp_path / name) for name in ("my cat/v 0", 'say "hi", 1', "plain/v")]
    for path in paths:
        os.makedirs(path)
    samples = [Sample(path, label, FrameFolder(path, fps)) for path in paths]
    write_list(tmp_path / "list.csv", samples)
    found = list_samples(tmp_path / "list.csv", "frames")
    assert found == samples and {s.media.fps for s in found} == {fps}


def test_rows_that_are_the_name_of_a_folder(tmp_path):
    for name in ("my cat/v0", "v", "v 3", "w 3"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "list.csv").write_text('"my cat/v0"\nmy cat/v0\nv 3\nw 3\n')
    found = [
        (os.path.relpath(s.path, tmp_path), s.label) for s in list_samples(tmp_path / "list.csv")
    ]
    assert found == [("my cat/v0", None), ("my cat/v0", None), ("v", 3), ("w 3", None)]


def test_names_that_are_not_utf8_come_back_beside_frames_per_second(tmp_path):
    folder, file = (os.path.join(tmp_path, os.fsdecode(name)) for name in (b"f\xe9", b"v\xe9.mp4"))
    try:
        os.mkdir(folder)
    except OSError:
        pytest.skip("this file system wants UTF-8")
    open(file, "wb").close()
    samples = [Sample(folder, 3, FrameFolder(folder, 12.5)), Sample(file, 1)]
    write_list(tmp_path / "list.csv", samples)
    found = list_samples(tmp_path / "list.csv")
    assert found == samples and found[0].media.fps == 12.5
    # As in a list, labels and names of missing files must be text.
    for row in (b"gone\xe9.mp4,0", b"v.mp4,dan\xe9e"):
        (tmp_path / "table.csv").write_bytes(b"path,label\n" + row + b"\n")
        with pytest.raises(ValueError, match=r"table.csv must be UTF-8 text. Received: '.*xe9"):
            list_samples(tmp_path / "table.csv")


def test_wrong_frames_per_second_are_named(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "list.csv").write_text("path,fps\nb.mp4,fast\na,fast\n")
    with pytest.raises(ValueError, match="list.csv:3: `fps` of a folder of frames must be"):
        list_samples(tmp_path / "list.csv")
