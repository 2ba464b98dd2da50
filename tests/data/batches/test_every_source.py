"""Nothing is lost, from whatever source: each sample comes once an epoch, and a run goes on."""

from collections import Counter

import pytest

from tests.data.batches import drawing
from tests.data.batches.stamped_sources import (
    BATCH_SIZE,
    NUM_FRAMES,
    NUM_VIDEOS,
    batches_of,
    samples_of,
    seen,
    write_sources,
)

pytestmark = pytest.mark.data

KINDS = ("folder", "frames", "shards", "rows")
# With reading threads, and, in the long tests, with worker processes.
READINGS = [(kind, False) for kind in drawing.KINDS]
READINGS += [pytest.param(kind, True, marks=pytest.mark.slow) for kind in drawing.KINDS]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("sources")
    write_sources(root)
    return root


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("process_count", [1, 2, 4])
def test_each_sample_comes_once_an_epoch(root, kind, process_count):
    samples = samples_of(root, kind)
    assert len(samples) == NUM_VIDEOS
    parts = [
        batches_of(samples, process_index=index, process_count=process_count)
        for index in range(process_count)
    ]
    steps = NUM_VIDEOS // 4
    counts = Counter(
        clip[0] // NUM_FRAMES
        for batches in parts
        for batch in batches.stream(0, steps)
        for clip in seen(batch)
    )
    assert counts == {video: 1 for video in range(NUM_VIDEOS)}
    assert all(batches.bad_files == {} for batches in parts)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    root = tmp_path_factory.mktemp("damaged")
    write_sources(root)
    drawing.damage(root)
    return root


@pytest.mark.parametrize("kind,in_processes", READINGS)
@pytest.mark.parametrize("process_count", [1, 2, 4])
def test_what_cannot_be_read_is_in_the_table_and_nothing_else_is_lost(
    damaged, kind, process_count, in_processes
):
    samples = samples_of(damaged, kind)
    options = {"max_bad_share": 0.1, "use_multiprocessing": in_processes, "num_workers": 2}
    parts = [
        batches_of(samples, process_index=index, process_count=process_count, **options)
        for index in range(process_count)
    ]
    counts, epochs = Counter(), 2
    for batches in parts:
        for batch in batches.stream(0, epochs * NUM_VIDEOS // BATCH_SIZE):
            counts.update(clip[0] // NUM_FRAMES for clip in seen(batch))
    bad = {path for batches in parts for path in batches.bad_files}
    lost = set(range(NUM_VIDEOS)) - set(counts)
    assert bad == {samples[number].path for number in lost} and len(bad) == 1
    # Another clip is where the bad one would have been, once an epoch.
    assert min(counts.values()) == epochs and counts.total() == epochs * NUM_VIDEOS


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on_at_any_step(root, kind):
    whole = batches_of(samples_of(root, kind), num_workers=3).stream(0, 12)
    expected = [seen(batch) for batch in whole]
    for start in range(0, 12, 3):
        rest = batches_of(samples_of(root, kind), num_workers=2, read_ahead=2).stream(start, 12)
        assert [seen(batch) for batch in rest] == expected[start:]
