"""Give memory that is free again back to the system while weights are replaced (App. B).

glibc keeps freed blocks of up to 32 MiB for the next ones. A model's initial weights, which are
freed one by one while others are read from a file, then take their place in memory until the end.
"""

import ctypes


def give_back_freed_memory() -> None:
    """Give freed memory back to the system, where the C library has a function for it.

    Example:

    >>> from keras_vjepa.conversion.freed_memory import give_back_freed_memory
    >>> give_back_freed_memory()
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return
    trim(0)
