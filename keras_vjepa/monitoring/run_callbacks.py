"""Make the callbacks that watch a run, as its config says (§3.1, App. C, App. D.3)."""

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras

from keras_vjepa.backend.distribution import ALONE, DataParallel
from keras_vjepa.configuration import values
from keras_vjepa.data.batches.mask_kinds import Grid
from keras_vjepa.data.batches.pretraining import ClipBatches
from keras_vjepa.data.batches.videos_and_images import VideosAndImages
from keras_vjepa.monitoring.epoch_log import FILE_NAME as EPOCHS
from keras_vjepa.monitoring.epoch_log import EpochLog
from keras_vjepa.monitoring.given_callbacks import given_callbacks
from keras_vjepa.monitoring.held_out import VIEWS, HeldOut, held_out_of
from keras_vjepa.monitoring.loss_curve import LossCurve
from keras_vjepa.monitoring.monitor import FILE_NAME as LOOKS
from keras_vjepa.monitoring.online_probe import OnlineProbe, probed_clips
from keras_vjepa.monitoring.options_file import OptionsFile
from keras_vjepa.monitoring.pictures import draw_masks
from keras_vjepa.monitoring.report import MASKS_FILE
from keras_vjepa.monitoring.step_log import FILE_NAME as STEPS
from keras_vjepa.monitoring.step_log import StepLog
from keras_vjepa.monitoring.tables import Row, read_rows
from keras_vjepa.monitoring.tensorboard import FOLDER as TENSORBOARD
from keras_vjepa.monitoring.tensorboard import TensorBoardWriter

# Number of clips whose masks are drawn.
SHOWN = 4


def callbacks_of_a_run(
    config: Any,
    batches: ClipBatches | VideosAndImages,
    grid: Grid,
    workdir: Path,
    parallel: DataParallel = ALONE,
) -> list[keras.callbacks.Callback]:
    """Make the callbacks of a run.

    Args:
        config: config of the pretraining recipe.
        batches: batches of the training.
        grid: numbers of the encoder's tokens by time, row and column.
        workdir: folder of the run.
        parallel: the processes of the run, of which the first one writes.
    """
    is_first = parallel.is_first
    watched = watched_clips(config, batches) if is_first else None
    if watched is not None:
        clips, context = (watched.batch[k][:SHOWN] for k in ("videos", "context_indices_0"))
        draw_masks(clips, context, grid, workdir / MASKS_FILE)
    writers = _writers(config, values(config), workdir, is_first)
    return [
        *([OptionsFile(workdir, values(config))] if is_first else ()),
        config.monitor.make(
            held_out=watched,
            folder=workdir,
            probe=watched and online_probe_of(config, batches, parallel.device_count),
            writers=writers[LOOKS],
        ),
        StepLog(workdir, config.run.log_every, writers[STEPS]),
        LossCurve(workdir),
        *given_callbacks(config.callbacks or ()),
    ]


def callbacks_of_fine_tuning(
    config: Any,
    options: Mapping[str, Any],
    steps_per_epoch: int,
    test: Callable[[Any], Mapping[str, Any]],
    workdir: Path,
    is_first: bool,
) -> list[keras.callbacks.Callback]:
    """Make the callbacks of a fine-tuning.

    Args:
        config: config of the recipe.
        options: all options that define the run, and its `steps`.
        steps_per_epoch: number of steps of an epoch.
        test: tests the model; see `EpochLog`.
        workdir: folder of the run.
        is_first: whether this process is the one that writes.
    """
    writers = _writers(config, options, workdir, is_first)
    return [
        *([OptionsFile(workdir, options)] if is_first else ()),
        StepLog(workdir, config.run.log_every, writers[STEPS]),
        EpochLog(workdir, steps_per_epoch, test, config.validate_every, writers[EPOCHS]),
        LossCurve(workdir),
        *given_callbacks(config.callbacks or ()),
    ]


def _writers(
    config: Any, options: Mapping[str, Any], workdir: Path, is_first: bool
) -> dict[str, list[Callable[[Sequence[Row]], None]]]:
    """Make the functions that also write the rows of each table for TensorBoard, if wanted."""
    names = (STEPS, LOOKS, EPOCHS)
    if not is_first or not config.tensorboard:
        return {name: [] for name in names}
    board = TensorBoardWriter(workdir / TENSORBOARD, options, {"masks": workdir / MASKS_FILE})
    return {name: [functools.partial(board.write, name)] for name in names}


def watched_clips(config: Any, batches: ClipBatches | VideosAndImages) -> HeldOut | None:
    """Read the clips that the monitor of a run looks at, which are always the same.

    Args:
        config: config of the pretraining recipe.
        batches: batches of the training; of those with images, the videos are taken.

    Returns:
        The clips; None if there are too few videos.
    """
    if isinstance(batches, VideosAndImages):
        batches = batches.videos
    return held_out_of(config.data, batches, max(config.monitor_clips // VIEWS, 2))


def online_probe_of(
    config: Any, batches: ClipBatches | VideosAndImages, num_devices: int = 1
) -> OnlineProbe | None:
    """Make the monitor's probe and read its labelled clips, or say that there can be no probe.

    Args:
        config: config of the pretraining recipe.
        batches: batches of the training; of those with images, the videos are taken.
        num_devices: number of devices; a probe during the training is made with one only.

    Returns:
        The probe; None if none is wanted or possible.
    """
    if not config.monitor_probe_clips:
        return None
    if isinstance(batches, VideosAndImages):
        batches = batches.videos
    why = "with more than one device" if num_devices > 1 else None
    found = None if why else probed_clips(config.data, batches, config.monitor_probe_clips)
    if found is None:
        why = why or "unless each video has a label or lies in the folder of its class"
        print(f"--monitor_probe_clips has no effect {why}.", file=sys.stderr)
        return None
    return OnlineProbe(found)


def damaged_tables(folder: Path, steps: int) -> str | None:
    """Say which table of a finished run is damaged.

    Runs of earlier versions have no tables, and are not asked for any.

    Args:
        folder: folder of the run.
        steps: number of steps of the whole run.

    Returns:
        The file, and that it is missing or damaged; None if every table ends with the last step.
    """
    for name in (STEPS, LOOKS, EPOCHS):
        path = folder / f"{name}.jsonl"
        rows = read_rows(path)
        if (path.exists() or path.with_suffix(".csv").exists()) and (
            not rows or rows[-1]["step"] != steps
        ):
            return f"{path} is missing or damaged"
    return None
