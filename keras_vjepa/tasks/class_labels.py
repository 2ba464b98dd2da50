"""Check the labels of a classification before a step is made with them (App. D.1).

The engines differ in how they treat a class that does not exist: one raises an error that names no
label, one returns a loss of NaN, one ignores the sample. With the checks here, a user reads the
same one-line error with each engine.
"""

from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

_OF_NUMBERS = {"sparsecategoricalcrossentropy"}
_OF_SHARES = {"categoricalcrossentropy", "categoricalfocalcrossentropy", "kldivergence"}


def check_class_labels(y: Any, num_classes: int, loss: Any, num_videos: int | None = None) -> None:
    """Check all labels of a set of videos: their number, shape, type and range.

    Args:
        y: class numbers, `(videos,)` or `(videos, 1)`, or shares of the classes, `(videos,
            num_classes)`; anything that is no array is left to Keras.
        num_classes: number of classes.
        loss: as it was given to `compile`. If it is not one of Keras' losses for classes, only the
            number of labels is checked and that none is NaN.
        num_videos: how many labels there must be, if that is known.

    Raises:
        ValueError: for the first label that cannot be right.

    Example:

    >>> import numpy as np
    >>> from keras_vjepa.tasks.class_labels import check_class_labels
    >>> check_class_labels(np.array([1, 3]), 3, "sparse_categorical_crossentropy")
    Traceback (most recent call last):
    ValueError: `y` must hold class numbers in [0, `num_classes`=3). Received: 3 at position 1
    """
    if not hasattr(y, "shape") or not hasattr(y, "dtype") or len(y.shape) == 0:
        return
    labels = y if isinstance(y, np.ndarray) else keras.ops.convert_to_numpy(y)
    if num_videos is not None and len(labels) != num_videos:
        raise ValueError(
            f"`y` must hold a label for each of {num_videos} videos. Received: {len(labels)}"
        )
    if labels.dtype.kind == "f":
        _refuse(np.isnan(labels), labels, "hold numbers")
    kind = _name_of(loss)
    if kind in _OF_NUMBERS:
        _check_numbers(labels, num_classes, getattr(loss, "ignore_class", None))
    elif kind in _OF_SHARES and labels.shape[1:] != (num_classes,):
        raise ValueError(
            f"`y` must be (videos, `num_classes`={num_classes}) for the loss of {kind}. "
            f"Received shape: {labels.shape}"
        )


def _name_of(loss: Any) -> str:
    """Return the name of a loss, which Keras takes as a string, a function or an object."""
    name = loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)
    return name.lower().replace("_", "")


def _check_numbers(labels: NDArray[Any], num_classes: int, ignored: int | None) -> None:
    if labels.ndim > 2 or labels.ndim == 2 and labels.shape[1] != 1:
        raise ValueError(
            "`y` must be class numbers (videos,) for a sparse loss; one-hot labels need "
            f"`keras.losses.CategoricalCrossentropy`. Received shape: {labels.shape}"
        )
    if labels.dtype.kind not in "iuf":
        kind = "names" if labels.dtype.kind in "USO" else labels.dtype
        raise ValueError(
            f"`y` must be class numbers, integers from 0 to {num_classes - 1}, which stand for "
            f"`class_names` in their order. Received: {kind}"
        )
    wrong = (labels < 0) | (labels >= num_classes) | (labels != np.floor(labels))
    if ignored is not None:
        wrong &= labels != ignored
    _refuse(wrong, labels, f"hold class numbers in [0, `num_classes`={num_classes})")


def _refuse(wrong: NDArray[np.bool_], labels: NDArray[Any], rule: str) -> None:
    if wrong.any():
        value, position = labels[wrong][0], int(np.argwhere(wrong)[0][0])
        raise ValueError(f"`y` must {rule}. Received: {value} at position {position}")
