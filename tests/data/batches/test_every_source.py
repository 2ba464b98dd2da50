"""Nothing is lost, from whatever source: each sample comes once an epoch, and a run goes on."""

import io
import tarfile
from collections import Counter

import cv2
import numpy as np
import pytest

from keras_vjepa.data import ClipBatches
from keras_vjepa.data.sources.listing import list_samples
from tests.data.reading.stamped import stamped_frame, stamps

pytestmark = pytest.mark.data

NUM_VIDEOS, NUM_FRAMES = 24, 4


def picture(video, frame):
    """A frame that shows which one it is, and of which video."""
    return cv2.imencode(".png", stamped_frame(NUM_FRAMES * video + frame, 48, 96))[1].tobytes()


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Samples of images, folders of frames, members of shards, and rows."""
    root = tmp_path_factory.mktemp("sources")
    rows = []
    for video in range(NUM_VIDEOS):
        folder = root / "frames" / f"v{video:02d}"
        folder.mkdir(parents=True)
        for frame in range(NUM_FRAMES):
            (folder / f"{frame}.png").write_bytes(picture(video, frame))
        rows.append(np.stack([stamped_frame(NUM_FRAMES * video + f) for f in range(NUM_FRAMES)]))
    for shard in range(3):
        with tarfile.open(root / f"{shard}.tar", "w") as tar:
            for video in range(shard, NUM_VIDEOS, 3):
                info = tarfile.TarInfo(f"{video:02d}.png")
                content = picture(video, 0)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return {
        "frames": list_samples(root / "frames", "frames"),
        "shards": list_samples(f"{root}/{{0..2}}.tar", "image"),
        "rows": list_samples(rows),
    }


def batches_of(samples, **options):
    def transform(frames, rng):
        return frames.astype("float32")

    shape = (2, *stamped_frame(0, 48 if samples[0].path[-1] != "]" else 64).shape)
    return ClipBatches(samples, 4, transform, lambda *_: {}, video_shape=shape, seed=3, **options)


def seen(batch):
    """The videos of a batch, and which of their frames are seen."""
    return [tuple(stamps(clip)) for clip in batch["videos"]]


@pytest.mark.parametrize("kind", ["frames", "shards", "rows"])
@pytest.mark.parametrize("process_count", [1, 2, 4])
def test_each_sample_comes_once_an_epoch(sources, kind, process_count):
    samples = sources[kind]
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


@pytest.mark.parametrize("kind", ["frames", "shards", "rows"])
def test_a_run_goes_on_at_any_step(sources, kind):
    whole = [seen(batch) for batch in batches_of(sources[kind], num_workers=3).stream(0, 12)]
    for start in range(0, 12, 3):
        rest = batches_of(sources[kind], num_workers=2, read_ahead=2).stream(start, 12)
        assert [seen(batch) for batch in rest] == whole[start:]
