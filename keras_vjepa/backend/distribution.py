"""Train data-parallel with each backend's own engine (App. C: 128 devices of 24 clips).

`setup` finds the devices and processes, and `DataParallel.feed` hands a process's clips to `fit`.
The work that processes share within a step is in `collectives.py`.
"""

import dataclasses
import functools
import itertools
import json
import os
import random
import socket
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from operator import itemgetter
from typing import Any, TypeVar

import keras
import numpy as np

from keras_vjepa.backend.collectives import joined_torch_processes
from keras_vjepa.backend.device import has_accelerator
from keras_vjepa.types import Tensor

# Arrays in any structure that `fit` accepts, such as a dictionary that is the model's input.
Batch = Any

BatchesT = TypeVar("BatchesT", bound=Any)

# Seconds after which JAX takes a silent process for dead; its own default is 100.
HEARTBEAT_TIMEOUT = 30
_THIS_MACHINE = "127.0.0.1"
# Variables that tell a process of JAX where the first one listens, how many processes there are,
# and which of them it is.
LAUNCHER_VARIABLES = (
    ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"),
    (
        "KERAS_DISTRIBUTION_JOB_ADDRESSES",
        "KERAS_DISTRIBUTION_NUM_PROCESSES",
        "KERAS_DISTRIBUTION_PROCESS_ID",
    ),
)


