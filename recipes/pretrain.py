"""Pretrain V-JEPA (§3, App. C, Table 9).

    KERAS_BACKEND=jax python recipes/pretrain.py
    KERAS_BACKEND=jax python recipes/pretrain.py --data my_videos/ --config vitl16

Without arguments: a small model on the built-in videos, then a frozen probe of it beside the same
network untrained. Any field of the config is an option, for example `--steps 200`.
"""

import dataclasses
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

# First, for it chooses Keras' backend.
import keras_vjepa  # noqa: F401

# isort: split
import cv2
import keras
import numpy as np
from numpy.typing import NDArray

from keras_vjepa import (
    AdamW,
    CosineSchedule,
    LinearSchedule,
    VJEPABackbone,
    VJEPAPredictor,
    VJEPAPretrainer,
    WarmupCosine,
    files,
)
from keras_vjepa.backend import collectives, distribution
from keras_vjepa.backend.distribution import ALONE, DataParallel
from keras_vjepa.data.batches.clips import ClipSettings
from keras_vjepa.data.batches.indexed import TooManyBadFilesError
from keras_vjepa.data.batches.mask_kinds import (
    CausalMultiBlockMask,
    Mask,
    MultiBlockMask,
    RandomTokenMask,
    RandomTubeMask,
)
from keras_vjepa.data.batches.mask_sampler import MaskSampler
from keras_vjepa.data.batches.pretraining import ClipBatches
from keras_vjepa.data.sources import labelled_sets
from keras_vjepa.data.sources.digit_motion import prepare_digit_motion
from keras_vjepa.data.sources.digit_motion_rendering import SETS
from keras_vjepa.data.sources.samples import list_samples
from keras_vjepa.data.transforms.training import PretrainTransform
from keras_vjepa.evaluation.comparison import (
    ComparedEncoder,
    EncoderComparison,
    LabelledClips,
    comparison_table,
    read_labelled_clips,
)
from keras_vjepa.evaluation.task_labels import DIGIT_MOTION_TASKS, num_labels
from keras_vjepa.layers.dense import INITIALIZER_STDDEV
from keras_vjepa.monitoring.feature_log import FeatureLog
from keras_vjepa.recipes import command_line, probe_configs
from keras_vjepa.recipes.pretrain_configs import CONFIGS, PretrainConfig
from keras_vjepa.training.resumable import (
    LossLog,
    NotFiniteError,
    SaveCheckpoints,
    check_same_run,
    describe_run,
    resume,
)
from keras_vjepa.training.run_state import Checkpoints
from keras_vjepa.training.signals import StopSignals, stop_signals

# Fields that may change when a run goes on. The samples are compared in place of the path to them.
MAY_DIFFER = (
    "data",
    "num_workers",
    "max_bad_share",
    "shard_parameters",
    "monitor_every",
    "checkpoint_every",
    "keep_last",
    "keep_every",
)


# --- From a config to objects --------------------------------------------------------------------


def make_encoder(config: PretrainConfig) -> VJEPABackbone:
    """The encoder with random weights: the same for every call, for the seed is set anew."""
    keras.config.set_dtype_policy(config.dtype)
    keras.utils.set_random_seed(config.seed)
    encoder = VJEPABackbone(
        image_size=config.image_size,
        num_frames=config.num_frames,
        patch_size=config.patch_size,
        tubelet_size=config.tubelet_size,
        hidden_dim=config.hidden_dim,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        remat=config.remat,
        name="encoder",
    )
    _spread_weights(encoder, config.initializer_stddev)
    return encoder


def load_encoder(config: PretrainConfig, field: str) -> VJEPABackbone | None:
    """The encoder of the preset that a field of the config names, if it does."""
    preset = getattr(config, field)
    if not preset:
        return None
    try:
        return VJEPABackbone.from_preset(preset, dtype=config.dtype, name=field)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"`{field}` must be a preset of a trained encoder: train it first. {error}"
        ) from None


