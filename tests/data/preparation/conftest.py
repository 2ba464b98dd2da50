"""Work on many files without processes of its own."""

from collections import Counter

import pytest

from keras_vjepa.data.preparation import journal


class Alone:
    """In place of the processes: the same in this one, which counts what it reads."""

    def __init__(self):
        self.read = Counter()

    def __call__(self, function, items, num_processes, max_seconds):
        for item in items:
            self.read[item] += 1
            yield item, function(item)


@pytest.fixture
def alone(monkeypatch):
    found = Alone()
    monkeypatch.setattr(journal, "each_in_processes", found)
    return found
