"""Make models, batches and tests of training with labels from a config (App. D.2, App. D.3)."""

import functools
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import keras

from keras_vjepa.arguments import counted
from keras_vjepa.backend import collectives
from keras_vjepa.backend.distribution import DataParallel
from keras_vjepa.backend.optimizer_state import inner_optimizers
from keras_vjepa.data.batches import clips
from keras_vjepa.data.batches.fine_tuning import FineTuningBatches
from keras_vjepa.data.batches.labelled import EvaluationBatches
from keras_vjepa.data.transforms.augmentation import RandAugment
from keras_vjepa.data.transforms.crops import PIXEL_MEAN, PIXEL_STD
from keras_vjepa.data.transforms.views import center_view, three_views
from keras_vjepa.evaluation.labelled_videos import LabelledVideos
from keras_vjepa.models.backbone_preset import load_backbone_of_size
from keras_vjepa.models.dimensions import height_and_width
from keras_vjepa.preprocessor import VJEPAVideoPreprocessor
from keras_vjepa.presets.fingerprints import fingerprint_of_weights
from keras_vjepa.presets.preset import find_preset, load_backbone
from keras_vjepa.tasks.classifier import VJEPAVideoClassifier
from keras_vjepa.training.optimizer import AdamW
from keras_vjepa.training.schedules import FineTuningSchedule

# How pixels are normalised where no preset says it.
_USUAL = {"mean": PIXEL_MEAN, "std": PIXEL_STD}
# The batch size for which a config states its rates.
_RATES_ARE_OF = 256


def introduction(
    config: Any, model: keras.Model, data: Any, devices: DataParallel, scale: float
) -> str:
    """Say in words what a run is about to do.

    Args:
        config: config of the recipe.
        model: the model, compiled.
        data: what is trained and tested on; its `in_words` says how much that is.
        devices: the devices.
        scale: factor by which the rates of the config are multiplied.
    """
    trained = sum(math.prod(variable.shape) for variable in model.trainable_variables)
    return (
        f"{model.count_params():,} parameters, {trained:,} of them trained, {data.in_words()}; "
        f"{counted(config.epochs, 'epoch')} of batches of {config.batches.batch_size}, learning "
        f"rate {scale * config.learning_rate:.3g}; {devices}{_frames_seen(config, model)}"
    )


def _frames_seen(config: Any, model: keras.Model) -> str:
    """Say that an encoder of single images sees only one frame of a video; "" for others."""
    of_images = isinstance(model, VJEPAVideoClassifier) and model.token_encoder().is_image_model
    if not of_images or config.data.arguments.get("kind") == "image":
        return ""
    return "; the encoder is one of images, and sees one frame of each clip (`probe` takes several)"


def weights_of_encoder(config: Any, stored: dict[str, Any]) -> dict[str, str]:
    """Hash the encoder's weights, by which a preset is recognised in any folder.

    Args:
        config: config of the recipe.
        stored: options of a finished run, whose hash is taken if the preset is gone.

    Raises:
        OSError: if there is no such preset, and no run that began with it.
    """
    try:
        encoder = load_backbone(config.preset, dtype=config.dtype)
    except OSError:
        if config.preset != stored.get("preset"):
            raise
        return {"preset_weights": stored["preset_weights"]}
    return {"preset_weights": fingerprint_of_weights(encoder)}


def rate_scale(config: Any) -> float:
    """Compute the factor by which the rates of a config are multiplied for its batch."""
    return config.batches.batch_size / _RATES_ARE_OF * (config.gradient_accumulation_steps or 1)


