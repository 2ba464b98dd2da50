"""What is written as a list is read as it was."""

import os

import pytest

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
    if why_not_listed(samples[0]):
        assert label is None and name == "a.mp4 3"
        return
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
    assert "extension" in why_not_listed(Sample("/v/clip 1"))
    assert why_not_listed(Sample("/v/frames_1")) == ""
    assert why_not_listed(Sample("/v/clip", 1)) == ""


def test_a_list_that_would_be_another_is_not_written(tmp_path):
    (tmp_path / "list.csv").write_text("before")
    with pytest.raises(ValueError, match="must name files that a list can name"):
        write_list(tmp_path / "list.csv", [Sample("/v/a\nb.mp4", 1)])
    assert (tmp_path / "list.csv").read_text() == "before"
