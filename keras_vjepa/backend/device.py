"""Tell what the machine has, and run work on each device by itself (App. C)."""

import functools
import os
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from keras_vjepa.backend import collectives
from keras_vjepa.backend.host_memory import keep_memory
from keras_vjepa.types import Tensor


def has_accelerator() -> bool:
    """Tell whether models run on something other than the processor."""
    if keras.config.backend() == "torch":
        # The device on which Keras puts a tensor: `KERAS_TORCH_DEVICE` may choose the processor.
        return ops.zeros(()).device.type == "cuda"
    return not keras.distribution.list_devices()[0].startswith("cpu")


def keep_memory_of_torch() -> None:
    """Let torch find the memory that it freed again, where models run on the processor."""
    if keras.config.backend() == "torch" and not has_accelerator():
        keep_memory()


def accelerators() -> list[str]:
    """Return the name of each accelerator that this process sees; none without one."""
    backend = keras.config.backend()
    if backend == "torch":
        import torch

        count = torch.cuda.device_count() if has_accelerator() else 0
        return [torch.cuda.get_device_name(i) for i in range(count)]
    if backend == "tensorflow":
        import tensorflow as tf

        found = tf.config.list_physical_devices("GPU")
        details = [tf.config.experimental.get_device_details(one) for one in found]
        return [str(one.get("device_name", "GPU")) for one in details]
    import jax

    return [one.device_kind for one in jax.local_devices() if one.platform != "cpu"]


def check_computes_in(policy: keras.DTypePolicy) -> None:
    """Check that a model will compute in the precision that it is asked to have.

    Args:
        policy: the dtype policy of the model.

    Raises:
        ValueError: for float64 if JAX would turn it into float32.
    """
    if keras.config.backend() != "jax" or "float64" not in (
        policy.compute_dtype,
        policy.variable_dtype,
    ):
        return
    import jax

    if not jax.config.read("jax_enable_x64"):
        raise ValueError(
            "`dtype` must be float32 or less on JAX, unless jax.config.update('jax_enable_x64', "
            f"True) was called first. Received: {policy.name!r}"
        )


def memory_of_machine() -> int | None:
    """Return the memory of the whole machine in bytes; None if the system does not tell."""
    if not hasattr(os, "sysconf"):
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def peak_device_memory() -> int | None:
    """Return the most bytes held so far on this process's first accelerator; None without one."""
    if not has_accelerator():
        return None
    if keras.config.backend() == "torch":
        import torch

        return torch.cuda.max_memory_allocated()
    if keras.config.backend() == "jax":
        import jax

        return jax.local_devices()[0].memory_stats()["peak_bytes_in_use"]
    import tensorflow as tf

    return tf.config.experimental.get_memory_info("GPU:0")["peak"]


def on_each_device(function: Callable[..., Tensor], *arrays: Tensor | None) -> Tensor:
    """Call `function(*arrays)` for rows (the first axis) that do not depend on each other.

    JAX divides one program among its devices. It takes loops and gathers over rows for work that
    needs all rows, so each device would compute all rows, here and in everything that follows. With
    this function each device computes its own rows. On the other backends a device sees only its
    own rows anyway.

    Args:
        function: a function of these arrays, which returns an array with as many rows.
        arrays: arrays with the same number of rows, or None.
    """
    current = keras.distribution.distribution() if keras.config.backend() == "jax" else None
    if current is None:
        return function(*arrays)
    import jax

    mesh, axis = current.device_mesh.backend_mesh, current.batch_dim_name
    given = [array for array in arrays if array is not None]
    # Outside of a compiled step, arrays may be on any device and have any number of rows.
    if not isinstance(given[0], jax.core.Tracer) or given[0].shape[0] % mesh.shape[axis]:
        return function(*arrays)

    def of_given(*own: Tensor) -> Tensor:
        rest = iter(own)
        return function(*(None if array is None else next(rest) for array in arrays))

    rows = jax.sharding.PartitionSpec(axis)
    return jax.shard_map(of_given, mesh=mesh, in_specs=rows, out_specs=rows)(*given)


def constant(array: NDArray[Any], beside: Tensor) -> Tensor:
    """Return an array that never changes as a tensor.

    On torch it is copied to the device only once. A copy in every step would make both wait, and a
    step that copies cannot be recorded (`cuda_graph.py`). Compiled steps hold their constants.

    Args:
        array: the numbers.
        beside: a tensor on the device that needs them.

    Example:

    >>> import numpy as np
    >>> from keras import ops
    >>> from keras_vjepa.backend.device import constant
    >>> ops.convert_to_numpy(constant(np.array([1, 2]), ops.ones(3))).tolist()
    [1, 2]
    """
    if keras.config.backend() != "torch":
        return ops.convert_to_tensor(array)
    import torch

    tensor = ops.convert_to_tensor(beside)
    if torch.compiler.is_compiling():
        return torch.as_tensor(array, device=tensor.device)
    return _kept_constant(array.tobytes(), array.dtype.str, array.shape, tensor.device)


@functools.lru_cache(maxsize=64)
def _kept_constant(numbers: bytes, dtype: str, shape: tuple[int, ...], device: Any) -> Tensor:
    import torch

    # A tensor made in inference mode could not take part in a training step later.
    with torch.inference_mode(False):
        array = np.frombuffer(numbers, dtype).reshape(shape).copy()
        return torch.as_tensor(array, device=device)


def compiled_alone(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Compile a function by JAX or TensorFlow in a run on one device, as both are slow op by op.

    With several devices it is returned as it is, because a compiled program would need all of them.
    """
    if keras.config.backend() == "tensorflow" and collectives.replicas_in_sync() == 1:
        import tensorflow as tf

        return tf.function(function, autograph=False)
    if keras.config.backend() != "jax" or keras.distribution.distribution() is not None:
        return function
    import jax

    return jax.jit(function)
