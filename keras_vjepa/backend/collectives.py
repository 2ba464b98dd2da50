"""Join the devices and processes of a run, inside a step and between steps (App. C).

The engines differ here, each by a line or two:

    JAX         one program over all devices; nothing else is needed
    torch       a process per device under `torchrun`; the training step averages gradients, while
                others are computed, and logs
    TensorFlow  a replica per device, whose loss is a share of the whole; an optimizer sums
                gradients, and `AdamW` of this package does so before it clips

The moving average needs nothing: it is the same on every device, since the weights are.
"""

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import keras
import numpy as np
from keras import ops

from keras_vjepa.types import Tensor


def values(variables: Sequence[keras.Variable]) -> list[np.ndarray]:
    """Return the values of variables on the host, whole even if each process holds a part.

    All processes must call it together.
    """
    if keras.config.backend() == "jax":
        from jax.experimental.multihost_utils import process_allgather

        if not all(variable.value.is_fully_replicated for variable in variables):
            return [process_allgather(variable.value, tiled=True) for variable in variables]
    return [ops.convert_to_numpy(variable) for variable in variables]


def joined_torch_processes() -> Any:
    """Return the module `torch.distributed` in one of several processes of torch, else None."""
    if keras.config.backend() != "torch":
        return None
    from torch import distributed

    return distributed if distributed.is_available() and distributed.is_initialized() else None


def is_alone() -> bool:
    """Tell whether no other process of torch takes part in a step."""
    return joined_torch_processes() is None


def replicas_in_sync() -> int:
    """Return the number of replicas of TensorFlow's strategy; 1 without one or elsewhere."""
    if keras.config.backend() != "tensorflow":
        return 1
    import tensorflow as tf

    return tf.distribute.get_strategy().num_replicas_in_sync


def draw_rows(draw: Callable[[Any], Tensor], rows: Any) -> Tensor:
    """Draw random numbers for the samples of this replica, different from those of all others.

    Replicas share the state of a seed, so that all would draw the same numbers. Therefore each
    draws for the samples of all replicas and takes its own. JAX draws for the whole batch anyway.

    Args:
        draw: a function of the number of samples, which draws numbers with an axis of samples in
            front.
        rows: number of samples of this replica.
    """
    processes, count, index = joined_torch_processes(), replicas_in_sync(), 0
    if processes is not None:
        count, index = processes.get_world_size(), processes.get_rank()
    elif count > 1:
        import tensorflow as tf

        context = tf.distribute.get_replica_context()
        # None while a model is traced outside of a step.
        index = 0 if context is None else context.replica_id_in_sync_group
    if count == 1:
        return draw(rows)
    return draw(count * rows)[index * rows : (index + 1) * rows]


def gather(array: np.ndarray) -> np.ndarray:
    """Return the rows of all processes of torch, in their order; elsewhere the array as it is.

    All processes must call it together, and with the same number of rows.
    """
    processes = joined_torch_processes()
    if processes is None:
        return array
    own = ops.convert_to_tensor(array)
    parts = [ops.empty_like(own) for _ in range(processes.get_world_size())]
    processes.all_gather(parts, own.contiguous())
    return ops.convert_to_numpy(ops.concatenate(parts))


def wait_for_all() -> None:
    """Wait until all processes have called this function."""
    processes = joined_torch_processes()
    if processes is not None:
        processes.barrier()
    elif keras.config.backend() == "jax":
        from jax.experimental.multihost_utils import sync_global_devices

        sync_global_devices("wait_for_all")
    elif replicas_in_sync() > 1:
        _tensorflow_meeting()()


@functools.cache
def _tensorflow_meeting() -> Callable[[], Any]:
    import tensorflow as tf

    def meet() -> Tensor:
        return tf.distribute.get_replica_context().all_reduce("SUM", tf.ones(()))

    return tf.function(lambda: tf.distribute.get_strategy().run(meet))


