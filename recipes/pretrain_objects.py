"""Make the masks, batches and models of a pretraining run from its config (§3, App. C)."""

from contextlib import suppress
from pathlib import Path

import keras

from keras_vjepa import VJEPABackbone, VJEPAPredictor, VJEPAPretrainer
from keras_vjepa.backend.distribution import ALONE, DataParallel
from keras_vjepa.configuration import values
from keras_vjepa.data import ClipBatches, MaskSampler, Sample, VideosAndImages
from keras_vjepa.data.batches.mask_budgets import are_exact
from keras_vjepa.data.batches.named_masks import mask_kinds
from keras_vjepa.data.sources.digit_motion import prepare_digit_motion
from keras_vjepa.data.sources.digit_motion_rendering import SETS
from keras_vjepa.data.sources.digit_scene import SCENES, prepare_digit_scenes
from keras_vjepa.layers.dense import scale_weights
from keras_vjepa.models.backbone_preset import copy_weights
from keras_vjepa.recipes.pretrain_parts import PretrainConfig
from keras_vjepa.tasks.named_presets import load_encoder

# --- Data ----------------------------------------------------------------------------------------


def make_masks(config: PretrainConfig, grid_shape: tuple[int, int, int]) -> MaskSampler:
    """Make the sampler that draws masks on a token grid."""
    kinds = mask_kinds(config)
    return config.sampler.make(masks=kinds, grid=grid_shape, seed=config.seed)


def make_samples(config: PretrainConfig, option: str = "data") -> list[Sample]:
    """List the samples to train on, which an option names."""
    data = values(config)[option]
    source: str | Path = data
    if data in SETS:
        source = prepare_digit_motion(config=SETS[data]).train
    elif data in SCENES:
        source = prepare_digit_scenes(config=SCENES[data]).train
    try:
        return config.source.make(source=source, label_column="")
    except FileNotFoundError as error:
        raise FileNotFoundError(str(error).replace("`source`", f"`{option}`")) from error
    except ValueError as error:
        raise ValueError(str(error).replace("`source`", f"`{option}`")) from error


def samples_if_there(config: PretrainConfig) -> list[Sample]:
    """List the samples of a run; none for a built-in set, or if they cannot be read any more."""
    if config.data not in {*SETS, *SCENES}:
        with suppress(OSError, ValueError):
            images = make_samples(config, "image_data") if config.images.data else []
            return [*make_samples(config), *images]
    return []


def make_batches(
    config: PretrainConfig, grid_shape: tuple[int, int, int], parallel: DataParallel = ALONE
) -> ClipBatches | VideosAndImages:
    """Make the training batches; each process makes its own slice of every batch."""
    if not config.images.data:
        parallel.check_batch_size(config.batches.batch_size, config.accumulation_steps)
    videos = config.batches.make(
        samples=make_samples(config),
        transform=config.transform.make(crop_size=config.encoder.image_size),
        masks=make_masks(config, grid_shape),
        clip=config.clip.make(frames_per_clip=config.encoder.num_frames),
        limits=config.limits.make(),
        seed=config.seed,
    )
    if not config.images.data:
        return parallel.share(videos)
    mixed = config.images.make().beside(videos, make_samples(config, "image_data"))
    return parallel.share_of_kinds(mixed, config.accumulation_steps)


# --- Model ---------------------------------------------------------------------------------------


def make_encoder(config: PretrainConfig) -> VJEPABackbone:
    """Make the encoder with random weights, which are the same in every call.

    The call sets Keras' precision and random seed.
    """
    keras.config.set_dtype_policy(config.dtype)
    keras.utils.set_random_seed(config.seed)
    encoder = config.encoder.make(name="encoder")
    scale_weights(encoder, config.initializer_stddev)
    return encoder


def make_predictor(
    config: PretrainConfig, encoder: VJEPABackbone, teacher: VJEPABackbone | None
) -> VJEPAPredictor:
    """Make the predictor with random weights, drawn after those of the encoder."""
    pixels = config.pretrainer.target == "pixels"
    features = config.predictor.num_levels * (teacher or encoder).hidden_dim
    predictor = config.predictor.make(
        encoder_dim=encoder.hidden_dim,
        grid_shape=encoder.position_axes,
        num_heads=encoder.num_heads,
        num_mask_tokens=len(mask_kinds(config)),
        position_embedding=encoder.position_embedding,
        uniform_power=encoder.uniform_power,
        output_dim=encoder.patch_dim if pixels else features,
        remat=encoder.remat,
        position_reach=encoder.position_reach,
        modalities=encoder.modalities,
        name="predictor",
    )
    if predictor.position_embedding != encoder.position_embedding:
        raise ValueError(
            f"`predictor_position_embedding` must be the encoder's "
            f"{encoder.position_embedding!r}. Received: {predictor.position_embedding!r}"
        )
    scale_weights(predictor, config.initializer_stddev)
    return predictor


def make_pretrainer(config: PretrainConfig) -> VJEPAPretrainer:
    """Make the model and its optimizer, ready for training."""
    encoder = make_encoder(config)
    teacher, start = (load_encoder(config, field) for field in ("teacher", "start_from"))
    if start is not None:
        copy_weights(start, encoder, start_from=config.start_from)
    length = schedule_steps(config) * config.schedule_scale
    exact = are_exact(mask_kinds(config), encoder.grid_shape)
    given = config.sampler.context_budgets or config.sampler.target_budgets
    predictor = make_predictor(config, encoder, teacher)
    with config.predictor.renaming():
        pretrainer = config.pretrainer.make(
            encoder=encoder,
            predictor=predictor,
            momentum=config.momentum.make(total_steps=length),
            teacher=teacher,
            padding=config.sampler.truncation == "budget" and bool(given or not exact),
            name="pretrainer",
        )
    optimizer = config.optimizer.make(
        learning_rate=config.learning_rate.make(total_steps=int(length)),
        weight_decay=config.weight_decay.make(total_steps=int(length)),
        clip_after=clip_after(config),
    )
    pretrainer.compile(optimizer, config.accumulation_steps)
    return pretrainer


def schedule_steps(config: PretrainConfig) -> int:
    """Return the number of steps that schedules are made for: the run's, unless given."""
    return config.run.steps if config.schedule_steps is None else config.schedule_steps


def clip_after(config: PretrainConfig) -> int:
    """Return after how many iterations clipping begins: an epoch after warm-up, unless given."""
    given = config.optimizer.clip_after
    # The paper has 12,300: its warm-up of 12,000 iterations is 40 epochs (official-behaviour §5).
    return config.learning_rate.warmup_steps * 41 // 40 if given is None else given
