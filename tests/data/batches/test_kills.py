"""Killed at random moments, what is drawn goes on as if nothing had happened."""

import pytest

from tests.data.batches import drawing
from tests.data.batches.stamped_sources import write_sources

pytestmark = pytest.mark.data


@pytest.mark.parametrize("kind,count", [("folder", 1), ("frames", 1), ("shards", 2)])
def test_killed_processes_go_on_as_if_never_stopped(tmp_path, kind, count):
    """At length: `python -m tests.data.batches.drawing`."""
    write_sources(tmp_path)
    drawing.damage(tmp_path)
    steps, _ = drawing.check(tmp_path, kind, count, kills=1, seed=7)
    assert steps >= 6 * count
