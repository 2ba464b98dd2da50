"""Derive the rest of a pretraining config, check it and describe it (§3.2, §4.4, App. C).

Budgets follow from the token grid and the masks, and the start of clipping from the warm-up.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from keras_vjepa import VJEPAPretrainer
from keras_vjepa.arguments import counted
from keras_vjepa.backend.distribution import DataParallel
from keras_vjepa.configuration import replace, values
from keras_vjepa.data.batches.mask_budgets import (
    BUDGETS,
    are_exact,
    check_usual_budgets,
    masks_in_words,
)
from keras_vjepa.data.batches.mask_kinds import Grid
from keras_vjepa.data.batches.mask_sampler import counts_after_truncation, mean_counts
from keras_vjepa.data.batches.named_masks import MASK_SETS, mask_kinds
from keras_vjepa.data.batches.pretraining import ClipBatches
from keras_vjepa.data.batches.videos_and_images import VideosAndImages
from keras_vjepa.data.sources.digit_motion_rendering import SETS
from keras_vjepa.data.sources.digit_scene import SCENES
from keras_vjepa.data.sources.listing import source_exists
from keras_vjepa.models import dimensions
from keras_vjepa.monitoring.given_callbacks import check_callbacks
from keras_vjepa.presets.preset import check_preset
from keras_vjepa.pretraining_check import check_masks, check_parts
from keras_vjepa.recipes.pretrain_objects import (
    clip_after,
    make_masks,
    schedule_steps,
)
from keras_vjepa.recipes.pretrain_parts import PretrainConfig
from keras_vjepa.training.continuing import stored_options
from keras_vjepa.training.results import read_result
from keras_vjepa.training.resumable import check_folder

# Options that may change when a run goes on. In place of the paths of samples, the samples are
# compared; in place of the batch that budgets are made for, the budgets.
MAY_DIFFER = {
    "data", "image_data", "kind", "fps", "videos", "label_names", "path_column",
    "budget_batch_size", "num_workers", "use_multiprocessing", "cache_gib", "read_ahead",
    "max_bad_share", "max_file_seconds", "max_frame_pixels",
    "shard_parameters", "steps", "accumulation_steps", "remat",
    "monitor_every", "monitor_clips", "monitor_probe_every", "monitor_probe_clips", "callbacks",
    "stop_on_collapse", "tensorboard", "log_every", "checkpoint_every", "keep_last", "keep_every",
    # Options of earlier versions.
    "watch_every", "watch_videos",
}  # fmt: skip
# A batch counts as far from the paper's if it is larger or smaller by this factor.
FAR = 2.0


def token_grid(config: PretrainConfig) -> Grid:
    """Compute the token grid of a config's encoder, without making the encoder."""
    names = ("image_size", "num_frames", "patch_size", "tubelet_size")
    return dimensions.token_grid({name: getattr(config.encoder, name) for name in names})


def resolved(config: PretrainConfig, grid: Grid) -> dict[str, Any]:
    """List the value of every option, with values that follow from others filled in.

    Budgets that are not used are None; given budgets are listed as they are.
    """
    kinds = mask_kinds(config)
    found = {**values(config), "mask_sets": len(kinds), "clip_after": clip_after(config)}
    found["schedule_steps"] = schedule_steps(config)
    for name in BUDGETS:
        if None in found[name] if found[name] else not are_exact(kinds, grid):
            found[name] = getattr(make_masks(config, grid), name)
    return found


def upgraded(stored: Mapping[str, Any], config: PretrainConfig, grid: Grid) -> dict[str, Any]:
    """Rewrite the stored options of a run as `resolved` would have listed them.

    In runs from before `mask_sets` there was one set of random tubes, unused budgets had values,
    and budgets not given were the means at 24 clips, as multiples of the time steps.
    """
    stored = {**({"schedule_steps": stored["steps"]} if "steps" in stored else {}), **stored}
    if config.schedule_steps is not None:
        # An option that the user gives takes precedence over the stored value.
        stored["schedule_steps"] = config.schedule_steps
    if "mask_sets" in stored:
        return stored
    kinds = mask_kinds(config)
    stored["mask_sets"] = 1 if config.masks in MASK_SETS else len(kinds)
    unused = config.sampler.truncation == "batch_min" or are_exact(kinds, grid)
    for position, name in enumerate(BUDGETS):
        if unused:
            stored[name] = None
        elif stored.get(name) is None:
            steps = counts_after_truncation(kinds, grid, 24)[..., position].mean(axis=1) / grid[0]
            stored[name] = (grid[0] * steps.round().clip(1).astype(int)).tolist()
    return stored


