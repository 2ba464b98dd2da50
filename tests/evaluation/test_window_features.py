"""Files are read ahead in threads, and windows of several fill one batch."""

import threading
import time

import numpy as np
import pytest

from keras_vjepa import VJEPABackbone
from keras_vjepa.data.reading.errors import UnreadableVideoError
from keras_vjepa.evaluation.reading_ahead import FilesAhead, Opened
from keras_vjepa.evaluation.window_features import WindowFeatures

COUNTS = {"a": 3, "b": 1, "c": 6, "d": 0, "e": 2}


def windows(name, count, frames=4):
    rng = np.random.default_rng(list(name.encode()))
    return rng.normal(size=(count, frames, 32, 32, 3)).astype("float32")


@pytest.fixture(scope="module")
def backbone():
    return VJEPABackbone(32, 4, hidden_dim=24, num_layers=1, num_heads=2)


class BatchSizes:
    """A backbone that notes how large its batches are."""

    def __init__(self, backbone):
        self.backbone, self.sizes = backbone, []
        self.make_predict_function = backbone.make_predict_function

    def predict_on_batch(self, batch):
        self.sizes.append(len(batch))
        return self.backbone.predict_on_batch(batch)


def features_of(backbone, open_file, batch_size=4, num_workers=2, tokens=False):
    """Rows by file, or the error of a file."""
    found = {}
    with FilesAhead(list(COUNTS), open_file, num_workers, most_ahead=3) as files:
        features = WindowFeatures(backbone, files, batch_size, tokens)
        for file in features.files():
            try:
                count = file.opened().count
                rows = list(features.rows(file))
                assert len(rows) == count
                found[file.path] = np.concatenate(rows) if rows else None
            except UnreadableVideoError as error:
                found[file.path] = error.reason
    assert threading.active_count() == 1 or not any(
        "_work" in thread.name for thread in threading.enumerate()
    )
    return found


@pytest.mark.parametrize("tokens", [False, True])
def test_batches_are_filled_from_several_files(backbone, tokens):
    noting = BatchSizes(backbone)
    found = features_of(
        noting, lambda p: Opened("", COUNTS[p], False, iter(windows(p, COUNTS[p]))), tokens=tokens
    )
    assert list(found) == list(COUNTS) and found["d"] is None
    assert noting.sizes == [4, 4, 4]
    for name, count in COUNTS.items():
        if count:
            expected = np.asarray(backbone.predict_on_batch(windows(name, count)))
            expected = expected if tokens else expected.mean(axis=1)
            np.testing.assert_allclose(found[name], expected, atol=2e-6)


def test_an_image_between_videos_has_batches_of_its_own(backbone):
    noting = BatchSizes(backbone)
    frames = {"b": 2}
    features_of(
        noting,
        lambda p: Opened("", COUNTS[p], False, iter(windows(p, COUNTS[p], frames.get(p, 4)))),
    )
    # The files have three windows, one image, and eight windows.
    assert noting.sizes == [1, 1, 1, 1, 4, 4]


def test_an_error_belongs_to_its_file(backbone):
    def broken(name):
        yield from windows(name, 2)
        raise UnreadableVideoError(name, "a frame is missing")

    def open_file(name):
        if name == "b":
            raise UnreadableVideoError(name, "no video")
        return Opened("", COUNTS[name], False, broken(name) if name == "c" else iter(
            windows(name, COUNTS[name])
        ))  # fmt: skip

    found = features_of(backbone, open_file)
    assert found["b"] == "no video" and found["c"] == "a frame is missing"
    assert found["a"].shape == (3, 24) and found["e"].shape == (2, 24)


def test_only_so_much_is_read_ahead():
    """Of 50 files three are open, and of each two windows wait and one is in the thread's hand."""
    read, paths = [], [str(i) for i in range(50)]

    def endless(path):
        for number in range(1000):
            read.append((path, number))
            yield np.zeros(1, "float32")

    with FilesAhead(paths, lambda p: Opened("", 1000, False, endless(p)), 8, 3) as files:
        first = next(iter(files))
        first.opened()
        time.sleep(0.3)
        assert {path for path, _ in read} == {"0", "1", "2"} and len(read) == 9
        threads = [thread for thread in threading.enumerate() if "_work" in thread.name]
        assert len(threads) == 3
    assert not any(thread.is_alive() for thread in threads)
