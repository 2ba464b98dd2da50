"""Tables and published lists give a sample for each row; what is missing is said."""

import builtins
import json
import logging
import types

import pytest

from keras_vjepa.data import Sample
from keras_vjepa.data.sources import tables
from keras_vjepa.data.sources.listing import list_samples, listed_class_names, source_exists

pytestmark = pytest.mark.data

ROWS = [("a.mp4", "yoga"), ("b c.mp4", "archery"), ("/v/d,e.mp4", "yoga")]
EXPECTED = ["a.mp4", "b c.mp4", "/v/d,e.mp4"]


def write(folder, name, text):
    (folder / name).write_text(text)
    return folder / name


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", 'label,path\nyoga,a.mp4\narchery,b c.mp4\nyoga,"/v/d,e.mp4"\n'),
        ("t.csv", "\ufeffpath,label,fps\na.mp4,yoga,3\nb c.mp4,archery,3\n\"/v/d,e.mp4\",yoga,3\n"),
        ("t.tsv", "file_name\tlabel\na.mp4\tyoga\nb c.mp4\tarchery\n/v/d,e.mp4\tyoga\n"),
        ("t.jsonl", "".join(json.dumps({"video": p, "label": c}) + "\n\n" for p, c in ROWS)),
        ("t.jsonl", "\n".join(json.dumps({"video": {"path": p}, "label": c}) for p, c in ROWS)),
    ],
)  # fmt: skip
def test_named_columns(tmp_path, name, text):
    table = write(tmp_path, name, text)
    paths = [str(tmp_path / path) for path in EXPECTED]
    assert list_samples(table) == [
        Sample(path, i) for path, i in zip(paths, (1, 0, 1), strict=True)
    ]
    assert listed_class_names(table) == ["archery", "yoga"]
    assert [s.label for s in list_samples(table, label_column="")] == [None] * 3


def test_columns_of_other_names(tmp_path):
    table = write(tmp_path, "t.csv", "where,what\n/v/a.mp4,3\n/v/b.mp4,\n")
    samples = list_samples(table, path_column="where", label_column="what")
    assert samples == [Sample("/v/a.mp4", 3), Sample("/v/b.mp4")]
    table = write(tmp_path, "t.jsonl", '{"where": "/v/a.mp4", "what": 3.0}\n')
    with pytest.raises(ValueError, match="`path_column` must be a column of .*'where', 'what'"):
        list_samples(table)
    assert list_samples(table, path_column="where", label_column="what") == [Sample("/v/a.mp4", 3)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", "Path,Label\n/v/a.mp4,3.0\n/v/b.mp4,NaN\n"),
        ("t.csv", 'path, label\n/v/a.mp4, 3\n"/v/b.mp4", nan\n'),
        ("t.tsv", "VIDEO\tLABEL\n/v/a.mp4\t3.\n/v/b.mp4\t\n"),
        ("t.jsonl", '{"File": "/v/a.mp4", "Label": "3.00"}\n{"File": "/v/b.mp4", "Label": NaN}'),
    ],
)
def test_as_other_tools_write_names_numbers_and_empty_cells(tmp_path, name, text):
    table = write(tmp_path, name, text)
    assert list_samples(table) == [Sample("/v/a.mp4", 3), Sample("/v/b.mp4")]
    assert listed_class_names(table) == []