def make_classifier(
    config: Any, videos: LabelledVideos, steps_per_epoch: int
) -> VJEPAVideoClassifier:
    """Make a classifier of the preset's encoder and a new head, and compile it."""
    classes: dict[str, Any] = {"class_names": videos.class_names}
    if videos.class_names is None:
        classes = {"num_classes": videos.num_classes}
    sizes = {"image_size": config.image_size, "num_frames": config.num_frames}
    backbone = load_encoder(config, {k: size for k, size in sizes.items() if size is not None})
    classifier = VJEPAVideoClassifier(
        backbone,
        **classes,
        head="fine_tuning",
        head_dropout=config.head_dropout,
        encoder_norm=config.encoder_norm,
        trainable_backbone=True,
        preprocessor=preprocessor_of(config, backbone),
        dtype=config.dtype,
        # Without a name, Keras would number a second classifier in a process, and with it the
        # paths of its variables.
        name="classifier",
    )
    compile_for_run(
        classifier,
        config,
        steps_per_epoch,
        "categorical_crossentropy",
        rate_scale(config),
        gradient_accumulation_steps=config.gradient_accumulation_steps,
    )
    return classifier


def load_encoder(config: Any, sizes: dict[str, Any], load_weights: bool = True) -> keras.Model:
    """Load the preset's encoder, in the size and precision that the config asks for.

    Args:
        config: config of the recipe.
        sizes: `image_size`, `num_frames`, both or none, if they differ from the preset's.
        load_weights: False gives an encoder of the same kind that has learnt nothing.

    Raises:
        ValueError: if its weights are quantized, and so cannot learn.
    """
    rate = config.drop_path_rate
    backbone = load_backbone_of_size(
        find_preset(config.preset),
        load_weights,
        sizes,
        **({} if rate is None else {"drop_path_rate": rate}),
        dtype=config.dtype,
    )
    quantized = [v.dtype for v in backbone.weights if len(v.shape) > 1 and "int" in v.dtype]
    if quantized:
        raise ValueError(
            "`preset` must hold weights that can learn, not quantized ones. "
            f"Received: {config.preset}, of {quantized[0]}"
        )
    backbone.remat = config.remat
    return backbone


def compile_for_run(
    model: Any,
    config: Any,
    steps_per_epoch: int,
    loss: Any,
    scale: float = 1.0,
    **of_optimizer: Any,
) -> None:
    """Compile a classifier or a detector with the schedule and the optimizer of the config.

    Args:
        model: has a `backbone` and a `head_model()`.
        config: config of the recipe.
        steps_per_epoch: number of steps of an epoch.
        loss: as in `compile`.
        scale: factor by which the rates of the config are multiplied.
        of_optimizer: further arguments of `AdamW`.
    """
    schedule = FineTuningSchedule(
        config.warmup_learning_rate * scale,
        config.learning_rate * scale,
        config.final_learning_rate * scale,
        config.warmup_epochs * steps_per_epoch,
        config.schedule_epochs * steps_per_epoch,
    )
    optimizer: Any = AdamW(
        schedule, config.weight_decay, layer_decay=config.layer_decay, **of_optimizer
    )
    model.compile(optimizer, loss, accumulation_steps=config.accumulation_steps)
    model.optimizer.build(model.trainable_variables)
    # There are no metrics to build from a batch, which several replicas of TensorFlow could not
    # hand to Keras.
    model.built_when_compiled = True
    parts = {"encoder": model.backbone, "head": model.head_model()}
    # In half precision, the optimizer lies inside another one, which scales the loss.
    [inner] = inner_optimizers(model.optimizer)
    trained = {name: part.trainable_variables for name, part in parts.items()}
    inner.log_norms({name: variables for name, variables in trained.items() if variables})


def preprocessor_of(config: Any, backbone: Any, **several: Any) -> VJEPAVideoPreprocessor:
    """Make the preprocessor for a user's files, whose clips are like those of training."""
    return VJEPAVideoPreprocessor(
        backbone.image_size,
        backbone.num_frames,
        config.temporal_stride,
        **several,
        **colours_of(config.preset, config.transform.arguments),
    )


