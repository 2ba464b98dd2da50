"""Probe the encoder of a pretraining run on a built-in set, and the untrained one (§4.3)."""

import sys

from keras_vjepa import VJEPABackbone
from keras_vjepa.configuration import replace
from keras_vjepa.data.sources import labelled_sets
from keras_vjepa.evaluation import (
    ComparedEncoder,
    EncoderComparison,
    LabelledClips,
    read_labelled_clips,
)
from keras_vjepa.evaluation.task_labels import DIGIT_MOTION_TASKS, num_labels
from keras_vjepa.pretraining_check import check_probe_memory
from keras_vjepa.recipes import probe_configs
from keras_vjepa.recipes.pretrain_parts import PretrainConfig


def labelled_clips(config: PretrainConfig) -> tuple[LabelledClips, LabelledClips]:
    """Read one clip of each labelled video of a built-in set, for training and for testing."""
    check_probe_memory(config)
    clip = config.clip.make(frames_per_clip=config.encoder.num_frames)
    image_size, num_workers = config.encoder.image_size, config.batches.num_workers
    classes = num_labels(DIGIT_MOTION_TASKS)
    train, test = labelled_sets.train_and_test(config.data)
    limits = config.limits.make()
    first, second = (
        read_labelled_clips(samples, clip, image_size, classes, num_workers, limits)
        for samples in (train[: config.probe_videos], test)
    )
    return first, second


def evaluate(
    config: PretrainConfig, pretrained: VJEPABackbone, untrained: VJEPABackbone
) -> dict[str, ComparedEncoder]:
    """Probe the encoder on the built-in set, also on single frames, and the untrained encoder."""
    print("A frozen probe, longer than a short run: reading.", file=sys.stderr, flush=True)
    train, test = labelled_clips(config)
    settings = replace(probe_configs.digit_motion(), epochs=config.probe_epochs)
    comparison = EncoderComparison(pretrained, settings, train, test)
    results = {}
    for name, encoder, single_frame in (
        ("pretrained target encoder", pretrained, False),
        ("untrained encoder", untrained, False),
        ("single frame, pretrained", pretrained, True),
    ):
        print(f"Probing: {name}.", file=sys.stderr, flush=True)
        results[name] = comparison(encoder, single_frame=single_frame)
    return results
