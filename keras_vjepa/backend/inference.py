"""Compute a model's outputs for batches that all devices and processes share (§4.3).

Keras' `predict` is made for one process. With several, JAX cannot fetch results from another
machine, and TensorFlow gives every replica the same rows. The evaluations use this module instead.
"""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops, tree
from numpy.typing import NDArray

from keras_vjepa.backend import collectives
from keras_vjepa.backend.device import keep_memory_of_torch

Forward = Callable[[Any, NDArray[np.float32]], Any]


class DistributedInference:
    """Computes the outputs of a model in inference, compiled, on all devices that `setup` found.

    Args:
        model: a built model, whose outputs are arrays with a row for each row of its inputs.

    Call arguments:
        inputs: this process's rows, arrays in any structure.
        weight: `(rows,)`, 0 for rows that only fill a batch.

    Returns:
        The outputs as NumPy arrays with the rows of all processes, in their order. Every process
        gets all of them. Rows of weight 0 are NaN.

    Example:

    >>> import keras, numpy as np
    >>> from keras_vjepa.backend.inference import DistributedInference
    >>> model = keras.Sequential([keras.layers.Flatten()])
    >>> DistributedInference(model)(np.ones((2, 3), "float32"), np.array([1, 0], "float32"))
    array([[ 1.,  1.,  1.],
           [nan, nan, nan]], dtype=float32)
    """

    def __init__(self, model: keras.Model) -> None:
        self.model = model
        self._forward: Forward | None = None
        self._functions: dict[Any, Any] = {}
        self._variables: tuple[int, ...] = ()

    def __call__(self, inputs: Any, weight: NDArray[np.float32]) -> Any:
        if self._forward is None:
            self._forward = self._make_forward()
        return self._forward(inputs, weight)

    def own_rows(self, inputs: Any, process_index: int) -> Any:
        """Compute the outputs of this process's rows; all processes must call it together.

        Args:
            inputs: this process's rows, as in the call; as many as each other process has.
            process_index: number of this process.
        """
        count = len(tree.flatten(inputs)[0])
        first = count * process_index
        outputs = self(inputs, np.ones(count, "float32"))
        return tree.map_structure(lambda array: array[first : first + count], outputs)

    def _make_forward(self) -> Forward:
        backend = keras.config.backend()
        if backend == "jax" and keras.distribution.distribution() is not None:
            return _jax_forward(self.model)
        if collectives.replicas_in_sync() > 1:
            return _tensorflow_forward(self.model)
        if not collectives.is_alone():
            return _torch_forward(self.model)
        return self._forward_of_one_device

    def _forward_of_one_device(self, inputs: Any, weight: NDArray[np.float32]) -> Any:
        # Each shape has a function of its own. TensorFlow would make one function for any number of
        # clips and views, and a model cannot work with unknown numbers.
        shapes = tuple(np.shape(array) for array in tree.flatten(inputs))
        # LoRA and quantization give the model other variables, which TensorFlow's functions would
        # not see.
        variables = tuple(map(id, self.model.variables))
        if variables != self._variables:
            self._functions.clear()
            self._variables = variables
        self.model.predict_function = self._functions.get(shapes)
        self.model.make_predict_function()
        self._functions[shapes] = self.model.predict_function
        return _only_rows_with_weight(self.model.predict_on_batch(inputs), weight, np)