def as_begun(config: PretrainConfig, workdir: Path) -> PretrainConfig:
    """Keep the budgets of a run of an earlier version, where budgets not given were the means."""
    stored = stored_options(workdir)
    sampler, grid = config.sampler, token_grid(config)
    if not stored or sampler.truncation == "batch_min":
        return config
    found = upgraded(stored, config, grid).get("target_budgets")
    _, means = mean_counts(mask_kinds(config), grid, sampler.budget_batch_size)
    given = sampler.target_budgets or [None] * len(means)
    former = [mean if own is None else own for own, mean in zip(given, means, strict=True)]
    return replace(config, target_budgets=tuple(former)) if found == former else config


def check_options(config: PretrainConfig) -> None:
    """Check a config quickly; raise `ValueError` with the name of an option out of range."""
    check_parts(config)
    check_callbacks(config.callbacks or ())
    check_masks(config, mask_kinds(config), token_grid(config))


def check_files(config: PretrainConfig, workdir: Path) -> None:
    """Check that data, presets and folder exist or can be made, without making anything."""
    check_folder(workdir)
    # A finished run needs no videos, so that data that it names may be gone.
    known = read_result(workdir / "config.json") or {}
    for name, data in (("data", config.data), ("image_data", config.images.data)):
        if data not in {known.get(name, ""), *SETS, *SCENES} and not source_exists(data):
            raise FileNotFoundError(
                f"`{name}` must be a folder, a list, shards or one of "
                f"{', '.join([*SETS, *SCENES])}. Received: {data}"
            )
    for name in ("start_from", "teacher"):
        if getattr(config, name):
            check_preset(getattr(config, name), name)


def check_budgets(config: PretrainConfig, original: PretrainConfig) -> None:
    """Check budgets if the grid was changed, since a config's budgets are made for its own grid.

    Args:
        config: the config as it will run.
        original: the config before any option was changed.

    Raises:
        ValueError: if a budget is not a usual one for the new grid.
    """
    sampler, grid = config.sampler, token_grid(config)
    if sampler.truncation == "budget" and grid != token_grid(original):
        # `mask_max_keep` is left out here, since it is checked when the masks are made.
        kinds = mask_kinds(replace(config, mask_max_keep=None))
        check_usual_budgets(kinds, grid, sampler.context_budgets, sampler.target_budgets)


def introduction(
    config: PretrainConfig,
    pretrainer: VJEPAPretrainer,
    batches: ClipBatches | VideosAndImages,
    devices: DataParallel,
) -> str:
    """Say what a run is about to do, and point out what users may not expect."""
    mixed = batches if isinstance(batches, VideosAndImages) else None
    videos = batches if mixed is None else mixed.videos
    lines = [
        f"Encoder of {pretrainer.encoder.count_params():,} parameters, predictor of "
        f"{pretrainer.predictor.count_params():,}; {counted(len(videos.samples), 'video')}, "
        f"{counted(config.run.steps, 'step')} of {counted(videos.batch_size, 'clip')}; {devices}",
        mixed.in_words() if mixed else None,
        masks_in_words(config.masks, make_masks(config, pretrainer.encoder.grid_shape)),
        batch_in_words(config),
    ]
    return "\n".join(filter(None, lines))


def batch_in_words(config: PretrainConfig) -> str | None:
    """Say, if so, that the batch is far from the paper's, but not learning rate or warm-up."""
    paper, ours = PretrainConfig(), config.batches.batch_size
    options = {
        "learning_rate": config.learning_rate.peak == paper.learning_rate.peak,
        "warmup_steps": config.learning_rate.warmup_steps == paper.learning_rate.warmup_steps,
    }
    made_for = [f"`{name}` {values(config)[name]:,}" for name, same in options.items() if same]
    if not made_for or paper.batches.batch_size / FAR <= ours <= paper.batches.batch_size * FAR:
        return None
    return (
        f"`batch_size` {ours:,} is far from the paper's 2,400 to 3,072, which "
        f"{' and '.join(made_for)} {'were' if len(made_for) > 1 else 'was'} made for."
    )
