"""The preprocessor within `dataset.map`."""

import cv2
import keras
import numpy as np
import pytest

from keras_vjepa import VJEPAVideoPreprocessor

# The code is the same on each engine, and importing TensorFlow beside another one takes seconds.
pytestmark = pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="tf.data")


@pytest.fixture
def paths(tmp_path):
    found = [str(tmp_path / f"ä{i}.png") for i in range(3)]
    for i, path in enumerate(found):
        cv2.imwrite(path, np.full((40, 50, 3), 80 * i, np.uint8))
    return found


def dataset(values):
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices(values)


def test_paths_one_by_one_and_in_batches(paths):
    preprocessor = VJEPAVideoPreprocessor(image_size=(16, 24), num_frames=4)
    expected = preprocessor(paths)
    one_by_one = dataset(paths).map(preprocessor)
    in_batches = dataset(paths).batch(2).map(preprocessor, num_parallel_calls=2)
    assert one_by_one.element_spec.shape == (1, 4, 16, 24, 3)
    assert in_batches.element_spec.shape == (None, 4, 16, 24, 3)
    for found in (one_by_one, in_batches):
        np.testing.assert_array_equal(np.concatenate([*found]), expected)


def test_frames_in_memory_with_clips_and_views():
    videos = np.random.default_rng(0).integers(256, size=(2, 9, 40, 50, 3), dtype="uint8")
    preprocessor = VJEPAVideoPreprocessor(16, num_frames=4, frame_step=1, num_clips=2, num_views=3)
    found = dataset(videos).map(preprocessor)
    assert found.element_spec.shape == (1, 2, 3, 4, 16, 16, 3)
    np.testing.assert_array_equal(np.concatenate([*found]), preprocessor(videos))
    images = dataset(videos[0]).map(VJEPAVideoPreprocessor(16, num_frames=1))
    assert images.element_spec.shape == next(iter(images)).shape == (1, 1, 16, 16, 3)


def test_tensors_of_unknown_rank(paths):
    import tensorflow as tf

    found = tf.data.Dataset.from_generator(lambda: iter(paths), tf.string)
    found = found.map(VJEPAVideoPreprocessor(16, num_frames=4, image_frames=2))
    assert found.element_spec.shape.as_list() == [None, None, 16, 16, 3]
    assert next(iter(found)).shape == (1, 2, 16, 16, 3)


def test_a_file_that_cannot_be_read_is_named():
    with pytest.raises(Exception, match="Cannot read the video nowhere.mp4: no such file"):
        next(iter(dataset(["nowhere.mp4"]).map(VJEPAVideoPreprocessor(16, num_frames=4))))