def _take_weights(encoder: VJEPABackbone, start: VJEPABackbone, preset: str) -> None:
    free = {"name", "dtype", "remat", "trainable"}
    wanted, found = encoder.get_config(), start.get_config()
    for name in sorted(wanted.keys() - free):
        if wanted[name] != found[name]:
            raise ValueError(
                f"`start_from` must be an encoder of the config's architecture, with `{name}`="
                f"{wanted[name]}. Received: {found[name]} in {preset}"
            )
    encoder.set_weights(start.get_weights())


def make_pretrainer(config: PretrainConfig) -> VJEPAPretrainer:
    """The model with its optimizer, ready for `fit`."""
    encoder = make_encoder(config)
    teacher, start = (load_encoder(config, field) for field in ("teacher", "start_from"))
    if start is not None:
        _take_weights(encoder, start, config.start_from)
    predictor = VJEPAPredictor(
        encoder.hidden_dim,
        encoder.position_axes,
        hidden_dim=config.predictor_hidden_dim,
        num_layers=config.predictor_num_layers,
        num_heads=config.num_heads,
        num_mask_tokens=len(mask_kinds(config)),
        output_dim=encoder.patch_dim
        if config.target == "pixels"
        else (teacher or encoder).hidden_dim,
        remat=config.remat,
        name="predictor",
    )
    _spread_weights(predictor, config.initializer_stddev)
    length = config.steps * config.schedule_scale
    pretrainer = VJEPAPretrainer(
        encoder,
        predictor,
        momentum=LinearSchedule(config.start_momentum, config.final_momentum, length),
        loss_exponent=config.loss_exponent,
        variance_weight=config.variance_weight,
        target=config.target,
        normalize_targets=config.normalize_targets,
        context_variance_weight=config.context_variance_weight,
        context_covariance_weight=config.context_covariance_weight,
        teacher=teacher,
        padding=config.truncation == "budget" and not config.masks.startswith("random"),
        name="pretrainer",
    )
    pretrainer.compile(
        AdamW(
            WarmupCosine(
                config.start_learning_rate,
                config.learning_rate,
                config.final_learning_rate,
                config.warmup_steps,
                int(length),
            ),
            CosineSchedule(config.start_weight_decay, config.final_weight_decay, int(length)),
            clip_norm=config.clip_norm,
            clip_after=config.clip_after,
        ),
        config.accumulation_steps,
    )
    return pretrainer


def _spread_weights(network: keras.Model, stddev: float) -> None:
    """Scale the fresh weights of all linear layers to another deviation."""
    for variable in network.trainable_variables:
        if len(variable.shape) > 1:
            variable.assign(variable * (stddev / INITIALIZER_STDDEV))


def mask_kinds(config: PretrainConfig) -> list[Mask]:
    """The kinds of masks, each with a mask token and a term of the loss."""
    random = {"random_tube": RandomTubeMask, "random_tokens": RandomTokenMask}
    if config.masks in random:
        return [random[config.masks](config.mask_ratio)]
    kinds: dict[str, Callable[..., Mask]] = {
        "multi_block": MultiBlockMask,
        "causal_multi_block": partial(
            CausalMultiBlockMask,
            num_context_frames=config.max_context_frames,
            num_frames=config.num_frames,
        ),
    }
    if config.masks not in kinds:
        raise ValueError(
            f"`masks` must be one of {', '.join([*kinds, *random])}. Received: {config.masks!r}"
        )
    return [
        kinds[config.masks](num_blocks, scale, aspect_ratio=tuple(config.mask_aspect_ratio))
        for num_blocks, scale in zip(config.mask_num_blocks, config.mask_spatial_scale, strict=True)
    ]


