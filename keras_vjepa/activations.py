"""The exact GELU of every MLP (§3.3, App. B), in the form that each backend is best at."""

import math

import keras
from keras import ops

from keras_vjepa.attention import Tensor


def gelu(inputs: Tensor) -> Tensor:
    """x times the normal distribution's cumulative at x, not its tanh approximation.

    Args:
        inputs: any shape.

    Returns:
        The same shape.

    Example:

    >>> import numpy as np
    >>> from keras_vjepa.activations import gelu
    >>> round(float(gelu(np.ones(1, "float32"))[0]), 4)
    0.8413
    """
    if keras.config.backend() != "tensorflow":
        return ops.gelu(inputs, approximate=False)
    # That backend's own is made of erfc, which exported formats do not have.
    return 0.5 * inputs * (1.0 + ops.erf(inputs * math.sqrt(0.5)))
