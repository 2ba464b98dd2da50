"""Add the loss at the context tokens to pretraining, as V-JEPA 2.1 has it (vjepa21 §3)."""

from typing import Any

import keras
from keras import ops

from keras_vjepa.arguments import check_flag, check_number, check_whole
from keras_vjepa.backend.optimizer_state import batches_taken
from keras_vjepa.layers.embedding import gather_tokens
from keras_vjepa.tasks.objective import (
    nearest_target_distances,
    prediction_loss,
    without_padding,
)
from keras_vjepa.training.schedules import late_warmup
from keras_vjepa.types import Batch, Tensor


class ContextLoss(keras.Model):
    """Computes the loss at the context tokens of a pretrainer, whose arguments say how."""

    encoder: Any
    loss_exponent: float
    context_loss_weight: float
    context_loss_by_distance: bool
    context_distance_unit: float
    context_warmup_start: int
    context_warmup_end: int

    def set_context_loss(
        self,
        predictor: Any,
        weight: float,
        by_distance: bool,
        distance_unit: float,
        warmup_start: int,
        warmup_end: int,
    ) -> None:
        """Check the arguments of the loss, keep them, and make the variable of its warm-up.

        Args:
            predictor: the pretrainer's.
            weight: `context_loss_weight` of the pretrainer.
            by_distance: its `context_loss_by_distance`.
            distance_unit: its `context_distance_unit`.
            warmup_start: its `context_warmup_start`.
            warmup_end: its `context_warmup_end`.

        Raises:
            ValueError: for the first that is out of range, and for a predictor that does not
                predict the context.
        """
        check_context_loss(weight, by_distance, distance_unit, warmup_start, warmup_end)
        if weight and not predictor.predicts_context:
            raise ValueError(
                "`context_loss_weight` must be 0 for a predictor without `predicts_context`. "
                f"Received: {weight}"
            )
        self.context_loss_weight = weight
        self.context_loss_by_distance = by_distance
        self.context_distance_unit = distance_unit
        self.context_warmup_start = warmup_start
        self.context_warmup_end = warmup_end
        if self.context_warmup_end:
            # This is a variable, because a forward pass cannot read the optimizer's step on every
            # engine.
            self.context_warmup = self.add_weight(
                shape=(), initializer="ones", trainable=False, name="context_warmup"
            )

    def context_factor(self) -> Tensor | float:
        """Return by what the loss at the context tokens is multiplied in the next step."""
        if not self.context_warmup_end:
            return self.context_loss_weight
        return self.context_loss_weight * ops.cast(self.context_warmup, "float32")

    def warm_up_context(self) -> None:
        """Set the share of the context loss for the step that follows the optimizer's last one."""
        if self.context_warmup_end:
            done = ops.convert_to_tensor(batches_taken(self.optimizer))
            share = late_warmup(done, self.context_warmup_start, self.context_warmup_end)
            self.context_warmup.assign(ops.cast(share, self.context_warmup.dtype))

    def context_loss(
        self, batch: Batch, mask_index: int, predictions: Tensor, targets: Tensor
    ) -> Tensor:
        """Compute the loss at the context tokens of one kind of mask (vjepa21 §3).

        Args:
            batch: as described at the top of this module.
            mask_index: number of the kind of mask.
            predictions: what the predictor says of the context tokens,
                `(batch, context, output_dim)`.
            targets: what `targets` returned.

        Returns:
            `(batch,)`, without `context_loss_weight`.
        """
        indices = batch[f"context_indices_{mask_index}"]
        valid = ops.cast(ops.expand_dims(indices >= 0, -1), "float32")
        weights = None
        if self.context_loss_by_distance:
            weights = ops.rsqrt(
                nearest_target_distances(
                    without_padding(indices),
                    batch[f"target_indices_{mask_index}"],
                    self.encoder.token_grid(batch["videos"].shape),
                    self.context_distance_unit,
                )
            )
        wanted = gather_tokens(targets, without_padding(indices))
        return prediction_loss(predictions, wanted, valid, self.loss_exponent, weights)


def check_context_loss(
    context_loss_weight: float,
    context_loss_by_distance: bool,
    context_distance_unit: float,
    context_warmup_start: int,
    context_warmup_end: int,
) -> None:
    """Check the arguments of `VJEPAPretrainer` on the loss at the context tokens.

    Raises:
        ValueError: for the first that is out of range.
    """
    check_flag(context_loss_by_distance=context_loss_by_distance)
    check_number("[0, inf)", context_loss_weight=context_loss_weight)
    check_number("(0, 1024]", context_distance_unit=context_distance_unit)
    check_whole(0, context_warmup_start=context_warmup_start, context_warmup_end=context_warmup_end)
    if context_warmup_start and context_warmup_end <= context_warmup_start:
        raise ValueError(
            f"`context_warmup_end` must be larger than `context_warmup_start`="
            f"{context_warmup_start}. Received: {context_warmup_end}"
        )
