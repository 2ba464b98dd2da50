"""The benchmark of a data set prints a rate for each way to read, and the cores that are needed."""

import pytest

from keras_vjepa.data.preparation.throughput import Throughput, decoders, kinds_of_workers
from keras_vjepa.tools import bench_data
from tests.data.reading.stamped import write_with_opencv
from tests.data.reading.test_frame_folder import write_frames

pytestmark = pytest.mark.data


def test_prints_a_row_for_each_way(tmp_path, capsys):
    write_with_opencv(tmp_path / "a.avi", "MJPG", num_frames=20)
    (tmp_path / "bad.avi").write_text("no video")
    given = ["--num-workers", "2", "--clips", "2", "--num-frames", "4", "--crop-size", "32"]
    given += ["--rounds", "2"]
    assert bench_data.main([str(tmp_path), *given]) == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert lines[0] == "a.avi: 20 frames of 96x64"
    assert lines[1].split()[:4] == ["clips/s,", "workers:", "1", "2"]
    rows = {line[:28].strip(): line[28:].split() for line in lines[2:-3]}
    first, *others = decoders()
    expected = {f"{first}, {kind}" for kind in kinds_of_workers()}
    assert rows.keys() == expected | {f"{other}, threads" for other in others}
    assert all(float(number) > 0 for row in rows.values() for number in row)
    assert lines[-1].startswith("Batches with one worker: ") and "by the clock" in lines[-1]
    assert "Left out: Cannot read the video" in said.err and "bad.avi" in said.err


@pytest.mark.parametrize("kind", ["frames", "table"])
def test_takes_what_other_commands_take(kind, tmp_path):
    if kind == "frames":
        write_frames(tmp_path / "frames/my cat", range(3, 9), "{}.png")
        source = ["frames", "--kind", "frames"]
    else:
        write_with_opencv(tmp_path / "a.avi", "MJPG", num_frames=20)
        (tmp_path / "table.csv").write_text("id,uri\n1,a.avi\n")
        source = ["table.csv", "--path-column", "uri"]
    options, _ = bench_data.parse([str(tmp_path / source[0]), *source[1:]], "bench")
    (path,) = bench_data.chosen_files(options)
    assert path == str(tmp_path / ("frames/my cat" if kind == "frames" else "a.avi"))
    options.clips, options.num_frames, options.crop_size, options.num_workers = 1, 2, 16, [1]
    assert all(row[1].clips_per_second > 0 for row in bench_data.measure([path], options).values())


def test_cores_for_a_rate():
    table = {
        ("av", "threads"): {1: Throughput(40.0, 0.025), 2: Throughput(70.0, 0.026)},
        ("opencv", "threads"): {1: Throughput(30.0, 0.033)},
    }
    *_, opencv, cores, fastest = bench_data.in_words(table, 1000).splitlines()
    assert cores == "1,000 clips/s need 25 cores with av: 40.0 clips/s a core."
    assert fastest == "Fastest here: 70.0 clips/s with av and 2 threads."
    assert opencv.split() == ["opencv,", "threads", "30.0", "-", "33.0"]


def test_the_fastest_round_counts(monkeypatch):
    times = iter([Throughput(8.0, 0.2), Throughput(10.0, 0.4), Throughput(9.0, 0.3)])
    monkeypatch.setattr(bench_data, "decoders", lambda: ["opencv"])
    monkeypatch.setattr(bench_data, "kinds_of_workers", lambda: {"threads": None})
    monkeypatch.setattr(bench_data, "throughput", lambda *_: next(times))
    options, _ = bench_data.parse(["x", "--rounds", "3", "--num-workers", "1"], "bench")
    assert bench_data.measure(["a"], options) == {("opencv", "threads"): {1: Throughput(10.0, 0.2)}}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "existing folder or list. Received: nowhere"),
        ([".", "--rate", "0"], "--rate must be"),
        ([".", "--num-workers", "1", "0"], "--num-workers must be at least 1. Received: 0"),
    ],
)
def test_bad_input_is_answered_in_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        bench_data.main(arguments)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.count("\n") == 1 and message in said
