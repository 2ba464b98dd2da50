"""Look into the batches of torch's loaders and of tf.data before a model gets them (App. D.1).

Keras accepts both on every engine. The arrays that are looked at are those that these sources make
on the host anyway, so nothing is read twice, and no order changes.
"""

import copy
import sys
from collections.abc import Callable, Iterator
from typing import Any

import keras

from keras_vjepa.backend.host_values import host_array

Look = Callable[[Any], Any]


def looked_into(source: Any, look: Look) -> Any:
    """Return a source of the same batches, each of which is shown to a function first.

    Args:
        source: a `torch.utils.data.DataLoader` or a `tf.data.Dataset`.
        look: called with each batch, whose tensors are arrays if they lie on the host. An error
            that it raises ends the loop over the batches; the engine may wrap the error.

    Returns:
        A source of the same kind; a source of any other kind as it is.

    Example:

    >>> from keras_vjepa.backend.batch_sources import looked_into
    >>> looked_into([1, 2], print)
    [1, 2]
    """
    # A source of torch or TensorFlow can only exist if that package has been imported.
    torch, tensorflow = sys.modules.get("torch"), sys.modules.get("tensorflow")
    data = getattr(getattr(torch, "utils", None), "data", None)
    if data is not None and isinstance(source, data.DataLoader):
        return _loader(source, look)
    data = getattr(tensorflow, "data", None)
    if data is not None and isinstance(source, data.Dataset):
        return _dataset(source, look)
    return source


def _loader(loader: Any, look: Look) -> Any:
    def __iter__(self: Any) -> Iterator[Any]:
        for batch in loader:
            look(keras.tree.map_structure(host_array, batch))
            yield batch

    same = copy.copy(loader)
    same.__class__ = type(type(loader).__name__, (type(loader),), {"__iter__": __iter__})
    return same


def _dataset(dataset: Any, look: Look) -> Any:
    import tensorflow as tf

    structure = dataset.element_spec
    if not all(isinstance(spec, tf.TensorSpec) for spec in tf.nest.flatten(structure)):
        return dataset

    def looked_at(*tensors: Any) -> Any:
        look(tf.nest.pack_sequence_as(structure, [host_array(tensor) for tensor in tensors]))
        return True

    @tf.autograph.experimental.do_not_convert
    def passed(*elements: Any) -> Any:
        batch = elements if isinstance(structure, tuple) else elements[0]
        done = tf.py_function(looked_at, tf.nest.flatten(batch), tf.bool)
        with tf.control_dependencies([done]):
            return tf.nest.map_structure(tf.identity, batch)

    return dataset.map(passed)
