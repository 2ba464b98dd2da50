"""The published annotation files of Kinetics and Something-Something v2."""

import json

import pytest

from keras_vjepa.data.sources.manifests import (
    kinetics_class_names,
    kinetics_samples,
    something_something_samples,
)
from keras_vjepa.data.sources.samples import Sample

pytestmark = pytest.mark.data

HEADER = "label,youtube_id,time_start,time_end,split,is_cc\n"


def test_kinetics(tmp_path):
    videos = tmp_path / "videos"
    for name in ("train/abseiling/-4w_000118_000128.mp4", "xyz.mkv"):
        (videos / name).parent.mkdir(parents=True, exist_ok=True)
        (videos / name).touch()
    train = tmp_path / "train.csv"
    train.write_text(
        HEADER
        + '"yoga, hot",xyz,3,13,train,0\n'
        + '"abseiling",-4w,118,128,train,0\n'
        + '"abseiling",gone,5.0,15.0,train,1\n'
    )
    assert kinetics_class_names(train) == ["abseiling", "yoga, hot"]
    assert kinetics_samples(train, videos) == [
        Sample(str(videos / "xyz.mkv"), 1),
        Sample(str(videos / "train/abseiling/-4w_000118_000128.mp4"), 0),
        # The file is missing. It is kept, so that reading reports it and an evaluation counts it.
        Sample(str(videos / "gone_000005_000015.mp4"), 0),
    ]
    labels = [s.label for s in kinetics_samples(train, videos, ["x", "yoga, hot", "abseiling"])]
    assert labels == [1, 2, 2]
    with pytest.raises(ValueError, match="`class_names` must hold 'yoga, hot', a label in .*csv"):
        kinetics_samples(train, videos, ["abseiling"])


def test_kinetics_test_set_has_no_labels(tmp_path):
    test = tmp_path / "test.csv"
    test.write_text("youtube_id,time_start,time_end,split\n--a,1,11,test\n")
    assert kinetics_samples(test, "/v") == [Sample("/v/--a_000001_000011.mp4", None)]
    with pytest.raises(ValueError, match="must have a column `label`"):
        kinetics_class_names(test)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "must have a column `youtube_id`"),
        (HEADER, "must name videos. Received: a header alone"),
        ("a.mp4 1\nb.mp4 2\n", "must have a column `youtube_id`"),
        (HEADER + ",abc,3,13,train,0\n", "list.csv:2: `label` must not be empty"),
    ],
)
def test_no_kinetics_list(tmp_path, content, message):
    path = tmp_path / "list.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        kinetics_samples(path, tmp_path)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("yoga,xyz,three,13,train,0", "`time_start` and `time_end` must be numbers.*'three'"),
        ("yoga,xyz,inf,13,train,0", "must be numbers"),
        ("yoga,,3,13,train,0", "`youtube_id` must not be empty"),
        ("yoga,xyz", "`time_start` must not be empty"),
    ],
)
def test_kinetics_rows_that_are_none(tmp_path, row, reason):
    path = tmp_path / "list.csv"
    path.write_text(HEADER + "yoga,abc,3,13,train,0\n" + row + "\n")
    with pytest.raises(ValueError, match=f"list.csv:3: .*{reason}"):
        kinetics_samples(path, tmp_path)


def test_kinetics_in_another_encoding(tmp_path):
    path = tmp_path / "list.csv"
    path.write_bytes(HEADER.encode() + b"caf\xe9,abc,3,13,train,0\n")
    with pytest.raises(ValueError, match="list.csv must be a csv in UTF-8, as published"):
        kinetics_samples(path, tmp_path)


def write_json(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_something_something(tmp_path):
    labels = write_json(tmp_path / "labels.json", {"Holding something next to something": "37"})
    template = "Holding [something] next to [something]"
    entries = [{"id": "78687", "label": "holding potato", "template": template}, {"id": "1"}]
    annotations = write_json(tmp_path / "val.json", entries)
    assert something_something_samples(annotations, labels, "/v") == [
        Sample("/v/78687.webm", 37),
        Sample("/v/1.webm", None),
    ]
    unknown = write_json(tmp_path / "odd.json", [{"id": "2", "template": "Eating [something]"}])
    with pytest.raises(ValueError, match="labels.json must hold 'Eating something', a template in"):
        something_something_samples(unknown, labels, "/v")


@pytest.mark.parametrize("number", ["x", -1, True, None, 1.5])
def test_something_something_labels_that_are_no_numbers(tmp_path, number):
    labels = write_json(tmp_path / "labels.json", {"Holding something": number})
    annotations = write_json(tmp_path / "a.json", [{"id": 1, "template": "Holding [something]"}])
    with pytest.raises(ValueError, match="labels.json must hold class numbers, at least 0"):
        something_something_samples(annotations, labels, "/v")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "val.json is not a JSON file"),
        ({"a": 1}, "val.json must hold a JSON list"),
        ([], "No videos in .*val.json"),
        ([{"template": "x"}], "val.json must have an `id`. Received: {'template': 'x'}"),
        (["7"], "val.json must have an `id`. Received: 7"),
        ([{"id": None}], "val.json must have an `id`. Received: {'id': None}"),
        ([{"id": "7", "template": 5}], "Every `template` in .*val.json must be text. Received: 5"),
        ("[" * 100_000, "val.json is not a JSON file: nested too deep"),
    ],
)
def test_no_something_something_list(tmp_path, content, message):
    labels = write_json(tmp_path / "labels.json", {})
    annotations = write_json(tmp_path / "val.json", content)
    with pytest.raises(ValueError, match=message):
        something_something_samples(annotations, labels, "/v")


def test_files_of_one_name_are_counted(tmp_path, caplog):
    for name in ("a/7.mp4", "b/7.webm", "b/8.webm", "c/7.mkv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    entries = write_json(tmp_path / "val.json", [{"id": "7"}, {"id": "8"}])
    samples = something_something_samples(entries, None, tmp_path)
    assert [sample.path for sample in samples] == [f"{tmp_path}/a/7.mp4", f"{tmp_path}/b/8.webm"]
    (line,) = [m for m in caplog.messages if m.startswith("Not used")]
    assert line == (
        f"Not used: 2 files in {tmp_path} with the name of another, {tmp_path}/b/7.webm first, for "
        f"{tmp_path}/a/7.mp4 is there"
    )
