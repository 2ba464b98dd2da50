"""Check the config of a pretraining run, before anything is made or written (Table 9, App. C)."""

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from keras_vjepa.arguments import (
    MOST,
    MOST_LONG,
    MOST_SEED,
    check_choice,
    check_flag,
    check_number,
    check_text,
    check_whole,
    counted,
)
from keras_vjepa.backend.device import memory_of_machine
from keras_vjepa.configuration import ConfigT, replace, values
from keras_vjepa.data.batches.clips import check_cache
from keras_vjepa.data.batches.epochs import check_label_weights
from keras_vjepa.data.batches.indexed import check_reading
from keras_vjepa.data.batches.mask_budgets import BUDGETS
from keras_vjepa.data.batches.mask_kinds import Grid, Mask, MultiBlockMask, RandomTubeMask
from keras_vjepa.data.batches.mask_sampler import check_one_per_mask
from keras_vjepa.data.reading.frame_folder import check_fps
from keras_vjepa.data.sources.digit_motion_rendering import SETS
from keras_vjepa.models.backbone import VJEPABackbone
from keras_vjepa.models.dimensions import height_and_width, token_grid
from keras_vjepa.models.predictor import VJEPAPredictor
from keras_vjepa.monitoring.tensorboard import check_tensorboard
from keras_vjepa.tasks.context_loss import check_context_loss
from keras_vjepa.tasks.named_presets import architecture_to_begin_with
from keras_vjepa.tasks.pretrainer import check_objective, check_taught
from keras_vjepa.training.optimizer import LEARNING_DTYPES, check_moments, check_updates
from keras_vjepa.training.resumable import check_run


def configured(original: ConfigT, given: Mapping[str, Any], say: bool = True) -> ConfigT:
    """Set options in a config, and fit others to them that would not go with them.

    Options that are fitted are a warm-up that is longer than the run, and the frames of context of
    causal masks. If the run begins with a preset, the encoder is that of the preset.

    Args:
        original: a config of a recipe.
        given: values that a user sets, by the names of options.
        say: whether to print a line for each option that was fitted.

    Raises:
        ValueError: for a value that is out of range, and for a given value that does not fit; the
            message names the option.
    """
    given = {**given, **architecture_to_begin_with(original, given)}
    config = replace(original, **given)
    changes = _fitting_warm_up(original, config, given) | _fitting_context(config, given)
    lines = [
        f"--{name} is {value:,} in place of the config's {values(config)[name]:,}, which does not "
        f"fit {reason}."
        for name, (value, reason) in changes.items()
    ]
    for name in ("start_learning_rate", "final_learning_rate"):
        rate, peak = values(config)[name], config.learning_rate.peak
        if "learning_rate" in given and name not in given and rate > peak > 0:
            lines.append(
                f"--{name} is the config's {rate:g}, which is more than the --learning_rate."
            )
    if say:
        print("".join(f"{line}\n" for line in lines), end="", file=sys.stderr)
    return replace(config, **{name: value for name, (value, _) in changes.items()})


# For each option, a value that fits, and words for what the config's own value does not fit.
_Changes = dict[str, tuple[int, str]]


def _fitting_warm_up(original: Any, config: Any, given: Mapping[str, Any]) -> _Changes:
    """Shorten a warm-up with the run, and make clipping begin earlier in proportion."""
    length, steps = _schedule_length(config), config.run.steps
    warm_up, clip_after = config.learning_rate.warmup_steps, config.optimizer.clip_after
    if length < 1 or warm_up < length:
        return {}
    share = original.learning_rate.warmup_steps / _schedule_length(original)
    fitting = min(round(share * length), length - 1)
    if "warmup_steps" in given:
        raise ValueError(
            "`warmup_steps` must be less than `steps` times `schedule_scale`, "
            f"{steps:,} x {config.schedule_scale:g}. Received: {warm_up}; leave it out for "
            f"{fitting}, or take more `steps`"
        )
    reason = f"into {counted(steps, 'step')}"
    changes = {"warmup_steps": (fitting, reason)}
    if "clip_after" not in given and clip_after is not None and clip_after >= length:
        changes["clip_after"] = (round(clip_after * fitting / warm_up), reason)
    return changes


