"""Fine-tune an encoder end to end on labelled videos (App. D.3, Table 12).

    KERAS_BACKEND=jax python recipes/finetune.py --preset PRESET --data videos/
    KERAS_BACKEND=jax python recipes/finetune.py --config k400_large --preset PRESET \
        --data train.csv --test_data validation.csv

It ends in a preset that `classify` takes, and in the accuracy on the test videos. Stopped by
anything, the same command goes on.
"""

import functools
import json
import logging
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

# First, for it chooses Keras' backend.
import keras_vjepa  # noqa: F401

# isort: split
import keras
import numpy as np

from keras_vjepa import (
    AdamW,
    FineTuningSchedule,
    VJEPAVideoClassifier,
    VJEPAVideoPreprocessor,
    command_line,
    files,
    training,
)
from keras_vjepa.backend import collectives, distribution
from keras_vjepa.backend.distribution import DataParallel
from keras_vjepa.configuration import replace, values
from keras_vjepa.data.batches import clips
from keras_vjepa.data.batches.fine_tuning import FineTuningBatches
from keras_vjepa.data.batches.indexed import TooManyBadFilesError
from keras_vjepa.data.batches.labelled import EvaluationBatches
from keras_vjepa.data.sources.labelled_sets import check_sources
from keras_vjepa.data.sources.samples import Sample, class_folders
from keras_vjepa.data.transforms.augmentation import RandAugment
from keras_vjepa.data.transforms.training import VideoProbeTransform
from keras_vjepa.data.transforms.views import center_view, three_views
from keras_vjepa.locks import locked
from keras_vjepa.models.dimensions import height_and_width
from keras_vjepa.presets.preset import check_preset
from keras_vjepa.recipes.finetune_configs import CONFIGS, FineTuneConfig
from keras_vjepa.training.description import defining
from keras_vjepa.training.resumable import check_folder, writable_folder

# The batch that the rates of a config are of.
_RATES_ARE_OF = 256
_FREE = {"num_workers", "checkpoint_every", "log_every", "data", "test_data", "videos", "remat"}


def run(config: FineTuneConfig, workdir: Path) -> float | None:
    """Train, save and test; everything goes to `workdir`. A run that was stopped goes on there.

    Returns:
        The accuracy on the test videos, in the first process.
    """
    parallel = distribution.setup()
    writable_folder(workdir)
    with locked(workdir, "--workdir") if parallel.is_first else nullcontext():
        keras.config.set_dtype_policy(config.dtype)
        keras.utils.set_random_seed(config.seed)
        train, test = config.data.make()
        names = class_names_of(config)
        num_classes = 1 + max(sample.label or 0 for sample in [*train, *test])
        batches_a_epoch = len(train) // config.batch_size
        if not batches_a_epoch:
            raise ValueError(
                f"`batch_size` must be at most the {len(train)} training videos. "
                f"Received: {config.batch_size}"
            )
        classifier = make_classifier(config, names, num_classes, batches_a_epoch)
        training.run(
            classifier,
            make_batches(config, classifier, train, parallel),
            workdir,
            config.epochs * batches_a_epoch,
            checkpoint_every=config.checkpoint_every,
            log_every=config.log_every,
            description=defining(values(config), _FREE),
            parallel=parallel,
        )
        weights = collectives.values(classifier.weights)
        parallel.release()
        if not parallel.is_first:
            return None
        classifier.set_weights(weights)
        return finish(config, workdir, classifier, test)


def class_names_of(config: FineTuneConfig) -> list[str] | None:
    """Name the classes, where folders do."""
    root = Path(config.data.data)
    if not config.data.test_data and (root / "train").is_dir():
        root = root / "train"
    return class_folders(root) if root.is_dir() else None


def make_classifier(
    config: FineTuneConfig, names: list[str] | None, num_classes: int, batches_a_epoch: int
) -> VJEPAVideoClassifier:
    """Make the encoder of the preset with a new head, compiled."""
    sizes = {"image_size": config.image_size, "num_frames": config.num_frames}
    classifier = VJEPAVideoClassifier.from_preset(
        config.preset,
        **{name: size for name, size in sizes.items() if size is not None},
        **({"num_classes": num_classes} if names is None else {"class_names": names}),
        head="fine_tuning",
        head_dropout=config.head_dropout,
        encoder_norm=config.encoder_norm,
        trainable_backbone=True,
        drop_path_rate=config.drop_path_rate,
        preprocessor=None,
        dtype=config.dtype,
    )
    classifier.backbone.remat = config.remat
    scale = config.batch_size / _RATES_ARE_OF
    repeats = config.gradient_accumulation_steps or 1
    schedule = FineTuningSchedule(
        config.warmup_learning_rate * scale * repeats,
        config.learning_rate * scale * repeats,
        config.final_learning_rate * scale * repeats,
        config.warmup_epochs * batches_a_epoch,
        config.epochs * batches_a_epoch,
    )
    optimizer: Any = AdamW(
        schedule,
        config.weight_decay,
        layer_decay=config.layer_decay,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
    )
    classifier.compile(optimizer, "categorical_crossentropy")
    classifier.optimizer.build(classifier.trainable_variables)
    return classifier


