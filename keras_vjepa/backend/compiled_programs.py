"""Keep what JAX compiles for the next process, so that a command starts sooner (App. C).

JAX compiles a training step in half a minute and more. Its own cache on disk gives the next process
of the same model, on the same kind of machine, the finished program. Only commands use it by
themselves: a program that imports the package decides about JAX's settings itself.
"""

import hashlib
import os
import platform
from collections.abc import MutableMapping
from pathlib import Path

from keras_vjepa import files

FOLDER = "JAX_COMPILATION_CACHE_DIR"
_SWITCH = "JAX_ENABLE_COMPILATION_CACHE"
# Programs that compile quickly are kept too: building a small model compiles fifty of them.
_LIMITS = {
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}


def keep_compiled_programs(environment: MutableMapping[str, str] = os.environ) -> Path | None:
    """Tell JAX, before it is imported, to keep its programs below our cache folder.

    Args:
        environment: variables of the process, which are set here. Those that are set already stay,
            and if one of them names a folder or turns the cache off, nothing is changed.

    Returns:
        The folder; None if nothing was changed, because the user decided or because the folder
        cannot be made. Then programs are compiled again in each process.
    """
    if FOLDER in environment or _SWITCH in environment:
        return None
    try:
        folder = files.cache_folder() / "jax_programs" / machine_name()
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    if not os.access(folder, os.W_OK):
        return None
    environment[FOLDER] = str(folder)
    for name, value in _LIMITS.items():
        environment.setdefault(name, value)
    return folder


def machine_name() -> str:
    """Name the kind of processor of this machine.

    A program for one processor may hold instructions that another does not have, and a home folder
    may be shared by several machines.
    """
    kind = platform.processor()
    listed = Path("/proc/cpuinfo")
    if listed.exists():
        lines = listed.read_text(errors="replace").splitlines()
        kind += next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.machine()}-{hashlib.sha256(kind.encode()).hexdigest()[:12]}"
