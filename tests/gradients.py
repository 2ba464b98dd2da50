"""Gradients of a layer's weights, on each backend."""

from typing import Any

import keras
import numpy as np
from keras import ops


class RecordGradients(keras.optimizers.Optimizer):
    """Keeps the gradients of the last step, and changes nothing."""

    def __init__(self):
        super().__init__(learning_rate=0.0)

    def build(self, variables):
        if not self.built:
            super().build(variables)
            self.gradients = self.add_optimizer_variables(variables, "gradient")

    def update_step(self, gradient, variable, learning_rate):
        self.assign(self.gradients[self._get_variable_index(variable)], gradient)


def loss_and_gradients(layer: Any, *inputs: Any) -> tuple[float, list[np.ndarray], str]:
    """A loss of a layer's outputs with what the layer adds to it, and the weights' gradients.

    Compiled where the backend compiles training steps; third comes the program, if JAX made one.
    """
    compute = {
        "jax": _on_jax,
        "torch": _on_torch,
        "tensorflow": _on_tensorflow,
    }
    loss, gradients, program = compute[keras.config.backend()](layer, inputs)
    gradients = [
        np.zeros(variable.shape, "float32")
        if g is None
        else ops.convert_to_numpy(ops.cast(g, "float32"))
        for variable, g in zip(layer.trainable_variables, gradients, strict=True)
    ]
    return float(loss), gradients, program


def bytes_kept(layer: Any, *inputs: Any) -> int:
    """How many bytes the backward pass of `loss_and_gradients` takes from the forward pass.

    The weights are among them on some backends.
    """
    return {"jax": _kept_on_jax, "torch": _kept_on_torch, "tensorflow": _kept_on_tensorflow}[
        keras.config.backend()
    ](layer, inputs)


def _kept_on_jax(layer: Any, inputs: Any) -> int:
    import jax

    fixed = [v.value for v in layer.non_trainable_variables]

    def backward(values: Any) -> Any:
        return jax.vjp(lambda own: _loss(layer.stateless_call(own, fixed, *inputs)[0], ()), values)

    values = [v.value for v in layer.trainable_variables]
    kept = jax.tree.leaves(jax.eval_shape(backward, values))
    return sum(array.size * array.dtype.itemsize for array in kept)


def _kept_on_torch(layer: Any, inputs: Any) -> int:
    import torch

    kept: dict[int, int] = {}

    def keep(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = _loss(layer(*inputs), ())
    # The loss holds what was kept until here, so that no place in memory is used twice.
    del loss
    return sum(kept.values())


def _kept_on_tensorflow(layer: Any, inputs: Any) -> int:
    import tensorflow as tf

    forward: set[str] = set()

    @tf.function
    def step() -> Any:
        with tf.GradientTape() as tape:
            loss = _loss(layer(*inputs), ())
        forward.update(op.name for op in tf.compat.v1.get_default_graph().get_operations())
        return tape.gradient(loss, [v.value for v in layer.trainable_variables])

    operations = step.get_concrete_function().graph.get_operations()
    backward = [op for op in operations if op.name not in forward]
    kept = {x.name: x for op in backward for x in op.inputs if x.op.name in forward}
    sizes = [x.shape.num_elements() * x.dtype.size for x in kept.values() if x.dtype != tf.resource]
    return sum(sizes)


def _loss(outputs: Any, losses: Any) -> Any:
    outputs = ops.cast(outputs, "float32")
    return ops.mean(ops.square(outputs - 0.3)) + sum(ops.cast(x, "float32") for x in losses)


def _on_jax(layer: Any, inputs: Any) -> Any:
    import jax

    fixed = [v.value for v in layer.non_trainable_variables]

    def loss(values: Any) -> Any:
        outputs, _, losses = layer.stateless_call(values, fixed, *inputs, return_losses=True)
        return _loss(outputs, losses)

    values = [v.value for v in layer.trainable_variables]
    traced = jax.jit(jax.value_and_grad(loss)).trace(values)
    # The program is small and runs once, so compiling takes nearly all of the time.
    options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return *traced.lower().compile(options)(values), str(traced.jaxpr)


def _on_torch(layer: Any, inputs: Any) -> Any:
    weights = [v.value for v in layer.trainable_variables]
    for weight in weights:
        weight.grad = None
    loss = _loss(layer(*inputs), layer.losses)
    loss.backward()
    return loss.detach(), [weight.grad for weight in weights], ""


def _on_tensorflow(layer: Any, inputs: Any) -> Any:
    import tensorflow as tf

    @tf.function
    def step() -> Any:
        with tf.GradientTape() as tape:
            loss = _loss(layer(*inputs), layer.losses)
        return loss, tape.gradient(loss, [v.value for v in layer.trainable_variables])

    return *step(), ""
