"""Measure what is to be seen in decoded regions (§6, Fig. 6, App. F).

The paper shows pictures; these are numbers for them. A classifier that learnt from real regions
says which classes it sees in decoded ones. If it sees the right ones more often than in samples
that no features led to, they come from the features. Another classifier says what can be read of
the features themselves. What the seeds of a clip share is in the features; what varies is not.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from keras_vjepa.layers.transformer import TransformerBlock
from keras_vjepa.types import Tensor

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float64]
# A shorter way from frame to frame, in pixels, has no direction that could be read.
LEAST_SHIFT = 0.5


class Classifier(keras.Model):
    """Learns several tasks at once, and names classes; a subclass gives it layers.

    A subclass' call takes a batch, and returns logits `(batch, classes)` of each task by its name,
    from `heads`.

    Attributes:
        rank: axes of one sample.
        heads: the last layer of each task, by its name.
    """

    rank: int
    heads: dict[str, keras.layers.Dense]

    def add_heads(self, num_classes: Mapping[str, int]) -> None:
        """Make the last layers, for a number of classes of each task."""
        self.heads = {name: keras.layers.Dense(count) for name, count in num_classes.items()}

    def learn(
        self,
        samples: NDArray[Any],
        labels: Mapping[str, NDArray[np.int32]],
        epochs: int,
        verbose: int = 0,
    ) -> None:
        """Train the classifier.

        Args:
            samples: as the call takes them.
            labels: class of each sample for each task.
            epochs: passes over the samples.
            verbose: as in `fit`.
        """
        batch_size = 64
        steps = epochs * -(-len(samples) // batch_size)
        self.compile(
            keras.optimizers.AdamW(keras.optimizers.schedules.CosineDecay(1e-3, steps)),
            {
                name: keras.losses.SparseCategoricalCrossentropy(from_logits=True)
                for name in self.heads
            },
        )
        self.fit(samples, dict(labels), batch_size, epochs, verbose=verbose)

    def classes(self, samples: NDArray[Any]) -> dict[str, NDArray[np.int64]]:
        """Name the class of each sample for each task; leading axes of the samples are kept."""
        leading = samples.shape[: -self.rank]
        flat = samples.reshape(-1, *samples.shape[-self.rank :])
        logits = self.predict(flat, batch_size=256, verbose=0)
        return {name: x.argmax(-1).reshape(leading) for name, x in logits.items()}


class RegionClassifier(Classifier):
    """Names the classes that are to be seen in a small clip.

    Two networks look at it. In one, frames are channels, so that the first layer already compares
    them: it sees the motion. The other looks at each frame alone, and its strongest answers of all
    frames count: what a single frame shows well is enough to know a shape. Colours are averaged.

    Args:
        num_classes: number of classes of each task, by its name.
        shape: frames, height and width of the clips.
        width: channels of the first layer of the first network; the other has a quarter.

    Call arguments:
        inputs: uint8 `(batch, frames, height, width, 3)`.

    Returns:
        Logits `(batch, classes)` of each task, by its name.

    Example:

    >>> from keras_vjepa.evaluation.decoded_regions import RegionClassifier
    >>> model = RegionClassifier({"digit": 10}, (2, 8, 8), width=4)
    >>> tuple(model(np.zeros((3, 2, 8, 8, 3), "uint8"))["digit"].shape)
    (3, 10)
    """

    rank = 4

    def __init__(
        self, num_classes: Mapping[str, int], shape: Sequence[int], width: int = 64
    ) -> None:
        super().__init__()
        layers: list[keras.layers.Layer] = []
        side, channels = min(shape[1:3]), width
        layers.append(keras.layers.Conv2D(channels, 3, padding="same", activation="relu"))
        while side > 4:
            channels, side = 2 * channels, (side + 1) // 2
            layers.append(keras.layers.Conv2D(channels, 3, 2, "same", activation="relu"))
            layers.append(keras.layers.Conv2D(channels, 3, padding="same", activation="relu"))
        layers += [keras.layers.Flatten(), keras.layers.Dense(4 * width, activation="relu")]
        layers.append(keras.layers.Dropout(0.3))
        self.trunk = keras.Sequential(layers)
        self.frame_trunk = keras.Sequential(_layers_of_frames(min(shape[1:3]), max(width // 4, 1)))
        self.add_heads(num_classes)
        self(np.zeros((1, *shape, 3), "uint8"))

    def call(self, inputs: Tensor, training: bool = False) -> dict[str, Tensor]:
        grey = ops.mean(ops.cast(inputs, "float32"), axis=-1) / 127.5 - 1
        moving = self.trunk(ops.transpose(grey, (0, 2, 3, 1)), training=training)
        frames, height, width = grey.shape[1:]
        single = self.frame_trunk(ops.reshape(grey, (-1, height, width, 1)), training=training)
        single = ops.max(ops.reshape(single, (-1, frames, single.shape[-1])), axis=1)
        features = ops.concatenate([moving, single], axis=-1)
        return {name: head(features) for name, head in self.heads.items()}


def _layers_of_frames(side: int, channels: int) -> list[keras.layers.Layer]:
    """Make the layers that look at a single frame of a number of pixels."""
    layers: list[keras.layers.Layer] = []
    while side > 4:
        for _ in range(2):
            layers.append(keras.layers.Conv2D(channels, 3, padding="same", activation="relu"))
        layers.append(keras.layers.MaxPooling2D(2, padding="same"))
        channels, side = 2 * channels, (side + 1) // 2
    layers.append(keras.layers.Conv2D(channels, 3, padding="same", activation="relu"))
    layers += [keras.layers.Flatten(), keras.layers.Dense(channels, activation="relu")]
    return [*layers, keras.layers.Dropout(0.3)]


class FeatureClassifier(Classifier):
    """Names classes by the features of a region's tokens, without decoding them.

    Args:
        num_classes: number of classes of each task, by its name.
        shape: number and width of the tokens.
        width: width of the two blocks.

    Call arguments:
        inputs: float `(batch, tokens, dim)`.

    Returns:
        Logits `(batch, classes)` of each task, by its name.

    Example:

    >>> from keras_vjepa.evaluation.decoded_regions import FeatureClassifier
    >>> model = FeatureClassifier({"digit": 10}, (8, 6), width=8)
    >>> tuple(model(np.zeros((3, 8, 6), "float32"))["digit"].shape)
    (3, 10)
    """

    rank = 2

    def __init__(
        self, num_classes: Mapping[str, int], shape: Sequence[int], width: int = 96
    ) -> None:
        super().__init__()
        self.norm = keras.layers.LayerNormalization(epsilon=1e-6)
        self.embedding = keras.layers.Dense(width)
        self.positions = self.add_weight(
            (shape[0], width), keras.initializers.RandomNormal(stddev=0.02), name="positions"
        )
        self.blocks = [TransformerBlock(4, 2 * width) for _ in range(2)]
        self.dropout = keras.layers.Dropout(0.3)
        self.add_heads(num_classes)
        self(np.zeros((1, *shape), "float32"))

    def call(self, inputs: Tensor, training: bool = False) -> dict[str, Tensor]:
        tokens = self.embedding(self.norm(inputs)) + self.positions
        for block in self.blocks:
            tokens = block(tokens)
        pooled = self.dropout(ops.mean(tokens, axis=1), training=training)
        return {name: head(pooled) for name, head in self.heads.items()}


def agreement(classes: NDArray[np.int64]) -> float:
    """Compute how often two seeds of a clip show the same class.

    Args:
        classes: `(clips, seeds)`, at least two seeds.

    Example:

    >>> agreement(np.array([[1, 1, 1], [0, 0, 2]]))  # 3 of 3 pairs, and 1 of 3
    0.6666666666666666
    """
    same = classes[:, :, np.newaxis] == classes[:, np.newaxis, :]
    seeds = classes.shape[1]
    return float((same.sum(axis=(1, 2)) - seeds).mean() / (seeds * (seeds - 1)))


def varying_share(samples: Pixels) -> float:
    """Compute which share of the variance of pixels is due to the seed, not to the clip.

    Args:
        samples: uint8 `(clips, seeds, ...)`.

    Returns:
        0 where all seeds of a clip give the same; 1 where clips make no difference.

    Example:

    >>> seeds_make_no_difference = np.array([[[0, 9], [0, 9]], [[5, 1], [5, 1]]], "uint8")
    >>> varying_share(seeds_make_no_difference)
    0.0
    """
    values = samples.astype("float64")
    total = float(values.var(axis=(0, 1)).mean())
    return float(values.var(axis=1).mean()) / total if total else 1.0


def shifts(clip: Pixels) -> Floats:
    """Measure how far a picture moves from each frame to the next, by phase correlation.

    There is no window at the borders, because of a small region it would take most of the picture:
    for regions of 16 pixels of the built-in set directions then agree less with the whole frame's.

    Args:
        clip: uint8 `(frames, height, width, 3)`.

    Returns:
        Pixels to the right and down, `(frames - 1, 2)`.
    """
    grey = clip.mean(axis=-1)
    pairs = zip(grey[:-1], grey[1:], strict=True)
    return np.array([cv2.phaseCorrelate(a, b)[0] for a, b in pairs])


def direction_cosine(real: Pixels, decoded: Pixels) -> tuple[float, int]:
    """Compare the directions in which real and decoded clips move.

    Args:
        real: uint8 `(clips, frames, height, width, 3)`.
        decoded: uint8 `(clips, seeds, frames, height, width, 3)`.

    Returns:
        Mean cosine between the directions of pairs of frames: 1 where they agree, 0 where they have
        nothing to do with each other. And how many pairs it is the mean of: those whose real shift
        is half a pixel or more. Where the decoded clip does not move, the cosine counts as 0.
    """
    found = []
    for clip, samples in zip(real, decoded, strict=True):
        true = shifts(clip)
        lengths = np.linalg.norm(true, axis=-1)
        moving = lengths >= LEAST_SHIFT
        for sample in samples:
            own = shifts(sample)
            products = lengths * np.linalg.norm(own, axis=-1)
            cosines = (true * own).sum(-1) / np.where(products > 0, products, np.inf)
            found.append(cosines[moving])
    all_cosines = np.concatenate(found)
    return (float(all_cosines.mean()) if len(all_cosines) else 0.0), len(all_cosines)
