"""Keep the processor's memory from one operation to the next, on torch and JAX (App. B).

Both take the memory of results from the C library, torch for each operation and JAX for each
program, and give it back when it is no longer needed. glibc returns large blocks to the system,
which fills each new one with zeros, page by page. On one core of an AMD EPYC, the sum of two
tensors of 64 MB then takes 29 ms on torch and 35 on JAX, in memory that was kept 3.6 and 4.6; a
training step of ViT-Ti on torch 26.4 s of the processor and 22.5 (8 clips), on JAX 7.8 s and 6.4 (2
clips). TensorFlow keeps memory by itself.
"""

import ctypes
import importlib.util
import os
import platform
from collections.abc import Mapping

# Numbers of glibc's malloc.h.
_TRIM_THRESHOLD = -1
_MMAP_MAX = -4
_ARENA_MAX = -8
# Packages by which JAX runs on something other than the processor.
_PLUGINS = "jax_plugins", "libtpu"


def keep_memory(of_threads: bool = False, environment: Mapping[str, str] = os.environ) -> bool:
    """Let this process keep memory that was freed until it ends, for what it computes next.

    Nothing changes with other C libraries than glibc, and where the user has set how glibc is to do
    it by a variable of the environment, such as `MALLOC_TRIM_THRESHOLD_=134217728`.

    Args:
        of_threads: whether all threads are to share one heap. The others would still return large
            blocks. It concerns threads that have not taken any memory yet.
        environment: variables of the process.

    Returns:
        Whether memory is kept by this.

    Example:

    >>> from keras_vjepa.backend.host_memory import keep_memory
    >>> keep_memory(environment={"MALLOC_MMAP_MAX_": "0"})
    False
    """
    if _is_set_in(environment) or platform.libc_ver()[0] != "glibc":
        return False
    # All blocks come from the heap, whose end stays where it is.
    wanted = {_MMAP_MAX: 0, _TRIM_THRESHOLD: -1, **({_ARENA_MAX: 1} if of_threads else {})}
    set_option = ctypes.CDLL(None).mallopt
    return all([set_option(option, value) for option, value in wanted.items()])


def jax_runs_on_processor(environment: Mapping[str, str] = os.environ) -> bool:
    """Tell whether JAX can run on nothing but the processor, before it is imported.

    Args:
        environment: variables of the process.

    Example:

    >>> from keras_vjepa.backend.host_memory import jax_runs_on_processor
    >>> jax_runs_on_processor({"JAX_PLATFORMS": "cpu"})
    True
    """
    named = environment.get("JAX_PLATFORMS") or environment.get("JAX_PLATFORM_NAME")
    return named == "cpu" or not (named or any(map(importlib.util.find_spec, _PLUGINS)))


def _is_set_in(environment: Mapping[str, str]) -> bool:
    names = any(name.startswith("MALLOC_") for name in environment)
    return names or "glibc.malloc." in environment.get("GLIBC_TUNABLES", "")
