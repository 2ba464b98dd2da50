"""Check the config of a fine-tuning, and fill it in for its videos (App. D.3, Table 12)."""

from typing import Any

from keras_vjepa.arguments import (
    MOST_LONG,
    MOST_SEED,
    check_choice,
    check_flag,
    check_number,
    check_size,
    check_whole,
    counted,
)
from keras_vjepa.backend.distribution import DataParallel
from keras_vjepa.configuration import ConfigT, replace
from keras_vjepa.data.batches.clips import check_cache
from keras_vjepa.data.batches.indexed import check_reading
from keras_vjepa.data.sources.digit_motion_rendering import SETS
from keras_vjepa.data.transforms.augmentation import RandAugment
from keras_vjepa.monitoring.given_callbacks import check_callbacks
from keras_vjepa.monitoring.tensorboard import check_tensorboard
from keras_vjepa.training.optimizer import LEARNING_DTYPES
from keras_vjepa.training.resumable import check_run

# Defaults: the size of a batch, the number of videos seen in all passes together, and the smallest
# and largest number of passes.
_BATCH_SIZE, _VIDEOS_SEEN = 8, 6000
_FEWEST_EPOCHS, _MOST_EPOCHS = 10, 100
# Options that are derived from the videos if they are None.
DERIVED = ("batch_size", "epochs", "warmup_epochs", "schedule_epochs")


def check_fields(config: Any) -> None:
    """Check the fields of a config of fine-tuning.

    Args:
        config: config of the recipe.

    Raises:
        ValueError: for the first value that is out of range, by the name of its option.
    """
    config.mixing.make()  # the constructor checks its arguments
    config.limits.make()
    config.transform.make(crop_size=16, augmentation=None)
    config.run.check(check_run, steps=1)
    _check_reading(config)
    _check_epochs(config)
    _check_numbers(config)
    check_choice(LEARNING_DTYPES, dtype=config.dtype)
    check_choice(("dense", "uniform"), sampling=config.sampling)
    check_choice(("", "digit", "motion"), task=config.task)
    check_whole(1, MOST_LONG, test_clips=config.test_clips, temporal_stride=config.temporal_stride)
    check_whole(1, MOST_LONG, optional=True, num_frames=config.num_frames)
    if config.image_size is not None:
        check_size(image_size=config.image_size)
    if config.test_views not in (1, 3):
        raise ValueError(f"`test_views` must be 1 or 3. Received: {config.test_views}")
    check_flag(
        encoder_norm=config.encoder_norm,
        remat=config.remat,
        shard_parameters=config.shard_parameters,
        tensorboard=config.tensorboard,
    )
    if config.auto_augment:
        RandAugment.from_string(config.auto_augment)
    elif config.color_jitter:
        raise ValueError(
            "`color_jitter` must be 0 without `auto_augment`: VideoMAE has none beside it. "
            f"Received: {config.color_jitter}"
        )


def _check_reading(config: Any) -> None:
    batches = config.batches
    check_reading(
        _BATCH_SIZE if batches.batch_size is None else batches.batch_size,
        config.seed,
        batches.num_workers,
        batches.read_ahead,
        batches.max_bad_share,
    )
    batches.check(check_cache)
    check_whole(1, MOST_LONG, num_sample=batches.num_repeats)
    check_whole(0, MOST_SEED, seed=config.seed)
    if config.task and config.data.data not in SETS:
        raise ValueError(
            f"`task` must be left out with `data`={config.data.data or 'none'}: it is of a "
            f"built-in set. Received: {config.task}"
        )


def _check_epochs(config: Any) -> None:
    check_whole(1, optional=True, epochs=config.epochs, schedule_epochs=config.schedule_epochs)
    length = config.schedule_epochs or config.epochs
    check_whole(
        0,
        *(() if length is None else (length - 1,)),
        optional=True,
        warmup_epochs=config.warmup_epochs,
    )
    check_whole(1, validate_every=config.validate_every)
    check_whole(1, accumulation_steps=config.accumulation_steps)
    check_whole(2, optional=True, gradient_accumulation_steps=config.gradient_accumulation_steps)


def _check_numbers(config: Any) -> None:
    check_number("(0, 1]", fraction=config.fraction, layer_decay=config.layer_decay)
    check_number("[0, 1)", drop_path_rate=config.drop_path_rate, head_dropout=config.head_dropout)
    check_number(
        "[0, inf)",
        learning_rate=config.learning_rate,
        warmup_learning_rate=config.warmup_learning_rate,
        final_learning_rate=config.final_learning_rate,
        weight_decay=config.weight_decay,
        color_jitter=config.color_jitter,
    )


def check_options(config: Any) -> None:
    """Check options that need other packages; raise `ValueError` with the name of the option."""
    check_callbacks(config.callbacks or ())
    check_tensorboard(config.tensorboard)


def settled(
    config: ConfigT,
    num_videos: int,
    parallel: DataParallel,
    noun: str = "training video",
) -> ConfigT:
    """Fill in the options that are derived from the number of videos, if they are None.

    Args:
        config: config of the recipe.
        num_videos: number of samples to train on.
        parallel: the devices, each of which needs the same number of clips.
        noun: what a sample is called in messages.

    Raises:
        ValueError: if a batch is larger than the number of videos, or cannot be divided among the
            devices.
    """
    size = config.batches.batch_size
    # Two clips that are mixed belong to one device.
    mixing = getattr(config, "mixing", None)
    unit = parallel.device_count * (2 if mixing and mixing.make().mixes else 1)
    if size is None:
        size = max(min(_BATCH_SIZE, num_videos) // unit, 1) * unit
    parallel.check_batch_size(size)
    if size > num_videos:
        raise ValueError(
            f"`batch_size` must be at most the {counted(num_videos, noun)}. Received: {size}"
        )
    epochs = config.epochs
    if epochs is None:
        wanted = -(-_VIDEOS_SEEN // num_videos)
        epochs = min(max(wanted, _FEWEST_EPOCHS), _MOST_EPOCHS)
    length = config.schedule_epochs or epochs
    warmup = length // 10 if config.warmup_epochs is None else config.warmup_epochs
    return replace(
        config, batch_size=size, epochs=epochs, schedule_epochs=length, warmup_epochs=warmup
    )
