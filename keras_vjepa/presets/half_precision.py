"""Store the weights of a preset in half the size (App. C).

Only the files change: the model that is made of them has the precision that its config, or the
`dtype` of `from_preset`, says.
"""

from pathlib import Path

import h5py
import numpy as np

from keras_vjepa import files


def halve(path: Path) -> None:
    """Write a file of weights again with its float32 numbers rounded to float16.

    Args:
        path: an .h5 file of Keras.

    Raises:
        ValueError: if a number is too large for float16; then the file stays as it is.
    """
    with (
        files.unfinished_file(path) as unfinished,
        h5py.File(path) as whole,
        h5py.File(unfinished, "w") as half,
    ):
        _copy(whole, half)


def _copy(source: h5py.Group, target: h5py.Group) -> None:
    target.attrs.update(source.attrs)
    for name, item in source.items():
        if isinstance(item, h5py.Group):
            _copy(item, target.create_group(name))
            continue
        values = item[()]
        if getattr(values, "dtype", None) == np.float32:
            values = _rounded(values, item.name)
        target.create_dataset(name, data=values).attrs.update(item.attrs)


def _rounded(values: np.ndarray, name: str) -> np.ndarray:
    most = np.finfo(np.float16).max
    largest = np.abs(values).max(initial=0)
    if most < largest < np.inf:
        raise ValueError(
            f"`half_precision` must be False for weights beyond {most:,.0f}. "
            f"Received: {largest:,.0f} in {name}"
        )
    return values.astype(np.float16)
