"""Assign foreign tensors to variables, with their values rearranged (App. B, App. D.1)."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from keras_vjepa.conversion.errors import CheckpointError, listed
from keras_vjepa.conversion.freed_memory import give_back_freed_memory
from keras_vjepa.conversion.lazy_tensors import LazyTensor

# Bytes from which it is worth while to give back what a variable held before, 2 ms.
_LARGE = 2**20


@dataclasses.dataclass(frozen=True)
class Rearrangement:
    """Changes axes from the foreign layout to ours; `inverse` does the opposite."""

    forward: Callable[[np.ndarray], np.ndarray]
    inverse: Callable[[np.ndarray], np.ndarray]

    def __call__(self, array: np.ndarray) -> np.ndarray:
        return self.forward(array)


SAME = Rearrangement(lambda x: x, lambda x: x)
TRANSPOSED = Rearrangement(np.transpose, np.transpose)
WITHOUT_BATCH = Rearrangement(lambda x: x[0], lambda x: x[None])
# Both kernels are transposed from [out, channel, (time,) row, column] to (time, row, column,
# channel, out).
TUBELET_KERNEL = Rearrangement(
    lambda x: x.transpose(2, 3, 4, 1, 0), lambda x: x.transpose(4, 3, 0, 1, 2)
)
PATCH_KERNEL = Rearrangement(
    lambda x: x.transpose(2, 3, 1, 0)[None], lambda x: x[0].transpose(3, 2, 0, 1)
)


class Entry(NamedTuple):
    """Names a variable and the foreign tensors that make it, side by side along its last axis."""

    names: tuple[str, ...]
    variable: Any
    rearrange: Rearrangement


def linear_entries(names: Iterable[str], layer: Any) -> Iterator[Entry]:
    """Yield the entries of a dense layer that one or several foreign linear layers make."""
    names = tuple(names)
    if layer.quantization_mode is not None:
        raise CheckpointError(
            "The model must not be quantized, because that layout holds floats alone: convert it "
            f"before `quantize`. Received: {layer.path} in {layer.quantization_mode}"
        )
    yield Entry(tuple(f"{name}.weight" for name in names), layer.kernel, TRANSPOSED)
    yield Entry(tuple(f"{name}.bias" for name in names), layer.bias, SAME)


def norm_entries(name: str, layer: Any) -> Iterator[Entry]:
    """Yield the entries of a layer norm."""
    yield Entry((f"{name}.weight",), layer.gamma, SAME)
    yield Entry((f"{name}.bias",), layer.beta, SAME)


def load_entries(network: str, tensors: dict[str, LazyTensor], entries: Iterable[Entry]) -> None:
    """Assign every tensor to its variable, after checking that all fit.

    Raises:
        CheckpointError: if keys are missing, unknown, or of a wrong shape, or a tensor holds a
            number that is not finite; it names them.
    """
    entries = list(entries)
    expected = {name for entry in entries for name in entry.names}
    for problem, keys in (
        ("misses", sorted(expected - set(tensors))),
        ("has unknown", sorted(set(tensors) - expected)),
    ):
        if keys:
            raise CheckpointError(f"`{network}` {problem} keys: {listed(keys)}")
    for entry in entries:
        _check_shapes(network, tensors, entry)
    for names, variable, rearrange in entries:
        parts = [rearrange(_read(network, tensors, name)) for name in names]
        value = np.concatenate(parts, axis=-1, dtype="float32", casting="unsafe")
        variable.assign(value)
        if value.nbytes >= _LARGE:
            give_back_freed_memory()


def _read(network: str, tensors: dict[str, LazyTensor], name: str) -> np.ndarray:
    """Read a tensor, and refuse it if features could not be right.

    Whole numbers are of a quantized model; features of numbers that are not finite are not either.
    """
    found = tensors[name].read()
    if found.dtype.kind in "iub":
        raise CheckpointError(f"`{network}.{name}` must hold floats. Received: {found.dtype}")
    # A sum is not finite if a number in it is not, and takes no memory; it may also overflow.
    if not np.isfinite(found.sum(dtype="float64")):
        count = int(np.count_nonzero(~np.isfinite(found)))
        if count:
            raise CheckpointError(
                f"`{network}.{name}` must hold finite numbers. Received: {count:,} of "
                f"{found.size:,} that are NaN or infinite"
            )
    return found


def foreign_tensors(entries: Iterable[Entry]) -> dict[str, LazyTensor]:
    """Make every foreign tensor, float32, which is read from its variable when it is needed."""

    def tensor(entry: Entry, part: int) -> LazyTensor:
        def read() -> np.ndarray:
            value = ops.convert_to_numpy(ops.cast(entry.variable, "float32"))
            return entry.rearrange.inverse(np.split(value, len(entry.names), axis=-1)[part])

        return LazyTensor(_foreign_shape(entry), read)

    return {name: tensor(entry, part) for entry in entries for part, name in enumerate(entry.names)}


def _foreign_shape(entry: Entry) -> tuple[int, ...]:
    shape = tuple(entry.variable.shape)
    share = (*shape[:-1], shape[-1] // len(entry.names))
    # A view of a single number has the right shape and takes no memory.
    return entry.rearrange.inverse(np.broadcast_to(np.float32(0), share)).shape


def _check_shapes(network: str, tensors: dict[str, LazyTensor], entry: Entry) -> None:
    expected = _foreign_shape(entry)
    for name in entry.names:
        if tensors[name].shape != expected:
            raise CheckpointError(
                f"`{network}.{name}` must have shape {expected}. Received: {tensors[name].shape}"
            )
