"""Define the configs of action detection on AVA and on built-in scenes (App. D.2, Table 11).

A config is a function that returns a `DetectConfig`. If the paper leaves something open, the config
says what was chosen. Crops and scales are SlowFast's, whose protocol the paper follows; features
are treated as in VideoMAE, whose names the paper's table has.
"""

from collections.abc import Callable
from dataclasses import dataclass

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
from keras_vjepa.data.batches.actions import KeyFrameClips
from keras_vjepa.data.batches.indexed import check_reading
from keras_vjepa.data.sources.detection_sets import detection_set
from keras_vjepa.data.transforms.boxes import BoxTransform, BoxView
from keras_vjepa.evaluation.detection import RULES
from keras_vjepa.tasks.detection_head import DetectionHead
from keras_vjepa.training.optimizer import LEARNING_DTYPES


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
        max_boxes: the most boxes of a clip. If there are more, training takes some at random, and
            the test takes the clip several times.
        batch_size: clips in a batch.
        test_batch_size: clips in a batch of the test.
        epochs: passes over the key frames.
        warmup_epochs: passes at the beginning with a rising rate.
        learning_rate: the highest rate.
        warmup_learning_rate: rate of the first step.
        final_learning_rate: rate that the last steps approach.
        weight_decay: weight decay of AdamW.
        epsilon: epsilon of AdamW.
        layer_decay: for a trained encoder, factor by which rate and decay of a layer are below
            those of the layer above; None for the same rate.
        box_scores: multiply scores by those of the detector of boxes.
        rule: rule of the mean average precision, see `mean_average_precision`.
        dtype: precision of the model.
        seed: seed of everything random.
        num_workers: threads that read; by default one for each core.
        checkpoint_every: steps between two checkpoints.
        log_every: steps between two lines of progress.
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
    max_boxes: int = 4
    batch_size: int = 16
    test_batch_size: int = 8
    epochs: int = 8
    warmup_epochs: int = 1
    learning_rate: float = 1e-3
    warmup_learning_rate: float = 1e-6
    final_learning_rate: float = 1e-6
    weight_decay: float = 0.05
    epsilon: float = 1e-8
    layer_decay: float | None = None
    box_scores: bool = False
    rule: str = "exclusions_2018"
    dtype: str = "float32"
    seed: int = 0
    num_workers: int | None = None
    checkpoint_every: int = 100
    log_every: int = 20

    def __post_init__(self) -> None:
        self.transform()  # this checks the arguments, as does the next line
        self.view(16, detected=True)
        with self.head.renaming():
            self.head.make(num_classes=1)
        self.clip.make()
        check_choice(tuple(RULES), rule=self.rule)
        check_choice(LEARNING_DTYPES, dtype=self.dtype)
        check_flag(
            untrained=self.untrained,
            trainable_backbone=self.trainable_backbone,
            box_scores=self.box_scores,
        )
        check_whole(1, MOST_LONG, max_boxes=self.max_boxes, test_batch_size=self.test_batch_size)
        check_reading(self.batch_size, self.seed, self.num_workers, 4, 0.05)
        check_whole(1, epochs=self.epochs)
        check_whole(0, self.epochs - 1, warmup_epochs=self.warmup_epochs)
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
        check_whole(1, checkpoint_every=self.checkpoint_every, log_every=self.log_every)
        for layer in self.layers or ():
            check_whole(-MOST_LONG, MOST_LONG, layers=layer)
        if self.layer_decay is not None and not self.trainable_backbone:
            raise ValueError(
                "`layer_decay` must be None without `trainable_backbone`. "
                f"Received: {self.layer_decay}"
            )

    def transform(self) -> BoxTransform:
        """Make the transform of the training."""
        return BoxTransform(self.crop_size, self.short_side, self.horizontal_flip, self.jitter)

    def view(self, patch_size: int, detected: bool) -> BoxView:
        """Make the view of the test, in which only detected boxes grow."""
        view = BoxView(self.test_size, patch_size, self.extension)
        return view if detected else BoxView(self.test_size, patch_size)


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
    )


def ava_384() -> DetectConfig:
    """Detect actions of AVA v2.2 at 384 px, with the ViT-H of that size (Table 11)."""
    return replace(ava(), crop_size=384, short_side=(384, 480), test_size=384)


CONFIGS: dict[str, Callable[[], DetectConfig]] = {
    function.__name__: function for function in (digit_scene, ava, ava_384)
}