def _fitting_context(config: Any, given: Mapping[str, Any]) -> _Changes:
    """Take three quarters of the frames as context, as in the paper, if its 12 are too many."""
    frames, context = config.encoder.num_frames, config.mask.num_context_frames
    fits = config.masks != "causal_multi_block" or context <= frames
    if fits or "max_context_frames" in given or frames < 2:
        return {}
    return {"max_context_frames": (3 * frames // 4, f"{frames} frames")}


def _schedule_length(config: Any) -> int:
    return int((config.schedule_steps or config.run.steps) * config.schedule_scale)


# Ten times the largest batch of any use. Drawing that many masks a hundred times takes a minute.
_LARGEST_BUDGET_BATCH = 1024
_NUM_COLOURS = 3


def check_fields(config: Any) -> None:
    """Check the plain fields of a config, but not its parts.

    Args:
        config: the config of a recipe.

    Raises:
        ValueError: for the first option that is out of range; the message names it.
    """
    check_text(data=config.data, dtype=config.dtype)
    check_choice(LEARNING_DTYPES, dtype=config.dtype)
    check_number("(0, 10]", initializer_stddev=config.initializer_stddev)
    check_number("(0, 1000]", schedule_scale=config.schedule_scale)
    check_whole(1, MOST_LONG, accumulation_steps=config.accumulation_steps)
    check_whole(1, MOST_LONG, monitor_clips=config.monitor_clips, probe_epochs=config.probe_epochs)
    check_whole(1, probe_videos=config.probe_videos)
    check_whole(0, MOST_LONG, monitor_probe_clips=config.monitor_probe_clips)
    check_whole(1, MOST_LONG, optional=True, mask_sets=config.mask_sets)
    check_whole(1, MOST_LONG, optional=True, schedule_steps=config.schedule_steps)
    check_whole(0, MOST_SEED, seed=config.seed)
    check_flag(tensorboard=config.tensorboard)
    check_tensorboard(config.tensorboard)


def check_parts(config: Any) -> None:
    """Check the arguments in the parts of a config, before the objects are made of them.

    Args:
        config: the config of a recipe.

    Raises:
        ValueError: for the first option that is out of range; the message names it.
    """
    _check_schedules(config)
    config.monitor.check(
        lambda every, probe_every: check_whole(1, every=every, probe_every=probe_every)
    )
    config.source.check(check_fps)
    config.limits.make()
    config.batches.check(check_reading, seed=config.seed)
    config.batches.check(check_cache)
    config.batches.check(check_label_weights)
    config.pretrainer.check(check_objective)
    config.pretrainer.check(check_context_loss)
    # The arguments of all kinds of masks are checked, whichever kind is chosen.
    config.mask.check(lambda ratio: RandomTubeMask(ratio))
    config.mask.check(
        lambda num_context_frames: check_whole(1, MOST_LONG, num_context_frames=num_context_frames)
    )
    config.mask.make_each(MultiBlockMask)
    config.sampler.check(
        lambda budget_batch_size: check_whole(
            1, _LARGEST_BUDGET_BATCH, budget_batch_size=budget_batch_size
        )
    )
    with config.encoder.renaming():
        if config.encoder.num_channels != _NUM_COLOURS:
            raise ValueError(
                f"`num_channels` must be {_NUM_COLOURS}, as videos are read. "
                f"Received: {config.encoder.num_channels}"
            )
        VJEPABackbone.number_of_weights(**config.encoder.arguments)
    config.clip.make(frames_per_clip=config.encoder.num_frames)
    config.transform.make(crop_size=config.encoder.image_size)
    config.images.make()
    if config.images.data and not config.encoder.modalities:
        raise ValueError("`modalities` must be True with `image_data`. Received: False")
    if config.teacher:
        check_taught(values(config)["target"])
    if config.images.data and values(config)["target"] == "pixels":
        raise ValueError(
            "`target` must be 'features' with `image_data`: a patch of an image has fewer pixels "
            "than one of a video. Received: 'pixels'"
        )


def check_masks(config: Any, kinds: Sequence[Mask], grid: Grid) -> None:
    """Check masks, budgets and predictor against the encoder's grid of tokens.

    Args:
        config: a config that has passed `check_parts`.
        kinds: the masks of the config.
        grid: the token grid of its encoder.

    Raises:
        ValueError: for the first option that does not fit; the message names it.
    """
    with config.mask.renaming():
        for kind in kinds:
            kind.check_grid(grid)
    if config.images.data:
        with config.images.renaming():
            config.images.make().mask().check_grid((1, *grid[1:]))
    for name in BUDGETS:
        budgets = getattr(config.sampler, name)
        for budget in budgets or ():
            check_whole(1, math.prod(grid), optional=True, **{name: budget})
        check_one_per_mask(name, budgets, kinds)
    encoder, predictor = config.encoder, config.predictor
    _check_levels(config, len(kinds))
    known = {
        "encoder_dim": encoder.hidden_dim,
        "grid_shape": grid if encoder.num_frames > 1 else grid[1:],
        "num_heads": encoder.num_heads,
        "num_mask_tokens": len(kinds),
        "position_embedding": encoder.position_embedding,
        "uniform_power": encoder.uniform_power,
        "remat": encoder.remat,
        "position_reach": encoder.position_reach,
        "modalities": encoder.modalities,
    }
    given = {name: value for name, value in predictor.arguments.items() if value is not None}
    # In a predictor without layers, mask tokens would see nothing of the context.
    predictor.check(lambda num_layers: check_whole(1, num_layers=num_layers))
    with predictor.renaming():
        VJEPAPredictor.number_of_weights(**{**known, **given})


def _check_levels(config: Any, num_kinds: int) -> None:
    """Check what the objective asks of the levels, the predictor and its mask tokens."""
    levels, wanted = config.encoder.level_layers, config.predictor.num_levels
    if wanted > 1 and len(levels or ()) != wanted:
        raise ValueError(
            f"`level_layers` must be {wanted} blocks with `predictor_num_levels`={wanted}. "
            f"Received: {levels}"
        )
    if config.pretrainer.context_loss_weight and not config.predictor.predicts_context:
        raise ValueError(
            "`context_loss_weight` must be 0 without `predictor_predicts_context`. "
            f"Received: {config.pretrainer.context_loss_weight}"
        )
    if config.pretrainer.target == "given":
        raise ValueError("`target` must not be 'given': videos on disk come without features.")
    mask_token = config.pretrainer.mask_token
    tokens = config.predictor.num_mask_tokens or num_kinds
    if mask_token is not None and mask_token >= tokens:
        raise ValueError(
            f"`mask_token` must be less than `predictor_num_mask_tokens`={tokens}. "
            f"Received: {mask_token}"
        )


def check_probe_memory(config: Any) -> None:
    """Check that the clips of the monitor's probe, and of the one after a run, fit into memory.

    Only a run on a built-in set is followed by a probe.

    Args:
        config: the config of a recipe.

    Raises:
        ValueError: if they take more memory than the machine has.
    """
    has = memory_of_machine()
    if has is None:
        return
    _check_memory_of_online_probe(config, has)
    if config.data not in SETS:
        return
    source, encoder = SETS[config.data], config.encoder
    height, width = height_and_width(encoder.image_size)
    train = min(config.probe_videos, source.num_training_videos)
    # Clips are in memory twice for a while: first in a list, then in one array made of it.
    clips = train + max(train, 2 * source.num_test_videos)
    needed = clips * encoder.num_frames * height * width * _NUM_COLOURS * 4
    if needed > has:
        raise ValueError(
            f"`probe_videos` must be fewer, or clips smaller: those of the probe after the run "
            f"take {needed / 1e9:,.0f} GB at {encoder.num_frames} x {height} x {width}, and this "
            f"machine has {has / 1e9:,.0f} GB. Received: {config.probe_videos:,}"
        )


def _check_memory_of_online_probe(config: Any, has: int) -> None:
    encoder = config.encoder
    height, width = height_and_width(encoder.image_size)
    names = ("image_size", "num_frames", "patch_size", "tubelet_size")
    tokens = math.prod(token_grid({name: getattr(encoder, name) for name in names}))
    # Clips of the test are half as many. Those read at a time are in memory twice for a while.
    clips = 2.5 * encoder.num_frames * height * width * _NUM_COLOURS
    needed = config.monitor_probe_clips * 4 * (clips + 1.5 * tokens * encoder.hidden_dim)
    if needed > has:
        raise ValueError(
            "`monitor_probe_clips` must be fewer, or clips smaller: with their features they take "
            f"{needed / 1e9:,.0f} GB, and this machine has {has / 1e9:,.0f} GB. "
            f"Received: {config.monitor_probe_clips:,}"
        )


def _check_schedules(config: Any) -> None:
    config.run.check(check_run)
    length = config.run.steps * config.schedule_scale
    if not 1 <= length <= MOST:
        raise ValueError(
            f"`steps` times `schedule_scale` must be in [1, {MOST:,}]. Received: {length:g}"
        )
    config.momentum.make(total_steps=length)
    config.learning_rate.make(total_steps=int(length))
    config.weight_decay.make(total_steps=int(length))
    # The optimizer itself is not made here: JAX would put its variables on one device, before it
    # is told of the other devices.
    config.optimizer.check(check_moments)
    config.optimizer.check(check_updates)
    config.optimizer.check(lambda clip_after: check_whole(0, optional=True, clip_after=clip_after))
