"""What the devices and processes of a run do together, inside a step and between steps (App. C).

This is where the engines differ, each by a line or two:

    JAX         one program over all devices; nothing else is needed
    torch       a process per device under `torchrun`; the training step averages gradients and logs
    TensorFlow  a replica per device, whose loss is a share of the whole; an optimizer sums
                gradients, ours before it clips

The moving average needs nothing: it is the same everywhere, since weights are.
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
    """Values of variables on the host, whole even if each process holds a part of them.

    All processes must call it together.
    """
    if keras.config.backend() == "jax":
        from jax.experimental.multihost_utils import process_allgather

        if not all(variable.value.is_fully_replicated for variable in variables):
            return [process_allgather(variable.value, tiled=True) for variable in variables]
    return [ops.convert_to_numpy(variable) for variable in variables]


def joined_torch_processes() -> Any:
    """The module `torch.distributed` if this is one of several processes."""
    if keras.config.backend() != "torch":
        return None
    from torch import distributed

    return distributed if distributed.is_available() and distributed.is_initialized() else None


def is_alone() -> bool:
    """Whether no other process of torch takes part in a step."""
    return joined_torch_processes() is None


def replicas_in_sync() -> int:
    """Replicas of TensorFlow's strategy; 1 without one, and on the other backends."""
    if keras.config.backend() != "tensorflow":
        return 1
    import tensorflow as tf

    return tf.distribute.get_strategy().num_replicas_in_sync


def gather(array: np.ndarray) -> np.ndarray:
    """The rows of all processes of torch, in their order; elsewhere the array as it is.

    All processes must call it together, with as many rows each.
    """
    processes = joined_torch_processes()
    if processes is None:
        return array
    own = ops.convert_to_tensor(array)
    parts = [ops.empty_like(own) for _ in range(processes.get_world_size())]
    processes.all_gather(parts, own.contiguous())
    return ops.convert_to_numpy(ops.concatenate(parts))


def wait_for_all() -> None:
    """Return when all processes are here."""
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

    JAX would wait for them at an orderly exit, and they for this one in their next step.
    """
    if keras.config.backend() == "jax":
        import jax

        if jax.process_count() > 1:
            print(message, file=sys.stderr, flush=True)
            os._exit(1)
    sys.exit(message)


def loss_share(loss: Tensor) -> Tensor:
    """What `compute_loss` is to return for the mean loss of this device's clips.

    Keras' trainer on TensorFlow sums gradients over replicas and multiplies the logged loss.
    """
    return loss / replicas_in_sync()


def average_gradients(gradients: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    """The means over torch's processes; on the other engines, the gradients as they are.

    For a training step, before the optimizer sees them: the norm that it clips by is that of the
    whole batch's gradient, and all processes make the same step whatever the optimizer.
    """
    processes = joined_torch_processes()
    if processes is None:
        return gradients
    there = [gradient for gradient in gradients if gradient is not None]
    waiting = [processes.all_reduce(gradient, async_op=True) for gradient in there]
    for gradient, work in zip(there, waiting, strict=True):
        work.wait()
        gradient.div_(processes.get_world_size())
    return gradients


def sum_over_replicas(gradients: Sequence[Tensor]) -> Sequence[Tensor]:
    """The sums over TensorFlow's replicas; on the other engines, the gradients as they are.

    For an optimizer, before it clips. Keras' own optimizers make this sum themselves, but after
    they have clipped: each replica by its own norm.
    """
    if replicas_in_sync() > 1:
        import tensorflow as tf

        context = tf.distribute.get_replica_context()
        if context is not None:
            return context.all_reduce(tf.distribute.ReduceOp.SUM, list(gradients))
    return gradients


def reduce_logs(logs: dict[str, Any]) -> dict[str, Any]:
    """The means over all devices of what a step logs, where Keras does not see to it."""
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
            # Keras takes the mean over the first axis of what several workers log.
            return {name: ops.reshape(value, (1,)) for name, value in logs.items()}
    return logs


def broadcast(variables: Sequence[keras.Variable]) -> None:
    """Give the variables of all processes the values of the first, where the engine does not."""
    processes = joined_torch_processes()
    if processes is not None:
        for variable in variables:
            processes.broadcast(variable.value.data, src=0)
