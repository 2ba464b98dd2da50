"""Train encoders by the joint-embedding predictive objective (§3.1 eq. 1, App. B eq. 2).

Departures from the paper's text, as in the authors' code: targets pass through a LayerNorm without
parameters; the loss is a mean over features too (the paper's is the sum, larger by the width); an
optional variance regulariser exists, with weight 0 in all of the paper's runs.

Additions to both, which are off by default and meant for small models on little data: variance and
covariance terms on the context encoder's features, as in VICReg (Bardes, Ponce and LeCun, 2022);
pixel targets that are not normalised; a frozen teacher in place of the moving average (SALT: Li et
al., 2025).

V-JEPA 2.1's objective (vjepa21 §3) is made by a predictor with `num_levels` and `predicts_context`:
targets of several levels, each normalised by itself, and a loss at the context tokens, which counts
less the farther a token is from the nearest target.

One batch is a dictionary (the only contract with `keras_vjepa.data`):

    videos             float32 (batch, frames, height, width, channels), normalised
    context_indices_i  int32 (batch, context tokens), for each kind of mask i = 0, 1, ...
    target_indices_i   int32 (batch, target tokens)
    targets            float32 (batch, tokens, output_dim), only for `target="given"`

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
from keras_vjepa.models.averaged import averaged_copy, check_unchanged
from keras_vjepa.models.backbone import VJEPABackbone
from keras_vjepa.models.dimensions import MOST_LAYERS
from keras_vjepa.models.pixels import PixelModel, is_in_memory
from keras_vjepa.models.predictor import VJEPAPredictor
from keras_vjepa.models.token_numbers import check_token_numbers
from keras_vjepa.presets.claims import described_class, weights_asked_for
from keras_vjepa.presets.preset import CONFIG_FILE, WEIGHTS_FILE, Preset
from keras_vjepa.tasks.context_loss import ContextLoss
from keras_vjepa.tasks.objective import (
    deviation_of_features,
    normalized_levels,
    prediction_loss,
    spread_losses,
    without_padding,
)
from keras_vjepa.tasks.pretraining_batch import check_batch, check_images, is_stream
from keras_vjepa.training.batches import FirstSteps, opened
from keras_vjepa.training.optimizer import AdamW
from keras_vjepa.training.schedules import LinearSchedule
from keras_vjepa.types import Batch, Tensor

TARGET_NORM_EPSILON = 1e-5
TARGETS = ("features", "pixels", "given")
_ENCODER_FILE, _TEACHER_FILE = "encoder.weights.h5", "teacher.weights.h5"


@keras.saving.register_keras_serializable("keras_vjepa")
class VJEPAPretrainer(
    ContextLoss, Preset, KeepsLayerStates, PixelModel, TorchModule, TrainableModel
):
    """Trains an encoder and a predictor against a moving-average target encoder (§3.1, App. B).

    Compile it with an optimizer (no loss), and call `fit` with batches, such as those of
    `keras_vjepa.data.ClipBatches`. A batch is a dictionary of `videos`, float32 `(batch, frames,
    height, width, channels)`, and, for each kind of mask i, of `context_indices_i` and
    `target_indices_i`, int32 `(batch, tokens)`, in which -1 is padding. The target encoder starts
    as a copy of the encoder and follows it after every optimizer step, inside the compiled step.

    Args:
        encoder: the encoder that is trained.
        predictor: its `encoder_dim` must be the encoder's `hidden_dim`.
        momentum: schedule of the moving average, or a float. It counts batches, as the optimizer's
            schedules do.
        loss_exponent: q in mean(|z - h|^q) / q; 1 in the paper.
        variance_weight: weight of the variance regulariser; 0 in the paper.
        target: what is predicted: `"features"` of the target encoder, or `"pixels"`, the baseline
            of Table 1 (there with `loss_exponent=2`), or features that are `"given"` as `targets`
            in each batch, such as those of a teacher that ran before. The predictor's `output_dim`
            must fit. The target encoder follows the encoder in any case.
        normalize_targets: whether each token's targets are normalised by their own mean and
            deviation, as in the paper's runs. Pixels that are not normalised keep the contrast
            between bright and dark; an even background then counts for nothing.
        context_variance_weight: weight of mean(relu(1 - deviation)) over the features of the
            context encoder, the deviation taken over the tokens of a device's batch.
        context_covariance_weight: weight of the sum of the squared covariances of different
            features, over the width. Both keep the features apart where the loss does not.
        teacher: None, or a trained encoder, of any size but with the same grid of tokens, whose
            features are predicted in place of the target encoder's. It stays as it is.
        padding: whether batches may hold padding (-1). Without it no attention is masked, which is
            faster where the backend's fused attention takes no mask.
        context_loss_weight: weight of the loss at the context tokens (V-JEPA 2.1: 0.5); the
            predictor must have `predicts_context`.
        context_loss_by_distance: whether that loss is divided, for each token, by the root of its
            distance to the nearest target, in tokens.
        context_distance_unit: length in tokens that counts as 1 in these distances.
        context_warmup_start: step up to which the loss at the context tokens has no weight.
        context_warmup_end: step from which it has all its weight; 0 for no warm-up (V-JEPA 2.1:
            from 15,000 to 30,000).
        mask_token: number of the predictor's mask token for every kind of masks (V-JEPA 2.1: 0);
            None gives each kind its own.

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
        context_loss_weight: float = 0.0,
        context_loss_by_distance: bool = True,
        context_distance_unit: float = 1.0,
        context_warmup_start: int = 0,
        context_warmup_end: int = 0,
        mask_token: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_objective(
            *(loss_exponent, variance_weight, target, normalize_targets),
            *(context_variance_weight, context_covariance_weight, mask_token),
        )
        if not isinstance(momentum, LinearSchedule):
            check_number("[0, 1]", momentum=momentum)
        check_flag(padding=padding)
        check_whole(0, predictor.num_mask_tokens - 1, optional=True, mask_token=mask_token)
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
        self.set_context_loss(
            *(predictor, context_loss_weight, context_loss_by_distance, context_distance_unit),
            *(context_warmup_start, context_warmup_end),
        )
        self.mask_token = mask_token
        self.teacher = teacher
        if teacher is not None:
            teacher.trainable = False
        self.target_encoder = averaged_copy(encoder, f"target_{encoder.name}")
        self.built = True

    @property
    def trainable(self) -> bool:
        """Return whether encoder and predictor learn; target encoder and teacher never do."""
        return super().trainable

    @trainable.setter
    def trainable(self, value: bool) -> None:
        KeepsLayerStates.trainable.fset(self, value)
        for encoder in self._not_trained():
            encoder.trainable = False

    def _not_trained(self) -> list[VJEPABackbone]:
        return [self.target_encoder, *([] if self.teacher is None else [self.teacher])]

    def described_elsewhere(self) -> list[keras.layers.Layer]:
        """Return all parts: each has a config of its own, or is a copy of one that has."""
        return [self.encoder, self.predictor, *self._not_trained()]

    # --- The objective ---------------------------------------------------------------------------

    def targets(self, videos: Tensor, given: Tensor | None = None) -> Tensor:
        """Compute what the predictor has to predict for each token of videos, without gradient.

        Args:
            videos: float `(batch, frames, height, width, channels)`.
            given: the batch's `targets`, if `target` is "given".

        Returns:
            float32 features of the target encoder or the teacher, `(batch, tokens, hidden_dim)`, or
            of as many levels as the predictor has, side by side; or what is given; or pixels,
            `(batch, tokens, patch_dim)`. All are normalised in each token, and each level by
            itself, unless `normalize_targets` is False.

        Raises:
            ValueError: if `target` is "given" and nothing is.
        """
        if self.target == "given" and given is None:
            raise ValueError(
                "`given` must be features of the teacher, since `target` is 'given': make the "
                "pretrainer with the `teacher` itself. Received: None"
            )
        num_levels = self.predictor.num_levels
        if self.target == "pixels":
            num_levels, values = 1, self.encoder.tokenizer(videos.shape).patches(videos)
        elif self.target == "given":
            values = given
        else:
            encoder = self.teacher or self.target_encoder
            values = encoder(videos, hierarchical=True) if num_levels > 1 else encoder(videos)
        values = ops.cast(values, "float32")
        if self.normalize_targets:
            values = normalized_levels(values, num_levels, TARGET_NORM_EPSILON)
        return ops.stop_gradient(values)

    def encode_context(self, batch: Batch, mask_index: int) -> Tensor:
        """Compute the features of the tokens that one kind of mask leaves visible.

        Args:
            batch: as described at the top of this module.
            mask_index: number of the kind of mask.

        Returns:
            `(batch, context, hidden_dim)`, or as many levels as the predictor reads, side by side;
            rows of padding hold no meaning.
        """
        indices, mask = batch[f"context_indices_{mask_index}"], None
        if self.padding:
            indices, mask = without_padding(indices), indices >= 0
        if self.predictor.num_levels > 1:
            return self.encoder(batch["videos"], indices, mask, hierarchical=True)
        return self.encoder(batch["videos"], indices, mask)

    def predictions(self, batch: Batch, mask_index: int, context: Tensor | None = None) -> Tensor:
        """Predict the targets of one kind of mask.

        Args:
            batch: as described at the top of this module.
            mask_index: number of the kind of mask.
            context: what `encode_context` returned, if it was called already; else None.

        Returns:
            float32 `(batch, targets, output_dim)`; rows of padded targets hold no meaning.
        """
        if context is None:
            context = self.encode_context(batch, mask_index)
        return self.predicted(batch, mask_index, context)[0]

    def predicted(
        self, batch: Batch, mask_index: int, context: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Predict the targets, and what the predictor says of the context, or None."""
        context_indices = batch[f"context_indices_{mask_index}"]
        target_indices = batch[f"target_indices_{mask_index}"]
        tokens_mask = None
        if self.padding:
            tokens_mask = ops.concatenate([context_indices >= 0, target_indices >= 0], axis=1)
            context_indices = without_padding(context_indices)
            target_indices = without_padding(target_indices)
        # The argument is passed only if it matters, because predictors of other packages may not
        # have it.
        kind = {"is_image": batch["videos"].shape[1] == 1} if self.predictor.modalities else {}
        predictions = self.predictor(
            context,
            context_indices,
            target_indices,
            tokens_mask,
            mask_index=mask_index if self.mask_token is None else self.mask_token,
            **kind,
        )
        of_context = None
        if self.predictor.predicts_context:
            predictions, of_context = predictions
            of_context = ops.cast(of_context, "float32")
        return ops.cast(predictions, "float32"), of_context

    def sample_losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Compute the prediction loss and the variance regulariser of each sample.

        Args:
            batch: as described at the top of this module.

        Returns:
            Two tensors `(batch,)`. The loss includes the terms on the context's features and the
            loss at the context tokens, if they have a weight.
        """
        targets = self.targets(batch["videos"], batch.get("targets"))
        num_masks = len(self.observes(batch))
        losses, deviations = [], []
        for i in range(num_masks):
            context = self.encode_context(batch, i)
            predictions, of_context = self.predicted(batch, i, context)
            indices = batch[f"target_indices_{i}"]
            valid = ops.cast(ops.expand_dims(indices >= 0, -1), "float32")
            wanted = gather_tokens(targets, without_padding(indices))
            loss = prediction_loss(predictions, wanted, valid, self.loss_exponent)
            observe(f"loss_mask_{i}", functools.partial(_mean_alone, loss))
            loss = loss + self._context_penalty(context, batch[f"context_indices_{i}"])
            if self.context_loss_weight:
                loss = loss + self.context_factor() * self.context_loss(
                    batch, i, of_context, targets
                )
            losses.append(loss)
            deviations.append(deviation_of_features(predictions, valid))
        # Every kind of mask counts equally, whatever its number of tokens.
        deviation = sum(deviations) / num_masks
        variance_loss = ops.mean(ops.relu(1.0 - deviation), axis=-1)
        return sum(losses) / num_masks, variance_loss

    def observes(self, inputs: Batch) -> tuple[str, ...]:
        """Name the prediction losses, one for each kind of mask, that a step writes to its logs."""
        # If this is not a batch, the call itself reports what is wrong.
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
        """Call the model as Keras does, but refuse what is no batch by a short error of our own."""
        self._check(inputs=args[0] if args else kwargs.get("inputs"))
        return super().__call__(*args, **kwargs)

    def _check(self, **given: Any) -> None:
        """Check that each argument is a batch, and that its token numbers exist or are -1."""
        check_batch(target=self.target, **given)
        for inputs in given.values():
            num_tokens = self.predictor.num_tokens
            if self._holds_images(inputs):
                check_images(self.target, self.teacher)
                num_tokens //= self.encoder.grid_shape[0]
            numbers = {name: inputs[name] for name in inputs if "_indices_" in name}
            check_token_numbers(num_tokens, numbers, least=-1)

    def _holds_images(self, inputs: Batch) -> bool:
        shape: Sequence[int | None] = getattr(inputs["videos"], "shape", ())
        return self.encoder.modalities and len(shape) == 5 and shape[1] == 1

    def call(self, inputs: Batch) -> Tensor:
        # This repeats the check of `__call__`, because some engines call this method directly.
        check_batch(target=self.target, inputs=inputs)
        if self._holds_images(inputs):
            check_images(self.target, self.teacher)
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
        """Return the mean of the samples' losses, with what regularisers of layers add to it."""
        return collectives.loss_share(sum(self.losses, ops.mean(y_pred)))

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
    ) -> dict[str, Any]:
        """Return Keras' metrics, where `loss` is the epoch's mean so far, and this step's loss."""
        step_loss = ops.mean(ops.stop_gradient(y_pred))
        logs = super().compute_metrics(x, y, y_pred, sample_weight)
        return {**logs, **collectives.reduce_logs({"step_loss": step_loss})}

    def compute_output_shape(self, input_shape: dict[str, Sequence[int | None]]) -> Any:
        return (input_shape["videos"][0],)

    def compute_output_spec(self, inputs: dict[str, keras.KerasTensor]) -> keras.KerasTensor:
        # Losses are float32; Keras would announce the dtype of the computation.
        shape = self.compute_output_shape({"videos": inputs["videos"].shape})
        return keras.KerasTensor(shape, dtype="float32")

    # --- The training step -----------------------------------------------------------------------

    def fit(self, x: Any = None, *args: Any, **kwargs: Any) -> keras.callbacks.History:
        """Train as `keras.Model.fit` does, also on endless batches such as `ClipBatches`.

        `keras_vjepa.data.ClipBatches` makes each batch as a function of the step. Training takes
        those from the optimizer's step on, so that several epochs, and several calls, continue one
        stream. Batches that a `LossScaleOptimizer` skipped are seen again. As `validation_data`,
        the first `validation_steps` of them are taken, the same after every epoch.

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
        """Compute the loss as `keras.Model.evaluate` does, also on endless batches.

        Of batches as `keras_vjepa.data.ClipBatches` makes them, it takes the first ones, the same
        in every call. Batches are described at the top of this module; there are no labels.

        Args:
            x: batches of a function of the step, or anything that Keras takes.
            args: as in Keras.
            kwargs: as in Keras. `steps` is needed with batches that have no end.
        """
        with _finite(self, x, kwargs) as source:
            return super().evaluate(source, *args, **kwargs)

    def predict(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Compute the loss of each sample; `x` and `steps` are as in `evaluate`."""
        with _finite(self, x, kwargs) as source:
            return super().predict(source, *args, **kwargs)

    def train_on_batch(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Check a batch, then train on it as `keras.Model.train_on_batch` does."""
        self._check(x=x)
        return super().train_on_batch(x, *args, **kwargs)

    def test_on_batch(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Check a batch, then evaluate it as `keras.Model.test_on_batch` does."""
        self._check(x=x)
        return super().test_on_batch(x, *args, **kwargs)

    def predict_on_batch(self, x: Any) -> Any:
        """Check a batch, then compute the loss of each of its samples."""
        self._check(x=x)
        return super().predict_on_batch(x)

    def compile(  # type: ignore[override]
        self, optimizer: Any = None, accumulation_steps: int = 1, **kwargs: Any
    ) -> None:
        """Configure training as `keras.Model.compile` does, without a loss.

        Compiled and recorded steps keep the values of attributes (`momentum`, weights of losses,
        `trainable`) from this call until the next one. With `run_eagerly`, every step reads them.

        Args:
            optimizer: default: `AdamW`. An `AdamW`, also one inside another optimizer, clips the
                gradients of encoder and predictor separately, each by its own norm.
            accumulation_steps: number of parts in which a device works through its share of a
                batch, one after the other, before the optimizer's step. The results stay the same,
                also for a batch whose size the parts do not divide.
            kwargs: as in Keras.
        """
        check_whole(1, accumulation_steps=accumulation_steps)
        self._check_parts()
        self.accumulation_steps = accumulation_steps
        self.prepare_step()
        optimizer = keras.optimizers.get(optimizer) if optimizer else AdamW()
        super().compile(optimizer=optimizer, **kwargs)
        # The optimizer is built now rather than in the first step, so that this step is traced only
        # once and saved optimizer variables find their place.
        self.optimizer.build(self.trainable_variables)
        for inner in inner_optimizers(self.optimizer):
            if isinstance(inner, AdamW):
                inner.clip_separately(
                    [self.encoder.trainable_variables, self.predictor.trainable_variables],
                    ["encoder", "predictor"],
                )
        self.warm_up_context()

    def _check_parts(self) -> None:
        """Check that no change to the parts since the constructor has broken their relation."""
        for part in self._not_trained():
            if any(variable.trainable for variable in part.variables):
                raise ValueError(
                    f"`trainable` must stay False for {part.name}, which no gradient trains."
                )
        check_unchanged(
            self.encoder, self.target_encoder, "encoder", "pretrainer", "as target encoder"
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
        """Move the target encoder towards the encoder after an update of the optimizer (App. B).

        Args:
            moved: bool scalar, whether there was an update; None for True.

        Returns:
            `finite`, 1.0 or 0.0: whether all weights are finite after the step. This shows a
            gradient that is not finite in the very step that made it.
        """
        self.update_target_encoder(moved)
        self.warm_up_context()
        return {"finite": updates.all_finite(self.trainable_variables)}

    def log_each_step(self) -> None:
        """Do nothing: a pretrainer's logs already hold the loss of every step."""

    def update_target_encoder(self, moved: Tensor | None = None) -> None:
        """Set target = momentum * target + (1 - momentum) * encoder, for all variables.

        Args:
            moved: bool scalar; if it is False, nothing changes. None for True.
        """
        rate = self._update_rate()
        if moved is not None:
            rate = rate * ops.cast(moved, "float32")
        updates.move_towards(self.target_encoder.variables, self.encoder.variables, rate)

    def _update_rate(self) -> Tensor:
        if not isinstance(self.momentum, LinearSchedule):
            return 1.0 - self.momentum
        # The optimizer has counted its own step already: at the first update, `batches` is 1.
        batches = ops.convert_to_tensor(batches_taken(self.optimizer))
        return self.momentum.complement(batches - 1)

    def export(self, *args: Any, **kwargs: Any) -> None:
        """Refuse to export a pretrainer, since other programs run only an encoder or predictor.

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
        """Count weights as `VJEPABackbone.weights_asked_for` does, for all parts."""
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
            "context_loss_weight": self.context_loss_weight,
            "context_loss_by_distance": self.context_loss_by_distance,
            "context_distance_unit": self.context_distance_unit,
            "context_warmup_start": self.context_warmup_start,
            "context_warmup_end": self.context_warmup_end,
            "mask_token": self.mask_token,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Self:
        parts: dict[str, Any] = {
            name: keras.saving.deserialize_keras_object(config[name], custom_objects=custom_objects)
            for name in ("encoder", "predictor", "momentum", "teacher")
            # Presets from before pretrainers had teachers do not name one.
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
    mask_token: int | None,
) -> None:
    """Check those arguments of `VJEPAPretrainer` that can be checked without a model.

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
    check_whole(0, MOST_LAYERS - 1, optional=True, mask_token=mask_token)


def check_taught(target: str) -> None:
    """Check a target beside a teacher; raise `ValueError` unless it is features.

    Args:
        target: as in `VJEPAPretrainer`.
    """
    if target != "features":
        raise ValueError(f"`target` must be 'features' with a `teacher`. Received: {target!r}")


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
    if teacher is not None:
        check_taught(target)
    if teacher is not None and teacher.position_axes != encoder.position_axes:
        raise ValueError(
            f"The teacher's grid of tokens must be the encoder's {encoder.position_axes}. "
            f"Received: {teacher.position_axes}"
        )
    source, num_levels = teacher or encoder, predictor.num_levels
    for name, part in (("encoder", encoder), ("teacher", source)) if num_levels > 1 else ():
        if len(part.level_layers or ()) != num_levels:
            raise ValueError(
                f"`level_layers` of the {name} must be {num_levels} blocks for a predictor of that "
                f"many levels. Received: {part.level_layers}"
            )
    if target == "given":
        return
    target_dim = num_levels * source.hidden_dim if target == "features" else encoder.patch_dim
    if predictor.output_dim != target_dim:
        raise ValueError(
            f"The predictor's `output_dim` must be {target_dim} for `target`={target!r}. "
            f"Received: {predictor.output_dim}"
        )


@contextmanager
def _finite(model: VJEPAPretrainer, source: Any, given: Mapping[str, Any]) -> Iterator[Any]:
    """Replace endless batches by a number of them that Keras can evaluate, and pass errors on."""
    if not is_stream(source):
        if is_in_memory(source):
            model._check(x=source)
        yield source
        return
    first = FirstSteps(source, _steps(given, "steps"))
    with first.raising():
        yield first


def _steps(given: Mapping[str, Any], name: str) -> int:
    """Return how many of endless batches to take, as the user must say."""
    steps = given.get(name)
    if steps is None:
        raise ValueError(f"`{name}` must be given with endless batches. Received: None")
    check_whole(1, **{name: steps})
    return int(steps)
