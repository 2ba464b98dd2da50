"""Tensors in a file that are read one at a time (App. D.1)."""

import dataclasses
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class LazyTensor:
    """A tensor in a file, read when asked for."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]
