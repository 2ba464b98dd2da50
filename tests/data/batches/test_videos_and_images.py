"""Images mixed with videos: which step or process reads which, from the numbers alone."""

import dataclasses

import cv2
import numpy as np
import pytest

from keras_vjepa.data import ClipBatches, Sample, VideosAndImages
from keras_vjepa.data.batches.videos_and_images import ImageSettings
from keras_vjepa.data.sources.video_writing import write_motion_jpeg

pytestmark = pytest.mark.data


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("files"), np.random.default_rng(0)
    for i in range(5):
        frames = rng.integers(256, size=(4, 64, 64, 3), dtype=np.uint8)
        write_motion_jpeg(folder / f"{i}.avi", frames, 30)
        cv2.imwrite(str(folder / f"{i}.png"), frames[0])
    return ClipBatches(
        [Sample(str(folder / f"{i}.avi")) for i in range(5)],
        4,
        video_shape=(4, 32, 64, 3),
        grid_shape=(2, 4, 8),
    )


def mixed(videos, **settings):
    images = [Sample(one.path.replace(".avi", ".png")) for one in videos.samples]
    return ImageSettings(**{"num_blocks": 3, **settings}).beside(videos, images[:3])


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


def test_steps_take_turns_by_the_share(videos):
    batches = mixed(videos, share=0.3, batch_size=2)
    kinds = [batches.reads_images(step) for step in range(1000)]
    assert all(abs(sum(kinds[:n]) - 0.3 * n) < 1 for n in range(1001))
    image, own = batches.batch(3), batches.images.batch(0)
    assert kinds[:4] == [False, False, False, True] and image["videos"].shape == (2, 1, 32, 64, 3)
    assert_same(image, own)
    assert_same(batches.batch(4), videos.batch(3))
    assert image.keys() == videos.batch(0).keys()
    for name, indices in image.items():
        assert name == "videos" or indices.max() < 32
    assert batches.paths(3) == batches.images.paths(0) and len(batches.samples) == 8


def test_the_stream_is_the_batches_and_resumes_anywhere(videos):
    batches = mixed(videos)
    for step, batch in enumerate(batches.stream(3, 8), start=3):
        assert_same(batch, batches.batch(step))
    assert step == 7
    # Closing the stream closes both.
    stream = batches.stream()
    next(stream)
    stream.close()


@pytest.mark.parametrize(
    "count,share,images", [(2, 0.5, 1), (4, 0.25, 1), (4, 0.9, 3), (4, 0.1, 1)]
)
def test_processes_apart_read_one_kind_each(videos, count, share, images):
    settings = {"share": share, "batch_size": 3 * images}
    videos = dataclasses.replace(videos, batch_size=2 * (count - images))
    whole = mixed(videos, **settings)
    parts = [
        dataclasses.replace(whole, apart=True, process_index=i, process_count=count)
        for i in range(count)
    ]
    read = [part.reads_images(5) for part in parts]
    assert read == [False] * (count - images) + [True] * images
    for source, kind in ((videos, False), (whole.images, True)):
        own = [
            part.batch(5) for part, is_image in zip(parts, read, strict=True) if is_image is kind
        ]
        joined = {name: np.concatenate([batch[name] for batch in own]) for name in own[0]}
        assert_same(joined, source.batch(5))
    assert_same(next(parts[-1].stream(5)), parts[-1].batch(5))


def test_what_cannot_be_is_refused(videos):
    for settings in ({"share": 0.0}, {"share": 1.0}, {"batch_size": 0}, {"num_blocks": 0}):
        with pytest.raises(ValueError, match=f"`{next(iter(settings))}` must be"):
            ImageSettings(**settings)
    one_set = dataclasses.replace(
        videos,
        masks=dataclasses.replace(
            videos.masks, masks=videos.masks.masks[:1], context_budgets=None, target_budgets=None
        ),
    )
    with pytest.raises(ValueError, match="`images` must have as many sets of masks as `videos`, 2"):
        VideosAndImages(videos, one_set)
