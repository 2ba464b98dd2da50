"""Compute features of a video's patches, and show them as colours or similarity (§4.3, App. D)."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from keras_vjepa.data.transforms.crops import PIXEL_MEAN, PIXEL_STD, Colour
from keras_vjepa.models.families import HieraBackbone
from keras_vjepa.pictures.videos import PicturedBackbone, WatchedVideo, whole_frame_size

# Values beyond these percentiles get the extreme colours. Without this, a few outliers would make
# all other patches look alike.
_PERCENTILES = (1, 99)


def patch_features(
    backbone: PicturedBackbone,
    video: WatchedVideo,
    mean: Colour = PIXEL_MEAN,
    std: Colour = PIXEL_STD,
) -> NDArray[np.float32]:
    """Compute the features of every patch of a video.

    Args:
        backbone: the encoder.
        video: the video, cut into clips of as many frames as the backbone has.
        mean: mean of red, green and blue with which the encoder was trained.
        std: deviation of red, green and blue with which the encoder was trained.

    Returns:
        float32 `(clips, time, rows, columns, hidden_dim)`.

    Raises:
        ValueError: if a feature is not finite.
    """
    size = whole_frame_size(backbone, *video.frames.shape[1:3])
    clips = video.clips(size, mean, std)
    grid = grid_of(backbone, size)
    found = [
        # A class token, which some families may return, stands before the patches.
        np.asarray(backbone.predict_on_batch(clip[np.newaxis]))[:, -math.prod(grid) :]
        for clip in clips
    ]
    features = np.concatenate(found).astype("float32").reshape(len(clips), *grid, -1)
    if not np.isfinite(features).all():
        raise ValueError("`backbone` must give finite features. Received: NaN or infinity")
    return features


def grid_of(backbone: PicturedBackbone, size: tuple[int, int]) -> tuple[int, int, int]:
    """Return the grid of tokens for clips of a given height and width."""
    if isinstance(backbone, HieraBackbone):
        return backbone.grid_shape
    shape = (None, backbone.num_frames, *size, backbone.num_channels)
    return backbone.tubelet_embedding.grid_shape(shape)


def patch_colours(features: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Show the three directions in which features differ most as red, green and blue.

    Args:
        features: `(..., hidden_dim)`, all of one video.

    Returns:
        uint8 `(..., 3)`. Similar patches have similar colours; the colours themselves have no
        meaning.

    Example:

    >>> import numpy as np
    >>> from keras_vjepa.pictures import patch_colours
    >>> patch_colours(np.array([[0.0, 0, 1], [4, 0, 1], [2, 0, 1]], "float32")).tolist()
    [[0, 128, 128], [255, 128, 128], [128, 128, 128]]
    """
    rows = features.reshape(-1, features.shape[-1]).astype("float64")
    centred = rows - rows.mean(axis=0)
    _, directions = np.linalg.eigh(centred.T @ centred)
    directions = directions[:, ::-1][:, :3]
    # The sign of each direction is fixed, because its opposite would be as good and colours could
    # then change from one call to another.
    largest = np.abs(directions).argmax(axis=0)
    directions = directions * np.sign(directions[largest, np.arange(directions.shape[1])])
    values = np.zeros((len(rows), 3))
    values[:, : directions.shape[1]] = centred @ directions
    low, high = np.percentile(values, _PERCENTILES, axis=0)
    spread = high - low
    # A direction in which patches do not differ is drawn grey, so that noise is not amplified.
    is_flat = spread <= 1e-6 * max(spread.max(), 1e-12)
    scaled = np.where(is_flat, 0.5, (values - low) / np.where(is_flat, 1, spread))
    colours = (255 * scaled.clip(0, 1) + 0.5).astype("uint8")
    return np.asarray(colours.reshape(*features.shape[:-1], 3))


def check_patch(patch: Sequence[int], grid: Sequence[int]) -> tuple[int, int, int]:
    """Check that a patch is in the grid.

    Args:
        patch: time, row and column, from 0.
        grid: numbers of time steps, rows and columns.

    Raises:
        ValueError: for a patch outside of the grid.
    """
    inside = len(patch) == 3 and all(0 <= one < most for one, most in zip(patch, grid, strict=True))
    if not inside:
        words = ", ".join(
            f"{name} 0 to {most - 1}"
            for name, most in zip(("time", "row", "column"), grid, strict=True)
        )
        raise ValueError(
            f"`patch` must be a time, row and column of the grid: {words}. "
            f"Received: {' '.join(map(str, patch))}"
        )
    time, row, column = patch
    return time, row, column


def patch_similarity(features: NDArray[np.float32], patch: Sequence[int]) -> NDArray[np.float32]:
    """Compute the cosine between the features of a patch and those of all others.

    Args:
        features: features as `patch_features` returns them.
        patch: time, row and column in the first clip, from 0.

    Returns:
        float32 `(clips, time, rows, columns)`, 1 at the patch itself.

    Raises:
        ValueError: for a patch outside of the grid.
    """
    place = check_patch(patch, features.shape[1:4])
    unit = features / np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), 1e-12)
    return np.asarray(unit @ unit[(0, *place)], "float32")