def make_batches(
    config: FineTuneConfig,
    classifier: VJEPAVideoClassifier,
    samples: list[Sample],
    parallel: DataParallel,
) -> FineTuningBatches:
    """Make the batches that it is trained on."""
    backbone = classifier.backbone
    clip = clips.SegmentClips if config.sampling == "uniform" else clips.ClipSettings
    augmentation = RandAugment.from_string(config.auto_augment) if config.auto_augment else None
    return parallel.share(
        FineTuningBatches(
            samples,
            config.batch_size,
            VideoProbeTransform(
                height_and_width(backbone.image_size),
                horizontal_flip=config.horizontal_flip,
                erasing=config.erasing,
                augmentation=augmentation,
            ),
            clip=clip(backbone.num_frames, config.temporal_stride),
            num_classes=classifier.num_classes,
            mixing=config.mixing.make(),
            num_repeats=config.num_sample,
            seed=config.seed,
            num_workers=config.num_workers,
        )
    )


def finish(
    config: FineTuneConfig, workdir: Path, trained: VJEPAVideoClassifier, samples: list[Sample]
) -> float:
    """Save the preset, which combines the clips and views of a test video, and test it."""
    backbone = trained.backbone
    several = {"num_clips": config.test_clips, "num_views": config.test_views}
    size = max(height_and_width(backbone.image_size))
    classifier = VJEPAVideoClassifier.from_config(
        {
            **trained.get_config(),
            **several,
            "backbone": backbone,
            "attend_across_clips": False,
            "preprocessor": VJEPAVideoPreprocessor(
                backbone.image_size, backbone.num_frames, config.temporal_stride, **several
            ),
        }
    )
    classifier.probe.set_weights(trained.probe.get_weights())
    classifier.save_to_preset(workdir / "preset")
    clip = clips.SegmentTestClips if config.sampling == "uniform" else clips.DenseTestClips
    view = three_views if config.test_views == 3 else center_view
    batches = EvaluationBatches(
        samples,
        config.batch_size,
        functools.partial(view, crop_size=size),
        clip=clip(backbone.num_frames, config.temporal_stride, config.test_clips),
        num_classes=classifier.num_classes,
        num_workers=config.num_workers,
    )
    correct = 0.0
    for videos, labels, counted in batches.stream():
        found = np.asarray(classifier.predict_on_batch(videos)).argmax(axis=-1)
        correct += float((counted * (found == labels)).sum())
    accuracy = correct / batches.num_counted
    content = {"config": values(config), "accuracy": accuracy, "test_videos": len(samples)}
    files.write_text(workdir / "result.json", json.dumps(content, indent=1))
    print(f"accuracy {accuracy:.3f} of {len(samples):,} test videos")
    print(f"Saved {workdir}/preset and {workdir}/result.json.", file=sys.stderr)
    return accuracy


def check(config: FineTuneConfig, workdir: Path) -> None:
    """Check what a config and a folder are by themselves; the config's values are checked already.

    Raises:
        ValueError: for the first option that is out of range, by its name.
        OSError: if data, preset or a folder cannot be what they are said to be.
    """
    check_folder(workdir)
    if not config.preset:
        raise ValueError("`preset` must be given: the encoder to fine-tune. Received: none")
    config.data.check(check_sources)
    check_preset(config.preset)


def main(arguments: list[str] | None = None, program: str = "finetune.py") -> None:
    """Run the recipe as a command; `program` stands in front of its messages."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    name, given, workdir = command_line.parse(
        program, __doc__ or "", CONFIGS, arguments, prefix="finetune_"
    )
    with command_line.refusing(program, CONFIGS, arguments):
        config = replace(CONFIGS[name](), **given)
        check(config, workdir)
    distribution.launch_on_all_devices()
    try:
        run(config, workdir)
    except (ValueError, OSError, FloatingPointError, TooManyBadFilesError) as error:
        collectives.exit_with_error(f"{program}: {command_line.explain(error, CONFIGS)}")


if __name__ == "__main__":
    main()