def compiled_beside(model: keras.Model, function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function that calls a model in inference; what it returns stays on the device.

    Keras' `predict_on_batch` brings results to the host, where a loop that feeds them back would
    wait for each. There is one program for each shape of the arguments, and the weights are those
    that the model has when it is called.

    Args:
        model: a built model.
        function: a function of tensors, which calls the model.

    Returns:
        A function of arrays or tensors.

    Example:

    >>> import keras, numpy as np
    >>> from keras_vjepa.backend.inference import compiled_beside
    >>> model = keras.Sequential([keras.layers.Flatten()])
    >>> twice = compiled_beside(model, lambda x: 2.0 * model(x))
    >>> keras.ops.convert_to_numpy(twice(np.ones((1, 3), "float32"))).tolist()
    [[2.0, 2.0, 2.0]]
    """
    made: dict[str, Callable[[keras.Model, Callable[..., Any]], Callable[..., Any]]] = {
        "jax": _jax_beside,
        "tensorflow": _tensorflow_beside,
        "torch": _torch_beside,
    }
    return made[keras.config.backend()](model, function)


def _jax_beside(model: keras.Model, function: Callable[..., Any]) -> Callable[..., Any]:
    import jax

    def of_values(values: list[Any], *tensors: Any) -> Any:
        pairs = [*zip(model.variables, values, strict=True)]
        with keras.StatelessScope(state_mapping=pairs):
            return function(*tensors)

    compiled = jax.jit(of_values)
    return lambda *tensors: compiled([variable.value for variable in model.variables], *tensors)


def _tensorflow_beside(model: keras.Model, function: Callable[..., Any]) -> Callable[..., Any]:
    import tensorflow as tf

    compiled: dict[tuple[int, ...], Any] = {}

    def of_tensors(*arrays: Any) -> Any:
        # Quantization and LoRA give a model other variables, which a program would not see.
        variables = tuple(map(id, model.variables))
        if variables not in compiled:
            compiled.clear()
            make = tf.function(autograph=False, jit_compile=model.jit_compile)
            compiled[variables] = make(function)
        # An array would be taken for a constant of the program, which would be made for each anew.
        return compiled[variables](*map(ops.convert_to_tensor, arrays))

    return of_tensors


def _torch_beside(model: keras.Model, function: Callable[..., Any]) -> Callable[..., Any]:
    import torch

    def of_tensors(*arrays: Any) -> Any:
        with torch.no_grad():
            return function(*map(ops.convert_to_tensor, arrays))

    return of_tensors


def _only_rows_with_weight(outputs: Any, weight: Any, numerics: Any = ops) -> Any:
    def of_one(array: Any) -> Any:
        column = numerics.reshape(weight > 0, (-1,) + (1,) * (len(array.shape) - 1))
        return numerics.where(column, array, np.nan)

    return tree.map_structure(of_one, outputs)


def _torch_forward(model: keras.Model) -> Forward:
    import torch

    keep_memory_of_torch()

    def predict(inputs: Any, weight: NDArray[np.float32]) -> Any:
        # `predict_on_batch` is avoided: Keras 3.16 would first join the processes for gradients,
        # which fails for a model without any.
        with torch.no_grad():
            outputs = tree.map_structure(ops.convert_to_numpy, model.predict_step((inputs,)))
        return tree.map_structure(collectives.gather, _only_rows_with_weight(outputs, weight, np))

    return predict


def _jax_forward(model: keras.Model) -> Forward:
    import jax

    current = keras.distribution.distribution()
    whole = jax.sharding.NamedSharding(
        current.device_mesh.backend_mesh, jax.sharding.PartitionSpec()
    )

    def forward(trainable: Any, non_trainable: Any, inputs: Any, weight: Any) -> Any:
        outputs, _ = model.stateless_call(trainable, non_trainable, inputs)
        return _only_rows_with_weight(outputs, weight)

    # Every device gets the complete outputs, so that each process can fetch them.
    compiled = jax.jit(forward, out_shardings=whole)

    def on_all_devices(array: Any) -> Any:
        layout = current.get_data_layout(array.shape).backend_layout
        return jax.make_array_from_process_local_data(layout, array)

    def predict(inputs: Any, weight: NDArray[np.float32]) -> Any:
        variables = (model.trainable_variables, model.non_trainable_variables)
        values = ([variable.value for variable in part] for part in variables)
        rows = tree.map_structure(on_all_devices, (inputs, weight))
        return tree.map_structure(np.asarray, compiled(*values, *rows))

    return predict


def _tensorflow_forward(model: keras.Model) -> Forward:
    import tensorflow as tf

    strategy = tf.distribute.get_strategy()
    local_count = len(strategy.extended.worker_devices)

    @tf.function  # type: ignore[untyped-decorator]
    def forward(inputs: Any, weight: Any) -> Any:
        def of_a_replica(inputs: Any, weight: Any) -> Any:
            return _only_rows_with_weight(model(inputs), weight)

        outputs = strategy.run(of_a_replica, args=(inputs, weight))
        return tree.map_structure(lambda array: strategy.gather(array, axis=0), outputs)

    def predict(inputs: Any, weight: NDArray[np.float32]) -> Any:
        def own_rows(array: Any) -> Any:
            parts = np.split(np.asarray(array), local_count)
            return strategy.experimental_distribute_values_from_function(
                lambda context: tf.constant(parts[context.replica_id_in_sync_group % local_count])
            )

        outputs = forward(*tree.map_structure(own_rows, (inputs, weight)))
        return tree.map_structure(lambda array: array.numpy(), outputs)

    return predict
