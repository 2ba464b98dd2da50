"""Run trainings: the optimizer, its schedules, and runs that can be resumed (App. C)."""

from keras_vjepa.training.loss_log import LossLog
from keras_vjepa.training.optimizer import AdamW
from keras_vjepa.training.resumable import RunCallback, run
from keras_vjepa.training.run_state import Checkpoints
from keras_vjepa.training.schedules import (
    CosineSchedule,
    FineTuningSchedule,
    LinearSchedule,
    WarmupCosine,
)

__all__ = [
    "AdamW",
    "Checkpoints",
    "CosineSchedule",
    "FineTuningSchedule",
    "LinearSchedule",
    "LossLog",
    "RunCallback",
    "WarmupCosine",
    "run",
]
