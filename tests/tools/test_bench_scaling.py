"""The table by number of devices: rates beside one device's, and weights that stay the same."""

import json
import os
import sys
import time
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from keras_vjepa.backend import distribution
from keras_vjepa.tools import bench, bench_scaling
from keras_vjepa.tools.bench_scaling import Machine, ScalingLine

CORES = Machine("processes without accelerators", 8, False)
CARDS = Machine("NVIDIA H200", 4, True)


@pytest.mark.data
def test_a_line_has_its_rate_beside_that_of_one_device():
    lines = [ScalingLine(1, 3, 0.5, 0.0), ScalingLine(4, 12, 0.625, 3e-8)]
    _, one, four, last = bench_scaling.scaling_lines(lines, change=0.02)
    assert one.split() == ["1", "3", "0.500", "6.000", "1.00", "100%", "0.0e+00"]
    assert four.split() == ["4", "12", "0.625", "19.200", "3.20", "80%", "3.0e-08"]
    assert last.endswith(
        "after 5 steps with the same clips, which changed a weight by up to 2.0e-02"
    )


@pytest.mark.data
def test_devices_are_those_that_are_there():
    assert bench_scaling.check_devices(None, CORES) == 2
    assert bench_scaling.check_devices(5, CORES) == 5
    assert bench_scaling.check_devices(None, CARDS) == 4
    with pytest.raises(ValueError, match=r"here, 4 of NVIDIA H200. Received: 5$"):
        bench_scaling.check_devices(5, CARDS)
    with pytest.raises(ValueError, match=r"at least 2 devices. Found 1 of NVIDIA H200$"):
        bench_scaling.check_devices(None, Machine("NVIDIA H200", 1, True))


@pytest.mark.data
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--devices", "2"], "--devices needs --scaling. Received: 2 alone"),
        (["--scaling", "--devices", "1"], "--devices must be at least 2. Received: 1"),
        (
            ["--scaling", "--devices", "9"],
            "--devices must be at most those that are here, 8 cores.",
        ),
    ],
)
def test_numbers_of_devices_are_refused_in_one_line(more, message, monkeypatch, capsys):
    monkeypatch.setattr(bench, "machine", lambda: CORES)
    with pytest.raises(SystemExit) as ended:
        bench.main(more)
    error = capsys.readouterr().err
    assert ended.value.code == 2 and message in error and error.count("\n") == 1


def test_accelerators_are_shown_to_a_process_by_their_numbers(monkeypatch):
    """As many processes as the backend takes; each sees the first of what this one may see."""
    calls = []

    def run(command, environments, cores):
        calls.append([one["CUDA_VISIBLE_DEVICES"] for one in environments])
        assert cores == [set()] * len(environments)
        return "said by Keras\n" + json.dumps({"seconds": 2.0 * len(calls)})

    monkeypatch.setattr(bench_scaling, "_run", run)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,6")
    devices = bench_scaling._Devices(CARDS, 2, 4)
    assert devices.seconds_of_a_step([], 3) == 2.0
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert devices.seconds_of_a_step([], 3) == 4.0
    count = 2 if keras.config.backend() == "torch" else 1
    assert calls == [["3,5"] * count, ["0,1"] * count]


def test_processes_of_a_machine_are_told_about_each_other():
    one, other = distribution.environments(2)
    assert one.keys() == other.keys() and one != other
    text = json.dumps([one, other])
    assert text.count("127.0.0.1") >= 2 and distribution.environments(1) == [{}]


@pytest.mark.data
def test_when_one_process_fails_the_others_are_ended():
    script = (
        "import os, sys, time; print('said', os.environ['PLACE'], flush=True); "
        "os.environ['PLACE'] == '1' and sys.exit('why it failed'); time.sleep(60)"
    )
    places = [{"PLACE": "0"}, {"PLACE": "1"}]
    start = time.monotonic()
    with pytest.raises(RuntimeError, match="^why it failed$"):
        bench_scaling._run([sys.executable, "-c", script], places, [set(), set()])
    assert time.monotonic() - start < 30
    script = script.replace("60", "0").replace("'1' and", "'2' and")
    said = bench_scaling._run([sys.executable, "-c", script], places, [set(), {*CORES_HERE}])
    assert said == "said 0\n"


CORES_HERE = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()


@pytest.mark.data
def test_a_number_of_devices_that_fails_is_left_out_and_said(monkeypatch, capsys):
    def trained(self, batch_size):
        assert batch_size == 4
        if self.count == 4:
            raise RuntimeError("out of memory")
        arrays = {"weight 0": np.array([1.0, 1.0 + 1e-7 * self.count])}
        return arrays, {"change 0": np.array([0.0, -0.5])}

    devices = bench_scaling._Devices
    monkeypatch.setattr(devices, "seconds_of_a_step", lambda self, given, clips: 1.0)
    monkeypatch.setattr(devices, "trained", trained)
    monkeypatch.setattr(bench, "machine", lambda: CARDS)
    bench.main(["--scaling", "--batch-size", "3"])
    said = capsys.readouterr()
    assert "4 devices: left out: out of memory\n" in said.err
    head, _, one, two, last = said.out.splitlines()
    assert head.startswith("keras_vjepa ") and head.endswith(", NVIDIA H200")
    assert one.split()[:2] == ["1", "3"] and two.split()[:2] == ["2", "6"]
    assert two.split()[-1] == "1.0e-07" and last.endswith("by up to 5.0e-01")


@pytest.mark.slow
def test_two_processes_train_as_one_does(monkeypatch, capsys):
    monkeypatch.setattr(bench, "machine", lambda: SimpleNamespace(**{**vars(CORES), "devices": 2}))
    small = ["--size", "tiny", "--image-size", "32", "--num-frames", "2", "--steps", "1"]
    bench.main(["--scaling", *small])
    *_, one, two, last = capsys.readouterr().out.splitlines()
    assert one.split()[0] == "1" and two.split()[:2] == ["2", "2"]
    assert float(two.split()[-1]) < 1e-6 < 1e-3 < float(last.split()[-1])
