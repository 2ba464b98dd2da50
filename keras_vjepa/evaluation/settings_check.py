"""Check the settings of a frozen evaluation, before anything is made from them (App. D.1)."""

import math
from typing import Any, get_args

from keras_vjepa.arguments import (
    MOST,
    MOST_LONG,
    MOST_SEED,
    check_choice,
    check_colour,
    check_flag,
    check_number,
    check_size,
    check_text,
    check_whole,
    shown,
)
from keras_vjepa.data.batches.indexed import check_reading
from keras_vjepa.data.transforms.augmentation import AutoAugment, RandAugment
from keras_vjepa.data.transforms.resampling import Kernel
from keras_vjepa.data.transforms.training import ImageProbeTransform, VideoProbeTransform
from keras_vjepa.data.transforms.views import Rounding
from keras_vjepa.tasks.classifier import check_predictions
from keras_vjepa.tasks.probe import MOST_CLASSES, check_probe
from keras_vjepa.training.optimizer import check_moments


def check_settings(settings: Any) -> None:
    """Check the settings that are not parts, such as `epochs`.

    Args:
        settings: `ProbeSettings`, or a config of a recipe that has them.

    Raises:
        ValueError: for the first setting that is out of range.
    """
    _check_tasks(settings)
    for name in ("images", "augment", "auto_augment", "online", "readouts", "skip_unreadable"):
        check_flag(**{name: getattr(settings, name)})
    check_size(optional=True, image_size=settings.image_size)
    check_number("(0, 1]", fraction=settings.fraction)
    check_number("(0, 1)", validation_share=settings.validation_share)
    for name in ("learning_rates", "weight_decays"):
        if not _several(getattr(settings, name)):
            raise ValueError(
                f"`{name}` must hold at least one number. "
                f"Received: {shown(getattr(settings, name))}"
            )
        for number in getattr(settings, name):
            check_number("[0, inf)", **{name: number})
    check_whole(1, MOST_LONG, epochs=settings.epochs)
    # The largest seed is smaller here, because the number of a split is added to it.
    check_whole(0, MOST_SEED - MOST_LONG, seed=settings.seed)
    check_reading(settings.batch_size, 0, settings.num_workers, 1, settings.max_bad_share)
    check_whole(1, MOST_LONG, feature_batch_size=settings.feature_batch_size)
    check_choice(("float32", "float16"), feature_dtype=settings.feature_dtype)


def check_parts(settings: Any) -> None:
    """Check the parts of settings, from which objects are made later.

    Args:
        settings: as in `check_settings`.

    Raises:
        ValueError: for the first option that is out of range.
    """
    settings.classifier.check(check_probe)
    settings.classifier.check(check_predictions)
    if settings.classifier.num_views not in (1, 3):
        raise ValueError(
            f"`num_views` must be 1 or 3. Received: {shown(settings.classifier.num_views)}"
        )
    settings.clip.make(num_clips=settings.classifier.num_clips)
    settings.limits.make()
    settings.view.check(
        lambda short_side: check_whole(1, MOST_LONG, optional=True, short_side=short_side)
    )
    settings.view.check(_check_pixels)
    transform = ImageProbeTransform if settings.images else VideoProbeTransform
    settings.transform.make(transform, crop_size=1)
    settings.operations.make(AutoAugment if settings.images else RandAugment)
    settings.optimizer.check(check_moments)
    settings.optimizer.check(lambda constant_decay: check_flag(constant_decay=constant_decay))


def _check_pixels(
    antialias: bool | None, interpolation: str, crop_rounding: str, mean: Any, std: Any
) -> None:
    if antialias is not None:
        check_flag(antialias=antialias)
    check_choice(get_args(Kernel), interpolation=interpolation)
    check_choice(get_args(Rounding), crop_rounding=crop_rounding)
    check_colour("(-inf, inf)", mean=mean)
    check_colour("(0, inf)", std=std)


def _check_tasks(settings: Any) -> None:
    tasks, counts = settings.tasks, settings.num_classes
    if not _several(tasks) or len(set(tasks)) < len(tasks):
        raise ValueError(f"`tasks` must be different names. Received: {shown(tasks)}")
    for task in tasks:
        check_text(tasks=task)
    if counts is None and len(tasks) == 1:
        return
    if not isinstance(counts, tuple | list) or len(counts) != len(tasks):
        raise ValueError(
            f"`num_classes` must hold a number for each of the `tasks`={tasks}. "
            f"Received: {shown(counts)}"
        )
    for count in counts:
        check_whole(1, MOST_CLASSES, num_classes=count)
    # The labels of all tasks are joined into one number, which must not become too large.
    if math.prod(counts) > MOST:
        raise ValueError(
            f"`num_classes` of all tasks multiplied must be at most {MOST:,}. "
            f"Received: {shown(counts)}"
        )


def _several(values: Any) -> bool:
    return isinstance(values, tuple | list) and len(values) > 0
