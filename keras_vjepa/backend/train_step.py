"""One training step on each engine, and the model that is trained by it (App. B, App. C).

A step computes the gradient of the mean loss over the whole batch, hands it to the optimizer, calls
the model's `after_step`, and returns what is logged. All of it is one compiled program on JAX and
TensorFlow, and on torch waits for nothing, so that a GPU never stands still.

A batch that does not fit a device at once (App. C: 3,072 clips a step) is worked through in parts.
Their gradients are added and applied once, so a step is a step: schedules, clipping, moving average
and what is logged are those of the whole batch. An optimizer that takes its gradient from several
batches (`gradient_accumulation_steps`) is another thing: each of them is a step.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_vjepa.backend import collectives, keras_internals
from keras_vjepa.backend.cuda_graph import RecordedStep
from keras_vjepa.backend.observations import observed
from keras_vjepa.backend.optimizer_state import inner_optimizers, may_skip_updates, updates_made
from keras_vjepa.backend.reached_weights import ReachedWeights
from keras_vjepa.backend.step_functions import StepFunctions
from keras_vjepa.backend.token_ops import weight_copies
from keras_vjepa.backend.updates import all_finite
from keras_vjepa.types import Tensor


class TrainableModel(keras_internals.Overrides, StepFunctions, keras.Model):
    """A Keras model that every engine trains by the step of this module.

    Like `keras.Model`, it gets its loss from `compute_loss`, and its logs from `compute_metrics`;
    gradients and logs are those of all devices and processes. The model must be built when it is
    compiled. To change the step, override `after_step`, or `train_step` as in Keras.

    Attributes:
        accumulation_steps: parts in which a device works through its share of a batch; fewer where
            the share has fewer samples. More than one is for a model that takes no labels and
            returns the loss of each sample.
        logs_each_step: whether `log_each_step` was called.

    Example:

    >>> import keras, numpy as np
    >>> from keras_vjepa.backend.train_step import TrainableModel
    >>> class Line(TrainableModel):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.line = keras.layers.Dense(1)
    ...         self.line.build((None, 1))
    ...         self.built = True
    ...     def call(self, inputs):
    ...         return self.line(inputs)
    >>> model = Line()
    >>> model.compile("sgd", "mse")
    >>> x = np.ones((4, 1), "float32")
    >>> losses = model.fit(x, 2 * x, epochs=2, verbose=0).history["loss"]
    >>> losses[1] < losses[0]
    True
    """

    accumulation_steps = 1
    logs_each_step = False

    def log_each_step(self) -> None:
        """Have the logs of a step hold its own loss, `step_loss`, and whether weights are `finite`.

        `training.run` reads them.
        """
        if not self.logs_each_step:
            self.logs_each_step = True
            # It may have been made without.
            self.train_function = None

    @property
    def batch_size_matters(self) -> bool:  # type: ignore[override]
        """Whether a training step must know the number of samples: to divide it into parts."""
        return self.accumulation_steps > 1

    def after_step(self, moved: Tensor | None = None) -> dict[str, Tensor]:
        """Do what follows the optimizer's step, within the compiled program.

        Variables are read and assigned as anywhere; what is read from other attributes is constant
        until the next `compile`.

        Args:
            moved: bool scalar, whether the optimizer has changed the weights in this step; None
                for an optimizer that does so in each.

        Returns:
            Scalars to log beside the metrics, of this device.
        """
        return {}

    def observes(self, inputs: Any) -> tuple[str, ...]:
        """Name what a forward pass tells of a batch beside its outputs, by `observe`.

        Args:
            inputs: the batch, or a part of it.
        """
        return ()

    def train_step(self, *args: Any) -> Any:
        """Make one optimizer step, then `after_step`; arguments and result are the engine's."""
        return self.one_step(*args)

    def get_metrics_result(self) -> dict[str, Any]:
        """As Keras', over all devices and processes; for the logs of a step and of an epoch."""
        return collectives.reduce_logs(super().get_metrics_result())

    def make_train_function(self, force: bool = False) -> Any:
        """As Keras'; checks first that Keras and torch have what the step needs.

        All processes get the weights of the first one, where the engine does not see to it.

        Raises:
            ValueError: for a model of which nothing is trained.
        """
        if not self.trainable_variables:
            raise ValueError(
                f"`trainable` must be True of a part of {self.name} for `fit`; then call "
                "`compile`. Received: False of all"
            )
        if self.train_function is None or force:
            self.prepare_step()
            collectives.broadcast([*self.variables, *self.optimizer.variables])
        function = super().make_train_function(force)
        keras_internals.check_overrides(self)
        return function

    def prepare_step(self) -> None:
        """Make the step that `train_step` runs, for the model as it is now compiled.

        Raises:
            RuntimeError: naming a private name of Keras or torch that is gone.
        """
        keras_internals.check()
        takes_training = "training" in inspect.signature(self.call).parameters
        self.in_training = {"training": True} if takes_training else {}
        self.one_step = _make_step(self)


