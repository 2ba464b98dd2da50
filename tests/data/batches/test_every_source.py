"""Nothing is lost, from whatever source: each sample comes once an epoch, and a run goes on."""

from collections import Counter

import pytest

from tests.data.batches.stamped_sources import (
    NUM_FRAMES,
    NUM_VIDEOS,
    batches_of,
    samples_of,
    seen,
    write_sources,
)

pytestmark = pytest.mark.data

KINDS = ("folder", "frames", "shards", "rows")


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


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on_at_any_step(root, kind):
    whole = batches_of(samples_of(root, kind), num_workers=3).stream(0, 12)
    expected = [seen(batch) for batch in whole]
    for start in range(0, 12, 3):
        rest = batches_of(samples_of(root, kind), num_workers=2, read_ahead=2).stream(start, 12)
        assert [seen(batch) for batch in rest] == expected[start:]
