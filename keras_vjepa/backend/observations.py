"""Scalars that a training step finds on its way, for its logs (App. C: norms; §3.1: losses).

A model's outputs are what its loss needs. What else a step knows, such as the loss of each kind of
mask or the norm of a gradient before it is clipped, is handed to whoever listens: the step itself,
within the same compiled program. Where nobody listens, nothing is computed.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from keras_vjepa.types import Tensor

# Replicas of a step run in threads of their own.
_listening = threading.local()


@contextmanager
def observed(listens: bool = True) -> Iterator[dict[str, Tensor]]:
    """Listen to what a block observes.

    Args:
        listens: False for a block whose tensors would be of no use outside of it.

    Yields:
        The scalars by name, once the block has ended; of one name, the last.

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
    """Tell a scalar to whoever listens.

    Args:
        name: in the logs.
        value: makes the scalar; not called if nobody listens.
    """
    found = getattr(_listening, "found", None)
    if found is not None:
        found[name] = value()