Step = Callable[..., Any]


def _make_step(model: TrainableModel) -> Step:
    """The step of the running engine."""
    steps: dict[str, Callable[[TrainableModel], Step]] = {
        "jax": functools.partial(functools.partial, _jax_step),
        "tensorflow": functools.partial(functools.partial, _tensorflow_step),
        "torch": _RecordedTorchStep,
    }
    return steps[keras.config.backend()](model)


# --- What the engines share ----------------------------------------------------------------------


def _parts(arrays: Any, num_parts: int) -> list[tuple[Any, float]]:
    """Split a batch into parts, in one group or, where their number does not divide it, in two.

    Part i holds samples i, i + num_parts, ...: with the batch spread over devices, each splits the
    samples that it has.

    Args:
        arrays: of the batch.
        num_parts: of both groups together; one for each sample if there are fewer of those.

    Returns:
        Of each group the arrays with an axis of parts in front, and how many times the samples of
        one of its parts are in the batch.
    """
    num_samples = keras.tree.flatten(arrays)[0].shape[0]
    if num_samples is None or num_samples % num_parts == 0:

        def split(array: Tensor) -> Tensor:
            array = ops.reshape(array, (-1, num_parts, *ops.shape(array)[1:]))
            return ops.swapaxes(array, 0, 1)

        return [(keras.tree.map_structure(split, arrays), num_parts)]
    size, larger = divmod(num_samples, num_parts)
    groups = [(range(larger), size + 1)]
    if size:
        groups.append((range(larger, num_parts), size))

    def stacked(places: range) -> Any:
        return keras.tree.map_structure(
            lambda array: ops.stack([array[i::num_parts] for i in places]), arrays
        )

    return [(stacked(places), num_samples / size) for places, size in groups]


def _part(parts: Any, index: Any) -> Any:
    return keras.tree.map_structure(lambda array: array[index], parts)


def _logs(
    model: TrainableModel,
    x: Any,
    y: Any,
    y_pred: Any,
    sample_weight: Any,
    loss: Tensor,
    updates: Tensor | None,
    seen: dict[str, Tensor],
) -> dict[str, Any]:
    """Metrics of a step that the optimizer has made, and what `after_step` tells.

    Args:
        model: as it is after the optimizer's step.
        x: of the whole batch, as the next three.
        y: labels, or None.
        y_pred: outputs; None if they were computed in parts, whose mean is the loss.
        sample_weight: or None.
        loss: mean of this device.
        updates: those that the optimizer had made before its step; see `_updates_before`.
        seen: what was observed on the way, of this device.
    """
    if y_pred is None:
        y_pred = ops.reshape(loss, (1,))
    # Counted on the device: torch would copy a number there, and wait for it.
    first = keras.tree.flatten(x)[0]
    num_samples = ops.sum(ops.ones_like(first[(slice(None), *[0] * (len(first.shape) - 1))]))
    loss_metric = next(metric for metric in model.metrics if metric.name == "loss")
    loss_metric.update_state(loss, sample_weight=num_samples)
    logs = model.compute_metrics(x, y, y_pred, sample_weight)
    moved = None if updates is None else updates_made(model.optimizer) > updates
    own: dict[str, Tensor] = {}
    if model.logs_each_step:
        own = {"step_loss": loss, "finite": all_finite(model.trainable_variables)}
    return {**logs, **collectives.reduce_logs({**seen, **own, **model.after_step(moved)})}


