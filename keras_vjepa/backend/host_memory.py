"""Keep the processor's memory from one operation of torch to the next (App. B).

torch takes the memory of each operation's result from the C library, and gives it back when it is
no longer needed. glibc returns blocks of more than 32 MB to the system, which fills each new one
with zeros, page by page. On one core of an AMD EPYC, the sum of two tensors of 64 MB then takes 29
ms, and 3.6 in memory that was kept; a training step of ViT-Ti with 8 clips 26.4 s of the processor,
and 22.5, with 4 % more memory.
"""

import ctypes
import functools
import os
import platform
from collections.abc import Mapping

import keras

from keras_vjepa.backend.device import has_accelerator

# Numbers of glibc's malloc.h.
_TRIM_THRESHOLD = -1
_MMAP_MAX = -4


@functools.cache
def keep_memory() -> bool:
    """Let this process keep memory that was freed, for what it computes next.

    It is kept until the process ends. Nothing changes where models run on an accelerator, on other
    engines, which gain nothing, with other C libraries, and where the user has set how glibc is to
    do it, by a variable of the environment: `MALLOC_TRIM_THRESHOLD_=134217728`, for example.

    Returns:
        Whether memory is kept by this.
    """
    if keras.config.backend() != "torch" or has_accelerator() or _is_set_in(os.environ):
        return False
    if platform.libc_ver()[0] != "glibc":
        return False
    set_option = ctypes.CDLL(None).mallopt
    # All blocks come from the heap, whose end stays where it is.
    return bool(set_option(_MMAP_MAX, 0) and set_option(_TRIM_THRESHOLD, -1))


def _is_set_in(environment: Mapping[str, str]) -> bool:
    names = any(name.startswith("MALLOC_") for name in environment)
    return names or "glibc.malloc." in environment.get("GLIBC_TUNABLES", "")
