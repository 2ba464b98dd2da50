"""Memory is used again, and never while somebody has what lies in it."""

import gc
import threading

import numpy as np
import pytest

from keras_vjepa.data.reading import frame_memory
from keras_vjepa.data.reading.frame_memory import give_back_unused, reused_array, stacked

pytestmark = pytest.mark.data

SHAPE = (2, 512, 512)


def address(array):
    return array.__array_interface__["data"][0]


@pytest.fixture(autouse=True)
def alone():
    gc.collect()
    give_back_unused()


def test_what_nobody_has_is_used_again():
    first = reused_array(SHAPE, np.float32)
    place = address(first)
    del first
    assert address(reused_array(SHAPE, np.float32)) == place
    assert reused_array((4, 512, 512), np.float32).shape == (4, 512, 512)


@pytest.mark.parametrize(
    "keep",
    [
        lambda array: array,
        lambda array: array[1:, ::2],
        memoryview,
        lambda array: array.reshape(-1).view(np.uint8),
        lambda array: pytest.importorskip("torch").from_numpy(array),
    ],
    ids=["array", "part", "memoryview", "bytes", "tensor"],
)
def test_what_somebody_has_is_left_alone(keep):
    array = reused_array(SHAPE, np.float32)
    array[:] = 7
    kept = keep(array)
    expected = np.array(kept)
    del array
    reused_array(SHAPE, np.float32)[:] = 0
    np.testing.assert_array_equal(np.array(kept), expected)


def test_threads_never_share():
    wrong = []

    def work(number):
        for _ in range(200):
            array = reused_array(SHAPE, np.uint8)
            array[:] = number
            if (array != number).any():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and len(frame_memory._buffers) <= 4


def test_arrays_are_joined_as_numpy_does():
    rng = np.random.default_rng(0)
    arrays = [rng.random(SHAPE, dtype=np.float32) for _ in range(3)]
    np.testing.assert_array_equal(stacked(arrays), np.stack(arrays))
    mixed = [arrays[0], arrays[1].astype(np.float64)]
    assert stacked(mixed).dtype == np.float64
    with pytest.raises(ValueError, match="same shape"):
        stacked([arrays[0], arrays[1][:1]])


def test_there_is_a_most(monkeypatch):
    monkeypatch.setattr(frame_memory, "_MOST_REUSED", 5 * 2**20)
    held = [reused_array((2**21,), np.uint8) for _ in range(4)]
    assert len(frame_memory._buffers) == 2 and len({address(one) for one in held}) == 4
    del held
    reused_array((2**22,), np.uint8)  # an array of another size replaces unused ones
    assert [one.nbytes for one in frame_memory._buffers] == [2**22]
    give_back_unused()
    assert not frame_memory._buffers
