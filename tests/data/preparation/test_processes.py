"""Work in other processes: results, errors, crashes and ends."""

import sys
import threading
import time
import types

import pytest

from keras_vjepa.data.preparation.processes import each_in_processes
from keras_vjepa.data.processes.serving import ProcessFailure

pytestmark = pytest.mark.data


def test_results_come_with_their_items():
    items = [[3, 1], None, [2, 1, 0]]
    found = list(each_in_processes(sorted, items, 2, 60.0))
    assert sorted(found, key=lambda pair: items.index(pair[0])) == [
        ([3, 1], [1, 3]),
        (None, ProcessFailure("TypeError: 'NoneType' object is not iterable", False)),
        ([2, 1, 0], [0, 1, 2]),
    ]


def test_a_crash_ends_nothing_but_its_item():
    crashing = "__import__('os').abort()"
    found = dict(each_in_processes(eval, ["1 + 1", crashing, "2"], 1, 60.0))
    assert found["1 + 1"] == found["2"] == 2
    assert found[crashing] == ProcessFailure("the decoder crashed (SIGABRT)", True)


def test_what_takes_too_long_is_ended():
    start = time.monotonic()
    found = list(each_in_processes(time.sleep, [30, 0], 1, 1.0))
    assert found == [(30, ProcessFailure("it takes longer than 1 seconds", True)), (0, None)]
    assert time.monotonic() - start < 15


def test_a_process_that_cannot_start_is_an_error(monkeypatch):
    module = types.ModuleType("only_here")
    exec("def function(item): return item", module.__dict__)
    monkeypatch.setitem(sys.modules, "only_here", module)
    with pytest.raises(RuntimeError, match="cannot be started: .*code 1: .*'only_here'"):
        list(each_in_processes(module.function, [1], 1, 60.0))


def test_an_error_of_the_items_is_raised_and_all_threads_end():
    def items():
        yield [1]
        raise OSError("the disk is gone")

    before = threading.active_count()
    with pytest.raises(OSError, match="the disk is gone"):
        list(each_in_processes(sorted, items(), 1, 60.0))
    for _ in each_in_processes(sorted, [[1]] * 50, 2, 60.0):
        break
    assert threading.active_count() == before