@dataclasses.dataclass(frozen=True)
class DataParallel:
    """Holds what `setup` found: the processes and devices of a run.

    Attributes:
        process_index: number of this process.
        process_count: number of processes of the run.
        device_count: number of devices of all processes together.
        engine: words for what joins them.
        sharded: whether each device holds only a part of the parameters.
    """

    process_index: int
    process_count: int
    device_count: int
    engine: str
    sharded: bool = False

    @property
    def is_first(self) -> bool:
        """Return whether this process is the one that prints and writes."""
        return self.process_index == 0

    def __str__(self) -> str:
        processes = "process" if self.process_count == 1 else "processes"
        devices = "device" if self.device_count == 1 else "devices"
        return (
            f"{self.process_count} {processes}, {self.device_count} {devices} "
            f"on {keras.config.backend()} ({self.engine})"
        )

    def check_batch_size(
        self, batch_size: int, accumulation_steps: int = 1, name: str = "batch_size"
    ) -> None:
        """Raise unless every device gets the same number of clips in every part of a step.

        Args:
            batch_size: number of clips for all devices together.
            accumulation_steps: number of parts of a step.
            name: name of `batch_size` in the message.

        Raises:
            ValueError: if not; the message says which number `batch_size` must be a multiple of.
        """
        divisor = self.device_count * accumulation_steps
        parts = f" x `accumulation_steps`={accumulation_steps}" if accumulation_steps > 1 else ""
        if batch_size % divisor:
            raise ValueError(
                f"`{name}` must be a multiple of {divisor} ({self.device_count} devices{parts}). "
                f"Received: {batch_size}"
            )

    def share(self, batches: BatchesT) -> BatchesT:
        """Return the same batches by step, of which this process makes only its slice."""
        return dataclasses.replace(
            batches, process_index=self.process_index, process_count=self.process_count
        )

    def share_of_kinds(self, batches: BatchesT, accumulation_steps: int = 1) -> BatchesT:
        """Return `VideosAndImages` of which this process makes its slice, or one kind alone.

        Raises:
            ValueError: if the processes or devices do not divide a batch, and on TensorFlow with
                several devices.
        """
        if self.device_count > 1 and keras.config.backend() == "tensorflow":
            raise ValueError(
                "`image_data` must be left out on TensorFlow with several devices, whose program "
                f"knows one size of clips. Received: {self.device_count} devices"
            )
        apart = self.process_count > 1 and keras.config.backend() == "torch"
        images = batches.image_processes(self.process_count) if apart else 0
        for name, one, others in (
            ("batch_size", batches.videos, images),
            ("image_batch_size", batches.images, self.process_count - images if apart else 0),
        ):
            own = dataclasses.replace(self, device_count=self.device_count - others)
            own.check_batch_size(one.batch_size, accumulation_steps, name)
        return self.share(dataclasses.replace(batches, apart=apart))

    def feed(self, batches: Iterator[Batch]) -> Any:
        """Turn this process's batches into what `fit` takes.

        Args:
            batches: this process's slice of each global batch, in the order of the processes. A
                slice is the model's inputs in a dictionary, or a tuple `(inputs, labels)`.
        """
        given = (batch if isinstance(batch, tuple) else (batch,) for batch in batches)
        if keras.config.backend() == "tensorflow" and self.device_count > 1:
            return _distributed_dataset(given, self.device_count // self.process_count)
        if keras.config.backend() == "torch" and has_accelerator():
            return _moved_ahead(given)
        return given

    def release(self) -> None:
        """Go back to one device: models that are made from here on are not distributed."""
        processes = joined_torch_processes()
        if processes is not None:
            processes.destroy_process_group()
        elif keras.config.backend() == "jax":
            keras.distribution.set_distribution(None)
        elif keras.config.backend() == "tensorflow":
            import tensorflow as tf

            tf.distribute.experimental_set_strategy(None)


ALONE = DataParallel(0, 1, 1, "one device")


def setup(shard_parameters: bool = False) -> DataParallel:
    """Join all devices of this machine, and all processes of a launcher, for training.

    Call it before anything else is computed: models made afterwards are trained on all devices.
    Several processes of JAX get the same random seed.
    The backend's own launcher starts several processes, and is found by environment variables:

    - JAX: Slurm's `srun`; or `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`;
      or Keras' `KERAS_DISTRIBUTION_JOB_ADDRESSES`, `..._NUM_PROCESSES` and `..._PROCESS_ID`;
    - torch: `torchrun`, one process per device;
    - TensorFlow: `TF_CONFIG`.

    Args:
        shard_parameters: whether to split weights, their moving average and the optimizer's state
            over the devices, instead of keeping a copy on each. JAX only.

    Returns:
        The processes and devices that were found; print it to see them.

    Raises:
        ValueError: for `shard_parameters` on another backend.

    Example:

    >>> from keras_vjepa.backend import distribution
    >>> distribution.setup().process_count
    1
    """
    backend = keras.config.backend()
    if backend == "jax":
        return _setup_jax(shard_parameters)
    if shard_parameters:
        raise ValueError(f"`shard_parameters` must be False on {backend}. Received: True")
    return _setup_torch() if backend == "torch" else _setup_tensorflow()


# --- JAX -----------------------------------------------------------------------------------------


def _setup_jax(shard_parameters: bool) -> DataParallel:
    import jax

    _join_jax_processes()
    devices = keras.distribution.list_devices()
    engine = "one device"
    if len(devices) > 1:
        mesh = keras.distribution.DeviceMesh((len(devices),), ("batch",), devices)
        # Each process makes its own slice of a batch, so Keras must not split it once more.
        if shard_parameters:
            engine = "ModelParallel, parameters sharded"
            # The kernels of the blocks are nearly all of the parameters. The optimizer's variables
            # for a kernel are split as the kernel is.
            layout = keras.distribution.LayoutMap(mesh)
            layout[r".*/block_\d+/.*kernel"] = ("batch", None)
            parallel: Any = keras.distribution.ModelParallel(
                layout_map=layout, batch_dim_name="batch", auto_shard_dataset=False
            )
        else:
            engine = "DataParallel"
            parallel = keras.distribution.DataParallel(mesh, auto_shard_dataset=False)
        keras.distribution.set_distribution(parallel)
    sharded = shard_parameters and len(devices) > 1
    return DataParallel(jax.process_index(), jax.process_count(), len(devices), engine, sharded)


def _join_jax_processes() -> None:
    """Join the processes as `keras.distribution.initialize`, but notice a lost one sooner."""
    import jax
    from jax.experimental.multihost_utils import broadcast_one_to_all

    if jax.distributed.is_initialized():
        return
    join = functools.partial(
        jax.distributed.initialize, heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT
    )
    for address, number, index in LAUNCHER_VARIABLES:
        if address in os.environ:
            # Keras' variable may list all processes, of which the first coordinates the others.
            first = os.environ[address].split(",")[0]
            join(first, _integer(number, address), _integer(index, address))
            break
    else:
        # The number of tasks of this step, not of the job: a script outside `srun` sees the job's,
        # although it is alone.
        if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) == 1:
            return
        join()
    # All processes must make the same weights, since JAX refuses arrays that differ between them.
    # The seed is drawn by Python's generator, so a seed that the user has set determines it.
    seed = broadcast_one_to_all(np.uint32(random.getrandbits(31)))
    keras.utils.set_random_seed(int(seed))


def _integer(name: str, beside: str) -> int:
    value = os.environ.get(name, "")
    if not value.isdigit():
        raise ValueError(f"`{name}` must be a number beside `{beside}`. Received: {value!r}")
    return int(value)


# --- torch ---------------------------------------------------------------------------------------


def _setup_torch() -> DataParallel:
    import torch

    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return ALONE
    accelerated = torch.cuda.is_available()
    if accelerated:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if accelerated else "gloo")
    engine = f"all-reduce by {torch.distributed.get_backend()}"
    return DataParallel(torch.distributed.get_rank(), count, count, engine)


