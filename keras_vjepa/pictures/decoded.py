"""Paste decoded regions over the clip whose hidden region they show (§6, Fig. 6b)."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from keras_vjepa.arguments import check_whole
from keras_vjepa.data.transforms.crops import Colour
from keras_vjepa.models.diffusion import Progress
from keras_vjepa.models.dimensions import height_and_width
from keras_vjepa.pictures.drawing import boxed_region
from keras_vjepa.pictures.videos import WatchedVideo
from keras_vjepa.pictures.writing import FrameRow
from keras_vjepa.tasks.decoder import FeatureDecoder
from keras_vjepa.tasks.region_features import CONTEXT, TARGET, RegionFeatures

# Grey, in which the hidden region is shown.
_HIDDEN = 128


@dataclass(frozen=True)
class HiddenRegion:
    """Says which tokens of a clip are hidden, and where they are in its frames.

    Args:
        grid: the encoder's tokens by time, row and column.
        rows: rows of tokens of the region.
        columns: columns of tokens of the region.
        row: the region's first row.
        column: the region's first column.

    Raises:
        ValueError: for a region that hides nothing, or reaches beyond the grid.

    Example:

    >>> from keras_vjepa.pictures.decoded import HiddenRegion
    >>> region = HiddenRegion((2, 2, 2), rows=1, columns=1, row=1, column=0)
    >>> [tokens.tolist() for tokens in region.tokens], region.pixels(32, 64)
    ([[0, 1, 3, 4, 5, 7], [2, 6]], (16, 0, 32, 32))
    """

    grid: tuple[int, int, int]
    rows: int
    columns: int
    row: int
    column: int

    def __post_init__(self) -> None:
        if (self.rows, self.columns) == self.grid[1:]:
            raise ValueError(
                "The region must leave something of the clip to predict from. "
                f"Received: {self.rows} x {self.columns} patches, all that there are"
            )
        last = (self.grid[1] - self.rows, self.grid[2] - self.columns)
        check_whole(1, rows=self.rows, columns=self.columns)
        if not (0 <= self.row <= last[0] and 0 <= self.column <= last[1]):
            raise ValueError(
                f"`place` must be a row from 0 to {last[0]} and a column from 0 to {last[1]}, so "
                f"that the region of {self.rows} x {self.columns} patches lies in the clip. "
                f"Received: {self.row} {self.column}"
            )

    @property
    def tokens(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Return the tokens around the region, and those in it."""
        _, rows, columns = np.indices(self.grid)
        hidden = (rows >= self.row) & (rows < self.row + self.rows)
        hidden &= (columns >= self.column) & (columns < self.column + self.columns)
        around, within = np.flatnonzero(~hidden), np.flatnonzero(hidden)
        return around.astype("int32"), within.astype("int32")

    def pixels(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Return top, left, bottom and right of the region in frames of a size.

        Raises:
            ValueError: for frames so small that no pixel is in the region.
        """
        _, rows, columns = self.grid
        top, left = self.row * height // rows, self.column * width // columns
        bottom = (self.row + self.rows) * height // rows
        right = (self.column + self.columns) * width // columns
        if top == bottom or left == right:
            raise ValueError(
                f"The video must have a pixel for each of {rows} x {columns} patches. "
                f"Received: frames of {height} x {width} pixels"
            )
        return top, left, bottom, right


def region_features(
    features: RegionFeatures,
    video: WatchedVideo,
    region: HiddenRegion,
    mean: Colour,
    std: Colour,
) -> dict[str, NDArray[np.float32]]:
    """Compute the features of the hidden region of a video's first clip.

    Args:
        features: the models of the preset.
        video: the video.
        region: what is hidden.
        mean: mean of red, green and blue with which the encoder was trained.
        std: deviation with which it was trained.

    Returns:
        As `RegionFeatures` does, of a batch of 1.
    """
    size = height_and_width(features.pretrainer.encoder.image_size)
    around, within = region.tokens
    return features.of(
        {
            "videos": video.clips(size, mean, std)[:1],
            CONTEXT: around[np.newaxis],
            TARGET: within[np.newaxis],
        }
    )


def decoded_rows(
    decoder: FeatureDecoder,
    features: NDArray[np.float32],
    video: WatchedVideo,
    region: HiddenRegion,
    seeds: Sequence[int],
    kind: str = "predicted",
    steps: int = 50,
    progress: Progress = iter,
    guidance: float = 1.0,
) -> list[FrameRow]:
    """Decode a region for several seeds, and paste each over the first clip of a video.

    Args:
        decoder: the decoder.
        features: features of the region, `(1, tokens, dim)`.
        video: the video.
        region: what is hidden.
        seeds: a row is made for each.
        kind: what the features are; see `FeatureDecoder.sample`.
        steps: number of timesteps.
        progress: shows the progress over the steps.
        guidance: as in `FeatureDecoder.sample`.

    Returns:
        The clip, the clip with its region hidden, and a row for each seed.
    """
    frames = video.frames[video.clip_indices[0]]
    top, left, bottom, right = box = region.pixels(*frames.shape[1:3])
    masked = frames.copy()
    masked[:, top:bottom, left:right] = _HIDDEN
    rows = [
        FrameRow("input", boxed_region(frames, box)),
        FrameRow("hidden", boxed_region(masked, box)),
    ]
    if not len(seeds):
        return rows
    samples = decoder.sample(features, seeds, kind, steps, guidance=guidance, progress=progress)[0]
    for seed, sample in zip(seeds, samples, strict=True):
        pasted = frames.copy()
        for frame, one in zip(pasted, sample, strict=True):
            size = (right - left, bottom - top)
            frame[top:bottom, left:right] = cv2.resize(one, size, interpolation=cv2.INTER_LINEAR)
        rows.append(FrameRow(f"{kind}\nseed {seed}", boxed_region(pasted, box)))
    return rows
