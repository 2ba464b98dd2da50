"""The numbers of the frozen evaluations (App. D.1, Table 10).

A config is a function that returns a `ProbeConfig`; a variant changes options of another. They are
the authors' code's; `as_in_the_paper` makes them the paper's text's. What differs in every one of
them and cannot be chosen here is in `keras_vjepa/tasks/probe.py`, "Departures".
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from keras_vjepa.arguments import MOST_LONG, check_choice, check_whole
from keras_vjepa.configuration import Part, replace
from keras_vjepa.data.sources.labelled_sets import BUILT_IN, train_and_test
from keras_vjepa.evaluation.settings import ProbeSettings
from keras_vjepa.evaluation.task_labels import DIGIT_MOTION_TASKS
from keras_vjepa.training.optimizer import LEARNING_DTYPES


@dataclass(frozen=True)
class ProbeConfig(ProbeSettings):
    """Defines an evaluation: settings, encoder and data.

    Attributes:
        preset: of the encoder, or "untrained" for one of the size of the built-in recipe. Empty is
            what `recipes/pretrain.py` left in workdir/digit_motion, or else an untrained one.
        variant: the numbers where the paper's text and the authors' code differ.
        splits: trainings, each on its own choice of samples, with its own seed.
        cache: folder for features; empty for one in the workdir.
        dtype: precision of encoder and probes.
        data: arguments of `keras_vjepa.data.sources.labelled_sets.train_and_test`.
    """

    preset: str = ""
    variant: Literal["reference", "paper"] = "reference"
    splits: int = 1
    cache: str = ""
    dtype: str = "mixed_bfloat16"
    data: Part = Part(train_and_test, arguments={"data": BUILT_IN})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(1, MOST_LONG, splits=self.splits)
        check_choice(LEARNING_DTYPES, dtype=self.dtype)


def k400() -> ProbeConfig:
    """Kinetics-400, 16x8x3.

    Where the authors' code departs from Table 10, it counts: no flip, RandAugment, erasing 0.25,
    weight decay falls to 1e-6.
    """
    return replace(
        ProbeConfig(),
        tasks=("action",),
        num_classes=(400,),
        # 16x8x3 is 16 frames, 8 clips, 3 views; views are for testing alone.
        image_size=224,
        num_frames=16,
        temporal_stride=4,
        num_clips=8,
        num_views=3,
        attend_across_clips=True,
        augment=True,
        random_resize_scale=(0.08, 1.0),
        random_resize_aspect_ratio=(0.75, 4 / 3),
        horizontal_flip=0.0,
        auto_augment=True,
        erasing=0.25,
        pooling="attentive",
        batch_size=256,
        epochs=20,
        learning_rates=(1e-3,),
        weight_decays=(0.01,),
        constant_decay=False,
        clip_norm=1.0,
    )


def ssv2() -> ProbeConfig:
    """Something-Something v2, 16x2x3.

    2 clips, as in the text of App. D.1 and the authors' code; Table 10 says 1. Other departures:
    those of `k400`.
    """
    return replace(k400(), num_classes=(174,), num_clips=2)


def in1k() -> ProbeConfig:
    """ImageNet-1K, images repeated to 16 frames.

    Where the authors' code departs from Table 10, it counts: weight decay starts at 0.001 and
    falls to 1e-6, erasing 0.25.
    """
    return replace(
        k400(),
        tasks=("object",),
        num_classes=(1000,),
        images=True,
        num_clips=1,
        num_views=1,
        horizontal_flip=0.5,
        batch_size=1024,
        weight_decays=(0.001,),
    )


def places205() -> ProbeConfig:
    """Places205, images repeated to 16 frames. Departures: those of `in1k`."""
    return replace(in1k(), tasks=("scene",), num_classes=(205,))


def inat21() -> ProbeConfig:
    """iNaturalist 2021, images repeated to 16 frames. Departures: those of `in1k`."""
    return replace(in1k(), tasks=("species",), num_classes=(10_000,))


def digit_motion() -> ProbeConfig:
    """The default: the built-in videos, digit and motion, 8x1x1; minutes on 2 CPU cores.

    No augmentation, so features are computed once. The clip spans 64 of a video's 72 frames. Batch
    size and learning rates were chosen on 400 held-out training videos with the untrained encoder,
    8 epochs: 32 and 3e-3 read motion .71 and digit .37; 64 and 1e-3 only .39 and .12.
    """
    return replace(
        ProbeConfig(),
        tasks=tuple(DIGIT_MOTION_TASKS),
        num_classes=tuple(DIGIT_MOTION_TASKS.values()),
        image_size=64,
        num_frames=8,
        temporal_stride=8,
        num_clips=1,
        num_views=1,
        augment=False,
        batch_size=32,
        epochs=8,
        readouts=True,
        learning_rates=(1e-3, 3e-3, 1e-2),
        dtype="float32",
    )


def digit_motion_black() -> ProbeConfig:
    """The built-in set of the longer recipes: 8,000 training videos of 18 frames of 32 pixels."""
    return replace(digit_motion(), data="digit_motion_black", image_size=32, temporal_stride=2)


def own() -> ProbeConfig:
    """Your own videos or images, the default with --data: classes and sizes are found out."""
    return replace(
        digit_motion(),
        tasks=("class",),
        num_classes=None,
        image_size=None,
        num_frames=None,
        temporal_stride=4,
        epochs=20,
        # Of several, validation samples choose one, and small sets have none to spare.
        learning_rates=(3e-3,),
    )


CONFIGS: dict[str, Callable[[], ProbeConfig]] = {
    function.__name__: function
    for function in (digit_motion, digit_motion_black, own, k400, ssv2, in1k, places205, inat21)
}


def as_in_the_paper(config: ProbeConfig) -> ProbeConfig:
    """Take the paper's text where the authors' code departs from it (Table 10, App. D.1)."""
    return replace(
        config,
        variant="paper",
        horizontal_flip=0.5,
        auto_augment=config.images,
        erasing=0.0,
        weight_decays=(0.01,),
        constant_decay=True,
        num_heads=12,
        head_dim=12,
    )
