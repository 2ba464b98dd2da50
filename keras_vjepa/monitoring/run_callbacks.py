"""What watches a pretraining run, put together by its config (§3.1, App. C)."""

from pathlib import Path
from typing import Any

import keras

from keras_vjepa.data.batches.mask_kinds import Grid
from keras_vjepa.data.batches.pretraining import ClipBatches
from keras_vjepa.monitoring.given_callbacks import given_callbacks
from keras_vjepa.monitoring.held_out import held_out_of
from keras_vjepa.monitoring.loss_curve import LossCurve
from keras_vjepa.monitoring.pictures import draw_masks
from keras_vjepa.monitoring.report import MASKS_FILE
from keras_vjepa.monitoring.step_log import StepLog

# Clips of which masks are drawn.
SHOWN = 4


def callbacks_of_a_run(
    config: Any, batches: ClipBatches, grid: Grid, workdir: Path, is_first: bool
) -> list[keras.callbacks.Callback]:
    """Make the callbacks of a run.

    Args:
        config: of the pretraining recipe.
        batches: of the training.
        grid: the encoder's tokens by time, row and column.
        workdir: of the run.
        is_first: whether this process is the one that writes.
    """
    first = batches.first(config.monitor_clips) if is_first else None
    watched = held_out_of(config.data, batches, config.watch_videos) if is_first else None
    if watched is not None:
        clips, context = (watched.batch[k][:SHOWN] for k in ("videos", "context_indices_0"))
        draw_masks(clips, context, grid, workdir / MASKS_FILE)
    return [
        config.monitor.make(videos=first, path=workdir / "features.csv"),
        config.watch.make(held_out=watched, folder=workdir),
        StepLog(workdir, config.run.log_every),
        LossCurve(workdir),
        *given_callbacks(config.callbacks or ()),
    ]
