"""A training step whose batch does not fit a device at once, in parts (App. C: 3,072 clips a step).

The parts' gradients are added and applied once, so a step is a step: schedules, clipping, moving
average and what is logged are those of the whole batch. Keras' own `gradient_accumulation_steps`
counts every part as a step, and moves schedules and whatever follows the optimizer with it.
"""

from typing import Any

import keras
from keras import ops

from keras_vjepa.backend.token_ops import weight_copies
from keras_vjepa.types import Batch, Tensor


def accumulated_train_step(model: Any, num_parts: int, *args: Any) -> Any:
    """`keras.Model.train_step` in parts, for a model whose loss is a mean over samples.

    Args:
        model: takes a batch of arrays by name and returns the loss of each sample.
        num_parts: must divide the batch on each device.
        args: those of the backend's `train_step`; its result is returned.
    """
    steps: dict[str, Any] = {"jax": _jax_step, "torch": _torch_step, "tensorflow": _tensorflow_step}
    return steps[keras.config.backend()](model, num_parts, *args)


def _parts(batch: Batch, num_parts: int) -> Batch:
    """The batch with an axis of parts in front.

    Part i holds samples i, i + num_parts, ...: with the batch spread over devices, each splits the
    samples that it has.
    """
    split = {}
    for name, value in batch.items():
        value = ops.reshape(value, (-1, num_parts, *ops.shape(value)[1:]))
        split[name] = ops.swapaxes(value, 0, 1)
    return split


def _part(parts: Batch, index: Any) -> Batch:
    return {name: value[index] for name, value in parts.items()}


def _logs(model: Any, batch: Batch, loss: Tensor) -> dict[str, Any]:
    # Counted on the device: torch would copy a number there, and wait for it.
    num_samples = ops.sum(ops.ones_like(batch["videos"][:, 0, 0, 0, 0]))
    model._loss_tracker.update_state(loss, sample_weight=num_samples)
    return model.compute_metrics(batch, None, ops.reshape(loss, (1,)))


def _torch_step(model: Any, num_parts: int, data: Any) -> dict[str, Any]:
    import torch

    batch = keras.utils.unpack_x_y_sample_weight(data)[0]
    parts, total = _parts(batch, num_parts), 0.0
    variables = model.trainable_variables
    weights = [variable.value for variable in variables]
    for weight in weights:
        weight.grad = None
    with weight_copies() as copies:
        for i in range(num_parts):
            loss = model.compute_loss(y_pred=model(_part(parts, i))) / num_parts
            # Adds to what the variables hold. The scale is for float16, whose gradients underflow.
            model.optimizer.scale_loss(loss).backward()
            copies.hand_over_gradients()
            total = total + loss.detach()
    with torch.no_grad():
        model.optimizer.apply([weight.grad for weight in weights], variables)
    return _logs(model, batch, total)


def _tensorflow_step(model: Any, num_parts: int, data: Any) -> dict[str, Any]:
    import tensorflow as tf

    batch = keras.utils.unpack_x_y_sample_weight(data)[0]
    parts, weights = _parts(batch, num_parts), model.trainable_weights

    def add_part(i: Tensor, loss: Tensor, gradients: list[Tensor]) -> tuple[Any, ...]:
        with tf.GradientTape() as tape:
            losses = model(_part(parts, i))
            share = model.compute_loss(y_pred=losses) / num_parts
            share = model.optimizer.scale_loss(share)
        added = [a + b for a, b in zip(gradients, tape.gradient(share, weights), strict=True)]
        return i + 1, loss + tf.reduce_mean(losses) / num_parts, added

    _, loss, gradients = tf.while_loop(
        lambda i, *_: i < num_parts,
        add_part,
        (0, 0.0, [tf.zeros(weight.shape, weight.dtype) for weight in weights]),
        # One part's activations in memory at a time.
        parallel_iterations=1,
    )
    model.optimizer.apply(gradients, weights)
    return _logs(model, batch, loss)


def _jax_step(model: Any, num_parts: int, state: Any, data: Any) -> tuple[dict[str, Any], Any]:
    import jax

    trainable, non_trainable, optimizer, metrics = state
    batch = keras.utils.unpack_x_y_sample_weight(data)[0]
    loss_and_gradients = jax.value_and_grad(model.compute_loss_and_updates, has_aux=True)

    def add_part(total: Any, part: Batch) -> tuple[Any, None]:
        gradients, loss, kept = total
        (_, (part_loss, _, kept, _)), part_gradients = loss_and_gradients(
            trainable, kept, metrics, part, None, None, training=True, optimizer_variables=optimizer
        )
        return (
            jax.tree.map(jax.numpy.add, gradients, part_gradients),
            loss + part_loss,
            kept,
        ), None

    nothing = jax.tree.map(jax.numpy.zeros_like, trainable)
    (gradients, loss, non_trainable), _ = jax.lax.scan(
        add_part, (nothing, 0.0, non_trainable), _parts(batch, num_parts)
    )
    gradients = [gradient / num_parts for gradient in gradients]
    loss = loss / num_parts
    trainable, optimizer = model.optimizer.stateless_apply(optimizer, gradients, trainable)
    logs, metrics = model._update_metrics_variables(
        metrics, loss, batch, None, ops.reshape(loss, (1,)), None
    )
    return logs, (trainable, non_trainable, optimizer, metrics)
