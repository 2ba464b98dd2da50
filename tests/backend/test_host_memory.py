"""Memory that an operation of torch gives back is there for the next one, without page faults."""

import os
import platform
import subprocess
import sys

import keras
import pytest

from keras_vjepa.backend.device import has_accelerator
from keras_vjepa.backend.host_memory import _is_set_in, keep_memory

FAULTS = """
import resource, keras, numpy as np, keras_vjepa, torch
from keras_vjepa.backend.step_functions import StepFunctions

class Twice(StepFunctions, keras.Model):
    def call(self, inputs):
        return 2 * inputs

if {predicts}:
    Twice().predict(np.zeros((2, 3)), verbose=0)
counts = []
for _ in range(3):
    made = torch.ones(2**24)
    del made
    counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(counts[2] - counts[1])
"""


def page_faults(predicts, **environment):
    """Return how many pages the system provides for 64 MB, which were used just before."""
    inherited = {n: v for n, v in os.environ.items() if not n.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", FAULTS.format(predicts=predicts)]
    environment = {**inherited, **environment}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return int(done.stdout)


@pytest.mark.skipif(
    keras.config.backend() != "torch" or has_accelerator() or platform.libc_ver()[0] != "glibc",
    reason="other engines and C libraries keep memory in their own way",
)
def test_memory_is_kept_for_the_next_operation():
    assert page_faults(True) < 100
    assert page_faults(False) > 1000
    # Whoever sets the C library keeps that.
    assert page_faults(True, MALLOC_MMAP_THRESHOLD_="1048576") > 1000


@pytest.mark.skipif(keras.config.backend() == "torch", reason="torch gains")
def test_other_engines_are_left_alone():
    assert not keep_memory()


def test_what_a_user_has_set():
    assert _is_set_in({"MALLOC_MMAP_MAX_": "0"})
    assert _is_set_in({"GLIBC_TUNABLES": "glibc.cpu.x=1:glibc.malloc.mmap_max=0"})
    assert not _is_set_in({"GLIBC_TUNABLES": "glibc.cpu.x=1", "PATH": "MALLOC_"})