def _observed_update(optimizer: Any) -> Any:
    """Listen to an optimizer's step, unless it may be made within a branch of the program."""
    return observed(inner_optimizers(optimizer) == [optimizer])


def _updates_before(optimizer: Any) -> Tensor | None:
    """The number of updates before a step; None if each step makes one, and nobody need ask."""
    return updates_made(optimizer) if may_skip_updates(optimizer) else None


# --- torch ---------------------------------------------------------------------------------------


def _torch_step(model: TrainableModel, data: Any) -> dict[str, Any]:
    import torch

    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    num_parts, variables = model.accumulation_steps, model.trainable_variables
    outputs, loss, updates = None, 0.0, _updates_before(model.optimizer)
    parts: list[tuple[Any, float]] = [(x, 1)]
    if num_parts > 1:
        groups = _parts(x, num_parts)
        lengths = [len(keras.tree.flatten(group)[0]) for group, _ in groups]
        parts = [
            (_part(group, i), times)
            for (group, times), length in zip(groups, lengths, strict=True)
            for i in range(length)
        ]
    weights = [keras_internals.stored_value(variable) for variable in variables]
    for weight in weights:
        weight.grad = None
    seen: dict[str, Any] = {}
    with weight_copies() as copies:
        for inputs, times in parts:
            with observed() as found:
                outputs = model(inputs, **model.in_training)
            seen = {name: seen.get(name, 0.0) + found[name] / times for name in found}
            share = model.compute_loss(inputs, y, outputs, sample_weight) / times
            # Adds to what the variables hold. The scale is for float16, whose gradients underflow.
            model.optimizer.scale_loss(share).backward()
            copies.hand_over_gradients()
            loss = loss + share.detach()
    with torch.no_grad():
        # Keras' own step waits for the device here, to look at the loss.
        gradients = collectives.average_gradients([weight.grad for weight in weights])
        with _observed_update(model.optimizer) as norms:
            model.optimizer.apply(gradients, variables)
        outputs = outputs if num_parts == 1 else None
        return _logs(model, x, y, outputs, sample_weight, loss, updates, {**seen, **norms})


class _RecordedTorchStep:
    """`_torch_step`, recorded where that can be done and pays: see `RecordedStep`."""

    def __init__(self, model: TrainableModel) -> None:
        def all_variables() -> list[keras.Variable]:
            return [*model.variables, *model.optimizer.variables, *model.metrics_variables]

        self.model = model
        self.recorded = RecordedStep(lambda batch: _torch_step(model, (batch,)), all_variables)

    def __call__(self, data: Any) -> dict[str, Any]:
        x, y, _ = keras.utils.unpack_x_y_sample_weight(data)
        # A recording is of one dictionary of arrays.
        if self.model.run_eagerly or y is not None or not isinstance(x, dict):
            return _torch_step(self.model, data)
        return self.recorded(x)


# --- TensorFlow ----------------------------------------------------------------------------------


def _tensorflow_step(model: TrainableModel, data: Any) -> dict[str, Any]:
    import tensorflow as tf

    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    num_parts, weights = model.accumulation_steps, model.trainable_weights
    updates, names = _updates_before(model.optimizer), model.observes(x)

    def gradients_of(inputs: Any, times: float) -> tuple[Tensor, list[Tensor], list[Tensor], Any]:
        # By itself a tape watches all variables, those that Keras has frozen since they were made
        # too, and records what they lead to.
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([weight.value for weight in weights])
            with observed() as found:
                outputs = model(inputs, **model.in_training)
            share = model.compute_loss(inputs, y, outputs, sample_weight) / times
            scaled = model.optimizer.scale_loss(share)
        shares = [found[name] / times for name in names]
        return share, tape.gradient(scaled, weights), shares, outputs

    def add_parts(total: tuple[Any, ...], parts: Any, times: float) -> tuple[Any, ...]:
        def add_part(i: Tensor, loss: Tensor, *sums: list[Tensor]) -> tuple[Any, ...]:
            share, *new, _ = gradients_of(_part(parts, i), times)
            added = [
                [a if b is None else a + b for a, b in zip(total, values, strict=True)]
                for total, values in zip(sums, new, strict=True)
            ]
            return i + 1, loss + share, *added

        length = keras.tree.flatten(parts)[0].shape[0]
        # One part's activations in memory at a time.
        _, *total = tf.while_loop(
            lambda i, *_: i < length, add_part, (0, *total), parallel_iterations=1
        )
        return tuple(total)

    if num_parts == 1:
        loss, gradients, shares, outputs = gradients_of(x, 1)
    else:
        outputs = None
        loss, gradients = 0.0, [tf.zeros(weight.shape, weight.dtype) for weight in weights]
        shares = [tf.zeros(()) for _ in names]
        for parts, times in _parts(x, num_parts):
            loss, gradients, shares = add_parts((loss, gradients, shares), parts, times)
    with _observed_update(model.optimizer) as norms:
        model.optimizer.apply(gradients, weights)
    loss = loss * collectives.replicas_in_sync()
    seen = {**dict(zip(names, shares, strict=True)), **norms}
    return _logs(model, x, y, outputs, sample_weight, loss, updates, seen)