def exit_with_error(message: str) -> NoReturn:
    """Print and end this process, so that the others of the run notice that it is gone.

    At an orderly exit, JAX would wait for the others, and they for this one in their next step.
    """
    if keras.config.backend() == "jax":
        import jax

        if jax.process_count() > 1:
            print(message, file=sys.stderr, flush=True)
            os._exit(1)
    sys.exit(message)


def loss_share(loss: Tensor) -> Tensor:
    """Divide the mean loss of this device's clips into what `compute_loss` must return.

    On TensorFlow, Keras' trainer sums gradients over replicas and multiplies the logged loss by
    their number.
    """
    return loss / replicas_in_sync()


def average_gradients(weights: Sequence[Any]) -> Sequence[Tensor | None]:
    """Return the gradients of torch's weights, averaged over the processes.

    A `train_step` of one's own calls this between its backward pass and its optimizer.

    Args:
        weights: torch's tensors, each with its `grad`, or None for one that is not reached.
    """
    return GradientAverages(weights).whole()


# Numbers that torch's processes sum in one call. On processors a call takes 2 ms by itself (gloo).
_NUMBERS_AT_A_TIME = 8_000_000


class GradientAverages:
    """Averages the gradients of torch's weights over the processes, while others are computed.

    A training step calls this before the optimizer sees the gradients. So the optimizer clips by
    the norm of the whole batch's gradient, and all processes make the same step, whatever the
    optimizer is. A weight that the loss of one process does not depend on, such as the tokenizer of
    images where it reads videos, has a gradient of zeros there if another process reaches it.

    Many gradients are joined for a sum. The last weights are the first to have theirs, so sums go
    from the last weight to the first, in the same order in all processes. The last sum also tells
    which weights are reached. One process alone keeps its gradients as they are.

    Args:
        weights: torch's tensors. Backward passes add to the `grad` of those that they reach.

    Example:

    >>> from keras_vjepa.backend.collectives import GradientAverages
    >>> averages = GradientAverages([])
    >>> with averages.summed_meanwhile():
    ...     pass  # the backward pass
    >>> averages.whole()
    []
    """

    def __init__(self, weights: Sequence[Any]) -> None:
        self._weights = weights
        self._processes: Any = joined_torch_processes() if weights else None
        self._reached = [False] * len(weights)
        # Places of the weights that are summed together.
        self._groups = [] if self._processes is None else _groups(weights)
        # How many gradients each sum waits for.
        self._missing = [len(places) for places in self._groups]
        self._sums: list[tuple[Tensor, Any]] = []

    @contextlib.contextmanager
    def summed_meanwhile(self, last_pass: bool = True) -> Iterator[None]:
        """Start a sum as soon as the last backward pass of a step has made all of its gradients.

        Args:
            last_pass: whether the pass in this block is the last one; others start no sum.
        """
        hooks = [
            self._weights[place].register_post_accumulate_grad_hook(
                functools.partial(self._count, number)
            )
            # The last sum waits for the end of the pass, to tell which weights are reached.
            for number, places in enumerate(self._groups[:-1])
            for place in places
            if last_pass and self._weights[place].requires_grad
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _count(self, number: int, weight: Any) -> None:
        self._missing[number] -= 1
        # All processes must start their sums in the same order, whatever is ready first.
        while not self._missing[len(self._sums)]:
            self._start()

    def _start(self) -> None:
        """Start the next sum."""
        import torch

        parts = []
        for place in self._groups[len(self._sums)]:
            if place == len(self._weights):
                parts.append(_flags(tuple(self._reached), self._weights[0].device))
                continue
            weight = self._weights[place]
            self._reached[place] = weight.grad is not None
            parts.append(weight.grad if self._reached[place] else torch.zeros_like(weight))
            weight.grad = None  # else memory would hold the gradients twice
        joined = torch.cat([part.reshape(-1) for part in parts])
        self._sums.append((joined, self._processes.all_reduce(joined, async_op=True)))

    def whole(self) -> list[Tensor | None]:
        """Wait for all sums, and return the average of each weight, or None if it is not reached.

        A process that reaches all weights does not wait for the device.
        """
        if self._processes is None:
            return [weight.grad for weight in self._weights]
        while len(self._sums) < len(self._groups):
            self._start()
        found: dict[int, Tensor] = {}
        for places, (joined, work) in zip(self._groups, self._sums, strict=True):
            work.wait()
            joined.div_(self._processes.get_world_size())
            sizes = [_size(self._weights, place) for place in places]
            found.update(zip(places, joined.split(sizes), strict=True))
        gradients = [found[i].view(weight.shape) for i, weight in enumerate(self._weights)]
        if all(self._reached):
            return gradients
        shares = found[len(self._weights)].tolist()
        return [g if share else None for g, share in zip(gradients, shares, strict=True)]


def _size(weights: Sequence[Any], place: int) -> int:
    return weights[place].numel() if place < len(weights) else len(weights)


def _groups(weights: Sequence[Any]) -> list[list[int]]:
    """Divide weights into groups that are summed together.

    Returns:
        Places of weights, from the last to the first of a dtype. The very last place, the number of
        weights, stands for numbers that tell which weights are reached.
    """

    def dtype_of(place: int) -> str:
        return str(weights[place].dtype) if place < len(weights) else "torch.float32"

    places = sorted(reversed(range(len(weights))), key=dtype_of)
    # The numbers come last, and are of this dtype.
    places.sort(key=lambda place: dtype_of(place) == "torch.float32")
    groups: list[list[int]] = []
    room, dtype = 0, ""
    for place in [*places, len(weights)]:
        room -= _size(weights, place)
        if room < 0 or dtype_of(place) != dtype:
            groups.append([])
            room, dtype = _NUMBERS_AT_A_TIME - _size(weights, place), dtype_of(place)
        groups[-1].append(place)
    return groups


@functools.cache
def _flags(values: tuple[bool, ...], device: Any) -> Tensor:
    """Return 1 and 0 on a device, which are copied there only once."""
    return ops.cast(ops.convert_to_tensor(values, "bool"), "float32").to(device)


def sum_over_replicas(gradients: Sequence[Tensor]) -> Sequence[Tensor]:
    """Sum gradients over TensorFlow's replicas; on the other engines, return them as they are.

    An optimizer calls this before it clips. Keras' own optimizers make this sum themselves, but
    only after each replica has clipped by its own norm.
    """
    if replicas_in_sync() > 1:
        import tensorflow as tf

        context = tf.distribute.get_replica_context()
        if context is not None:
            options = tf.distribute.experimental.CommunicationOptions(bytes_per_pack=_BYTES_A_PACK)
            return context.all_reduce(tf.distribute.ReduceOp.SUM, list(gradients), options)
    return gradients


# TensorFlow sums so many bytes of gradients together. By default, all of them are one pack, which
# waits for the last gradient: a step of two processes (ViT-S) takes 5.3 s instead of 4.6.
_BYTES_A_PACK = 8_000_000


def reduce_logs(logs: dict[str, Any]) -> dict[str, Any]:
    """Average the logs of a step over all devices, unless Keras does that itself."""
    processes = joined_torch_processes()
    if processes is not None and logs:
        values = ops.stack([ops.convert_to_tensor(value, "float32") for value in logs.values()])
        processes.all_reduce(values)
        return dict(zip(logs, values / processes.get_world_size(), strict=True))
    if replicas_in_sync() > 1:
        import tensorflow as tf

        several = isinstance(
            tf.distribute.get_strategy(), tf.distribute.MultiWorkerMirroredStrategy
        )
        if several and tf.distribute.get_replica_context() is not None:
            # Keras averages over the first axis of the logs of several workers.
            return {name: ops.reshape(value, (1,)) for name, value in logs.items()}
    return logs


def broadcast(variables: Sequence[keras.Variable]) -> None:
    """Give the variables of all torch processes the values that they have in the first one."""
    processes = joined_torch_processes()
    if processes is not None:
        for variable in variables:
            processes.broadcast(variable.value.data, src=0)
