"""Collect scalars that a training step computes, for its logs (App. C: norms; §3.1: losses).

A model's outputs are only what its loss needs. Other numbers, such as the loss of each kind of mask
or the norm of a gradient before clipping, are passed to a listener: the step itself, within the
same compiled program. If nothing listens, they are not computed.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from keras_vjepa.types import Tensor

# Kept by thread, since the replicas of a step run in threads of their own.
_listening = threading.local()


@contextmanager
def observed(listens: bool = True) -> Iterator[dict[str, Tensor]]:
    """Collect the scalars that code within a block reports by `observe`.

    Args:
        listens: False for a block whose tensors cannot be used outside of it.

    Yields:
        A dictionary that holds the scalars by name once the block has ended. If a name is reported
        again, the last scalar stays.

    Example:

    >>> from keras_vjepa.backend.observations import observe, observed
    >>> with observed() as found:
    ...     observe("two", lambda: 1 + 1)
    >>> found
    {'two': 2}
    """
    before = getattr(_listening, "found", None)
    found: dict[str, Tensor] = {}
    _listening.found = found if listens else None
    try:
        yield found
    finally:
        _listening.found = before


def observe(name: str, value: Callable[[], Tensor]) -> None:
    """Report a scalar to the innermost `observed` block.

    Args:
        name: the name of the scalar in the logs.
        value: makes the scalar; not called if nothing listens.
    """
    found = getattr(_listening, "found", None)
    if found is not None:
        found[name] = value()
