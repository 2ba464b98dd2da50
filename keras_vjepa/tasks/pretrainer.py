"""The joint-embedding predictive objective and its training step (§3.1 eq. 1, App. B eq. 2).

Departures from the paper's text, as in the authors' code: targets pass through a LayerNorm without
parameters; the loss is a mean over features too (the paper's is the sum, larger by the width); an
optional variance regulariser exists, with weight 0 in all of the paper's runs.

Beyond both, off by default, for small models on little data: variance and covariance terms on the
context encoder's features, as in VICReg (Bardes, Ponce and LeCun, 2022); pixel targets that are not
normalised; a frozen teacher in place of the moving average (SALT: Li et al., 2025).

One batch is a dictionary (the only contract with `keras_vjepa.data`):

    videos             float32 (batch, frames, height, width, channels), normalised
    context_indices_i  int32 (batch, context tokens), for each kind of mask i = 0, 1, ...
    target_indices_i   int32 (batch, target tokens)

Indices count tokens by time, then row, then column; -1 marks padding at the end of a row.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Self

import keras
from keras import ops
from keras.utils import unpack_x_y_sample_weight

from keras_vjepa.arguments import check_flag, check_number, check_whole
from keras_vjepa.backend import collectives, updates
from keras_vjepa.backend.observations import observe
from keras_vjepa.backend.optimizer_state import batches_taken, inner_optimizers
from keras_vjepa.backend.torch_modules import TorchModule
from keras_vjepa.backend.train_step import TrainableModel
from keras_vjepa.layers.embedding import gather_tokens
from keras_vjepa.layers.layer_states import KeepsLayerStates
from keras_vjepa.models.backbone import VJEPABackbone
from keras_vjepa.models.pixels import PixelModel, is_in_memory
from keras_vjepa.models.predictor import VJEPAPredictor
from keras_vjepa.models.token_numbers import check_token_numbers
from keras_vjepa.presets.claims import described_class, weights_asked_for
from keras_vjepa.presets.preset import CONFIG_FILE, WEIGHTS_FILE, Preset
from keras_vjepa.tasks.objective import (
    deviation_of_features,
    prediction_loss,
    spread_losses,
    without_padding,
)
from keras_vjepa.tasks.pretraining_batch import check_batch, is_stream
from keras_vjepa.training.batches import FirstSteps, opened
from keras_vjepa.training.optimizer import AdamW
from keras_vjepa.training.schedules import LinearSchedule
from keras_vjepa.types import Batch, Tensor

TARGET_NORM_EPSILON = 1e-5
TARGETS = ("features", "pixels")
_ENCODER_FILE, _TEACHER_FILE = "encoder.weights.h5", "teacher.weights.h5"


@keras.saving.register_keras_serializable("keras_vjepa")
class VJEPAPretrainer(Preset, KeepsLayerStates, PixelModel, TorchModule, TrainableModel):
    """Encoder, predictor and moving-average target encoder, trained together (§3.1, App. B).

    Compile it with an optimizer (no loss) and call `fit` on batches as described at the top of
    this module. The target encoder starts as a copy of the encoder and follows it after every
    optimizer step, inside the compiled step.

    Args:
        encoder: the x-encoder.
        predictor: its `encoder_dim` must be the encoder's `hidden_dim`.
        momentum: schedule of the moving average, or a float. It counts batches, as the optimizer's
            schedules do.
        loss_exponent: q in mean(|z - h|^q) / q; 1 in the paper.
        variance_weight: weight of the variance regulariser; 0 in the paper.
        target: what is predicted: `"features"` of the target encoder, or `"pixels"`, the baseline
            of Table 1 (there with `loss_exponent=2`). The predictor's `output_dim` must fit. The
            target encoder follows the encoder either way.
        normalize_targets: whether each token's targets are normalised by their own mean and
            deviation, as in the paper's runs. Pixels that are not keep what is bright apart from
            what is dark: an even background then weighs nothing.
        context_variance_weight: weight of mean(relu(1 - deviation)) over the features of the
            context encoder, the deviation taken over the tokens of a device's batch.
        context_covariance_weight: weight of the sum of the squared covariances of different
            features, over the width. Both keep the features apart where the loss does not.
        teacher: None, or a trained encoder, of any size but with the same grid of tokens, whose
            features are predicted in place of the target encoder's. It stays as it is.
        padding: whether batches may hold padding (-1). Without it no attention is masked, which is
            faster where the backend's fused attention takes no mask.

    Call arguments:
        inputs: a batch.

    Returns:
        The loss of each sample, `(batch,)`.

    Example:

    >>> import numpy as np
    >>> from keras_vjepa import VJEPABackbone, VJEPAPredictor, VJEPAPretrainer
    >>> encoder = VJEPABackbone(32, 4, hidden_dim=24, num_layers=1, num_heads=2)
    >>> predictor = VJEPAPredictor(24, (2, 2, 2), 12, 1, 2, num_mask_tokens=1)
    >>> pretrainer = VJEPAPretrainer(encoder, predictor)
    >>> pretrainer.compile(optimizer="adam")
    >>> batch = {"videos": np.zeros((2, 4, 32, 32, 3), "float32")}
    >>> batch["context_indices_0"] = np.array([[0, 3], [1, 2]], "int32")
    >>> batch["target_indices_0"] = np.array([[4, 5, 6], [6, 7, -1]], "int32")
    >>> tuple(pretrainer(batch).shape)
    (2,)
    """

    config_file = "pretrainer.json"

    def __init__(
        self,
        encoder: VJEPABackbone,
        predictor: VJEPAPredictor,
        momentum: float | LinearSchedule = 0.998,
        loss_exponent: float = 1.0,
        variance_weight: float = 0.0,
        target: str = "features",
        normalize_targets: bool = True,
        context_variance_weight: float = 0.0,
        context_covariance_weight: float = 0.0,
        teacher: VJEPABackbone | None = None,
        padding: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_objective(
            loss_exponent,
            variance_weight,
            target,
            normalize_targets,
            context_variance_weight,
            context_covariance_weight,
        )
        if not isinstance(momentum, LinearSchedule):
            check_number("[0, 1]", momentum=momentum)
        check_flag(padding=padding)
        _check_fit(encoder, predictor, teacher, target)
        if encoder.drop_path_rate:
            # The target encoder, a copy, would leave out branches as well.
            raise ValueError(
                "`encoder` must have a `drop_path_rate` of 0: pretraining leaves nothing out "
                f"(App. C). Received: {encoder.drop_path_rate}"
            )
        self.encoder = encoder
        self.predictor = predictor
        self.momentum = momentum
        self.loss_exponent = loss_exponent
        self.variance_weight = variance_weight
        self.target = target
        self.normalize_targets = normalize_targets
        self.context_variance_weight = context_variance_weight
        self.context_covariance_weight = context_covariance_weight
        self.padding = padding
        self.teacher = teacher
        if teacher is not None:
            teacher.trainable = False
        self.target_encoder = _copy_of(encoder)
        self.built = True

    @property
    def trainable(self) -> bool:
        """Whether encoder and predictor learn; target encoder and teacher never do."""
        return super().trainable

    @trainable.setter
    def trainable(self, value: bool) -> None:
        KeepsLayerStates.trainable.fset(self, value)
        for encoder in self._not_trained():
            encoder.trainable = False

    def _not_trained(self) -> list[VJEPABackbone]:
        return [self.target_encoder, *([] if self.teacher is None else [self.teacher])]

    def described_elsewhere(self) -> list[keras.layers.Layer]:
        """Return all parts: they have configs of their own, or are copies of what has one."""
        return [self.encoder, self.predictor, *self._not_trained()]

    # --- The objective ---------------------------------------------------------------------------

    def targets(self, videos: Tensor) -> Tensor:
        """What the tokens of `videos` are to be predicted as, float32, without gradient.

        Features of the target encoder or the teacher, `(batch, tokens, hidden_dim)`, or pixels,
        `(batch, tokens, patch_dim)`; both normalised in each token, unless told otherwise.
        """
        if self.target == "features":
            values = (self.teacher or self.target_encoder)(videos)
        else:
            values = self.encoder.tubelet_embedding.patches(videos)
        values = ops.cast(values, "float32")
        if self.normalize_targets:
            values = ops.layer_normalization(values, axis=-1, epsilon=TARGET_NORM_EPSILON)
        return ops.stop_gradient(values)

    def encode_context(self, batch: Batch, mask_index: int) -> Tensor:
        """Features of the tokens that one kind of mask leaves visible.

        `(batch, context, hidden_dim)`; rows of padding hold no meaning.
        """
        indices, mask = batch[f"context_indices_{mask_index}"], None
        if self.padding:
            indices, mask = without_padding(indices), indices >= 0
        return self.encoder(batch["videos"], indices, mask)

    def predictions(self, batch: Batch, mask_index: int, context: Tensor | None = None) -> Tensor:
        """Predictions for the targets of one kind of mask, float32.

        `(batch, targets, output_dim)`; rows of padded targets hold no meaning. `context` is what
        `encode_context` gave, if it was called already.
        """
        if context is None:
            context = self.encode_context(batch, mask_index)
        context_indices = batch[f"context_indices_{mask_index}"]
        target_indices = batch[f"target_indices_{mask_index}"]
        tokens_mask = None
        if self.padding:
            tokens_mask = ops.concatenate([context_indices >= 0, target_indices >= 0], axis=1)
            context_indices = without_padding(context_indices)
            target_indices = without_padding(target_indices)
        predictions = self.predictor(
            context, context_indices, target_indices, tokens_mask, mask_index=mask_index
        )
        return ops.cast(predictions, "float32")

    def sample_losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Prediction loss and variance regulariser of each sample, two `(batch,)`.

        The loss holds the terms on the context's features, if they have a weight.
        """
        targets = self.targets(batch["videos"])
        num_masks = len(self.observes(batch))
        losses, deviations = [], []
        for i in range(num_masks):
            context = self.encode_context(batch, i)
            predictions = self.predictions(batch, i, context)
            indices = batch[f"target_indices_{i}"]
            valid = ops.cast(ops.expand_dims(indices >= 0, -1), "float32")
            wanted = gather_tokens(targets, without_padding(indices))
            loss = prediction_loss(predictions, wanted, valid, self.loss_exponent)
            observe(f"loss_mask_{i}", functools.partial(_mean_alone, loss))
            losses.append(loss + self._context_penalty(context, batch[f"context_indices_{i}"]))
            deviations.append(deviation_of_features(predictions, valid))
        # Every kind of mask counts equally, whatever its number of tokens.
        deviation = sum(deviations) / num_masks
        variance_loss = ops.mean(ops.relu(1.0 - deviation), axis=-1)
        return sum(losses) / num_masks, variance_loss

    def observes(self, inputs: Batch) -> tuple[str, ...]:
        """Name the prediction losses of the kinds of masks, which a step has in its logs."""
        # The call itself says what is wrong with another thing than a batch.
        names = inputs if isinstance(inputs, Mapping) else ()
        kinds = sum(name.startswith("target_indices_") for name in names)
        return tuple(f"loss_mask_{i}" for i in range(kinds))

    def _context_penalty(self, context: Tensor, indices: Tensor) -> Tensor | float:
        if not (self.context_variance_weight or self.context_covariance_weight):
            return 0.0
        valid = ops.cast(ops.reshape(indices >= 0, (-1, 1)), "float32")
        variance_loss, covariance_loss = spread_losses(
            ops.reshape(ops.cast(context, "float32"), (-1, context.shape[-1])), valid
        )
        return (
            self.context_variance_weight * variance_loss
            + self.context_covariance_weight * covariance_loss
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As Keras'; what is no batch is said without the page that Keras wraps errors in."""
        self._check(inputs=args[0] if args else kwargs.get("inputs"))
        return super().__call__(*args, **kwargs)

    def _check(self, **given: Any) -> None:
        """Check that what is given is a batch, of tokens that a clip has; -1 stands for none."""
        check_batch(**given)
        for inputs in given.values():
            numbers = {name: inputs[name] for name in inputs if "_indices_" in name}
            check_token_numbers(self.predictor.num_tokens, numbers, least=-1)

    def call(self, inputs: Batch) -> Tensor:
        # Again, for an engine that calls it without the above.
        check_batch(inputs=inputs)
        loss, variance_loss = self.sample_losses(inputs)
        if self.variance_weight:
            loss = loss + self.variance_weight * variance_loss
        return loss

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Tensor:
        """The mean of the samples' losses, and what regularisers of layers add to it."""
        return collectives.loss_share(sum(self.losses, ops.mean(y_pred)))

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
    ) -> dict[str, Any]:
        """As Keras', whose `loss` is the epoch's mean so far, with this step's own beside it."""
        step_loss = ops.mean(ops.stop_gradient(y_pred))
        logs = super().compute_metrics(x, y, y_pred, sample_weight)
        return {**logs, **collectives.reduce_logs({"step_loss": step_loss})}

    def compute_output_shape(self, input_shape: dict[str, Sequence[int | None]]) -> Any:
        return (input_shape["videos"][0],)

    def compute_output_spec(self, inputs: dict[str, keras.KerasTensor]) -> keras.KerasTensor:
        # Losses are float32; Keras would promise the type that is computed in.
        shape = self.compute_output_shape({"videos": inputs["videos"].shape})
        return keras.KerasTensor(shape, dtype="float32")

    # --- The training step -----------------------------------------------------------------------

    def fit(self, x: Any = None, *args: Any, **kwargs: Any) -> keras.callbacks.History:
        """As `keras.Model.fit`, which also takes batches as `keras_vjepa.data.ClipBatches` makes.

        Of those it takes the batches from the optimizer's step on: several epochs, and several
        calls, continue one stream. Those that a `LossScaleOptimizer` skipped are seen again. As
        `validation_data` it takes of them the first `validation_steps`, the same after every epoch.

        Args:
            x: batches of a function of the step, or anything that Keras takes.
            args: as in Keras.
            kwargs: as in Keras. `steps_per_epoch` and `validation_steps` are needed with batches
                that have no end.
        """
        if is_in_memory(x):
            self._check(x=x)
        given, validation = {**kwargs}, kwargs.get("validation_data")
        with ExitStack() as stack:
            if is_stream(validation):
                first = FirstSteps(validation, _steps(given, "validation_steps"))
                given["validation_data"] = first
                stack.enter_context(first.raising())
            elif validation is not None and is_in_memory(validation):
                self._check(validation_data=unpack_x_y_sample_weight(validation)[0])
            if is_stream(x) and self.compiled:
                _steps(given, "steps_per_epoch")
                done = int(ops.convert_to_numpy(batches_taken(self.optimizer)))
                source = stack.enter_context(opened(x, done))
                x, given = ((batch,) for batch in source), {"shuffle": False, **given}
            return super().fit(x, *args, **given)

    def evaluate(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.evaluate`, of batches as `keras_vjepa.data.ClipBatches` makes too.

        Of those it takes the first, the same in every call. A batch is what the top of this module
        says; there are no labels.

        Args:
            x: batches of a function of the step, or anything that Keras takes.
            args: as in Keras.
            kwargs: as in Keras. `steps` is needed with batches that have no end.
        """
        with _finite(self, x, kwargs) as source:
            return super().evaluate(source, *args, **kwargs)

    def predict(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.predict`, the loss of each sample; `x` and `steps` as in `evaluate`."""
        with _finite(self, x, kwargs) as source:
            return super().predict(source, *args, **kwargs)

    def train_on_batch(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.train_on_batch`."""
        self._check(x=x)
        return super().train_on_batch(x, *args, **kwargs)

    def test_on_batch(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.test_on_batch`."""
        self._check(x=x)
        return super().test_on_batch(x, *args, **kwargs)

    def predict_on_batch(self, x: Any) -> Any:
        """As `keras.Model.predict_on_batch`: the loss of each sample."""
        self._check(x=x)
        return super().predict_on_batch(x)

    def compile(  # type: ignore[override]
        self, optimizer: Any = None, accumulation_steps: int = 1, **kwargs: Any
    ) -> None:
        """As `keras.Model.compile`, without a loss.

        What a step reads from attributes (`momentum`, weights of losses, `trainable`) is constant
        until the next call: compiled and recorded steps keep it. With `run_eagerly` nothing is
        kept.

        Args:
            optimizer: default: `AdamW`. An `AdamW`, also one in another optimizer, clips encoder
                and predictor each by its own norm.
            accumulation_steps: parts in which a device works through its share of a batch, one
                after the other, before the optimizer's step. The numbers stay the same, also for a
                batch that the parts do not divide.
            kwargs: as in Keras.
        """
        check_whole(1, accumulation_steps=accumulation_steps)
        self._check_parts()
        self.accumulation_steps = accumulation_steps
        self.prepare_step()
        optimizer = keras.optimizers.get(optimizer) if optimizer else AdamW()
        super().compile(optimizer=optimizer, **kwargs)
        # Now rather than in the first step: that step is then traced once, and saved optimizer
        # variables find their place.
        self.optimizer.build(self.trainable_variables)
        for inner in inner_optimizers(self.optimizer):
            if isinstance(inner, AdamW):
                inner.clip_separately(
                    [self.encoder.trainable_variables, self.predictor.trainable_variables],
                    ["encoder", "predictor"],
                )

    def _check_parts(self) -> None:
        """Check what was done to the parts since they were put together."""
        for part in self._not_trained():
            if any(variable.trainable for variable in part.variables):
                raise ValueError(
                    f"`trainable` must be False of {part.name}, which no gradient trains."
                )
        shapes = [[v.shape for v in e.variables] for e in (self.encoder, self.target_encoder)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                "`encoder` must have LoRA, or be quantized, before the pretrainer is made, so that "
                "its target encoder is like it."
            )

    def get_compile_config(self) -> dict[str, Any] | None:
        if not self.compiled:
            return None
        return {
            "optimizer": keras.saving.serialize_keras_object(self.optimizer),
            "accumulation_steps": self.accumulation_steps,
        }

    def compile_from_config(self, config: dict[str, Any]) -> None:
        optimizer = keras.saving.deserialize_keras_object(config["optimizer"])
        self.compile(optimizer, config["accumulation_steps"])

    def after_step(self, moved: Tensor | None = None) -> dict[str, Tensor]:
        """Move the target encoder (App. B), after each update of the optimizer.

        Args:
            moved: bool scalar, whether there was an update; None for True.

        Returns:
            `finite`, 1.0 or 0.0: whether the step left finite weights. A gradient that is not
            finite shows in the step that made it.
        """
        self.update_target_encoder(moved)
        return {"finite": updates.all_finite(self.trainable_variables)}

    def log_each_step(self) -> None:
        """As every model that training takes; the logs of a pretrainer hold that anyway."""

    def update_target_encoder(self, moved: Tensor | None = None) -> None:
        """target = momentum * target + (1 - momentum) * encoder, over all variables.

        Args:
            moved: bool scalar; where it is False, nothing changes. None for True.
        """
        rate = self._update_rate()
        if moved is not None:
            rate = rate * ops.cast(moved, "float32")
        encoders = (self.target_encoder, self.encoder)
        # Quantized kernels are whole numbers, and stand still.
        targets, sources = (
            [v for v in encoder.variables if keras.backend.is_float_dtype(v.dtype)]
            for encoder in encoders
        )
        updates.move_towards(targets, sources, rate)

    def _update_rate(self) -> Tensor:
        if not isinstance(self.momentum, LinearSchedule):
            return 1.0 - self.momentum
        # The optimizer has counted its step already: the first update sees batch 1.
        batches = ops.convert_to_tensor(batches_taken(self.optimizer))
        return self.momentum.complement(batches - 1)

    def export(self, *args: Any, **kwargs: Any) -> None:
        """Refuse: what other programs run is an encoder.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "A pretrainer is not exported: export what it trains, `target_encoder`, `encoder` or "
            "`predictor`."
        )

    # --- Configuration ---------------------------------------------------------------------------

    def preset_files(self) -> dict[str, Any]:
        files: dict[str, Any] = {
            CONFIG_FILE: self.target_encoder,
            WEIGHTS_FILE: self.target_encoder,
            self.config_file: self,
            _ENCODER_FILE: self.encoder,
            **self.predictor.preset_files(),
        }
        if self.teacher is not None:
            files[_TEACHER_FILE] = self.teacher
        return files

    @classmethod
    def weights_asked_for(cls, config: Mapping[str, Any]) -> dict[str, int]:
        """As `VJEPABackbone.weights_asked_for`, for all its parts."""
        if isinstance(config.get("momentum"), dict):
            described_class(config["momentum"], LinearSchedule)
        encoder = weights_asked_for(config.get("encoder"), VJEPABackbone)
        asked_for = {**encoder, **weights_asked_for(config.get("predictor"), VJEPAPredictor)}
        for number in encoder.values():
            asked_for[_ENCODER_FILE] = number
        if config.get("teacher") is not None:
            teacher = weights_asked_for(config["teacher"], VJEPABackbone)
            for number in teacher.values():
                asked_for[_TEACHER_FILE] = number
        return asked_for

    def get_config(self) -> dict[str, Any]:
        momentum: Any = self.momentum
        if isinstance(momentum, LinearSchedule):
            momentum = keras.saving.serialize_keras_object(momentum)
        return {
            **super().get_config(),
            "encoder": keras.saving.serialize_keras_object(self.encoder),
            "predictor": keras.saving.serialize_keras_object(self.predictor),
            "momentum": momentum,
            "loss_exponent": self.loss_exponent,
            "variance_weight": self.variance_weight,
            "target": self.target,
            "normalize_targets": self.normalize_targets,
            "context_variance_weight": self.context_variance_weight,
            "context_covariance_weight": self.context_covariance_weight,
            "teacher": self.teacher and keras.saving.serialize_keras_object(self.teacher),
            "padding": self.padding,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Self:
        parts: dict[str, Any] = {
            name: keras.saving.deserialize_keras_object(config[name], custom_objects=custom_objects)
            for name in ("encoder", "predictor", "momentum", "teacher")
            # Presets of before there were teachers do not name one.
            if name in config
        }
        return cls(**{**config, **parts})


def _mean_alone(losses: Tensor) -> Tensor:
    return ops.mean(ops.stop_gradient(losses))


def check_objective(
    loss_exponent: float,
    variance_weight: float,
    target: str,
    normalize_targets: bool,
    context_variance_weight: float,
    context_covariance_weight: float,
) -> None:
    """Check arguments of `VJEPAPretrainer`, before there is a model.

    Raises:
        ValueError: for the first that is out of range.
    """
    if target not in TARGETS:
        raise ValueError(f"`target` must be one of {TARGETS}. Received: {target!r}")
    check_number("(0, 64]", loss_exponent=loss_exponent)
    check_number(
        "[0, inf)",
        variance_weight=variance_weight,
        context_variance_weight=context_variance_weight,
        context_covariance_weight=context_covariance_weight,
    )
    check_flag(normalize_targets=normalize_targets)


def _check_fit(
    encoder: VJEPABackbone, predictor: VJEPAPredictor, teacher: VJEPABackbone | None, target: str
) -> None:
    if predictor.encoder_dim != encoder.hidden_dim:
        raise ValueError(
            f"The predictor's `encoder_dim` must be the encoder's `hidden_dim`="
            f"{encoder.hidden_dim}. Received: {predictor.encoder_dim}"
        )
    if predictor.grid_shape != encoder.position_axes:
        raise ValueError(
            f"The predictor's `grid_shape` must be the encoder's {encoder.position_axes}. "
            f"Received: {predictor.grid_shape}"
        )
    if teacher is not None and target != "features":
        raise ValueError(f"`target` must be 'features' with a `teacher`. Received: {target!r}")
    if teacher is not None and teacher.position_axes != encoder.position_axes:
        raise ValueError(
            f"The teacher's grid of tokens must be the encoder's {encoder.position_axes}. "
            f"Received: {teacher.position_axes}"
        )
    target_dim = (teacher or encoder).hidden_dim if target == "features" else encoder.patch_dim
    if predictor.output_dim != target_dim:
        raise ValueError(
            f"The predictor's `output_dim` must be {target_dim} for `target`={target!r}. "
            f"Received: {predictor.output_dim}"
        )


@contextmanager
def _finite(model: VJEPAPretrainer, source: Any, given: Mapping[str, Any]) -> Iterator[Any]:
    """Lend what Keras can evaluate in place of endless batches, and raise what these raise."""
    if not is_stream(source):
        if is_in_memory(source):
            model._check(x=source)
        yield source
        return
    first = FirstSteps(source, _steps(given, "steps"))
    with first.raising():
        yield first


def _steps(given: Mapping[str, Any], name: str) -> int:
    """How many batches to take of such as have no end."""
    steps = given.get(name)
    if steps is None:
        raise ValueError(f"`{name}` must be given with endless batches. Received: None")
    check_whole(1, **{name: steps})
    return int(steps)


def _copy_of(encoder: VJEPABackbone) -> VJEPABackbone:
    config = encoder.get_config()
    if encoder.dtype_policy.variable_dtype in ("bfloat16", "float16"):
        # Half-precision variables would stand still: their steps round to nothing.
        config["dtype"] = f"mixed_{encoder.dtype_policy.compute_dtype}"
    target = VJEPABackbone.from_config({**config, "name": f"target_{encoder.name}"})
    target.trainable = False
    # Through NumPy: a shared buffer would break the donation of the training state.
    target.set_weights(collectives.values(encoder.weights))
    return target