# --- JAX -----------------------------------------------------------------------------------------


def _jax_step(model: TrainableModel, state: Any, data: Any) -> tuple[dict[str, Any], Any]:
    import jax

    trainable, non_trainable, optimizer, metrics = state
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    num_parts = model.accumulation_steps

    reached = ReachedWeights(len(trainable))

    def loss_and_updates(weights: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, Any]:
        with observed() as found:
            weights = reached.watched(weights)
            loss, updates = model.compute_loss_and_updates(weights, *args, **kwargs)
        return loss, (found, *updates)

    loss_and_gradients = jax.value_and_grad(loss_and_updates, has_aux=True)

    def gradients_of(inputs: Any, kept: Any) -> tuple[Any, ...]:
        (_, (found, loss, outputs, *kept)), gradients = loss_and_gradients(
            trainable,
            *kept,
            inputs,
            y,
            sample_weight,
            training=True,
            optimizer_variables=optimizer,
        )
        return gradients, loss, kept, outputs, found

    with keras.StatelessScope([*zip(model.optimizer.variables, optimizer, strict=True)]):
        updates = _updates_before(model.optimizer)
    # What a forward pass may change as well, such as the state of a random seed.
    kept = [non_trainable, metrics]
    if num_parts == 1:
        gradients, loss, kept, outputs, seen = gradients_of(x, kept)
    else:
        outputs, shares = None, []

        def add_part(total: Any, part: Any) -> tuple[Any, Any]:
            *new, kept, _, found = gradients_of(part, total[2])
            return (*jax.tree.map(jax.numpy.add, total[:2], tuple(new)), kept), found

        for parts, times in _parts(x, num_parts):
            start = jax.tree.map(jax.numpy.zeros_like, trainable), 0.0, kept
            (*totals, kept), found = jax.lax.scan(add_part, start, parts)
            totals.append(jax.tree.map(jax.numpy.sum, found))
            shares.append(jax.tree.map(lambda total, times=times: total / times, totals))
        add = functools.partial(jax.tree.map, jax.numpy.add)
        gradients, loss, seen = functools.reduce(add, shares)
    with _observed_update(model.optimizer) as norms:
        trainable, optimizer = model.optimizer.stateless_apply(
            optimizer, reached.of(gradients), trainable
        )
    return _in_state(
        model,
        (trainable, kept[0], optimizer, kept[1]),
        lambda: _logs(model, x, y, outputs, sample_weight, loss, updates, {**seen, **norms}),
    )


def _in_state(
    model: TrainableModel, state: tuple[Any, ...], function: Callable[[], Any]
) -> tuple[Any, tuple[Any, ...]]:
    """Run `function` on variables with the values of `state`; its result and their new values."""
    groups = (
        model.trainable_variables,
        model.non_trainable_variables,
        model.optimizer.variables,
        model.metrics_variables,
    )
    pairs = [
        pair
        for variables, values in zip(groups, state, strict=True)
        for pair in zip(variables, values, strict=True)
    ]
    with keras.StatelessScope(state_mapping=pairs) as scope:
        result = function()
    return result, tuple(
        [scope.get_current_value(variable) for variable in variables] for variables in groups
    )