@pytest.mark.parametrize("label", ["2147483648", "9" * 30, "9" * 5000])
def test_a_label_that_no_model_takes_is_refused(tmp_path, label):
    for name, text in (
        ("t.csv", f"path,label\n/v/a.mp4,{label}\n"),
        ("t.jsonl", f'{{"path": "/v/a.mp4", "label": {label[:30]}}}\n'),
        ("t.txt", f"/v/a.mp4 {label}\n"),
    ):
        with pytest.raises(ValueError, match="The label must be a whole number") as caught:
            list_samples(write(tmp_path, name, text))
        assert len(str(caught.value)) < 700


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("t.csv", "path,label\n/v/a.mp4\n", "t.csv:2: A row must have 2 columns"),
        ("t.csv", "path,label\n/v/a,b.mp4,3\n", "t.csv:2: A row must have 2 columns"),
        ("t.csv", "path,label\n/v/a.mp4,-3\n", "t.csv:2: The label must be a whole number.*'-3'"),
        ("t.csv", "path,label\n/v/a.mp4,3\n/v/b.mp4,x\n", "t.csv:3: The labels .*'x' beside numb"),
        ("t.csv", "path,label\n,3\n", "t.csv:2: `path` must be a path"),
        ("t.csv", 'path,label\n"/v/a.mp4,3\n', "t.csv:.: unexpected end"),
        ("t.tsv", "path\tlabel\n", "No videos in"),
        ("t.jsonl", '{"path": "' + 2**20 * "x", "t.jsonl:1: A row must have at most 1,048,576 ch"),
        ("t.jsonl", "[1]\n", "t.jsonl:1: A row must be a JSON object. Received: "),
        ("t.jsonl", '{"path": "/v/a.mp4"\n', "t.jsonl:1: A row must be a JSON object"),
        ("t.jsonl", '{"path": 3}\n', "t.jsonl:1: `path` must be a path. Received: 3"),
        ("t.jsonl", '{"path": "/v/a.mp4", "label": [3]}\n', "t.jsonl:1: The label must be"),
    ],
)
def test_bad_rows_are_named(tmp_path, name, text, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        list_samples(write(tmp_path, name, text))
    assert "\n" not in str(caught.value)


def test_a_list_without_header_is_none_with(tmp_path):
    """Whatever the first class is called."""
    (tmp_path / "a.mp4").touch()
    table = write(tmp_path, "t.csv", "video,a.mp4\n")
    assert list_samples(table) == [Sample(str(tmp_path / "a.mp4"), 0)]
    assert not tables.is_table(table, "")


def test_parquet_names_its_extra(tmp_path, monkeypatch):
    original = builtins.__import__

    def without(name, *others):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return original(name, *others)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install keras-vjepa\[parquet\]"):
        list_samples(write(tmp_path, "t.parquet", ""))


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = {"path": [path for path, _ in ROWS], "label": [label for _, label in ROWS]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    assert [sample.label for sample in list_samples(tmp_path / "t.parquet")] == [1, 0, 1]
    with pytest.raises(ValueError, match="no readable parquet file"):
        list_samples(write(tmp_path, "u.parquet", "no parquet"))


def test_parquet_is_read_row_by_row(tmp_path, monkeypatch):
    """With a stand-in for pyarrow, where it is not installed."""
    rows = [{"path": path, "label": label} for path, label in ROWS]

    class ParquetFile:
        def __init__(self, source):
            assert str(source).endswith("t.parquet")

        def iter_batches(self):
            return [types.SimpleNamespace(to_pylist=lambda r=r: [r]) for r in rows]

        __enter__, __exit__ = lambda self: self, lambda *_: None

    module = types.ModuleType("pyarrow")
    module.ArrowException, module.parquet = (
        ValueError,
        types.SimpleNamespace(ParquetFile=ParquetFile),
    )
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", module)
    assert [s.label for s in list_samples(write(tmp_path, "t.parquet", ""))] == [1, 0, 1]


# --- Published lists -----------------------------------------------------------------------------


def test_published_lists(tmp_path, caplog):
    videos = tmp_path / "videos"
    (videos / "a").mkdir(parents=True)
    for name in ("a/-id_000003_000013.mp4", "7.mp4", "8.webm", "ava1.mkv"):
        (videos / name).touch()
    kinetics = write(
        tmp_path,
        "k.csv",
        "label,youtube_id,time_start,time_end,split\nyoga,-id,3,13,train\narchery,gone,1,11,train\n",
    )
    with caplog.at_level(logging.WARNING):
        assert list_samples(kinetics, videos=videos) == [
            Sample(str(videos / "a/-id_000003_000013.mp4"), 1),
            Sample(str(videos / "gone_000001_000011.mp4"), 0),
        ]
    assert caplog.messages == [
        f"Missing: 1 of 2 files in {kinetics}, {videos}/gone_000001_000011.mp4 first"
    ]
    assert listed_class_names(kinetics) == ["archery", "yoga"]
    ssv2 = write(tmp_path, "s.json", json.dumps([{"id": "7", "template": "Hold [it]"}, {"id": 8}]))
    labels = write(tmp_path, "labels.json", '{"Hold it": "5"}')
    paths = [str(videos / "7.mp4"), str(videos / "8.webm")]
    assert list_samples(ssv2, videos=videos) == [Sample(path) for path in paths]
    labelled = list_samples(ssv2, videos=videos, label_names=labels)
    assert labelled == [Sample(paths[0], 5), Sample(paths[1])]
    row = "{},0902,0.077,0.151,0.283,0.811,{},1\n"
    ava = write(
        tmp_path, "ava.csv", row.format("ava1", 80) + row.format("ava1", 9) + row.format("-x", 9)
    )
    found = list_samples(ava, videos=videos)
    assert found == [Sample(str(videos / "ava1.mkv")), Sample(str(videos / "-x.mkv"))]
    for source in (kinetics, ssv2, ava):
        with pytest.raises(ValueError, match="`videos` must be the folder of the videos for"):
            list_samples(source)
    plain = write(tmp_path, "p.csv", "/v/a.mp4 3\n")
    with pytest.raises(ValueError, match="`videos` must be left out with .*p.csv"):
        list_samples(plain, videos=videos)


def test_missing_files_of_a_list_are_counted(tmp_path, caplog):
    (tmp_path / "a.mp4").touch()
    table = write(tmp_path, "t.csv", "a.mp4 0\nb.mp4 1\nc.mp4 1\n")
    assert len(list_samples(table)) == 3
    assert caplog.messages == [f"Missing: 2 of 3 files in {table}, {tmp_path}/b.mp4 first"]
    assert source_exists(table) and not source_exists(tmp_path / "none.csv")


@pytest.mark.parametrize("name", ["t.csv", "t.tsv"])
def test_a_column_that_is_there_twice(tmp_path, name):
    text = "path,path,label\na.mp4,b.mp4,1\n"
    table = write(tmp_path, name, text.replace(",", "\t") if name == "t.tsv" else text)
    with pytest.raises(ValueError, match=f"{name}:1: A column must be there once. .*'path'"):
        list_samples(table)


def test_a_column_that_is_named_is_looked_for_in_a_table(tmp_path):
    """Whatever its header looks like: it is no list without one."""
    table = write(tmp_path, "t.csv", "video_path,label\na.mp4,1\n")
    with pytest.raises(ValueError, match="`path_column` must be .* 'video_path', 'label'.*'clip'"):
        list_samples(table, path_column="clip")
