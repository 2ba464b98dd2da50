"""Say from the first steps of a pretraining how long an ablation will take (§4, Tables 1 to 4)."""

import sys
import time
from typing import Any

import keras

# The first step compiles; the steps after it up to this one are timed.
TIMED_STEPS = 10


class AblationCost(keras.callbacks.Callback):
    """Times the first steps of a run, and says how long the trainings that are left will take.

    Attributes:
        steps_left: steps of all trainings that are not finished, with those of this one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.steps_left = 0
        self._began = 0.0
        self._seen = 0

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._seen = 0

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._seen += 1
        if self._seen == 1:
            self._began = time.perf_counter()
        elif self._seen == TIMED_STEPS:
            step = (time.perf_counter() - self._began) / (TIMED_STEPS - 1)
            print(
                f"A step takes {step:.2f} s: about {in_words(step * self.steps_left)} for the "
                f"{self.steps_left:,} steps that are left; the probes take further time.",
                file=sys.stderr,
                flush=True,
            )


def in_words(seconds: float) -> str:
    """Write a duration in the largest unit of which there are two.

    Args:
        seconds: the duration.

    Example:

    >>> in_words(100), in_words(150), in_words(9000)
    ('100 s', '2 minutes', '2.5 hours')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


# A run makes its callbacks from names, so that the one of a command has to have a name.
COST = AblationCost()
NAME = f"{__name__}:COST"
