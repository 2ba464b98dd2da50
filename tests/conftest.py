"""Fixtures shared by the tests."""

import os
from typing import Any

import pytest

from tests.support import GOLDEN

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


@pytest.fixture
def tiny_pretrainer() -> Any:
    """The pretrainer of tests/golden/tiny.pth.tar, fresh for each test."""
    from keras_vjepa.conversion import convert

    return convert(GOLDEN / "tiny.pth.tar", num_heads=4)
