"""Leave out channels of pooled features in training (App. D.2, App. D.3).

Keras' own dropout layer is not used: on torch it draws from a state of its own, and with several
replicas each would draw the same numbers.
"""

from typing import Any

import keras
from keras import ops

from keras_vjepa.backend import collectives
from keras_vjepa.types import Tensor


def drop_channels(features: Tensor, rate: float, seed: keras.random.SeedGenerator) -> Tensor:
    """Set a random share of the channels of each sample to zero, and scale the rest up.

    Args:
        features: features with the samples in front, `(samples, ..., channels)`.
        rate: share of the channels that is left out, at least 0 and less than 1.
        seed: generator of the random numbers, a different one of which each sample uses.

    Example:

    >>> import keras
    >>> from keras import ops
    >>> from keras_vjepa.layers.dropout import drop_channels
    >>> seed = keras.random.SeedGenerator(0)
    >>> float(ops.max(drop_channels(ops.ones((4, 8)), 0.5, seed)))
    2.0
    """
    rows, *others = ops.shape(features)

    def draw(count: Any) -> Tensor:
        return keras.random.uniform((count, *others), dtype="float32", seed=seed)

    # The operator, unlike the operation, does not copy the number to the device on torch.
    kept = collectives.draw_rows(draw, rows) < 1.0 - rate
    return features * ops.cast(kept, features.dtype) / (1.0 - rate)
