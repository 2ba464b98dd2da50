"""Draw what a model sees and attends to (App. C, App. D.1)."""

from pathlib import Path

import cv2
import numpy as np
from keras import ops
from numpy.typing import ArrayLike, NDArray

from keras_vjepa import files
from keras_vjepa.types import Tensor


def draw_masks(
    videos: ArrayLike, context: ArrayLike, grid: tuple[int, int, int], path: Path
) -> None:
    """Draw clips in rows, with patches dark that the encoder does not see.

    Args:
        videos: `(clips, frames, height, width, 3)`, RGB of any range.
        context: `(clips, tokens)`, indices of the tokens that the encoder sees; -1 is padding.
        grid: numbers of tokens by time, row and column.
        path: the file; its ending determines the format.

    Raises:
        OSError: if the picture cannot be written.
    """
    rows = []
    for clip, indices in zip(np.asarray(videos), np.asarray(context), strict=True):
        seen = np.zeros(grid, "float32")
        seen.reshape(-1)[indices[indices >= 0]] = 1
        rows.append(_lit(seen, np.asarray(clip, "float32")))
    image = np.concatenate(rows, axis=0)
    files.write_picture(path, np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2BGR)))


def draw_attention(weights: Tensor, clip: Tensor, path: files.PathLike) -> None:
    """Draw the frames of a clip side by side, with patches dark that get no attention.

    Args:
        weights: `(time, rows, columns)`: by how much each token of the clip is attended to, an
            array or a tensor.
        clip: `(frames, height, width, 3)`, RGB of any range, as the preprocessor makes it. Of the
            frames that share their tokens, the first is drawn.
        path: the file; its ending determines the format.

    Raises:
        OSError: if the picture cannot be written.
        ValueError: if the weights do not have three axes or are negative, if the clip does not have
            four axes, or if its number of frames is no multiple of the weights' time steps.

    Example:

    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> from keras import ops
    >>> from keras_vjepa import VJEPABackbone, VJEPAVideoClassifier
    >>> from keras_vjepa.monitoring.pictures import draw_attention
    >>> backbone = VJEPABackbone(32, 4, hidden_dim=24, num_layers=1, num_heads=2)
    >>> classifier = VJEPAVideoClassifier(backbone, num_classes=3)
    >>> clips = np.zeros((1, 4, 32, 32, 3), "float32")
    >>> weights = ops.mean(classifier.attention_weights(clips)[0, 0], axis=0)  # of the heads
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "attention.png"
    ...     draw_attention(ops.reshape(weights, backbone.grid_shape), clips[0], path)
    ...     path.stat().st_size > 0
    True
    """
    # `convert_to_numpy` also takes tensors that have a gradient, which NumPy alone does not.
    grid, frames = (np.asarray(ops.convert_to_numpy(x), "float32") for x in (weights, clip))
    if frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(
            f"`clip` must be (frames, height, width, 3). Received shape: {frames.shape}"
        )
    if grid.ndim != 3 or not grid.size or len(frames) % len(grid):
        raise ValueError(
            "`weights` must be (time, rows, columns), of a time that divides the number of frames, "
            f"{len(frames)}. Received shape: {grid.shape}"
        )
    if not grid.min() >= 0:
        raise ValueError(f"`weights` must be numbers from 0. Received: {grid.min()}")
    image = _lit(grid / max(grid.max(), 1e-12), frames)
    files.write_picture(path, np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2BGR)))


def _lit(light_of_tokens: NDArray[np.float32], frames: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Put a clip's frames side by side, each token as bright as its number from 0 to 1 says."""
    low, high = frames.min(), frames.max()
    step = len(frames) // len(light_of_tokens)
    colours = 255 * (frames[::step] - low) / max(high - low, 1e-12)
    height, width = frames.shape[1:3]
    light = [
        cv2.resize(one, (width, height), interpolation=cv2.INTER_NEAREST) for one in light_of_tokens
    ]
    drawn = colours * (0.2 + 0.8 * np.stack(light)[..., None])
    return np.concatenate([*drawn], axis=1).round().astype("uint8")
