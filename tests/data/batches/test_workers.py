"""The number of threads where nobody says it."""

import os

import pytest

from keras_vjepa.data import ClipBatches, Sample
from keras_vjepa.data.batches import workers

pytestmark = pytest.mark.data


@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        ("max 100000", 16),
        ("400000 100000", 4),
        ("50000 100000", 1),
        ("5000000 100000", 16),
        ("", 16),
    ],
)
def test_cores_are_those_that_a_container_has(quota, cores, tmp_path, monkeypatch):
    if quota:
        (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(workers, "_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)), raising=False)
    assert workers.usable_cores() == cores


@pytest.mark.parametrize(
    ("cores", "processes", "threads"),
    [(1, 1, 2), (16, 1, 16), (96, 1, 32), (96, 8, 12), (8, 16, 2)],
)
def test_threads_follow_cores_and_processes(cores, processes, threads, monkeypatch):
    monkeypatch.setattr(workers, "usable_cores", lambda: cores)
    assert workers.default_threads(processes) == threads
    given = {"video_shape": (2, 32, 32, 3), "grid_shape": (1, 4, 4), "process_count": processes}
    batches = ClipBatches([Sample("a.mp4")], 16, **given)
    assert batches.threads == threads
    assert ClipBatches([Sample("a.mp4")], 16, **given, num_workers=5).threads == 5
