"""Define a frozen evaluation by settings, beside encoder and samples (§4.3, App. D.1, Table 10)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

from keras_vjepa.configuration import Part
from keras_vjepa.data.batches.clips import ClipSettings
from keras_vjepa.data.reading.limits import ReadingLimits
from keras_vjepa.data.sources.labels import check_labels
from keras_vjepa.data.sources.samples import Sample
from keras_vjepa.data.transforms.augmentation import AutoAugment, RandAugment
from keras_vjepa.data.transforms.training import ImageProbeTransform, VideoProbeTransform
from keras_vjepa.data.transforms.views import center_view
from keras_vjepa.evaluation.settings_check import check_parts, check_settings
from keras_vjepa.evaluation.sweep_optimizer import Candidate, SweepAdamW
from keras_vjepa.models.adapters import Size, TokenEncoder
from keras_vjepa.tasks.classifier import VJEPAVideoClassifier
from keras_vjepa.tasks.probe import MOST_CLASSES


@dataclass(frozen=True)
class ProbeSettings:
    """Says how a frozen evaluation is done; `FrozenProbe` takes each of these settings by name.

    A part holds the arguments of one constructor, under their own names or those that a config of
    pretraining has for them; `keras_vjepa.configuration.options` lists all. The configs in
    `recipes/probe.py`, such as `k400`, hold the values of the paper and the authors.

    Attributes:
        tasks: names of the classification tasks.
        num_classes: number of classes of each task; for a single task, None means as many as the
            samples have. With several tasks, a sample's label holds the labels of the tasks as the
            digits of one number, with the first task's label first.
        images: whether samples are images, which are repeated to a clip.
        image_size: height and width of what the encoder sees; None for the encoder's own size.
        augment: whether training clips are augmented. If not, features are computed once and kept.
        auto_augment: whether RandAugment (videos) or AutoAugment (images) is part of that.
        online: whether features are computed again in every step, even without augmentation.
        fraction: share of the training samples of each class to use (Table 8).
        validation_share: share of these that is held out to choose among several probes.
        learning_rates: a probe is trained with each of them and each weight decay; the best on the
            validation samples is reported.
        weight_decays: see `learning_rates`.
        batch_size: samples in a training step.
        epochs: passes over the training samples.
        feature_batch_size: number of samples whose features are computed at once.
        feature_dtype: float32 or float16, of features on disk.
        readouts: whether nearest neighbours and ridge regression on pooled features are tested too;
            only if features are kept.
        skip_unreadable: whether test samples that cannot be read are left out, rather than counted
            as wrong.
        max_bad_share: the evaluation stops if more than this share of the samples cannot be read.
        num_workers: threads that decode; by default one for each core, from 2 to 32.
        use_multiprocessing: read clips in worker processes, `num_workers` of them.
        seed: seed of everything random; a split adds its number.
        classifier: arguments of `VJEPAVideoClassifier`, including those of its probe.
        clip: arguments of `ClipSettings`.
        limits: arguments of `ReadingLimits`; a file that exceeds them is unreadable.
        view: arguments of `center_view`, the one view in training, and in testing if that has one.
        transform: arguments of `VideoProbeTransform` or `ImageProbeTransform`.
        operations: arguments of `RandAugment` or `AutoAugment`.
        optimizer: arguments of `SweepAdamW`.

    Raises:
        ValueError: for the first setting that is out of range.
    """

    tasks: tuple[str, ...] = ("action",)
    num_classes: tuple[int, ...] | None = (400,)
    images: bool = False
    image_size: Size | None = None
    augment: bool = False
    auto_augment: bool = True
    online: bool = False
    fraction: float = 1.0
    validation_share: float = 0.1
    learning_rates: tuple[float, ...] = (1e-3,)
    weight_decays: tuple[float, ...] = (0.01,)
    batch_size: int = 32
    epochs: int = 20
    feature_batch_size: int = 32
    feature_dtype: str = "float32"
    readouts: bool = False
    skip_unreadable: bool = False
    max_bad_share: float = 0.05
    num_workers: int | None = None
    use_multiprocessing: bool = False
    seed: int = 0
    classifier: Part = Part(
        VJEPAVideoClassifier,
        # The encoder is frozen, and the evaluation itself supplies these.
        supplied=(
            "backbone",
            "num_classes",
            "trainable_backbone",
            "class_names",
            "preprocessor",
            "head",
            "head_dropout",
            "encoder_norm",
        ),
        derived={"num_heads": "the encoder's"},
    )
    clip: Part = Part(
        ClipSettings,
        names={"frames_per_clip": "num_frames", "frame_step": "temporal_stride"},
        supplied=("num_clips",),
        derived={"frames_per_clip": "the encoder's"},
        arguments={"allow_clip_overlap": True},
    )
    limits: Part = Part(ReadingLimits)
    view: Part = Part(
        center_view,
        supplied=("frames", "crop_size"),
        derived={"short_side": "256/224 of the crop", "antialias": "True for images alone"},
    )
    transform: Part = Part(
        VideoProbeTransform,
        ImageProbeTransform,
        names={"scale": "random_resize_scale", "ratio": "random_resize_aspect_ratio"},
        # `mean` and `std` are those of `view`, so that training and testing see the same pixels.
        supplied=("crop_size", "augmentation", "mean", "std"),
    )
    operations: Part = Part(RandAugment, AutoAugment, prefix="augment_")
    optimizer: Part = Part(SweepAdamW, supplied=("networks", "candidates"))

    def __post_init__(self) -> None:
        check_settings(self)
        check_parts(self)

    @property
    def classes(self) -> dict[str, int]:
        """Return the number of classes of each task, by the task's name.

        Raises:
            ValueError: if the number is not known yet; see `for_samples`.
        """
        if self.num_classes is None:
            raise ValueError("`num_classes` must be given. Received: None")
        return dict(zip(self.tasks, self.num_classes, strict=True))

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """Return the learning rate and the weight decay of each probe of a task."""
        return tuple((rate, decay) for rate in self.learning_rates for decay in self.weight_decays)

    @property
    def keeps_features(self) -> bool:
        """Return whether features are computed once, and not in every step."""
        return not (self.augment or self.online)

    def for_samples(self, samples: Sequence[Sample]) -> Self:
        """Fill in the number of classes from labelled samples, if it was not given.

        Args:
            samples: the samples of training and testing.

        Raises:
            ValueError: if a sample has no label.
        """
        if self.num_classes is not None:
            return self
        check_labels(samples, MOST_CLASSES)
        return replace(self, num_classes=(1 + max(sample.label or 0 for sample in samples),))

    def for_encoder(self, encoder: TokenEncoder) -> "ProbeSettings":
        """Fill in the size and the number of frames of clips from an encoder.

        Raises:
            ValueError: if settings and encoder disagree, or neither has a value.
        """
        image_size = _fitting("image_size", self.image_size, encoder.image_size)
        frames = self.clip.frames_per_clip
        if not encoder.is_image_model:
            frames = _fitting("num_frames", frames, encoder.num_frames)
        elif self.images:
            # Copies of one image would have the same tokens, and a probe would find the same.
            frames = 1
        elif frames is None:
            raise ValueError(
                "`num_frames` must be given where an encoder of images reads videos. Received: none"
            )
        clip = self.clip.replace(frames_per_clip=frames)
        return replace(self, image_size=image_size, clip=clip)


def _fitting(name: str, wanted: Size | None, own: Size | None) -> Size:
    if wanted is None and own is None:
        raise ValueError(
            f"`{name}` must be given for this encoder, which takes any value. Received: none"
        )
    if wanted is not None and own is not None and _pair(wanted) != _pair(own):
        raise ValueError(f"`{name}` must be {own}, as the encoder's. Received: {wanted}")
    fitting = own if wanted is None else wanted
    assert fitting is not None
    return fitting


def _pair(size: Size) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    height, width = size
    return height, width