def colours_of(preset: str, given: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """Tell how pixels are normalised: as options say, or else as for the preset's encoder.

    Args:
        preset: whose preprocessor is asked; "" for the usual numbers.
        given: options, of which `mean` and `std` count.
    """
    own = VJEPAVideoPreprocessor.from_preset(preset) if preset else VJEPAVideoPreprocessor()
    return {name: given.get(name, getattr(own, name)) for name in _USUAL}


def colours_used(config: Any, stored: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """Tell how pixels are normalised, under the names of the options that a config has for it.

    Args:
        config: config of the recipe; that of a detector has no such options.
        stored: options of a finished run, whose colours are taken if the preset is gone.
    """
    given = getattr(config.transform, "arguments", None)
    if given is None:
        return {}
    try:
        return colours_of(config.preset, given)
    except OSError:
        return {name: given.get(name, stored[name]) for name in _USUAL if name in stored}


def with_colours_used(
    stored: Mapping[str, Any], config: Any, used: Mapping[str, Any]
) -> dict[str, Any]:
    """Replace the usual colours in the options of a run of before, which was given none.

    Earlier versions recorded them also where those of the preset were used.

    Args:
        stored: options of a run.
        config: the config that is asked for now.
        used: its colours, as `colours_used` returns them.
    """
    given = getattr(config.transform, "arguments", {})
    usual = [k for k in used if k not in given and stored.get(k) == [*_USUAL[k]]]
    return {**stored, **{name: used[name] for name in usual}}


def make_batches(
    config: Any,
    classifier: VJEPAVideoClassifier,
    videos: LabelledVideos,
) -> FineTuningBatches:
    """Make the batches to train on."""
    backbone = classifier.backbone
    clip = clips.SegmentClips if config.sampling == "uniform" else clips.ClipSettings
    augmentation = RandAugment.from_string(config.auto_augment) if config.auto_augment else None
    made: FineTuningBatches = config.batches.make(
        samples=videos.train,
        transform=config.transform.make(
            crop_size=height_and_width(backbone.image_size),
            augmentation=augmentation,
            **colours_of(config.preset, config.transform.arguments),
        ),
        clip=clip(backbone.num_frames, config.temporal_stride),
        num_classes=videos.num_classes,
        mixing=config.mixing.make(),
        seed=config.seed,
        limits=config.limits.make(),
    )
    return made


def with_all_views(config: Any, trained: VJEPAVideoClassifier) -> VJEPAVideoClassifier:
    """Make the classifier that combines the clips and views of a test video."""
    several = {"num_clips": config.test_clips, "num_views": config.test_views}
    arguments = {
        **trained.get_config(),
        **several,
        "backbone": trained.backbone,
        "attend_across_clips": False,
        "preprocessor": preprocessor_of(config, trained.backbone, **several),
    }
    classifier = VJEPAVideoClassifier.from_config(arguments)
    classifier.probe.set_weights(collectives.values(trained.probe.weights))
    return classifier


def make_test_batches(
    config: Any,
    classifier: VJEPAVideoClassifier,
    videos: LabelledVideos,
    parallel: DataParallel,
) -> EvaluationBatches:
    """Make the batches to test on, with the clips and views that the classifier takes.

    A batch has at most as many clips as a training batch.
    """
    backbone, views = classifier.backbone, classifier.num_clips * classifier.num_views
    trained, devices = config.batches.batch_size, parallel.device_count
    fitting = min(trained * config.batches.num_repeats // views, trained)
    videos_at_once = max(fitting // devices, 1) * devices
    clip = clips.SegmentTestClips if config.sampling == "uniform" else clips.DenseTestClips
    colours = colours_of(config.preset, config.transform.arguments)
    view: Any = functools.partial(center_view, crop_size=backbone.image_size, **colours)
    if classifier.num_views == 3:
        size = max(height_and_width(backbone.image_size))
        view = functools.partial(three_views, crop_size=size, **colours)
    batches = EvaluationBatches(
        videos.test,
        videos_at_once,
        view,
        clip=clip(backbone.num_frames, config.temporal_stride, classifier.num_clips),
        num_classes=videos.num_classes,
        num_workers=config.batches.num_workers,
        max_bad_share=config.batches.max_bad_share,
        limits=config.limits.make(),
    )
    return parallel.share(batches)
