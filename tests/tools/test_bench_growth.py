"""The table of growth: costs as theory has them give 1.00; what cannot be measured is said."""

import json
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest

from keras_vjepa.tools import bench, bench_growth
from keras_vjepa.tools.bench_growth import StepCost
from tests.layers import small

pytestmark = pytest.mark.data


def as_theory_has_it(point, slower=1.0, heavier=1.0):
    image_size, num_frames, batch_size = point
    tokens = batch_size * image_size**2 * num_frames // 512
    flops = 1e6 * tokens + tokens**2
    return StepCost(slower * flops / 1e9, heavier * (2e9 + 1e5 * tokens), flops, tokens)


def test_costs_in_theory_are_one_times_theory():
    lines = bench_growth.growth_lines({p: as_theory_has_it(p) for p in bench_growth.points()})
    assert len(lines) == 1 + 9 + 6 + 1
    for line in lines[1:-1]:
        *_, time, _, memory = line.split()
        assert time == memory == "1.00"
    assert lines[-1].startswith("at most 1.00 x the time and 1.00 x the memory in theory (1 GFLOP")


def test_attention_may_have_a_rate_of_its_own():
    """Steps whose attention computes half as many FLOPs in a second are one times two rates."""
    costs = {}
    for point in bench_growth.points():
        cost = as_theory_has_it(point)
        attention = cost.tokens**2.0
        seconds = (cost.flops - attention) / 200e9 + attention / 100e9
        costs[point] = StepCost(seconds, cost.memory, cost.flops, cost.tokens, attention)
    head, *lines, by_rates, last = bench_growth.growth_lines(costs)
    assert head.endswith("of theory  by two rates")
    assert {line.split()[-1] for line in lines} == {"1.00"}
    assert by_rates == (
        "at most 1.00 x the time by two rates (100 GFLOP/s of attention and 200 of all other "
        "products)"
    )
    times = [float(line.split()[6]) for line in lines]
    assert max(times) > 1 and last.startswith(f"at most {max(times):.2f} x the time and 1.00 x")
    costs[112, 16, 64] = replace(costs[112, 16, 64], seconds=1e3)
    *_, slow, _, _ = bench_growth.growth_lines(costs)
    assert float(slow.split()[-1]) > 2


def test_a_slow_and_a_heavy_line_are_found():
    costs = {point: as_theory_has_it(point) for point in bench_growth.points()}
    costs[112, 16, 64] = as_theory_has_it((112, 16, 64), slower=1.5, heavier=1.4)
    lines = bench_growth.growth_lines(costs)
    *_, time, _, memory = lines[-2].split()
    assert time == "1.50" and 1.1 < float(memory) <= 1.4
    assert lines[-1].startswith(f"at most 1.50 x the time and {memory} x")


def test_a_line_that_cannot_be_measured_is_left_out_and_said(monkeypatch, capsys):
    def fake(arguments, point):
        assert arguments == ["--size", "tiny", "--steps", "2", "--dtype", "float32", "--remat"]
        return as_theory_has_it(point) if point[1] < 64 else "it was killed"

    monkeypatch.setattr(bench_growth, "measure", fake)
    bench.main(["--growth", "--size", "tiny", "--steps", "2", "--remat"])
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 1 + 6 + 6 + 1
    assert "7 of 15: 112 pixels, 64 frames, batch 1: left out: it was killed\n" in said.err


def test_hardly_any_line_could_be_measured(monkeypatch):
    monkeypatch.setattr(bench_growth, "measure", lambda *_: "it was killed")
    with pytest.raises(SystemExit, match="^keras-vjepa bench: fewer than two sizes"):
        bench.main(["--growth"], "keras-vjepa bench")


def test_a_step_that_the_machine_cannot_hold_is_not_tried(monkeypatch, capsys):
    tried = []
    monkeypatch.setattr(bench_growth, "memory_of_machine", lambda: 3_500_000_000)
    monkeypatch.setattr(
        bench_growth, "measure", lambda _, point: tried.append(point) or as_theory_has_it(point)
    )
    bench_growth.print_growth([])
    said = capsys.readouterr()
    fits = [p for p in bench_growth.points() if as_theory_has_it(p).memory < 0.8 * 3.5e9]
    assert tried == fits and len(fits) == 11
    assert "6 of 15: 384 pixels, 32 frames, batch 1: left out: it needs about 2.7 GiB, and may" in (
        said.err
    )


def test_a_point_is_measured_in_a_process_of_its_own(monkeypatch):
    cost = as_theory_has_it((32, 4, 1))

    def run(line, **options):
        assert line[1:5] == ["-m", "keras_vjepa", "bench", "--remat"]
        assert line[5:] == "--json --image-size 32 --num-frames 4 --batch-size 3".split()
        return type("Done", (), done)

    monkeypatch.setattr(bench_growth.subprocess, "run", run)
    done = {"returncode": 0, "stdout": f"said by Keras\n{json.dumps(asdict(cost))}\n"}
    assert bench_growth.measure(["--remat"], (32, 4, 3)) == cost
    done = {"returncode": 1, "stderr": "Traceback\nMemoryError: too much\n"}
    assert bench_growth.measure(["--remat"], (32, 4, 3)) == "MemoryError: too much"
    done = {"returncode": -9, "stderr": "what TensorFlow says when it is imported\n"}
    assert bench_growth.measure(["--remat"], (32, 4, 3)).startswith("the system ended it")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--image-size", "33"],
            "--image-size must be a multiple of `patch_size`=16. Received: 33",
        ),
        (["--num-frames", "3"], "--num-frames must be a multiple of `tubelet_size`=2. Received: 3"),
        (["--num-frames", "0"], "--num-frames must be at least 1. Received: 0"),
    ],
)
def test_a_clip_that_no_patch_divides_is_refused(arguments, message, capsys):
    with pytest.raises(SystemExit):
        bench.main(arguments)
    assert capsys.readouterr().err == f"bench.py: {message}\n"


def test_a_name_that_no_layer_has_is_refused(monkeypatch, capsys):
    networks = SimpleNamespace(encoder=small.backbone(), predictor=small.predictor())
    monkeypatch.setattr(bench, "make_pretrainer", lambda *_: networks)
    with pytest.raises(SystemExit):
        bench.main(["--size", "tiny", "--remat-layers", "mlp", "mlps"])
    message = capsys.readouterr().err
    assert message.startswith("bench.py: --remat-layers must be 'attention', ")
    assert message.endswith(" Received: 'mlps'\n") and message.count("\n") == 1


def test_growth_passes_the_options_of_a_step_on(monkeypatch):
    passed = []
    monkeypatch.setattr(bench, "print_growth", passed.extend)
    bench.main(["--growth", "--size", "tiny", "--remat-layers", "mlp", "block_1", "--processor"])
    assert passed[-4:] == ["--remat-layers", "mlp", "block_1", "--processor"]
