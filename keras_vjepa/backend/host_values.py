"""Read numbers of a model's inputs without waiting for a device (App. C).

Within a compiled step there are no values yet, and fetching them from an accelerator would hold it
up. So only values that lie on the host when the inputs enter are checked.
"""

from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from keras_vjepa.types import Tensor

# How many videos of a batch are looked at, and at which stride in height and width. For a batch for
# a GPU this takes less than a hundredth of a step.
_MOST_VIDEOS, _STRIDE = 4, 16


def sample_of(pixels: Tensor) -> NDArray[Any] | None:
    """Take a sample of the pixels of a batch, if they have values and those lie on the host.

    Args:
        pixels: `(batch, ..., height, width, channels)`, an array or a tensor of the running engine.

    Returns:
        Some rows and columns of the first videos; None for a tensor that is traced or lies on an
        accelerator.

    Example:

    >>> import numpy as np
    >>> from keras_vjepa.backend.host_values import sample_of
    >>> sample_of(np.zeros((2, 4, 32, 32, 3))).shape
    (2, 4, 2, 2, 3)
    """
    if len(pixels.shape) >= 4 and (isinstance(pixels, np.ndarray) or _is_on_host(pixels)):
        part = np.s_[:_MOST_VIDEOS, ..., ::_STRIDE, ::_STRIDE, :]
        if keras.config.backend() == "torch":
            return keras.ops.convert_to_numpy(pixels[part])
        # The whole tensor becomes an array first, without a copy: while a program is compiled, a
        # part of a tensor has no values even if the tensor has.
        return np.asarray(pixels)[part]
    return None


def host_array(tensor: Any) -> Any:
    """View the values of a tensor of any library as an array, if they lie on the host.

    Args:
        tensor: a tensor of torch, JAX or TensorFlow, an array, or anything else.

    Returns:
        The array, without a copy. Anything that has no such values, or a type that NumPy does not
        know, is returned as it is.

    Example:

    >>> import keras
    >>> from keras_vjepa.backend.host_values import host_array
    >>> host_array(keras.ops.ones((2,))).tolist(), host_array("a.mp4")
    ([1.0, 1.0], 'a.mp4')
    """
    if isinstance(tensor, np.ndarray) or not hasattr(tensor, "__array__"):
        return tensor
    if getattr(tensor, "is_cuda", False) or getattr(tensor, "requires_grad", False):
        return tensor
    try:
        return np.asarray(tensor)
    except Exception:  # Libraries raise errors of their own, for example for a traced tensor.
        return tensor


def extremes_of(numbers: Any) -> tuple[int, int] | None:
    """Find the smallest and the largest of whole numbers, if they lie on the host.

    Args:
        numbers: an array, a list, or a tensor of the running engine.

    Returns:
        The two; None if there are no numbers, or if they are traced or lie on an accelerator.

    Example:

    >>> import numpy as np
    >>> from keras_vjepa.backend.host_values import extremes_of
    >>> extremes_of(np.array([[3, 1], [4, 1]]))
    (1, 4)
    """
    if not isinstance(numbers, np.ndarray | list | tuple) and not _is_on_host(numbers):
        return None
    array = np.asarray(numbers)
    return (int(array.min()), int(array.max())) if array.size else None


def _is_on_host(tensor: Tensor) -> bool:
    if keras.config.backend() == "torch":
        import torch

        # A subclass is not enough: while a program is exported, its values are faked.
        return type(tensor) is torch.Tensor and (
            tensor.device.type == "cpu"
            and not torch.compiler.is_compiling()
            and not torch.jit.is_tracing()
            and has_storage(tensor)
        )
    if keras.config.backend() == "jax":
        import jax

        return isinstance(tensor, jax.Array) and (
            not isinstance(tensor, jax.core.Tracer)
            and all(device.platform == "cpu" for device in tensor.devices())
            and tensor.is_fully_addressable
        )
    return hasattr(tensor, "numpy") and "CPU" in str(getattr(tensor, "device", ""))


def has_storage(tensor: Any) -> bool:
    """Tell whether a tensor of torch has memory of its own; within `torch.func.vmap` none has."""
    try:
        tensor.data_ptr()
    except RuntimeError:
        return False
    return True
