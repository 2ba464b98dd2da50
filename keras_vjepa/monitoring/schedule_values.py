"""Compute learning rate, weight decay and momentum of steps that are done (App. C, Table 9).

They are computed from the schedules on the host, for many steps at once, so that the steps of the
training have no extra work.
"""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_vjepa.backend.optimizer_state import inner_optimizers
from keras_vjepa.training.schedules import CosineSchedule, LinearSchedule, WarmupCosine

_NAMES = ("learning_rate", "weight_decay")


class ScheduleValues:
    """Computes the scheduled numbers of a model that is trained.

    Args:
        model: a compiled model. The numbers are those of the first optimizer that changes weights
            (inside of others, if it is wrapped), and of the model's `momentum` if it has one.

    Example:

    >>> import keras
    >>> from keras_vjepa.monitoring.schedule_values import ScheduleValues
    >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    >>> model.compile(keras.optimizers.SGD(0.5))
    >>> ScheduleValues(model)([1, 2])["learning_rate"]
    [0.5, 0.5]
    """

    def __init__(self, model: Any) -> None:
        self._optimizer = inner_optimizers(model.optimizer)[0]
        config = self._optimizer.get_config()
        found = {name: config.get(name) for name in _NAMES}
        self._schedules = {
            name: keras.saving.deserialize_keras_object(value)
            for name, value in found.items()
            if isinstance(value, dict)
        }
        self._numbers = [n for n in _NAMES if n not in self._schedules and found[n] is not None]
        momentum = getattr(model, "momentum", None)
        self._momentum = momentum if isinstance(momentum, int | float) else None
        if isinstance(momentum, LearningRateSchedule):
            self._schedules["momentum"] = momentum

    def __call__(self, steps: Sequence[int]) -> dict[str, list[float]]:
        """Find the numbers with which steps were made.

        A number without a schedule is read as it is now, because a callback may have changed it.

        Args:
            steps: numbers of the steps as the optimizer counts them; the first is 1.
        """
        found = {name: _values(s, np.asarray(steps) - 1) for name, s in self._schedules.items()}
        for name in self._numbers:
            value = ops.convert_to_numpy(getattr(self._optimizer, name))
            found[name] = [float(value)] * len(steps)
        if self._momentum is not None:
            found["momentum"] = [float(self._momentum)] * len(steps)
        return found


def _values(schedule: LearningRateSchedule, before: np.ndarray) -> list[float]:
    """Compute a schedule's values after given numbers of steps."""
    if isinstance(schedule, WarmupCosine | CosineSchedule | LinearSchedule):
        steps = ops.convert_to_tensor(before.astype("float32"))
        return ops.convert_to_numpy(schedule(steps)).tolist()
    # Keras' own schedules take one step at a time.
    return [float(ops.convert_to_numpy(schedule(int(step)))) for step in before]
