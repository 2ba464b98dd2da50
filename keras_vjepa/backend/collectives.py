"""Join the devices and processes of a run, inside a step and between steps (App. C).

The engines differ here, each by a line or two:

    JAX         one program over all devices; nothing else is needed
    torch       a process per device under `torchrun`; the training step averages gradients and logs
    TensorFlow  a replica per device, whose loss is a share of the whole; an optimizer sums
                gradients, and `AdamW` of this package does so before it clips

The moving average needs nothing: it is the same on every device, since the weights are.
"""

import functools
import os
import sys
from collections.abc import Callable, Sequence
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

    A training step calls this before the optimizer sees the gradients. So the optimizer clips by
    the norm of the whole batch's gradient, and all processes make the same step, whatever the
    optimizer is. A weight that the loss of one process does not depend on, such as the tokenizer of
    images where it reads videos, has a gradient of zeros there if another process reaches it.

    Args:
        weights: torch's tensors, each with its `grad`, or None for one that is not reached.
    """
    processes = joined_torch_processes()
    if processes is None:
        return [weight.grad for weight in weights]
    here = tuple(weight.grad is not None for weight in weights)
    sums = [_flags(here, weights[0].device)]
    for weight in weights:
        sums.append(ops.zeros_like(weight) if weight.grad is None else weight.grad)
        weight.grad = None  # else memory would hold the gradients twice
    _sum_over_processes(processes, sums)
    reached, *gradients = sums
    for gradient in gradients:
        gradient.div_(processes.get_world_size())
    if all(here):
        return gradients
    # Only here the host waits for the device: in models of which a step reaches a part.
    return [g if count else None for g, count in zip(gradients, reached.tolist(), strict=True)]


# Numbers that torch's processes sum in one call. On processors a call takes 2 ms by itself (gloo).
_NUMBERS_AT_A_TIME = 8_000_000


def _sum_over_processes(processes: Any, tensors: list[Tensor]) -> None:
    """Put in place of tensors their sums over torch's processes, made of many tensors at a time.

    Args:
        processes: the module `torch.distributed`.
        tensors: tensors that have the same shapes and dtypes in all processes.
    """
    import torch

    groups: list[list[int]] = []
    sizes, room, dtype = [tensor.numel() for tensor in tensors], 0, None
    for place in sorted(range(len(tensors)), key=lambda i: str(tensors[i].dtype)):
        room -= sizes[place]
        if room < 0 or tensors[place].dtype != dtype:
            groups.append([])
            room, dtype = _NUMBERS_AT_A_TIME - sizes[place], tensors[place].dtype
        groups[-1].append(place)
    waiting = []
    for places in groups:
        joined = torch.cat([tensors[i].reshape(-1) for i in places])
        waiting.append(processes.all_reduce(joined, async_op=True))
        for i, part in zip(places, joined.split([sizes[i] for i in places]), strict=True):
            tensors[i] = part.view(tensors[i].shape)
    for work in waiting:
        work.wait()


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
