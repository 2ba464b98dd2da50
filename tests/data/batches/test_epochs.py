"""Weights of sources: each sample comes as often as they say, and a run goes on exactly."""

from collections import Counter

import numpy as np
import pytest

from keras_vjepa.data import ClipBatches, Sample
from keras_vjepa.data.batches.epochs import EpochOrder, check_label_weights
from keras_vjepa.data.random_streams import random_stream
from keras_vjepa.data.reading.errors import UnreadableVideoError

pytestmark = pytest.mark.data

LABELS = [0] * 5 + [1] * 4 + [2] * 3


def test_without_weights_it_is_a_permutation_as_ever():
    order = EpochOrder([None, 3, 1])
    expected = random_stream(1, 2).permutation(3)
    assert order.length == 3
    np.testing.assert_array_equal(order.draw(random_stream(1, 2)), expected)


def test_each_sample_comes_as_often_as_its_weight_says():
    order = EpochOrder(LABELS, (1, 2.5, 0))
    total = Counter()
    for epoch in range(200):
        drawn = order.draw(np.random.default_rng(epoch)).tolist()
        counts = Counter(drawn)
        assert len(drawn) == order.length == 5 + 10
        assert [counts[i] for i in range(5)] == [1] * 5 and not {9, 10, 11} & counts.keys()
        assert sorted(counts[i] for i in range(5, 9)) == [2, 2, 3, 3]
        total += counts
    # Which samples come once more is drawn anew in each epoch.
    assert all(450 < total[i] < 550 for i in range(5, 9))


@pytest.mark.parametrize(
    ("labels", "weights", "message"),
    [
        ([0, 1], (1.0,), "a weight for the label of every sample.* of label 1"),
        ([0, None], (1.0,), "a weight for the label of every sample.* of label None"),
        ([0], (-1.0,), "`label_weights` must be in .0, 1000.. Received: -1.0"),
        ([0], (float("nan"),), "`label_weights` must be in"),
        ([0], (0.0, 0.0), "must not all be 0"),
        ([0], (0.0, 1.0), "must leave a sample"),
    ],
)
def test_wrong_weights(labels, weights, message):
    with pytest.raises(ValueError, match=message):
        EpochOrder(labels, weights)


def test_a_config_is_checked_before_there_are_samples():
    check_label_weights(None)
    check_label_weights((0.0, 2.0))
    with pytest.raises(ValueError, match="Received: 1001"):
        check_label_weights((1001,))


class Named(ClipBatches):
    """Batches that read nothing; some files are bad."""

    def _content(self, sample, rng):
        if sample.path.startswith("bad"):
            raise UnreadableVideoError(sample.path, "bad")
        return sample.path

    def _assembled(self, step, items):
        return [path for _, path in items]


def batches(names="abcdefghijkl", **settings):
    samples = [Sample(name, label) for name, label in zip(names, LABELS, strict=True)]
    settings = {"label_weights": (1.0, 2.5, 0.0), **settings}
    shapes = {"video_shape": (2, 32, 32, 3), "grid_shape": (1, 4, 4)}
    return Named(samples, 4, **settings, **shapes)


def test_a_run_goes_on_as_if_it_had_never_stopped():
    whole = [batches().batch(step) for step in range(30)]
    assert [batches().batch(step) for step in range(13, 30)] == whole[13:]
    stream = batches(num_workers=3).stream(7, 30)
    assert list(stream) == whole[7:]
    halves = [batches(process_index=i, process_count=2) for i in range(2)]
    assert [halves[0].batch(step) + halves[1].batch(step) for step in range(30)] == whole
    counts = Counter(path for step in whole for path in step)  # 120 draws are eight epochs of 15
    assert [counts[name] for name in "abcde"] == [8] * 5
    assert sum(counts[name] for name in "fghi") == 80 and not counts["j"]


def test_a_source_of_weight_0_takes_nobodys_place():
    names = ["bad1", "bad2", *"cdefghi", "j", "k", "l"]
    found = batches(names, max_bad_share=0.5)
    taken = {path for step in range(40) for path in found.batch(step)}
    assert taken == set("cdefghi") and set(found.bad_files) == {"bad1", "bad2"}
    assert found.paths(3) == found.batch(3)