def make_masks(config: PretrainConfig, grid_shape: tuple[int, int, int]) -> MaskSampler:
    """The masks of the config on this token grid."""
    kinds, truncation = mask_kinds(config), config.truncation
    if config.masks.startswith("random"):
        # All samples have the same counts.
        return MaskSampler(kinds, grid_shape, "budget", seed=config.seed)
    if truncation != "budget":
        return MaskSampler(kinds, grid_shape, truncation, seed=config.seed)  # type: ignore[arg-type]
    return MaskSampler(
        kinds, grid_shape, "budget", config.context_budgets, config.target_budgets, config.seed
    )


def make_batches(
    config: PretrainConfig, grid_shape: tuple[int, int, int], parallel: DataParallel = ALONE
) -> ClipBatches:
    """Training batches of the config's data: this process's slice of each."""
    parallel.check_batch_size(config.batch_size, config.accumulation_steps)
    source: str | Path = config.data
    if config.data in SETS:
        source = prepare_digit_motion(config=SETS[config.data]).train
    transform = PretrainTransform(
        config.image_size,
        scale=config.random_resize_scale,  # type: ignore[arg-type]
        ratio=config.random_resize_aspect_ratio,  # type: ignore[arg-type]
        horizontal_flip=config.horizontal_flip,
    )
    batches = ClipBatches(
        list_samples(source),
        config.batch_size,
        transform,
        masks=make_masks(config, grid_shape),
        clip=ClipSettings(config.num_frames, config.temporal_stride),
        seed=config.seed,
        num_workers=config.num_workers,
        max_bad_share=config.max_bad_share,
    )
    return parallel.share(batches)


# --- The run -------------------------------------------------------------------------------------


