"""Pictures of how training goes (App. C)."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

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
