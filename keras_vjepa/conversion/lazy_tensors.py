"""Read the tensors of a file one at a time (App. D.1)."""

import dataclasses
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class LazyTensor:
    """Describes a tensor in a file, which is read when `read` is called."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]
