"""AdamW with a scheduled decay and clipping per network (App. C).

Departure from the paper's text, as in the authors' code: gradients are clipped, each network by its
own norm, from one epoch after the warm-up on.

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

from keras_vjepa.backend import updates
from keras_vjepa.backend.collectives import all_reduce_gradients
from keras_vjepa.backend.token_ops import runs_op_by_op
from keras_vjepa.types import Tensor

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

    >>> from keras_vjepa.training.optimizer import AdamW
    >>> from keras_vjepa.training.schedules import CosineSchedule
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
