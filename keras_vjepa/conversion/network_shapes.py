"""Read sizes of a network from the names and shapes of its tensors (App. C)."""

import math
from collections.abc import Iterable

from keras_vjepa.conversion.errors import CheckpointError
from keras_vjepa.conversion.lazy_tensors import LazyTensor

Tensors = dict[str, LazyTensor]


def count(keys: Iterable[str], prefix: str) -> int:
    """Count the different names that follow a prefix and a dot, such as numbers of blocks."""
    return len({key.split(".")[1] for key in keys if key.startswith(prefix + ".")})


def required(network: str, tensors: Tensors, key: str, rank: int) -> tuple[int, ...]:
    """Return the shape of a tensor that must be there.

    Args:
        network: name of the network, for messages.
        tensors: its tensors.
        key: name of the tensor.
        rank: how many axes it must have; the kernel of patches may also have four.

    Raises:
        CheckpointError: if it is missing, has other axes, or holds no numbers.
    """
    if key not in tensors:
        raise CheckpointError(f"`{network}` misses keys: {key}")
    shape = tensors[key].shape
    if len(shape) != rank and not (key == "patch_embed.proj.weight" and len(shape) == 4):
        raise CheckpointError(f"`{network}.{key}` must have {rank} axes. Received shape: {shape}")
    if 0 in shape:
        raise CheckpointError(f"`{network}.{key}` must have numbers in it. Received shape: {shape}")
    return shape


def mlp_ratio(mlp_dim: int, hidden_dim: int) -> float:
    """Compute a ratio for which `int(hidden_dim * ratio)` is exactly `mlp_dim`."""
    ratio = mlp_dim / hidden_dim
    return ratio if int(hidden_dim * ratio) == mlp_dim else math.nextafter(ratio, math.inf)
