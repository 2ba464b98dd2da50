"""AdamW with a scheduled decay, clipping per network, and the paper's schedules (App. C).

Departures from the paper's text, as in the authors' code: weight decay follows a cosine, not a
line; gradients are clipped, each network by its own norm, from one epoch after the warm-up on.

Keras' own AdamW differs in four ways that matter here: its epsilon is added before the bias
correction, that correction is rounded (6e-6 of the first step at beta 0.999, enough to be seen in
the golden losses), its weight decay is a number, and its clipping takes all variables together.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_vjepa import updates
from keras_vjepa.attention import Tensor
from keras_vjepa.distribution import all_reduce_gradients
from keras_vjepa.token_ops import runs_op_by_op


def _half_cosine(progress: Tensor) -> Tensor:
    """(1 + cos(pi * progress)) / 2, as a square: no cancellation in float32 near the end."""
    return ops.square(ops.cos(progress * (math.pi / 2)))


@keras.saving.register_keras_serializable("keras_vjepa")
class WarmupCosine(LearningRateSchedule):
    """Linear warm-up, then half a cosine (App. C).

    Iteration s counts from 1; Keras passes s - 1. The value is not clamped beyond `total_steps`,
    where it rises again, as in the reference.

    Args:
        start: value at s = 0.
        peak: value at s = `warmup_steps`.
        final: value at s = `total_steps`.
        warmup_steps: iterations of warm-up, at least 0.
        total_steps: length of the schedule, not of the run: the paper stretches it by 1.25.

    Example:

    >>> from keras_vjepa.optimization import WarmupCosine
    >>> schedule = WarmupCosine(2e-4, 6.25e-4, 1e-6, warmup_steps=12000, total_steps=112500)
    >>> round(float(schedule(12000 - 1)), 6)
    0.000625
    """

    def __init__(
        self, start: float, peak: float, final: float, warmup_steps: int, total_steps: int
    ) -> None:
        super().__init__()
        if not 0 <= warmup_steps < total_steps:
            raise ValueError(
                f"`warmup_steps` must be in [0, total_steps={total_steps}). "
                f"Received: {warmup_steps}"
            )
        self.start = start
        self.peak = peak
        self.final = final
        self.warmup_steps = warmup_steps
        self.total_steps = total_steps

    def __call__(self, step: Tensor) -> Tensor:
        s = ops.cast(step, "float32") + 1.0
        warmup = self.start + s / max(self.warmup_steps, 1) * (self.peak - self.start)
        progress = (s - self.warmup_steps) / (self.total_steps - self.warmup_steps)
        decay = self.final + (self.peak - self.final) * _half_cosine(progress)
        return ops.where(s < self.warmup_steps, warmup, decay)

    def get_config(self) -> dict[str, Any]:
        return {
            "start": self.start,
            "peak": self.peak,
            "final": self.final,
            "warmup_steps": self.warmup_steps,
            "total_steps": self.total_steps,
        }


@keras.saving.register_keras_serializable("keras_vjepa")
class CosineSchedule(LearningRateSchedule):
    """Half a cosine from `start` to `final`, which it never passes; for weight decay (App. C).

    Args:
        start: value at s = 0, where s counts iterations from 1.
        final: value at s = `total_steps`.
        total_steps: length of the schedule.

    Example:

    >>> from keras_vjepa.optimization import CosineSchedule
    >>> round(float(CosineSchedule(0.04, 0.4, 112500)(90000 - 1)), 5)
    0.36562
    """

    def __init__(self, start: float, final: float, total_steps: int) -> None:
        super().__init__()
        self.start = start
        self.final = final
        self.total_steps = total_steps

    def __call__(self, step: Tensor) -> Tensor:
        s = ops.cast(step, "float32") + 1.0
        value = self.final + (self.start - self.final) * _half_cosine(s / self.total_steps)
        clamp = ops.maximum if self.final <= self.start else ops.minimum
        # Op by op, a number alone would be copied to the device in every step.
        return clamp(value, ops.zeros_like(value) + self.final)

    def get_config(self) -> dict[str, Any]:
        return {"start": self.start, "final": self.final, "total_steps": self.total_steps}


@keras.saving.register_keras_serializable("keras_vjepa")
class LinearSchedule(LearningRateSchedule):
    """A straight line from `start`, reached at the first iteration, towards `final` (App. C).

    Args:
        start: value at s = 1, where s counts iterations from 1.
        final: value `total_steps` later.
        total_steps: length; a float, since the reference does not round it here.

    Example:

    >>> from keras_vjepa.optimization import LinearSchedule
    >>> round(float(LinearSchedule(0.998, 1.0, 112500.0)(45000 - 1)), 6)
    0.9988
    """

    def __init__(self, start: float, final: float, total_steps: float) -> None:
        super().__init__()
        self.start = start
        self.final = final
        self.total_steps = total_steps

    def __call__(self, step: Tensor) -> Tensor:
        return 1.0 - self.complement(step)

    def complement(self, step: Tensor) -> Tensor:
        """1 - value, without the rounding of a float32 value close to 1."""
        slope = (self.final - self.start) / self.total_steps
        return (1.0 - self.start) - ops.cast(step, "float32") * slope

    def get_config(self) -> dict[str, Any]:
        return {"start": self.start, "final": self.final, "total_steps": self.total_steps}


# The class that Keras makes for the active backend: on torch, subclasses of
# `keras.optimizers.AdamW` itself would lose the fused update of all variables at once.
_KerasAdamW: Any = type(keras.optimizers.AdamW.__new__(keras.optimizers.AdamW))


@dataclasses.dataclass(frozen=True)
class _StepValues:
    learning_rate: Tensor
    weight_decay: Tensor
    epsilon: Tensor


@keras.saving.register_keras_serializable("keras_vjepa")
class AdamW(_KerasAdamW):
    """AdamW as the reference's: decoupled scheduled decay, epsilon after the bias correction.

    Per iteration: clip, `p -= lr * weight_decay * p` (never for 1-D variables),
    `p -= lr * m_hat / (sqrt(v_hat) + epsilon)`.

    Args:
        learning_rate: float or schedule.
        weight_decay: float or schedule of the iteration.
        beta_1: decay of the first moment.
        beta_2: decay of the second moment.
        epsilon: added to the root of the bias-corrected second moment.
        clip_norm: largest gradient norm of a network, or None. Networks are what
            `clip_separately` was told; else all variables are one.
        clip_after: iterations that pass before clipping begins.

    Example:

    >>> from keras_vjepa.optimization import AdamW, CosineSchedule
    >>> optimizer = AdamW(1e-3, weight_decay=CosineSchedule(0.04, 0.4, 1000), clip_norm=10.0)
    >>> round(float(optimizer.weight_decay), 4)
    0.04
    """

    # Only during an update.
    _step: _StepValues | None = None

    def __init__(
        self,
        learning_rate: float | LearningRateSchedule = 1e-3,
        weight_decay: float | LearningRateSchedule = 0.01,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        clip_norm: float | None = None,
        clip_after: int = 0,
        name: str = "adamw",
        **kwargs: Any,
    ) -> None:
        super().__init__(
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            beta_1=beta_1,
            beta_2=beta_2,
            epsilon=epsilon,
            name=name,
            **kwargs,
        )
        if clip_norm is not None and clip_norm <= 0:
            raise ValueError(f"`clip_norm` must be positive or None. Received: {clip_norm}")
        if runs_op_by_op():
            # The variable that Keras made, in its place among the others: only it counts otherwise.
            self._iterations.__class__ = updates.StepCount
        self.clip_norm = clip_norm
        self.clip_after = clip_after
        self._network_keys: list[set[Any]] = []

    @property
    def weight_decay(self) -> Any:
        """Weight decay of the next update: a number, or a scalar tensor if scheduled."""
        if self._step is not None:
            return self._step.weight_decay
        if isinstance(self._weight_decay, LearningRateSchedule):
            return self._weight_decay(self.iterations)
        return self._weight_decay

    @weight_decay.setter
    def weight_decay(self, value: float | LearningRateSchedule) -> None:
        self._weight_decay = value

    @property
    def epsilon(self) -> Tensor:
        """Keras adds its epsilon to sqrt(v); scaled like this it is as if added to sqrt(v_hat)."""
        if self._step is not None:
            return self._step.epsilon
        return self._epsilon * ops.sqrt(self._bias_correction(self.beta_2))

    @epsilon.setter
    def epsilon(self, value: float) -> None:
        self._epsilon = value

    def clip_separately(self, networks: Sequence[Sequence[keras.Variable]]) -> None:
        """Clip each of these groups of variables by its own norm. Call before training."""
        self._network_keys = [{self._var_key(v) for v in network} for network in networks]

    def _backend_apply_gradients(
        self, grads: Sequence[Tensor], trainable_variables: Sequence[keras.Variable]
    ) -> None:
        grads = all_reduce_gradients(grads)
        if self.clip_norm is not None:
            grads = self._clip_by_network(grads, trainable_variables)
        if self._is_updated_at_once:
            super()._backend_apply_gradients(grads, trainable_variables)
            return
        # Keras multiplies what it asks for: the decay by the learning rate, and that by its rounded
        # correction. Asked once a variable, but evaluated once a step: the graph stays small.
        correction = self._rounding_correction(trainable_variables[0].dtype)
        self._step = _StepValues(
            self.learning_rate * correction, self.weight_decay / correction, self.epsilon
        )
        try:
            super()._backend_apply_gradients(grads, trainable_variables)
        finally:
            self._step = None

    def _all_reduce_sum_gradients(self, grads_and_vars: Any) -> Any:
        """Where Keras sums over devices by itself it does so here, after clipping: too late."""
        return grads_and_vars

    def _get_current_learning_rate(self) -> Any:
        if self._step is not None:
            return self._step.learning_rate
        return super()._get_current_learning_rate()

    def _bias_correction(self, beta: float) -> Tensor:
        """1 - beta^step, without the rounding of a float32 value close to 1."""
        step = ops.cast(self.iterations + 1, "float32")
        return -ops.expm1(step * (math.log(beta) if beta else -math.inf))

    def _rounding_correction(self, dtype: str) -> Tensor:
        """What makes Keras' float32 sqrt(1 - beta_2^step) / (1 - beta_1^step) exact."""
        if dtype != "float32":
            return 1.0
        step = ops.cast(self.iterations + 1, dtype)
        exact, rounded = (
            ops.sqrt(correction(self.beta_2)) / correction(self.beta_1)
            for correction in (
                self._bias_correction,
                lambda beta: 1 - ops.power(ops.cast(beta, dtype), step),
            )
        )
        return exact / rounded

    def _clip_by_network(
        self, grads: Sequence[Tensor], variables: Sequence[keras.Variable]
    ) -> list[Tensor]:
        clipped = list(grads)
        keys = [self._var_key(v) for v in variables]
        active = ops.convert_to_tensor(self.iterations) >= self.clip_after
        for network in self._network_keys or [set(keys)]:
            members = [i for i, key in enumerate(keys) if key in network]
            if not members:  # of another group of variables, with its own update
                continue
            whole = [grads[i] for i in members]
            # At most 1, and exactly 1 before its time; a number would be copied to the device.
            allowed = self.clip_norm / (updates.norm(whole) + 1e-6)
            one = ops.ones_like(allowed)
            factor = ops.where(active, ops.minimum(one, allowed), one)
            for i, grad in zip(members, updates.scaled(whole, factor), strict=True):
                clipped[i] = grad
        return clipped

    @property
    def _is_updated_at_once(self) -> bool:
        return runs_op_by_op() and not self.amsgrad

    def _apply_weight_decay(self, trainable_variables: Sequence[keras.Variable]) -> None:
        if not self._is_updated_at_once:
            super()._apply_weight_decay(trainable_variables)
            return
        decayed = [v for v in trainable_variables if self._use_weight_decay(v)]
        # A variable times a number would copy the number to the device.
        updates.decay(decayed, ops.convert_to_tensor(self.learning_rate) * self.weight_decay)

    def _parallel_update_step(
        self, grads: Sequence[Tensor], variables: Sequence[keras.Variable], learning_rate: Tensor
    ) -> None:
        """Called by Keras where a backend runs op by op, and there alone."""
        if not self._is_updated_at_once:
            super()._parallel_update_step(grads, variables, learning_rate)
            return
        momentums, velocities = (
            [slots[self._get_variable_index(variable)] for variable in variables]
            for slots in (self._momentums, self._velocities)
        )
        betas = self.beta_1, self.beta_2
        step = self.iterations.value
        updates.adam(
            variables, grads, momentums, velocities, step, learning_rate, betas, self._epsilon
        )

    def _use_weight_decay(self, variable: Any) -> bool:
        return len(variable.shape) > 1 and super()._use_weight_decay(variable)

    def get_config(self) -> dict[str, Any]:
        weight_decay = self._weight_decay
        if isinstance(weight_decay, LearningRateSchedule):
            weight_decay = keras.saving.serialize_keras_object(weight_decay)
        return {
            **super().get_config(),
            "weight_decay": weight_decay,
            "epsilon": self._epsilon,
            "clip_norm": self.clip_norm,
            "clip_after": self.clip_after,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "AdamW":
        config = dict(config)
        if isinstance(config.get("weight_decay"), dict):
            config["weight_decay"] = keras.saving.deserialize_keras_object(
                config["weight_decay"], custom_objects=custom_objects
            )
        return super().from_config(config, custom_objects=custom_objects)