def pretrain(
    config: PretrainConfig,
    pretrainer: VJEPAPretrainer,
    batches: ClipBatches,
    parallel: DataParallel = ALONE,
    log: LossLog | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> LossLog:
    """Train until `config.steps` steps are done, from where `log` ends."""
    log = log or LossLog(config.steps, shown=parallel.is_first)
    if log.done == config.steps:
        return log
    source = batches.stream(log.done, config.steps)
    try:
        pretrainer.fit(
            parallel.feed(source),
            steps_per_epoch=config.steps - log.done,
            shuffle=False,
            verbose=0,
            callbacks=[log, *callbacks],
        )
    finally:
        # Ends its threads, unless a backend's own thread still is in it and will do so.
        with suppress(ValueError):
            source.close()
    return log


def train(
    config: PretrainConfig,
    pretrainer: VJEPAPretrainer,
    batches: ClipBatches,
    workdir: Path,
    signals: StopSignals,
    parallel: DataParallel,
) -> list[float]:
    """Go on from the last checkpoint to the last step; the loss of every step."""
    checkpoints = Checkpoints(workdir / "checkpoints", config.keep_last, config.keep_every)
    description = describe_run(_defining(config, MAY_DIFFER), batches.samples)
    losses = resume(checkpoints, pretrainer, description)
    log = LossLog(config.steps, losses=losses, shown=parallel.is_first)
    watching = FeatureLog(
        log,
        config.monitor_every,
        first_clips(batches, config.monitor_clips) if parallel.is_first else None,
        workdir / "features.csv",
    )
    saving = SaveCheckpoints(
        checkpoints,
        log,
        config.checkpoint_every,
        description,
        signals,
        lambda losses: write_losses(losses, workdir),
        parallel,
        config.shard_parameters,
    )
    signals.deferred = True
    try:
        pretrain(config, pretrainer, batches, parallel, log, [watching, saving])
    except NotFiniteError as error:
        path = workdir / f"not_finite_step_{error.step}.txt"
        files.write_text(path, "\n".join(batches.paths(error.step - 1)) + "\n")
        # One may still be on its way to the disk.
        with suppress(OSError, FloatingPointError):
            checkpoints.wait()
        steps = checkpoints.steps()
        kept = f"checkpoint of step {steps[-1]} is kept" if steps else "no checkpoint was written"
        raise FloatingPointError(f"{error}: its videos are listed in {path}, {kept}.") from None
    except Exception:
        # Some backends wrap what the data raised into pages of their own.
        if batches.error is not None:
            raise batches.error from None
        if signals.received and not parallel.is_first:
            signals.exit("The first process has saved and left.")
        raise
    finally:
        signals.deferred = False
    if signals.received:
        signals.exit("Training is done; the same command goes on with what follows it.")
    return log.losses


def first_clips(batches: ClipBatches, count: int) -> NDArray[np.float32]:
    """The first clips of the run, whatever its batches and processes."""
    first = replace(batches, batch_size=count, process_index=0, process_count=1)
    return np.asarray(first.batch(0)["videos"], "float32")


def write_losses(losses: Sequence[float], workdir: Path) -> None:
    """The loss of every step as a table."""
    rows = "".join(f"{i},{loss:.9g}\n" for i, loss in enumerate(losses, start=1))
    files.write_text(workdir / "loss.csv", "step,loss\n" + rows)


def labelled_clips(config: PretrainConfig) -> tuple[LabelledClips, LabelledClips]:
    """One clip of each of the first labelled videos of a built-in set, and of the test videos."""
    clip = ClipSettings(config.num_frames, config.temporal_stride)
    train, test = labelled_sets.train_and_test(config.data)
    classes = num_labels(DIGIT_MOTION_TASKS)
    first, second = (
        read_labelled_clips(samples, clip, config.image_size, classes, config.num_workers)
        for samples in (train[: config.probe_videos], test)
    )
    return first, second


def evaluate(
    config: PretrainConfig, pretrained: VJEPABackbone, untrained: VJEPABackbone
) -> dict[str, ComparedEncoder]:
    """The frozen probe on the built-in set: pretrained, untrained, and on single frames."""
    train, test = labelled_clips(config)
    settings = replace(probe_configs.digit_motion(), epochs=config.probe_epochs)
    comparison = EncoderComparison(pretrained, settings, train, test)
    return {
        "pretrained target encoder": comparison(pretrained),
        "untrained encoder": comparison(untrained),
        "single frame, pretrained": comparison(pretrained, single_frame=True),
    }


def draw_curve(losses: list[float], path: Path, height: int = 320, width: int = 640) -> None:
    """The loss of every step as a picture, with its range written beside it."""
    image = np.full((height, width, 3), 255, "uint8")
    low, high = min(losses), max(losses)
    x = np.linspace(60, width - 10, len(losses))
    y = 10 + (high - np.array(losses)) / max(high - low, 1e-12) * (height - 40)
    points = np.stack([x, y], axis=1).round().astype("int32")
    cv2.polylines(image, [points], False, (160, 80, 20), 1, cv2.LINE_AA)
    for text, place in (
        (f"{high:.3f}", (4, 16)),
        (f"{low:.3f}", (4, height - 26)),
        (f"loss, steps 1 to {len(losses)}", (60, height - 8)),
    ):
        cv2.putText(image, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1, cv2.LINE_AA)
    files.write_picture(path, image)


def run(config: PretrainConfig, workdir: Path) -> None:
    """Train, save, evaluate; everything goes to `workdir`. A run that was stopped goes on there."""
    parallel = distribution.setup(config.shard_parameters)
    _make_writable(workdir)
    if _is_finished(config, workdir):
        if parallel.is_first:
            print(
                f"{workdir} holds this run, finished: {config.steps:,} steps. "
                "Take another --workdir to train again.",
                file=sys.stderr,
            )
        return
    with stop_signals() as signals:
        pretrainer = make_pretrainer(config)
        batches = make_batches(config, pretrainer.encoder.grid_shape, parallel)
        if parallel.is_first:
            print(
                f"{pretrainer.encoder.count_params():,} + {pretrainer.predictor.count_params():,} "
                f"parameters, {len(batches.samples):,} videos, {config.steps:,} steps of "
                f"{config.batch_size} clips; {parallel}",
                file=sys.stderr,
            )
        losses = train(config, pretrainer, batches, workdir, signals, parallel)
        weights = collectives.values(pretrainer.weights)
        parallel.release()
        if not parallel.is_first:
            return
        pretrainer = VJEPAPretrainer.from_config(pretrainer.get_config())
        pretrainer.set_weights(weights)
        save(config, workdir, losses, pretrainer)
        if config.data not in SETS:
            return
        encoder = make_encoder(config)
        encoder.save_to_preset(workdir / "untrained")
        if parallel.process_count > 1:
            # The others have ended, and may not wait for this one.
            print(
                f"Evaluate with recipes/probe.py --preset {workdir}/preset --data {config.data} "
                f"--image_size {config.image_size}",
                file=sys.stderr,
            )
            return
        results = evaluate(config, pretrainer.target_encoder, encoder)
        summary = {name: result.as_dict() for name, result in results.items()}
        files.write_text(workdir / "probe.json", json.dumps(summary, indent=2))
        print(comparison_table(results))


def save(
    config: PretrainConfig, workdir: Path, losses: list[float], pretrainer: VJEPAPretrainer
) -> None:
    """Write the config, the loss of every step, its picture and the preset."""
    files.write_text(workdir / "config.json", json.dumps(dataclasses.asdict(config), indent=2))
    write_losses(losses, workdir)
    draw_curve(losses, workdir / "loss.png")
    pretrainer.save_to_preset(workdir / "preset")
    print(f"Saved {workdir}/preset, loss.csv, loss.png and features.csv.", file=sys.stderr)


def _is_finished(config: PretrainConfig, workdir: Path) -> bool:
    """Whether all results are there; an error if they are another config's."""
    results = [workdir / "config.json", workdir / "preset" / "config.json"]
    if config.data in SETS:
        results.append(workdir / "probe.json")
    if not all(path.is_file() for path in results):
        return False
    free = [name for name in MAY_DIFFER if name != "data"]
    stored = {k: v for k, v in json.loads(results[0].read_text()).items() if k not in free}
    check_same_run(stored, _defining(config, free), workdir)
    return True


def _defining(config: PretrainConfig, free: Sequence[str]) -> dict[str, Any]:
    """The fields that are not free, as JSON has them."""
    fields = {k: v for k, v in dataclasses.asdict(config).items() if k not in free}
    return json.loads(json.dumps(fields))


def _make_writable(workdir: Path) -> None:
    # As a path, "gs://bucket" would be a local folder of that name.
    if re.match(r"\w+:/", str(workdir)):
        raise ValueError(
            f"`workdir` must be a local or a mounted path (gcsfuse, NFS). Received: {workdir}"
        )
    workdir.mkdir(parents=True, exist_ok=True)
    if not os.access(workdir, os.W_OK):
        raise PermissionError(
            f"`workdir` must be a folder that can be written. Received: {workdir}"
        )


# --- The command line ----------------------------------------------------------------------------


def parse_arguments(
    arguments: list[str] | None = None, program: str = "pretrain.py"
) -> tuple[PretrainConfig, Path]:
    """The config and the workdir that a command line asks for."""
    name, overrides, workdir = command_line.parse(program, __doc__ or "", CONFIGS, arguments)
    return replace(CONFIGS[name](), **overrides), workdir


def main(arguments: list[str] | None = None, program: str = "pretrain.py") -> None:
    """Run the recipe as a command; `program` stands in front of its messages."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    config, workdir = parse_arguments(arguments, program)
    distribution.launch_on_all_devices()
    try:
        run(config, workdir)
    except (ValueError, OSError, FloatingPointError, TooManyBadFilesError) as error:
        collectives.exit_with_error(f"{program}: {error}")


if __name__ == "__main__":
    main()
