"""Rows of a run: read while they are written, and gone on with after a kill."""

import csv
import json

import pytest

from keras_vjepa.monitoring.tables import Table, read_rows

pytestmark = pytest.mark.data


def steps_of(path):
    with open(path.with_suffix(".csv"), newline="") as file:
        in_csv = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
    in_json = [json.loads(line) for line in path.with_suffix(".jsonl").read_text().splitlines()]
    assert in_csv == [{k: v for k, v in row.items() if v is not None} for row in in_json]
    return [row["step"] for row in in_json]


def test_rows_are_there_as_soon_as_they_are_added(tmp_path):
    table = Table(tmp_path / "steps")
    table.add([{"step": 1, "loss": 1 / 3}])
    assert steps_of(tmp_path / "steps") == [1]
    table.add([{"step": 2, "loss": float("nan")}, {"step": 3, "loss": 2.0}])
    assert steps_of(tmp_path / "steps") == [1, 2, 3]
    assert (tmp_path / "steps.csv").read_text() == "step,loss\n1,0.333333333\n2,\n3,2.0\n"


def test_a_new_name_gets_a_column(tmp_path):
    table = Table(tmp_path / "steps")
    table.add([{"step": 1, "loss": 0.5}])
    table.add([{"step": 2, "loss": 0.5, "norm": 3.0}])
    assert steps_of(tmp_path / "steps") == [1, 2]
    assert (tmp_path / "steps.csv").read_text().splitlines()[0] == "step,loss,norm"


def test_after_a_kill_no_row_is_double_and_none_is_torn(tmp_path, caplog):
    table = Table(tmp_path / "steps")
    table.add([{"step": step, "loss": float(step)} for step in range(1, 6)])
    with open(tmp_path / "steps.jsonl", "a") as file:
        file.write('{"step": 6, "lo')
    (tmp_path / "steps.csv").write_text("step,loss\n1,1.0\n2,")
    again = Table(tmp_path / "steps", done=3)
    again.add([{"step": 4, "loss": 40.0}])
    assert steps_of(tmp_path / "steps") == [1, 2, 3, 4]
    assert read_rows(tmp_path / "steps.jsonl")[-1] == {"step": 4, "loss": 40.0}
    assert "damaged: 1 of its lines" in caplog.text


def test_what_is_no_row_is_left_out(tmp_path, caplog):
    path = tmp_path / "steps.jsonl"
    lines = [b'{"step": 1}', b"[1]", b'{"step": "2"}', b"\xff", b'{"a": 1}', b"null"]
    path.write_bytes(b"\n".join(lines))
    assert read_rows(path) == [{"step": 1}]
    assert "damaged: 5 of its lines" in caplog.text
    assert read_rows(tmp_path / "nothing.jsonl") == []
