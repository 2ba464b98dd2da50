"""Memory that an operation gives back is there for the next one, without page faults."""

import importlib.util
import os
import platform
import subprocess
import sys

import keras
import pytest

from keras_vjepa.backend import host_memory
from keras_vjepa.backend.device import has_accelerator
from keras_vjepa.backend.host_memory import _is_set_in, jax_runs_on_processor, keep_memory

FAULTS = """
import resource

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
{}
compute(), compute()
found = []
for _ in range(5):  # JAX may free a result a little later, so that one call takes new pages
    before = faults()
    compute()
    found.append(faults() - before)
print(min(found))
"""
# A function for `predict` is made, then torch adds.
TORCH = """
import keras, numpy as np, keras_vjepa, torch
from keras_vjepa.backend.step_functions import StepFunctions

class Twice(StepFunctions, keras.Model):
    def call(self, inputs):
        return 2 * inputs

Twice().predict(np.zeros((2, 3)), verbose=0)
compute = lambda: torch.ones(2**24)
"""
# A command begins, then JAX computes.
JAX = """
from keras_vjepa.backend import choice
choice.prepare_program()
import jax
program = jax.jit(lambda: jax.numpy.ones(2**24))
compute = lambda: program().block_until_ready()  # else earlier calls would still take pages
"""
PAGES = 2**26 // 4096  # of 64 MB


def page_faults(program, **environment):
    """Return how many pages the system provides for 64 MB, which were used just before."""
    inherited = {n: v for n, v in os.environ.items() if not n.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", FAULTS.format(program)]
    environment = {**inherited, **environment}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return int(done.stdout)


@pytest.mark.skipif(
    has_accelerator() or platform.libc_ver()[0] != "glibc",
    reason="only processors, and only glibc",
)
@pytest.mark.skipif(keras.config.backend() == "tensorflow", reason="keeps memory by itself")
def test_memory_is_kept_for_the_next_operation(tmp_path):
    program = {"torch": TORCH, "jax": JAX}[keras.config.backend()]
    cache = {"KERAS_VJEPA_CACHE": str(tmp_path)}
    assert page_faults(program, **cache) < PAGES / 100
    # Whoever sets the C library keeps that.
    assert page_faults(program, **cache, MALLOC_MMAP_THRESHOLD_="1048576") >= PAGES


def test_what_a_user_has_set():
    assert _is_set_in({"MALLOC_MMAP_MAX_": "0"})
    assert _is_set_in({"GLIBC_TUNABLES": "glibc.cpu.x=1:glibc.malloc.mmap_max=0"})
    assert not _is_set_in({"GLIBC_TUNABLES": "glibc.cpu.x=1", "PATH": "MALLOC_"})


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.delattr(host_memory.ctypes, "CDLL")
    assert not keep_memory(environment={})


@pytest.mark.parametrize("plugin", ["jax_plugins", "libtpu", None])
def test_whether_jax_runs_on_a_processor(monkeypatch, plugin):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == plugin)
    assert jax_runs_on_processor({}) == (plugin is None)
    assert jax_runs_on_processor({"JAX_PLATFORMS": "cpu"})
    assert not jax_runs_on_processor({"JAX_PLATFORMS": "cuda,cpu"})
