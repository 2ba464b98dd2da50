"""Check what defines a pretraining run, before anything is made or written (Table 9, App. C)."""

import math
from collections.abc import Sequence
from typing import Any

from keras_vjepa.arguments import (
    MOST,
    MOST_LONG,
    MOST_SEED,
    check_choice,
    check_number,
    check_text,
    check_whole,
)
from keras_vjepa.data.batches.indexed import check_reading
from keras_vjepa.data.batches.mask_budgets import BUDGETS
from keras_vjepa.data.batches.mask_kinds import Grid, Mask, MultiBlockMask, RandomTubeMask
from keras_vjepa.data.batches.mask_sampler import check_one_per_mask
from keras_vjepa.models.backbone import VJEPABackbone
from keras_vjepa.models.predictor import VJEPAPredictor
from keras_vjepa.tasks.pretrainer import check_objective
from keras_vjepa.training.optimizer import LEARNING_DTYPES
from keras_vjepa.training.resumable import check_run


def check_fields(config: Any) -> None:
    """Check what a config says itself, and not its parts.

    Args:
        config: that of a recipe.

    Raises:
        ValueError: for the first option that is out of range, by its name.
    """
    check_text(data=config.data, dtype=config.dtype)
    check_choice(LEARNING_DTYPES, dtype=config.dtype)
    check_number("(0, 10]", initializer_stddev=config.initializer_stddev)
    check_number("(0, 1000]", schedule_scale=config.schedule_scale)
    check_whole(1, MOST_LONG, accumulation_steps=config.accumulation_steps)
    check_whole(1, MOST_LONG, monitor_clips=config.monitor_clips, probe_epochs=config.probe_epochs)
    check_whole(1, probe_videos=config.probe_videos)
    check_whole(1, MOST_LONG, optional=True, mask_sets=config.mask_sets)
    check_whole(0, MOST_SEED, seed=config.seed)


def check_parts(config: Any) -> None:
    """Check what the parts of a config say, of which the objects are made later.

    Args:
        config: that of a recipe.

    Raises:
        ValueError: for the first option that is out of range, by its name.
    """
    _check_schedules(config)
    config.monitor.check(lambda every: check_whole(1, every=every))
    config.limits.make()
    config.batches.check(check_reading, seed=config.seed)
    config.pretrainer.check(check_objective)
    # Those of masks of which others are taken too.
    config.mask.check(lambda ratio: RandomTubeMask(ratio))
    config.mask.check(
        lambda num_context_frames: check_whole(1, MOST_LONG, num_context_frames=num_context_frames)
    )
    config.mask.make_each(MultiBlockMask)
    config.sampler.check(
        lambda budget_batch_size: check_whole(1, budget_batch_size=budget_batch_size)
    )
    with config.encoder.renaming():
        VJEPABackbone.number_of_weights(**config.encoder.arguments)
    config.clip.make(frames_per_clip=config.encoder.num_frames)
    config.transform.make(crop_size=config.encoder.image_size)


def check_masks(config: Any, kinds: Sequence[Mask], grid: Grid) -> None:
    """Check masks, budgets and predictor against the encoder's grid of tokens.

    Args:
        config: one that `check_parts` has nothing against.
        kinds: its masks.
        grid: of its encoder.

    Raises:
        ValueError: for the first option that does not fit, by its name.
    """
    with config.mask.renaming():
        for kind in kinds:
            kind.check_grid(grid)
    for name in BUDGETS:
        budgets = getattr(config.sampler, name)
        for budget in budgets or ():
            check_whole(1, math.prod(grid), optional=True, **{name: budget})
        check_one_per_mask(name, budgets, kinds)
    encoder, predictor = config.encoder, config.predictor
    known = {
        "encoder_dim": encoder.hidden_dim,
        "grid_shape": grid if encoder.num_frames > 1 else grid[1:],
        "num_heads": encoder.num_heads,
        "num_mask_tokens": len(kinds),
        "position_embedding": encoder.position_embedding,
        "uniform_power": encoder.uniform_power,
        "remat": encoder.remat,
    }
    given = {name: value for name, value in predictor.arguments.items() if value is not None}
    # Mask tokens see nothing of the context without.
    predictor.check(lambda num_layers: check_whole(1, num_layers=num_layers))
    with predictor.renaming():
        VJEPAPredictor.number_of_weights(**{**known, **given})


def _check_schedules(config: Any) -> None:
    config.run.check(check_run)
    length = config.run.steps * config.schedule_scale
    if not 1 <= length <= MOST:
        raise ValueError(
            f"`steps` times `schedule_scale` must be in [1, {MOST:,}]. Received: {length:g}"
        )
    config.momentum.make(total_steps=length)
    config.optimizer.make(
        learning_rate=config.learning_rate.make(total_steps=int(length)),
        weight_decay=config.weight_decay.make(total_steps=int(length)),
    )
