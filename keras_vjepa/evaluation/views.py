"""Make the clips, views and augmentation of an evaluation (App. D.1, Table 10)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from keras_vjepa.data.batches.clips import ClipSettings, Undrawn
from keras_vjepa.data.batches.labelled import ClipPlaces, EvaluationBatches, LabelledBatches
from keras_vjepa.data.sources.samples import Sample
from keras_vjepa.data.transforms.augmentation import AutoAugment, RandAugment
from keras_vjepa.data.transforms.training import ImageProbeTransform, VideoProbeTransform
from keras_vjepa.data.transforms.views import center_view, three_views
from keras_vjepa.evaluation.settings import ProbeSettings
from keras_vjepa.evaluation.task_labels import num_labels

Transform = Callable[..., NDArray[np.float32]]


def training_transform(settings: ProbeSettings) -> Transform:
    """Make the augmentation of training clips, or their central view if there is none."""
    if not settings.augment:
        view = evaluation_transform(settings, num_views=1)
        return Undrawn(view)
    operations = None
    if settings.auto_augment:
        operations = settings.operations.make(AutoAugment if settings.images else RandAugment)
    return settings.transform.make(
        ImageProbeTransform if settings.images else VideoProbeTransform,
        crop_size=settings.image_size,
        augmentation=operations,
        mean=settings.view.mean,
        std=settings.view.std,
    )


def evaluation_transform(settings: ProbeSettings, num_views: int) -> Transform:
    """Make a transform to one central view, or to three views along the long side.

    Raises:
        ValueError: for another number of views, three views that are not square, or no image size.
    """
    if num_views not in (1, 3):
        raise ValueError(f"`num_views` must be 1 or 3. Received: {num_views}")
    size = settings.image_size
    if size is None:
        raise ValueError("`image_size` must be given, or come from an encoder. Received: none")
    if num_views == 1:
        return settings.view.bind(center_view, crop_size=size, antialias=settings.images)
    if not isinstance(size, int):
        height, width = size
        if height != width:
            raise ValueError(
                f"`image_size` must be one number with `num_views`=3. Received: {size}"
            )
        size = height
    return settings.view.bind(three_views, crop_size=size)


@dataclass(frozen=True)
class StandingStill:
    """Makes a transform show the first frame for all: no motion is left to see.

    Args:
        transform: called with the frames of a clip.
    """

    transform: Transform

    def __call__(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Transform the first frame, as often as there are frames."""
        still: NDArray[np.float32] = self.transform(
            np.broadcast_to(frames[:1], frames.shape).copy()
        )
        return still


def clip_settings(settings: ProbeSettings) -> ClipSettings:
    """Make the settings of the clips of Table 10, which overlap if a video is short."""
    return settings.clip.make(num_clips=settings.classifier.num_clips)


def evaluation_clips(
    settings: ProbeSettings,
    samples: Sequence[Sample],
    num_views: int,
    batch_size: int,
    places: ClipPlaces | None = None,
) -> EvaluationBatches:
    """Make batches that hold every sample's clips once, without augmentation.

    Args:
        settings: settings of the evaluation.
        samples: samples to read.
        num_views: number of views of each clip.
        batch_size: samples in a batch.
        places: where the clips lie in the videos; by default a sample's position in `samples`
            determines it.
    """
    return EvaluationBatches(
        samples,
        batch_size,
        evaluation_transform(settings, num_views),
        clip=clip_settings(settings),
        num_classes=num_labels(settings.classes),
        with_frame_indices=settings.classifier.max_frames is not None,
        places=places,
        skip_unreadable=settings.skip_unreadable,
        seed=settings.seed,
        num_workers=settings.num_workers,
        use_multiprocessing=settings.use_multiprocessing,
        max_bad_share=settings.max_bad_share,
        limits=settings.limits.make(),
    )


def training_clips(
    settings: ProbeSettings, samples: Sequence[Sample], places: ClipPlaces, seed: int
) -> LabelledBatches:
    """Make endless batches of clips to train on.

    Args:
        settings: settings of the evaluation.
        samples: samples to read.
        places: where the clips lie in the videos, in every epoch, if they are not augmented; other
            places in each epoch would be an augmentation.
        seed: seed of the order and of the augmentation.
    """
    return LabelledBatches(
        samples,
        settings.batch_size,
        training_transform(settings),
        clip=clip_settings(settings),
        num_classes=num_labels(settings.classes),
        with_frame_indices=settings.classifier.max_frames is not None,
        places=None if settings.augment else places,
        # With several tasks, some combinations of classes may be missing.
        allow_absent_classes=True,
        seed=seed,
        num_workers=settings.num_workers,
        use_multiprocessing=settings.use_multiprocessing,
        max_bad_share=settings.max_bad_share,
        limits=settings.limits.make(),
    )