def _moved_ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Yield batches on the device, each copied there while the step before it runs.

    The other backends copy without waiting. On torch, a step would begin by waiting for the copy.
    """
    import torch

    copying = torch.cuda.Stream()

    def moved(array: Any) -> Tensor:
        # "cuda" would be the current device of this thread, which need not be that of the main one.
        return torch.as_tensor(array).pin_memory().to(copying.device, non_blocking=True)

    def next_batch() -> tuple[Batch, Any] | None:
        batch = next(batches, None)
        if batch is None:
            return None
        with torch.cuda.stream(copying):
            return keras.tree.map_structure(moved, batch), copying.record_event()

    # What makes the batches may compute, and would do so on the first device in a new thread.
    with ThreadPoolExecutor(1, "batches", torch.cuda.set_device, (copying.device,)) as pool:
        coming = pool.submit(next_batch)
        while (found := coming.result()) is not None:
            batch, is_there = found
            coming = pool.submit(next_batch)
            stream = torch.cuda.current_stream()
            stream.wait_event(is_there)
            for tensor in keras.tree.flatten(batch):
                # The tensor's memory must not be reused before the step has finished with it.
                tensor.record_stream(stream)
            yield batch


def processes_for(count: int) -> int:
    """Return how many processes drive so many accelerators of one machine."""
    return count if keras.config.backend() == "torch" else 1


def environments(count: int) -> list[dict[str, str]]:
    """Return the variables that join processes of this machine, as a launcher sets them.

    Args:
        count: number of processes.

    Returns:
        A dictionary for each process, with the ports of this machine that are free now.

    Example:

    >>> from keras_vjepa.backend import distribution
    >>> distribution.environments(1)
    [{}]
    """
    if count == 1:
        return [{}]
    with ExitStack() as stack:
        listeners = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in listeners:
            listener.bind((_THIS_MACHINE, 0))
        ports = [str(listener.getsockname()[1]) for listener in listeners]
    return [_environment(index, ports) for index in range(count)]


def _environment(index: int, ports: Sequence[str]) -> dict[str, str]:
    backend, count = keras.config.backend(), str(len(ports))
    addresses = [f"{_THIS_MACHINE}:{port}" for port in ports]
    if backend == "jax":
        return dict(zip(LAUNCHER_VARIABLES[0], (addresses[0], count, str(index)), strict=True))
    if backend == "tensorflow":
        task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        return {"TF_CONFIG": json.dumps(task)}
    place = {"MASTER_ADDR": _THIS_MACHINE, "MASTER_PORT": ports[0], "WORLD_SIZE": count}
    return {**place, "RANK": str(index), "LOCAL_RANK": str(index)}


def launch_on_all_devices() -> None:
    """Start the running program again under `torchrun`, on torch with several devices.

    On other backends one process drives all devices of a machine. Under a launcher, this does
    nothing.
    """
    if keras.config.backend() != "torch" or "WORLD_SIZE" in os.environ:
        return
    import torch

    count = torch.cuda.device_count()
    if count > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
        os.execv(sys.executable, [sys.executable, *launcher, *_program(), *sys.argv[1:]])


def _program() -> list[str]:
    """Return the arguments that make Python run this program: a file, or a module's name."""
    spec = sys.modules["__main__"].__spec__
    if spec is None or spec.origin != sys.argv[0]:
        return sys.argv[:1]
    # If the module were run as a file, Python would find modules beside it before its own of the
    # same name.
    return ["-m", spec.name.removesuffix(".__main__")]


# --- TensorFlow ----------------------------------------------------------------------------------


def _setup_tensorflow() -> DataParallel:
    import tensorflow as tf

    cluster = json.loads(os.environ.get("TF_CONFIG") or "{}").get("cluster", {})
    count = sum(len(addresses) for addresses in cluster.values())
    strategy = tf.distribute.get_strategy() if tf.distribute.has_strategy() else None
    if count > 1:
        strategy = strategy or tf.distribute.MultiWorkerMirroredStrategy()
        index = strategy.cluster_resolver.task_id
        engine = "MultiWorkerMirroredStrategy"
    else:
        kind = "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
        devices = [device.name for device in tf.config.list_logical_devices(kind)]
        if len(devices) == 1:
            return ALONE
        strategy = strategy or tf.distribute.MirroredStrategy(devices)
        index, count, engine = 0, 1, "MirroredStrategy"
    tf.distribute.experimental_set_strategy(strategy)
    return DataParallel(index, count, strategy.num_replicas_in_sync, engine)


def _distributed_dataset(batches: Iterator[Batch], local_replicas: int) -> Any:
    """Make a distributed dataset with the rows of one replica in each element.

    It is made from a function, because `MultiWorkerMirroredStrategy` would take a dataset itself
    for the global batch, split it once more, and lose clips without an error.
    """
    import tensorflow as tf

    first = next(batches)
    rows = len(keras.tree.flatten(first)[0]) // local_replicas

    def replica_batches() -> Iterator[Batch]:
        for batch in itertools.chain([first], batches):
            for start in range(0, local_replicas * rows, rows):
                yield keras.tree.map_structure(itemgetter(slice(start, start + rows)), batch)

    def description(value: Any) -> Any:
        # The number of tokens may change from batch to batch, but the size of a video may not.
        rest = value.shape[1:] if value.ndim != 2 else [None]
        return tf.TensorSpec((rows, *rest), value.dtype)

    signature = keras.tree.map_structure(description, first)
    dataset = tf.data.Dataset.from_generator(replica_batches, output_signature=signature)
    return tf.distribute.get_strategy().distribute_datasets_from_function(lambda context: dataset)
