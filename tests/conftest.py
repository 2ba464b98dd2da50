"""Fixtures shared by the tests."""

import gc
import os
from typing import Any

import keras
import pytest

from tests import QUICK
from tests.support import GOLDEN


def pytest_configure() -> None:
    """Leave out what TensorFlow does to each graph before it runs: a fifth of the suite there."""
    if keras.config.backend() == "tensorflow" and os.environ["XLA_FLAGS"] == QUICK:
        import tensorflow as tf

        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})


@pytest.fixture(autouse=True, scope="module")
def _only_new_garbage() -> None:
    """Look for garbage among what a module makes, not among the million objects before it.

    TensorFlow keeps much of what it traced. Each collection, and Keras asks for some, would read
    all of it: seconds, and a minute where a machine has put away what was not read for long.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture
def tiny_pretrainer() -> Any:
    """The pretrainer of tests/golden/tiny.pth.tar, fresh for each test."""
    from keras_vjepa.conversion import convert

    return convert(GOLDEN / "tiny.pth.tar", num_heads=4)


@pytest.fixture(scope="session")
def digit_videos(tmp_path_factory: Any) -> Any:
    """Training and test samples of a built-in set with few, short and small videos."""
    from keras_vjepa.data.sources.digit_motion import prepare_digit_motion
    from keras_vjepa.data.sources.digit_motion_rendering import DigitMotionConfig
    from keras_vjepa.data.sources.listing import list_samples

    # The video has 16 frames, so that there is only one place for a clip of 4 frames with stride 4.
    config = DigitMotionConfig(
        canvas_size=32, digit_size=12, num_frames=16, num_training_videos=60, num_test_videos=20
    )
    files = prepare_digit_motion(tmp_path_factory.mktemp("cache"), config, None)
    return list_samples(files.train), list_samples(files.test)


@pytest.fixture(scope="module")
def small_encoder() -> Any:
    """A backbone for those videos, with the same weights in every module of tests."""
    import keras

    from keras_vjepa import VJEPABackbone

    keras.utils.set_random_seed(1)
    return VJEPABackbone(32, 4, patch_size=8, hidden_dim=24, num_layers=1, num_heads=2)
