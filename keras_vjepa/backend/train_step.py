"""Make one training step on each engine, for the models that are trained by it (App. B, App. C).

A step computes the gradient of the mean loss over the whole batch, hands it to the optimizer, calls
the model's `after_step`, and returns the logs. On JAX and TensorFlow all of it is one compiled
program. On torch it never waits for the device, so that a GPU is never idle.

A batch that does not fit on a device at once (App. C: 3,072 clips a step) is worked through in
parts. Their gradients are added and applied once, so schedules, clipping, moving average and logs
are those of the whole batch. An optimizer that takes its gradient from several batches
(`gradient_accumulation_steps`) is different: there each batch is a step.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
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
    """Trains a Keras model by the step of this module, on every engine.

    As in `keras.Model`, the loss comes from `compute_loss` and the logs from `compute_metrics`;
    gradients and logs are those of all devices and processes. The model must be built when it is
    compiled. To change the step, override `after_step`, or `train_step` as in Keras.

    Attributes:
        accumulation_steps: number of parts in which a device works through its share of a batch;
            a share with fewer samples has fewer parts. More than one part is only for a loss that
            is the mean over samples.
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
        """Add to the logs of each step its own loss, `step_loss`, and whether weights are `finite`.

        `training.run` reads these.
        """
        if not self.logs_each_step:
            self.logs_each_step = True
            # The function may have been made before, and then its logs lack them.
            self.train_function = None

    @property
    def batch_size_matters(self) -> bool:  # type: ignore[override]
        """Return whether a training step must know the number of samples, to divide them."""
        return self.accumulation_steps > 1

    def after_step(self, moved: Tensor | None = None) -> dict[str, Tensor]:
        """Do work that follows the optimizer's step, within the compiled program.

        Variables are read and assigned as usual; values read from other attributes are constants
        until the next `compile`.

        Args:
            moved: bool scalar, whether the optimizer has changed the weights in this step; None
                for an optimizer that does so in every step.

        Returns:
            Scalars of this device to log besides the metrics.
        """
        return {}

    def observes(self, inputs: Any) -> tuple[str, ...]:
        """Name the scalars that a forward pass of a batch reports by `observe`.

        Args:
            inputs: the batch, or a part of it.
        """
        return ()

    def rematerialized_call(
        self, layer_call: Callable[..., Tensor], *args: Any, **kwargs: Any
    ) -> Callable[..., Tensor]:
        """Leave the model as it is in a `keras.RematScope`, and its parts to themselves.

        To compute all of it again would save nothing, and engines cannot: inputs are dictionaries.
        """
        if super().rematerialized_call(layer_call, *args, **kwargs) is layer_call:
            return layer_call
        # Not the same function: others look whether the scope asks that this model computes again.
        return lambda *args, **kwargs: layer_call(*args, **kwargs)

    def train_step(self, *args: Any) -> Any:
        """Make one optimizer step, then `after_step`; arguments and result are the engine's."""
        return self.one_step(*args)

    def get_metrics_result(self) -> dict[str, Any]:
        """Return the logs of a step or an epoch, averaged over all devices and processes."""
        return collectives.reduce_logs(super().get_metrics_result())

    def make_train_function(self, force: bool = False) -> Any:
        """Make the train function as Keras does, once Keras and torch have all that it needs.

        All processes get the weights of the first one, unless the engine does that itself.

        Raises:
            ValueError: for a model of which no weight is trained.
        """
        if not self.trainable_variables:
            raise ValueError(
                f"`trainable` must be True for a part of {self.name} to be trained: set it, and "
                "call `compile` again. Received: False everywhere"
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
            RuntimeError: if a private name of Keras or torch is gone; the message says which.
        """
        keras_internals.check()
        takes_training = "training" in inspect.signature(self.call).parameters
        self.in_training = {"training": True} if takes_training else {}
        self.one_step = _make_step(self)


Step = Callable[..., Any]


def _make_step(model: TrainableModel) -> Step:
    """Make the step of the running engine."""
    steps: dict[str, Callable[[TrainableModel], Step]] = {
        "jax": functools.partial(functools.partial, _jax_step),
        "tensorflow": functools.partial(functools.partial, _tensorflow_step),
        "torch": _RecordedTorchStep,
    }
    return steps[keras.config.backend()](model)


# --- What the engines share ----------------------------------------------------------------------


def _parts(arrays: Any, num_parts: int) -> list[tuple[Any, float]]:
    """Split a batch into parts of one size, or, if that cannot be, into two groups of parts.

    Part i holds samples i, i + num_parts, and so on. So if the batch is spread over devices, each
    device splits the samples that it has.

    Args:
        arrays: the arrays of the batch.
        num_parts: number of parts of both groups together; if there are fewer samples, each is a
            part.

    Returns:
        For each group, the arrays with an axis of parts in front, and the number of samples of the
        batch divided by that of one part.
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


def _given(x: Any, y: Any, sample_weight: Any) -> dict[str, Any]:
    """Collect by name what a batch has, so that labels and weights are split as the inputs are."""
    named = {"x": x, "y": y, "sample_weight": sample_weight}
    return {name: value for name, value in named.items() if value is not None}


def _loss_of(model: TrainableModel, part: dict[str, Any], outputs: Any) -> Tensor:
    return model.compute_loss(part["x"], part.get("y"), outputs, part.get("sample_weight"))


def _whole(outputs: list[Any]) -> Any:
    """Join the outputs of all parts, in the order that their samples had in the batch."""

    def joined(*parts: Tensor) -> Tensor:
        # The last parts may have one sample less than the first.
        size = parts[-1].shape[0]
        rows = ops.stack([part[:size] for part in parts], axis=1)
        rest = [part[size:] for part in parts if size is not None and part.shape[0] != size]
        return ops.concatenate([ops.reshape(rows, (-1, *rows.shape[2:])), *rest])

    return keras.tree.map_structure(joined, *outputs)


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
    """Call `after_step`, and return the logs of a step: its metrics and other scalars.

    Args:
        model: the model after the optimizer's step.
        x: inputs of the whole batch, as are the next three.
        y: labels, or None.
        y_pred: outputs; None if they were computed in parts, whose mean is the loss.
        sample_weight: weights of the samples, or None.
        loss: mean loss of this device.
        updates: the number of updates before the optimizer's step; see `_updates_before`.
        seen: scalars of this device that were reported by `observe`.
    """
    if y_pred is None:
        y_pred = ops.reshape(loss, (1,))
    # Samples are counted on the device: torch would copy a Python number there, and wait for it.
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
    """Collect scalars of an optimizer's step, unless it may run in a branch of the program."""
    return observed(inner_optimizers(optimizer) == [optimizer])


def _updates_before(optimizer: Any) -> Tensor | None:
    """Return the number of updates before a step; None if every step makes an update."""
    return updates_made(optimizer) if may_skip_updates(optimizer) else None


# --- torch ---------------------------------------------------------------------------------------


def _torch_step(model: TrainableModel, data: Any) -> dict[str, Any]:
    import torch

    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    # Loss and metrics would each copy labels that are arrays, as `train_on_batch` gives them.
    y, sample_weight = keras.tree.map_structure(_tensor_of_array, (y, sample_weight))
    num_parts, variables = model.accumulation_steps, model.trainable_variables
    outputs, loss, updates = None, 0.0, _updates_before(model.optimizer)
    batch = _given(x, y, sample_weight)
    parts: list[tuple[Any, float]] = [(batch, 1)]
    if num_parts > 1:
        groups = _parts(batch, num_parts)
        lengths = [len(keras.tree.flatten(group)[0]) for group, _ in groups]
        parts = [
            (_part(group, i), times)
            for (group, times), length in zip(groups, lengths, strict=True)
            for i in range(length)
        ]
    weights = [keras_internals.stored_value(variable) for variable in variables]
    for weight in weights:
        weight.grad = None
    averages = collectives.GradientAverages(weights)
    seen: dict[str, Any] = {}
    labelled: list[Any] = []
    with weight_copies() as copies:
        for number, (part, times) in enumerate(parts, 1):
            with observed() as found:
                outputs = model(part["x"], **model.in_training)
            seen = {name: seen.get(name, 0.0) + found[name] / times for name in found}
            share = _loss_of(model, part, outputs) / times
            # This adds to the gradients so far. The loss is scaled for float16, whose small
            # gradients would underflow.
            with averages.summed_meanwhile(last_pass=number == len(parts)):
                model.optimizer.scale_loss(share).backward()
            copies.hand_over_gradients()
            loss = loss + share.detach()
            if y is not None:
                labelled.append(outputs)
    with torch.no_grad():
        # Keras' own step would wait for the device here, to read the loss.
        gradients = averages.whole()
        with _observed_update(model.optimizer) as norms:
            model.optimizer.apply(gradients, variables)
        if num_parts > 1:
            outputs = _whole(labelled) if labelled else None
        return _logs(model, x, y, outputs, sample_weight, loss, updates, {**seen, **norms})


def _tensor_of_array(value: Any) -> Any:
    return ops.convert_to_tensor(value) if isinstance(value, np.ndarray) else value


class _RecordedTorchStep:
    """Runs `_torch_step`, recorded if that can be done and pays; see `RecordedStep`."""

    def __init__(self, model: TrainableModel) -> None:
        def all_variables() -> list[keras.Variable]:
            return [*model.variables, *model.optimizer.variables, *model.metrics_variables]

        self.model = model
        self.recorded = RecordedStep(lambda batch: _torch_step(model, (batch,)), all_variables)

    def __call__(self, data: Any) -> dict[str, Any]:
        x, y, _ = keras.utils.unpack_x_y_sample_weight(data)
        # A step can only be recorded for one dictionary of arrays.
        if self.model.run_eagerly or y is not None or not isinstance(x, dict):
            return _torch_step(self.model, data)
        return self.recorded(x)


# --- TensorFlow ----------------------------------------------------------------------------------


def _tensorflow_step(model: TrainableModel, data: Any) -> dict[str, Any]:
    import tensorflow as tf

    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    num_parts, weights = model.accumulation_steps, model.trainable_weights
    updates, names = _updates_before(model.optimizer), model.observes(x)

    def gradients_of(part: Any, times: float) -> tuple[Tensor, list[Tensor], list[Tensor], Any]:
        # By default a tape watches all variables, also those that Keras has frozen since, and
        # records all operations on them.
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([weight.value for weight in weights])
            with observed() as found:
                outputs = model(part["x"], **model.in_training)
            share = _loss_of(model, part, outputs) / times
            scaled = model.optimizer.scale_loss(share)
        shares = [found[name] / times for name in names]
        return share, tape.gradient(scaled, weights), shares, outputs

    batch = _given(x, y, sample_weight)
    if num_parts == 1:
        loss, gradients, shares, outputs = gradients_of(batch, 1)
    else:
        zeros = [tf.zeros(weight.shape, weight.dtype) for weight in weights]
        total, labelled = (0.0, zeros, [tf.zeros(()) for _ in names]), []
        for parts, times in _parts(batch, num_parts):
            total, made = _tensorflow_sum(model, gradients_of, parts, times, total)
            labelled += made
        loss, gradients, shares = total
        outputs = _whole(labelled) if labelled else None
    with _observed_update(model.optimizer) as norms:
        model.optimizer.apply(gradients, weights)
    loss = loss * collectives.replicas_in_sync()
    seen = {**dict(zip(names, shares, strict=True)), **norms}
    return _logs(model, x, y, outputs, sample_weight, loss, updates, seen)


def _tensorflow_sum(
    model: TrainableModel,
    gradients_of: Callable[..., Any],
    parts: dict[str, Any],
    times: float,
    total: tuple[Any, ...],
) -> tuple[tuple[Any, ...], list[Any]]:
    """Add loss, gradients and what was observed of parts to `total`; also return their outputs.

    Outputs are kept only for labelled parts, whose metrics need them; the outputs of other parts
    are losses.
    """
    import tensorflow as tf

    length = keras.tree.flatten(parts)[0].shape[0]
    arrays, spec = [], None
    if "y" in parts:
        spec = model.compute_output_spec(_part(parts, 0)["x"], **model.in_training)
        arrays = [
            tf.TensorArray(one.dtype, length, element_shape=one.shape)
            for one in keras.tree.flatten(spec)
        ]

    def add_part(i: Tensor, made: Any, loss: Tensor, *sums: list[Tensor]) -> tuple[Any, ...]:
        share, *new, outputs = gradients_of(_part(parts, i), times)
        flat = keras.tree.flatten(outputs)[: len(made)]
        made = [array.write(i, one) for array, one in zip(made, flat, strict=True)]
        added = [
            [a if b is None else a + b for a, b in zip(total, values, strict=True)]
            for total, values in zip(sums, new, strict=True)
        ]
        return i + 1, made, loss + share, *added

    # Only one iteration at a time, so that memory holds the activations of one part.
    _, arrays, *found = tf.while_loop(
        lambda i, *_: i < length, add_part, (0, arrays, *total), parallel_iterations=1
    )
    if spec is None:
        return tuple(found), []
    stacked = keras.tree.pack_sequence_as(spec, [array.stack() for array in arrays])
    return tuple(found), [_part(stacked, i) for i in range(length)]


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

    def gradients_of(part: Any, kept: Any) -> tuple[Any, ...]:
        (_, (found, loss, outputs, *kept)), gradients = loss_and_gradients(
            trainable,
            *kept,
            part["x"],
            part.get("y"),
            part.get("sample_weight"),
            training=True,
            optimizer_variables=optimizer,
        )
        return gradients, loss, kept, outputs, found

    with keras.StatelessScope([*zip(model.optimizer.variables, optimizer, strict=True)]):
        updates = _updates_before(model.optimizer)
    # Variables that a forward pass may change too, such as the state of a random seed.
    kept, batch = [non_trainable, metrics], _given(x, y, sample_weight)
    if num_parts == 1:
        gradients, loss, kept, outputs, seen = gradients_of(batch, kept)
    else:
        parts = _parts(batch, num_parts)
        gradients, loss, kept, outputs, seen = _jax_sum(gradients_of, parts, trainable, kept)
    with _observed_update(model.optimizer) as norms:
        trainable, optimizer = model.optimizer.stateless_apply(
            optimizer, reached.of(gradients), trainable
        )
    return _in_state(
        model,
        (trainable, kept[0], optimizer, kept[1]),
        lambda: _logs(model, x, y, outputs, sample_weight, loss, updates, {**seen, **norms}),
    )


def _jax_sum(
    gradients_of: Callable[..., Any], groups: list[tuple[Any, float]], trainable: Any, kept: Any
) -> tuple[Any, ...]:
    """Compute what `gradients_of` returns for a whole batch from its parts, one after the other.

    Outputs are kept only for labelled parts, whose metrics need them; the outputs of other parts
    are losses.
    """
    import jax

    shares: list[Any] = []
    labelled: list[Any] = []

    def add_part(total: Any, part: Any) -> tuple[Any, Any]:
        *new, kept, outputs, found = gradients_of(part, total[2])
        outputs = outputs if "y" in part else None
        return (*jax.tree.map(jax.numpy.add, total[:2], tuple(new)), kept), (found, outputs)

    for parts, times in groups:
        start = jax.tree.map(jax.numpy.zeros_like, trainable), 0.0, kept
        (*totals, kept), (found, outputs) = jax.lax.scan(add_part, start, parts)
        totals.append(jax.tree.map(jax.numpy.sum, found))
        shares.append(jax.tree.map(lambda total, times=times: total / times, totals))
        if "y" in parts:
            length = len(keras.tree.flatten(parts)[0])
            labelled += [_part(outputs, i) for i in range(length)]
    add = functools.partial(jax.tree.map, jax.numpy.add)
    gradients, loss, seen = functools.reduce(add, shares)
    return gradients, loss, kept, _whole(labelled) if labelled else None, seen


def _in_state(
    model: TrainableModel, state: tuple[Any, ...], function: Callable[[], Any]
) -> tuple[Any, tuple[Any, ...]]:
    """Run a function on variables with the values of `state`; return result and new values."""
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
