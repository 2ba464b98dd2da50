"""Read segmentation masks off the features of single patches, by a linear layer (vjepa21 §7).

It is how V-JEPA 2.1 is measured on dense tasks: the encoder is frozen, one linear layer tells the
classes of each patch from its features, and its answers are interpolated to pixels. Videos and
masks are the built-in ones: each pixel shows the background, or one of ten digits.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import keras
import numpy as np
from numpy.typing import NDArray

from keras_vjepa.arguments import check_number, check_whole
from keras_vjepa.data.sources.digit_motion_rendering import (
    DigitMotionConfig,
    Split,
    render_digit_masks,
    render_digit_motion,
)
from keras_vjepa.data.transforms.crops import PIXEL_MEAN, PIXEL_STD, Colour
from keras_vjepa.models.backbone import VJEPABackbone
from keras_vjepa.models.dimensions import height_and_width

# The background, then the ten digits.
NUM_CLASSES = 11
_CLIPS_AT_ONCE = 8


@dataclass(frozen=True)
class DenseSamples:
    """Holds features of patches and the classes of the pixels that they lie on.

    Attributes:
        features: float32 `(images, rows, columns, width)`; each time step of a clip is an image.
        labels: int32 `(images, height, width)`, of the first frame of each time step.
    """

    features: NDArray[np.float32]
    labels: NDArray[np.int32]


def digit_samples(
    backbone: VJEPABackbone,
    split: Split,
    num_videos: int,
    config: DigitMotionConfig | None = None,
    mean: Colour = PIXEL_MEAN,
    std: Colour = PIXEL_STD,
    layers: Sequence[int] = (),
) -> DenseSamples:
    """Compute the features of built-in videos, and render their masks.

    Args:
        backbone: the encoder; a clip has as many frames as it takes, spread over the whole video.
        split: "train" or "test", which show different drawings of digits.
        num_videos: number of videos.
        config: what is rendered; None for the standard set.
        mean: mean of red, green and blue with which the encoder was trained.
        std: deviation of red, green and blue with which the encoder was trained.
        layers: blocks whose outputs are joined, side by side and normalised; by default the
            encoder's output.

    Raises:
        ValueError: if the videos have fewer frames than a clip.
    """
    check_whole(1, num_videos=num_videos)
    size = height_and_width(backbone.image_size)
    clips, masks = [], []
    for index in range(num_videos):
        video = render_digit_motion(split, index, config)
        step = len(video.frames) // backbone.num_frames
        if not step:
            raise ValueError(
                f"`num_frames` of the encoder must be at most {len(video.frames)}, the frames of a "
                f"video. Received: {backbone.num_frames}"
            )
        chosen = step * np.arange(backbone.num_frames)
        clips.append(_pixels(video.frames[chosen], size, mean, std))
        mask = render_digit_masks(split, index, config)[chosen[:: backbone.tubelet_size]]
        masks.append(_resized(mask.astype(np.uint8), size) * (1 + video.digit))
    grid = backbone.grid_shape
    parts = [
        _features(backbone, np.stack(clips[i : i + _CLIPS_AT_ONCE]), layers)
        for i in range(0, num_videos, _CLIPS_AT_ONCE)
    ]
    features = np.concatenate(parts).reshape(num_videos * grid[0], *grid[1:], -1)
    return DenseSamples(features, np.concatenate(masks).astype("int32"))


def dense_probe(
    train: DenseSamples,
    test: DenseSamples,
    epochs: int = 20,
    batch_size: int = 32,
    learning_rate: float = 1e-2,
    seed: int = 0,
) -> dict[str, float]:
    """Train a linear layer on patches, and measure its answers on other videos.

    Features are brought to mean 0 and deviation 1, by those of the training.

    Args:
        train: what it learns from.
        test: what it is measured on.
        epochs: passes over the training.
        batch_size: images of a step.
        learning_rate: of AdamW, at the start; it falls to 0 along a cosine.
        seed: seed of the layer's weights and of the order.

    Returns:
        `miou`, the mean over classes of intersection over union; `digit_iou`, that of all digits as
        one class; `accuracy`, the share of pixels that are right.

    Raises:
        FloatingPointError: if the loss is not finite.
    """
    check_whole(1, epochs=epochs, batch_size=batch_size)
    check_number("[0, inf)", learning_rate=learning_rate)
    keras.utils.set_random_seed(seed)
    axes = tuple(range(train.features.ndim - 1))
    mean, deviation = train.features.mean(axes), train.features.std(axes) + 1e-6
    steps = epochs * math.ceil(len(train.features) / batch_size)
    model = _linear(train.features.shape[1:], train.labels.shape[1:])
    model.compile(
        keras.optimizers.AdamW(keras.optimizers.schedules.CosineDecay(learning_rate, steps)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    history = model.fit(
        (train.features - mean) / deviation,
        train.labels,
        batch_size=batch_size,
        epochs=epochs,
        verbose=0,
    ).history
    if not np.isfinite(history["loss"][-1]):
        raise FloatingPointError("the loss of the linear layer is not finite")
    logits = model.predict((test.features - mean) / deviation, batch_size=batch_size, verbose=0)
    return scores(np.asarray(logits).argmax(-1), test.labels)


def scores(found: NDArray[np.integer[Any]], wanted: NDArray[np.int32]) -> dict[str, float]:
    """Compare classes of pixels; the result is that of `dense_probe`.

    Args:
        found: classes that were told, 0 for the background.
        wanted: the true classes.

    Example:

    >>> import numpy as np
    >>> scores(np.array([[0, 3, 3, 4]]), np.array([[0, 3, 3, 3]]))
    {'miou': 0.5555555555555555, 'digit_iou': 1.0, 'accuracy': 0.75}
    """
    flat = NUM_CLASSES * wanted.ravel().astype(np.int64) + found.ravel()
    counts = np.bincount(flat, minlength=NUM_CLASSES**2).reshape(NUM_CLASSES, NUM_CLASSES)
    either = counts.sum(0) + counts.sum(1) - counts.diagonal()
    # Classes that neither occur nor are told do not count.
    of_classes = (counts.diagonal() / either.clip(1))[either > 0]
    both_digits = counts[1:, 1:].sum()
    return {
        "miou": float(of_classes.mean()),
        "digit_iou": float(both_digits / max(counts.sum() - counts[0, 0], 1)),
        "accuracy": float(counts.diagonal().sum() / counts.sum()),
    }


def _linear(features: tuple[int, ...], labels: tuple[int, ...]) -> keras.Model:
    """Make a linear layer on patches, whose answers are interpolated to pixels."""
    inputs = keras.Input(features)
    logits = keras.layers.Dense(NUM_CLASSES, dtype="float32")(inputs)
    size = labels[0] // features[0], labels[1] // features[1]
    upsampled = keras.layers.UpSampling2D(size, interpolation="bilinear", dtype="float32")(logits)
    return keras.Model(inputs, upsampled)


def _features(
    backbone: VJEPABackbone, clips: NDArray[np.float32], layers: Sequence[int]
) -> NDArray[np.float32]:
    if not layers:
        return np.asarray(backbone.predict_on_batch(clips), "float32")
    found = backbone.intermediate_features(clips, list(layers))
    arrays = [keras.ops.convert_to_numpy(keras.ops.cast(one, "float32")) for one in found]
    return np.concatenate(arrays, axis=-1)


def _pixels(
    frames: NDArray[np.uint8], size: tuple[int, int], mean: Colour, std: Colour
) -> NDArray[np.float32]:
    how = cv2.INTER_AREA if size[0] < frames.shape[1] else cv2.INTER_LINEAR
    resized = _resized(frames, size, how).astype("float32") / 255
    return np.asarray((resized - np.array(mean)) / np.array(std), "float32")


def _resized(
    frames: NDArray[np.uint8], size: tuple[int, int], how: int = cv2.INTER_NEAREST
) -> NDArray[np.uint8]:
    height, width = size
    return np.stack([cv2.resize(frame, (width, height), interpolation=how) for frame in frames])
