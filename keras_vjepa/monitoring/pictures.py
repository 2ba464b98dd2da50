"""Pictures of how training goes, and of what a model attends to (App. C, App. D.1)."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import ArrayLike

from keras_vjepa import files


def draw_curve(losses: Sequence[float], path: Path, height: int = 320, width: int = 640) -> None:
    """Draw the loss of every step as a picture, with its range written beside it.

    Args:
        losses: of every step, at least one.
        path: the file; its ending says the format.
        height: of the picture in pixels.
        width: likewise.

    Raises:
        OSError: if the picture cannot be written.
    """
    image = np.full((height, width, 3), 255, "uint8")
    low, high = min(losses), max(losses)
    x = np.linspace(60, width - 10, len(losses))
    y = 10 + (high - np.array(losses)) / max(high - low, 1e-12) * (height - 40)
    points = np.stack([x, y], axis=1).round().astype("int32")
    cv2.polylines(image, [points], False, (160, 80, 20), 1, cv2.LINE_AA)
    for text, place in (
        (f"{high:.3f}", (4, 16)),
        (f"{low:.3f}", (4, height - 26)),
        (f"loss, steps 1 to {len(losses)}", (60, height - 8)),
    ):
        cv2.putText(image, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1, cv2.LINE_AA)
    files.write_picture(path, image)


def draw_attention(weights: ArrayLike, clip: ArrayLike, path: Path) -> None:
    """Draw the frames of a clip side by side, dark where nothing attends to them.

    Args:
        weights: `(time, rows, columns)`: by how much each token of the clip is attended to; for
            example `classifier.attention_weights(clips)[0, 0].mean(0)`, in the shape of
            `backbone.grid_shape`.
        clip: `(frames, height, width, 3)`, RGB of any range, as the preprocessor makes it. Of the
            frames that share their tokens, the first is drawn.
        path: the file; its ending says the format.

    Raises:
        OSError: if the picture cannot be written.
        ValueError: if the weights have no three axes, or the frames are no multiple of their time.
    """
    grid, frames = np.asarray(weights, "float32"), np.asarray(clip, "float32")
    if grid.ndim != 3 or len(frames) % len(grid):
        raise ValueError(
            "`weights` must be (time, rows, columns), of a time that divides the number of frames, "
            f"{len(frames)}. Received shape: {grid.shape}"
        )
    low, high = frames.min(), frames.max()
    colours = 255 * (frames[:: len(frames) // len(grid)] - low) / max(high - low, 1e-12)
    height, width = frames.shape[1:3]
    light = [
        cv2.resize(step, (width, height), interpolation=cv2.INTER_NEAREST)
        for step in grid / max(grid.max(), 1e-12)
    ]
    drawn = colours * (0.2 + 0.8 * np.stack(light)[..., None])
    image = np.concatenate([*drawn], axis=1).round().astype("uint8")
    files.write_picture(path, np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2BGR)))
