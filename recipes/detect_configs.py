"""Define the configs of action detection on AVA and on built-in scenes (App. D.2, Table 11).

A config is a function that returns a `DetectConfig`. If the paper leaves something open, the config
says what was chosen. Crops and scales are SlowFast's, whose protocol the paper follows; features
are treated as in VideoMAE, whose names the paper's table has.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from keras_vjepa import training
from keras_vjepa.arguments import (
    MOST_LONG,
    MOST_SEED,
    check_choice,
    check_flag,
    check_number,
    check_size,
    check_whole,
)
from keras_vjepa.configuration import Part, replace
from keras_vjepa.data import ReadingLimits
from keras_vjepa.data.batches.actions import ActionBatches, KeyFrameClips
from keras_vjepa.data.batches.indexed import check_reading
from keras_vjepa.data.sources.detection_sets import detection_set
from keras_vjepa.data.transforms.boxes import BoxTransform, BoxView
from keras_vjepa.evaluation.detection import RULES
from keras_vjepa.tasks.detection_head import DetectionHead
from keras_vjepa.training.optimizer import LEARNING_DTYPES
from keras_vjepa.training.resumable import check_run


@dataclass(frozen=True)
class DetectConfig:
    """Defines a detection: encoder, key frames, head, training and test.

    Attributes:
        preset: preset of the encoder.
        untrained: take an encoder of the same kind that has learnt nothing, to compare with.
        data: arguments of `keras_vjepa.data.sources.detection_sets.detection_set`.
        crop_size: side of the training clips.
        short_side: range of lengths that the shorter side of training frames is scaled to.
        test_size: length that the shorter side of test frames is scaled to; frames are not cropped.
        horizontal_flip: probability of a flip in training.
        jitter: shares of width and height by which the edges of training boxes move at most.
        extension: shares by which detected boxes grow in the test.
        clip: how the clip around a key frame is taken.
        layers: numbers of the encoder's layers that are concatenated, from 0; None for the paper's,
            or the last four.
        head: the head of the detector.
        trainable_backbone: train the encoder too.
        drop_path_rate: rate of stochastic depth in the encoder's last block; None for the preset's.
        batches: a batch is that of all devices together. If a clip has more than `max_boxes`,
            training takes some at random, and the test takes the clip several times.
        test_batch_size: clips in a batch of the test, or as many more as the devices need.
        limits: time and pixels that a file may take; a file that takes more is unreadable.
        epochs: passes over the key frames.
        warmup_epochs: passes at the beginning with a rising rate.
        schedule_epochs: number of passes that the rate is made for; by default that of the run, and
            if a run continues, the number that it began with.
        learning_rate: the highest rate.
        warmup_learning_rate: rate of the first step.
        final_learning_rate: rate that the last steps approach.
        weight_decay: weight decay of AdamW.
        epsilon: epsilon of AdamW.
        layer_decay: for a trained encoder, factor by which rate and decay of a layer are below
            those of the layer above; None for the same rate.
        box_scores: multiply scores by those of the detector of boxes.
        rule: rule of the mean average precision, see `mean_average_precision`.
        remat: compute activations again in the backward pass: less memory, more time.
        accumulation_steps: parts of a step, made one after the other: less memory, same results
            except for numbers that are drawn for each sample.
        shard_parameters: split parameters over the devices (JAX only).
        dtype: precision of the model.
        seed: seed of everything random.
        run: the run and its checkpoints.
        validate_every: epochs between two tests with true boxes.
        tensorboard: write all numbers of the run for TensorBoard too.
        callbacks: further callbacks of Keras, each package.module:Name.
    """

    preset: str = ""
    untrained: bool = False
    data: Part = Part(detection_set, arguments={"data": "digit_scene"})
    crop_size: int = 64
    short_side: tuple[int, int] = (64, 64)
    test_size: int = 64
    horizontal_flip: float = 0.0
    jitter: tuple[float, float] = (0.1, 0.1)
    extension: tuple[float, float] = (0.0, 0.0)
    clip: Part = Part(
        KeyFrameClips,
        names={"frame_step": "temporal_stride", "fps": "clip_fps"},
        supplied=("first_second",),
        arguments={"num_frames": 8, "frame_step": 5},
    )
    layers: tuple[int, ...] | None = None
    head: Part = Part(DetectionHead, supplied=("num_classes",), names={"pooling": "box_pooling"})
    trainable_backbone: bool = False
    drop_path_rate: float | None = None
    batches: Part = Part(
        ActionBatches,
        supplied=(
            "samples", "transform", "clip", "limits", "num_actions", "seed", "max_bad_share",
            "process_index", "process_count",
        ),
        derived={"num_workers": "one for each core, from 2 to 32"},
        arguments={"batch_size": 16, "max_boxes": 4},
    )  # fmt: skip
    test_batch_size: int = 8
    limits: Part = Part(ReadingLimits)
    epochs: int = 8
    warmup_epochs: int = 1
    schedule_epochs: int | None = None
    learning_rate: float = 1e-3
    warmup_learning_rate: float = 1e-6
    final_learning_rate: float = 1e-6
    weight_decay: float = 0.05
    epsilon: float = 1e-8
    layer_decay: float | None = None
    box_scores: bool = False
    rule: str = "exclusions_2018"
    remat: bool = False
    accumulation_steps: int = 1
    shard_parameters: bool = False
    dtype: str = "float32"
    seed: int = 0
    run: Part = Part(
        training.run,
        supplied=(
            "model", "batches", "workdir", "steps", "callbacks", "description", "defaults",
            "upgrade", "parallel",
        ),
        arguments={"checkpoint_every": 100},
    )  # fmt: skip
    validate_every: int = 1
    tensorboard: bool = False
    callbacks: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        self.transform()  # this checks the arguments, as does the next line
        self.view(detected=True)
        with self.head.renaming():
            self.head.make(num_classes=1)
        self.clip.make()
        self.limits.make()
        self.run.check(check_run, steps=1)
        check_choice(tuple(RULES), rule=self.rule)
        check_choice(LEARNING_DTYPES, dtype=self.dtype)
        check_flag(
            untrained=self.untrained,
            trainable_backbone=self.trainable_backbone,
            box_scores=self.box_scores,
            remat=self.remat,
            shard_parameters=self.shard_parameters,
            tensorboard=self.tensorboard,
        )
        batches = self.batches
        check_whole(1, MOST_LONG, max_boxes=batches.max_boxes, test_batch_size=self.test_batch_size)
        check_reading(batches.batch_size, self.seed, batches.num_workers, batches.read_ahead, 0.05)
        check_whole(1, epochs=self.epochs, validate_every=self.validate_every)
        check_whole(1, accumulation_steps=self.accumulation_steps)
        check_whole(1, optional=True, schedule_epochs=self.schedule_epochs)
        length = self.schedule_epochs or self.epochs
        check_whole(0, length - 1, warmup_epochs=self.warmup_epochs)
        check_whole(0, MOST_SEED, seed=self.seed)
        check_size(test_size=self.test_size)
        check_number(
            "[0, inf)",
            learning_rate=self.learning_rate,
            warmup_learning_rate=self.warmup_learning_rate,
            final_learning_rate=self.final_learning_rate,
            weight_decay=self.weight_decay,
            epsilon=self.epsilon,
        )
        check_number("(0, 1]", optional=True, layer_decay=self.layer_decay)
        check_number("[0, 1)", optional=True, drop_path_rate=self.drop_path_rate)
        for layer in self.layers or ():
            check_whole(-MOST_LONG, MOST_LONG, layers=layer)
        if self.layer_decay is not None and not self.trainable_backbone:
            raise ValueError(
                "`layer_decay` must be None without `trainable_backbone`. "
                f"Received: {self.layer_decay}"
            )
        if self.drop_path_rate and not self.trainable_backbone:
            raise ValueError(
                "`drop_path_rate` must be None or 0 without `trainable_backbone`. "
                f"Received: {self.drop_path_rate}"
            )

    def transform(self, **colours: Any) -> BoxTransform:
        """Make the transform of the training."""
        taken = self.crop_size, self.short_side, self.horizontal_flip, self.jitter
        return BoxTransform(*taken, **colours)

    def view(self, detected: bool, **more: Any) -> BoxView:
        """Make the view of the test, in which only detected boxes grow."""
        return BoxView(self.test_size, extension=self.extension if detected else (0, 0), **more)


def digit_scene() -> DetectConfig:
    """Detect 10 digits and 8 motions in the built-in scenes, in minutes on 2 CPU cores."""
    return DetectConfig()


def ava() -> DetectConfig:
    """Detect actions of AVA v2.2 with a frozen encoder, 224 px (Table 11).

    Choices where the paper is silent or contradicts itself: a warm-up of 2 epochs, not of 1 step;
    the rate as it stands, not scaled by the batch; true boxes in training; in the test, detected
    boxes with scores from 0.8, and only the score of the action.
    """
    return replace(
        digit_scene(),
        data="ava",
        crop_size=224,
        short_side=(256, 320),
        test_size=256,
        horizontal_flip=0.5,
        jitter=(0.0, 0.0),
        num_frames=16,
        temporal_stride=4,
        max_boxes=16,
        batch_size=64,
        epochs=30,
        warmup_epochs=2,
        learning_rate=1e-4,
        epsilon=1e-7,
        dtype="mixed_bfloat16",
        checkpoint_every=500,
        validate_every=10,
    )


def ava_384() -> DetectConfig:
    """Detect actions of AVA v2.2 at 384 px, with the ViT-H of that size (Table 11)."""
    return replace(ava(), crop_size=384, short_side=(384, 480), test_size=384)


CONFIGS: dict[str, Callable[[], DetectConfig]] = {
    function.__name__: function for function in (digit_scene, ava, ava_384)
}
