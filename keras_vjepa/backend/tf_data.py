"""Call functions of NumPy arrays within a `tf.data` pipeline, on any engine (App. D.1)."""

import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keras_vjepa.types import Tensor

Shape = tuple[int | None, ...]


def is_symbolic(inputs: Any) -> bool:
    """Tell whether an object is a TensorFlow tensor without a value, as within `dataset.map`.

    Example:

    >>> from keras_vjepa.backend.tf_data import is_symbolic
    >>> is_symbolic("clip.mp4")
    False
    """
    tensorflow = sys.modules.get("tensorflow")
    return tensorflow is not None and bool(tensorflow.is_symbolic_tensor(inputs))


def shape_of(inputs: Tensor) -> Shape | None:
    """Return a tensor's shape, with None for unknown axes; None if their number is unknown."""
    return None if inputs.shape.rank is None else tuple(inputs.shape)


def call_later(
    function: Callable[[Any], NDArray[np.float32]], inputs: Tensor, shape: Shape
) -> Tensor:
    """Call a function when the pipeline runs, in its thread.

    Args:
        function: takes a text, a list of texts, or an array, and returns float32.
        inputs: the tensor whose value it is called with.
        shape: the shape of its result, which a pipeline cannot find out by itself.

    Returns:
        A tensor that stands for the function's result.
    """
    import tensorflow as tf

    def call(value: Any) -> NDArray[np.float32]:
        return function(_without_bytes(value))

    outputs = tf.numpy_function(call, [inputs], tf.float32, stateful=False)
    outputs.set_shape(shape)
    return outputs


def _without_bytes(value: Any) -> Any:
    """Turn bytes, which TensorFlow keeps texts as, back into texts."""
    if isinstance(value, bytes):
        return os.fsdecode(value)
    if isinstance(value, np.ndarray) and value.dtype == object:
        return [_without_bytes(part) for part in value]
    return value
