"""Read what a step must know of any Keras optimizer, whatever wraps it (App. C).

An optimizer may leave the weights unchanged in some steps: while it accumulates gradients, or, in
the case of `LossScaleOptimizer`, when float16 has overflowed. Work that follows an update, such as
the moving average of the weights, must then wait as well.
"""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_vjepa.backend import keras_internals
from keras_vjepa.types import Tensor


def inner_optimizers(optimizer: Any) -> list[Any]:
    """List the optimizers that change weights: those in a wrapper, or the optimizer itself.

    A `MultiOptimizer` that was given a function knows all its optimizers only once it is built.

    Example:

    >>> import keras
    >>> from keras_vjepa.backend.optimizer_state import inner_optimizers
    >>> scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(name="inside"))
    >>> [optimizer.name for optimizer in inner_optimizers(scaled)]
    ['inside']
    """
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return inner_optimizers(optimizer.inner_optimizer)
    if isinstance(optimizer, keras.optimizers.MultiOptimizer):
        return list(optimizer.optimizers)
    return [optimizer]


def batches_taken(optimizer: Any) -> keras.Variable:
    """Return the variable that counts the batches of an optimizer; schedules depend on it.

    Keras' `iterations` counts updates, which are fewer if gradients are accumulated over several
    batches. Batches whose gradients overflowed are not counted.
    """
    while isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        optimizer = optimizer.inner_optimizer
    return keras_internals.batch_count(optimizer)


def updates_made(optimizer: Any) -> Tensor:
    """Count the updates of weights so far, of all inner optimizers together."""
    counts = []
    for inner in inner_optimizers(optimizer):
        count = ops.convert_to_tensor(keras_internals.batch_count(inner))
        counts.append(count // (inner.gradient_accumulation_steps or 1))
    return sum(counts[1:], counts[0])


def reset_loss_scale(optimizer: Any) -> None:
    """Set the scale of a `LossScaleOptimizer` to its first value; leave other optimizers alone."""
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        optimizer.dynamic_scale.assign(optimizer.initial_scale)
        optimizer.step_counter.assign(0)


def may_skip_updates(optimizer: Any) -> bool:
    """Tell whether there may be steps in which an optimizer leaves the weights unchanged."""
    scales = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    return scales or any(i.gradient_accumulation_steps for i in inner_optimizers(optimizer))


def check_optimized(optimizer: Any, variables: Sequence[keras.Variable]) -> None:
    """Raise if an optimizer was built for other weights than those that are to be trained.

    TensorFlow would go on to train the weights in the program that it has compiled; the other
    engines raise errors, each one of its own.

    Args:
        optimizer: an optimizer, built or not; None for a model that has none.
        variables: the variables that are trainable.

    Raises:
        ValueError: if they differ; the message names one of the weights that do.

    Example:

    >>> import keras
    >>> from keras_vjepa.backend.optimizer_state import check_optimized
    >>> line = keras.layers.Dense(1)
    >>> line.build((None, 1))
    >>> optimizer = keras.optimizers.SGD()
    >>> optimizer.build(line.trainable_variables)
    >>> check_optimized(optimizer, line.trainable_variables)
    """
    if optimizer is None or not optimizer.built:
        return
    known = {id(v): v.path for v in keras_internals.optimized_weights(optimizer)}
    wanted = {id(v): v.path for v in variables}
    both = known.keys() & wanted.keys()
    different = [path for key, path in {**wanted, **known}.items() if key not in both]
    if different:
        raise ValueError(
            "`compile` must be called again after `trainable` was changed, with a new optimizer: "
            f"this one is of other weights. Received: {different[0]}"
        )
