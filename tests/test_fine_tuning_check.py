"""What a fine-tuning leaves to its videos: batch, epochs, warm-up, and the batch of a test."""

from types import SimpleNamespace

import pytest

from keras_vjepa.backend.distribution import DataParallel
from keras_vjepa.configuration import replace, values
from keras_vjepa.data.sources.samples import Sample
from keras_vjepa.evaluation.labelled_videos import LabelledVideos
from keras_vjepa.fine_tuning import make_test_batches
from keras_vjepa.fine_tuning_check import settled
from keras_vjepa.recipes.finetune_configs import k400_large, own

pytestmark = pytest.mark.data

ALONE, EIGHT = (DataParallel(0, 1, count, "an engine") for count in (1, 8))


@pytest.mark.parametrize(
    ("num_videos", "parallel", "expected"),
    [
        # Batch size, epochs, and warm-up epochs.
        (3, ALONE, (3, 100, 10)),
        (40, ALONE, (8, 100, 10)),
        (200, ALONE, (8, 30, 3)),
        (240_000, ALONE, (8, 10, 1)),
        (40, EIGHT, (8, 100, 10)),
    ],
)
def test_what_suits_the_number_of_videos(num_videos, parallel, expected):
    found = values(settled(own(), num_videos, parallel))
    assert tuple(found[n] for n in ("batch_size", "epochs", "warmup_epochs")) == expected
    assert found["schedule_epochs"] == found["epochs"]


def test_what_is_given_counts():
    given = replace(own(), batch_size=6, epochs=5, warmup_epochs=2, schedule_epochs=9)
    assert settled(given, 40, ALONE) == given
    # Clips that are mixed need a partner on the same device.
    assert values(settled(replace(own(), mixup=0.8), 5, ALONE))["batch_size"] == 4
    with pytest.raises(ValueError, match="`batch_size` must be at most the 5 training videos"):
        settled(given, 5, ALONE)
    with pytest.raises(ValueError, match="`batch_size` must be a multiple of 8"):
        settled(given, 40, EIGHT)


@pytest.mark.parametrize(
    ("clips", "views", "parallel", "expected"),
    [(1, 1, ALONE, 256), (5, 3, ALONE, 34), (5, 3, EIGHT, 32), (2, 3, ALONE, 85)],
)
def test_a_test_holds_no_more_clips_than_training(clips, views, parallel, expected):
    backbone = SimpleNamespace(image_size=224, num_frames=16)
    classifier = SimpleNamespace(backbone=backbone, num_clips=clips, num_views=views)
    videos = LabelledVideos([Sample("a.mp4", 0)], [Sample("b.mp4", 1)], 2)
    batches = make_test_batches(k400_large(), classifier, videos, parallel)
    assert batches.batch_size == expected
