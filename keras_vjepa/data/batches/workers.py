"""Choose how many threads read clips, by the cores that this process may use (App. C)."""

import os
from pathlib import Path

# More threads would wait for Python's lock, which reading a clip holds for part of the time.
_MOST = 32
_FEWEST = 2
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def usable_cores() -> int:
    """Count the cores that this process may use; in a container, those that it was given."""
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    try:
        quota, period = _QUOTA.read_text().split()
        cores = min(cores, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError, ZeroDivisionError):
        pass  # no container, or no limit: "max 100000"
    return cores


def default_threads(process_count: int = 1) -> int:
    """Choose how many threads read clips where nobody says it, from 2 to 32.

    Args:
        process_count: processes that share the cores. They are taken to run on one machine; if
            they run on several, there are fewer threads than there could be.
    """
    return min(_MOST, max(_FEWEST, usable_cores() // process_count))
