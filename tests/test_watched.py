"""What watches a process that fuzzing may crash tells apart what became of it."""

import pytest

from tests.watched import WatchedProcess, environment_with

pytestmark = pytest.mark.data

SCRIPT = """
import os, time
from tests.watched import answer

def do(request):
    if request == "die":
        os.kill(os.getpid(), 9)
    if request == "sleep":
        time.sleep(60)
    held.append(bytearray(2**27 if request == "grow" else 1))
    print("a line of a library")
    return request + " done"

held = []
answer(do, lambda: len(held))
"""


def test_outcomes():
    process = WatchedProcess(
        ["-c", SCRIPT], environment_with(), hang_seconds=2.0, most_mib=100, further=["held"]
    )
    outcomes = {}
    for request in ("a", "b", "die", "c", "sleep", "d", "grow"):
        result = process.ask(request)
        outcomes[request] = (result["outcome"], result["held"])
    process.close()
    mib = outcomes.pop("grow")[0]
    assert mib.endswith(" MiB") and int(mib[:-4]) >= 128
    assert outcomes == {
        "a": ("a done", 1),
        "b": ("b done", 2),
        "die": ("CRASH -9", 0),
        "c": ("c done", 1),
        "sleep": ("HANG", 0),
        "d": ("d done", 1),
    }
