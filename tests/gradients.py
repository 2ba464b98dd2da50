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
