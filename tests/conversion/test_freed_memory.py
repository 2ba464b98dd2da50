"""Memory that was freed goes back to the system."""

import ctypes
import os
from types import SimpleNamespace

import numpy as np
import pytest

from keras_vjepa.conversion.freed_memory import give_back_freed_memory

pytestmark = pytest.mark.data


def resident() -> int:
    """Bytes of memory that this process takes."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="needs glibc")
def test_freed_blocks_between_others_are_given_back():
    kept = [np.ones(100_000, "uint8") for _ in range(600)]
    # The last block stays, so that the C library itself has no end to cut off.
    del kept[::2]
    before = resident()
    give_back_freed_memory()
    assert before - resident() > 20e6, len(kept)


@pytest.mark.parametrize("error", [TypeError, OSError])
def test_where_there_is_no_such_function_nothing_happens(monkeypatch, error):
    def fail(name):
        raise error

    monkeypatch.setattr(ctypes, "CDLL", fail)
    give_back_freed_memory()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    give_back_freed_memory()
