"""The benchmark of decoding measures what it says, and names what it cannot read."""

import sys
import types

import numpy as np
import pytest

from keras_vjepa.data.reading.video import read_frames
from keras_vjepa.tools import bench_decoding
from tests.data.reading.stamped import NUM_FRAMES, stamps, write_with_av

pytestmark = pytest.mark.data


def test_each_library_alone_reads_the_right_frames(tmp_path):
    path = str(write_with_av(tmp_path / "a.mp4", "libx264"))
    for start in (0, 40):
        indices = np.arange(start, start + 64, 4)
        assert stamps(bench_decoding.opencv_alone(path, indices)) == indices.tolist()
        assert stamps(bench_decoding.av_alone(path, indices)) == indices.tolist()
        np.testing.assert_array_equal(
            bench_decoding.reader("av")(path, indices), read_frames(path, indices)
        )


def test_prints_ratios_to_the_best_library_alone(tmp_path, capsys):
    path = write_with_av(tmp_path / "a.mp4", "libx264")
    assert bench_decoding.main(["--video", str(path), "--clips", "2"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head == f"a.mp4: {NUM_FRAMES} frames of 96x64"
    ratios = {line[:30].strip(): float(line.split("clips/s")[1].split()[0]) for line in lines}
    assert max(ratio for name, ratio in ratios.items() if "alone" in name) == 1
    assert {"opencv alone", "av alone", "reader and transform, av"} <= ratios.keys()


def test_decord_is_a_rival_where_it_is_installed(tmp_path, capsys, monkeypatch):
    class Reader:
        def __init__(self, path, num_threads):
            assert num_threads == 1
            self.path = path

        def get_batch(self, indices):
            frames = read_frames(self.path, indices)
            return types.SimpleNamespace(asnumpy=lambda: frames)

    module = types.ModuleType("decord")
    module.VideoReader = Reader
    monkeypatch.setitem(sys.modules, "decord", module)
    path = write_with_av(tmp_path / "a.mp4", "libx264")
    assert bench_decoding.main(["--video", str(path), "--clips", "1"]) == 0
    assert "decord alone" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--clips", "0"], "--clips must be at least 1. Received: 0"),
        (["--video", ""], "--video must be a file. Received: nothing"),
        (["--video", "nowhere.mp4"], "--video: Cannot read the video nowhere.mp4: no such file"),
    ],
)
def test_bad_input_is_answered_in_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        bench_decoding.main(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"bench_decoding.py: {message}\n"
