"""Schedule learning rate, weight decay and momentum over the steps of a run (App. C).

Departure from the paper's text, as in the authors' code: weight decay follows a cosine, not a line.
"""

import math
import numbers
from typing import Any

import keras
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_vjepa.arguments import check_number, check_whole
from keras_vjepa.types import Tensor


def _half_cosine(progress: Tensor) -> Tensor:
    """Compute (1 + cos(pi * progress)) / 2, as a square, which stays exact near the end."""
    return ops.square(ops.cos(progress * (math.pi / 2)))


@keras.saving.register_keras_serializable("keras_vjepa")
class WarmupCosine(LearningRateSchedule):
    """Warms up along a line, then falls along half a cosine (App. C).

    Iteration s counts from 1; Keras passes s - 1. Beyond `total_steps` the value is not clamped and
    rises again, as in the reference.

    Args:
        start: value at s = 0.
        peak: value at s = `warmup_steps`.
        final: value at the end of the schedule.
        warmup_steps: iterations of warm-up, at least 0.
        total_steps: length of the schedule, not of the run: the paper stretches it by 1.25.

    Example:

    >>> from keras_vjepa.training.schedules import WarmupCosine
    >>> schedule = WarmupCosine(2e-4, 6.25e-4, 1e-6, warmup_steps=12000, total_steps=112500)
    >>> round(float(schedule(12000 - 1)), 6)
    0.000625
    """

    def __init__(
        self, start: float, peak: float, final: float, warmup_steps: int, total_steps: int
    ) -> None:
        super().__init__()
        check_number("[0, inf)", start=start, peak=peak, final=final)
        check_whole(1, total_steps=total_steps)
        check_whole(0, warmup_steps=warmup_steps)
        if warmup_steps >= total_steps:
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
class FineTuningSchedule(WarmupCosine):
    """Warms up along a line, both ends included, then falls along a cosine (App. D.3, Table 12).

    This is the schedule of fine-tuning since VideoMAE. The first step has `start`, the last one of
    the warm-up and the first of the cosine both have `peak`, and `final` is approached but not
    reached.

    Args:
        start: value of the first step, if there is a warm-up.
        peak: value at the end of the warm-up.
        final: value that the cosine falls towards, and that further steps have.
        warmup_steps: steps of warm-up, at least 0.
        total_steps: steps of the whole training.

    Raises:
        ValueError: for a number out of range, and for a warm-up that leaves no step.

    Example:

    >>> from keras_vjepa.training.schedules import FineTuningSchedule
    >>> schedule = FineTuningSchedule(1e-6, 2e-3, 1e-6, warmup_steps=200, total_steps=1400)
    >>> round(float(schedule(199)), 6), round(float(schedule(200)), 6)
    (0.002, 0.002)
    """

    def __call__(self, step: Tensor) -> Tensor:
        s = ops.cast(step, "float32")
        warmup = self.start + s / max(self.warmup_steps - 1, 1) * (self.peak - self.start)
        progress = (s - self.warmup_steps) / (self.total_steps - self.warmup_steps)
        fall = self.final + (self.peak - self.final) * _half_cosine(progress)
        # A run that is made longer stays there.
        fall = ops.where(s < self.total_steps, fall, ops.zeros_like(fall) + self.final)
        return ops.where(s < self.warmup_steps, warmup, fall)


@keras.saving.register_keras_serializable("keras_vjepa")
class CosineSchedule(LearningRateSchedule):
    """Follows half a cosine from `start` to `final`, never beyond; for weight decay (App. C).

    Args:
        start: value at s = 0, where s counts iterations from 1.
        final: value at the end of the schedule.
        total_steps: length of the schedule.

    Example:

    >>> from keras_vjepa.training.schedules import CosineSchedule
    >>> round(float(CosineSchedule(0.04, 0.4, 112500)(90000 - 1)), 5)
    0.36562
    """

    def __init__(self, start: float, final: float, total_steps: int) -> None:
        super().__init__()
        check_number("[0, inf)", start=start, final=final)
        # Only numbers are checked: a sweep passes a variable, as its trainings differ in length.
        if isinstance(total_steps, numbers.Number | str):
            check_whole(1, total_steps=total_steps)
        self.start = start
        self.final = final
        self.total_steps = total_steps

    def __call__(self, step: Tensor) -> Tensor:
        s = ops.cast(step, "float32") + 1.0
        value = self.final + (self.start - self.final) * _half_cosine(s / self.total_steps)
        clamp = ops.maximum if self.final <= self.start else ops.minimum
        # A Python number in place of this tensor would be copied to the device in every step where
        # operations run one by one.
        return clamp(value, ops.zeros_like(value) + self.final)

    def get_config(self) -> dict[str, Any]:
        return {"start": self.start, "final": self.final, "total_steps": self.total_steps}


def late_warmup(step: Tensor, start: int, end: int) -> Tensor:
    """Compute a factor that is 0 up to one step, 1 from another on, and a line between them.

    V-JEPA 2.1's loss at the context tokens begins so, at 15,000 and 30,000 (vjepa21 §3).

    Args:
        step: number of the step, from 0.
        start: the last step with 0.
        end: the first step with 1, larger than `start`.

    Returns:
        float32, the shape of `step`.

    Example:

    >>> from keras_vjepa.training.schedules import late_warmup
    >>> float(late_warmup(18750, 15000, 30000))
    0.25
    """
    progress = ops.cast(ops.convert_to_tensor(step) - start, "float32") / (end - start)
    return ops.clip(progress, 0.0, 1.0)


@keras.saving.register_keras_serializable("keras_vjepa")
class LinearSchedule(LearningRateSchedule):
    """Follows a line from `start`, at the first iteration, to `final`; for momenta (App. C).

    It stays at `final` in a run that goes on after the end of the schedule, where the reference
    stops: a momentum above 1 would drive the target encoder away from the encoder.

    Args:
        start: value at s = 1, where s counts iterations from 1; in [0, 1].
        final: value at the end of the schedule; in [0, 1].
        total_steps: length of the schedule; a float, since the reference does not round it here.

    Example:

    >>> from keras_vjepa.training.schedules import LinearSchedule
    >>> round(float(LinearSchedule(0.998, 1.0, 112500.0)(45000 - 1)), 6)
    0.9988
    """

    def __init__(self, start: float, final: float, total_steps: float) -> None:
        super().__init__()
        check_number("[0, 1]", start=start, final=final)
        check_number("(0, inf)", total_steps=total_steps)
        self.start = start
        self.final = final
        self.total_steps = total_steps

    def __call__(self, step: Tensor) -> Tensor:
        return 1.0 - self.complement(step)

    def complement(self, step: Tensor) -> Tensor:
        """Return 1 minus the value, exact where float32 would round a value close to 1."""
        slope = (self.final - self.start) / self.total_steps
        value = (1.0 - self.start) - ops.cast(step, "float32") * slope
        clamp = ops.maximum if self.final >= self.start else ops.minimum
        return clamp(value, ops.zeros_like(value) + (1.0 - self.final))

    def get_config(self) -> dict[str, Any]:
        return {"start": self.start, "final": self.final, "total_steps": self.total_steps}
