"""Mask the tokens that the context encoder does not see (§3.2, §4.4, App. C Table 9, App. E.3).

Short- and long-range multi-block masks are those of §3.2, random-tube and causal multi-block masks
those of §4.4. `RandomTokenMask` is not in the paper.

A clip of `Nt * Nh * Nw` tokens is flattened time-major, then row, then column. A mask kind hides
some tokens of it; the context holds the indices of the visible ones, the target those of the
hidden ones.

Departure (the authors' code is followed rather than the paper's text): one block size serves a
whole batch, every block of every sample of a mask kind, and one aspect ratio serves all kinds. The
paper draws the aspect ratio "for all sampled blocks"; only the positions vary.
"""

import math
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from keras_vjepa.arguments import check_number, check_range, check_whole, shown

Grid = tuple[int, int, int]
Range = tuple[float, float]
MAX_DRAWS = 1000
_MOST_BLOCKS = 1024
BLOCK_SIZE_STREAM = 0
FIRST_POSITION_STREAM = 1


def _as_range(value: float | Range) -> Range:
    return (value, value) if isinstance(value, (int, float)) else value


def _hashable(value: float | Range) -> float | Range:
    return tuple(value) if isinstance(value, list) else value


def _check_ranges(interval: str, **values: float | Range) -> None:
    for name, value in values.items():
        try:
            check_range(interval, **{name: _as_range(value)})
        except ValueError:
            raise ValueError(
                f"`{name}` must be a number or a (low, high) range in {interval}. "
                f"Received: {shown(value)}"
            ) from None


class Mask(Protocol):
    """Describes what `MaskSampler` needs of a mask kind; it must be hashable, too."""

    @property
    def max_keep(self) -> int | None:
        """Return the most tokens that a context may hold after truncation, or `None`."""

    def check_grid(self, grid: Grid) -> None:
        """Raise `ValueError` if the mask cannot be drawn on `grid`."""

    def token_counts(self, grid: Grid) -> tuple[int, int] | None:
        """Return the counts of context and target if every sample has the same, else `None`."""

    def num_draws(self, grid: Grid) -> int:
        """Return the number of uniform draws that place one sample's mask."""

    def visible(
        self, grid: Grid, size_draws: NDArray[np.float64], position_draws: NDArray[np.float64]
    ) -> NDArray[np.bool_]:
        """Mark the tokens that the encoder sees as True, shape (samples, Nt, Nh, Nw)."""


@dataclass(frozen=True)
class MultiBlockMask:
    """Hides the union of blocks of one size at random positions (§3.2).

    Args:
        num_blocks: number of blocks, at least 1. They may overlap.
        spatial_scale: share of a frame's area that one block covers, in (0, 1]; a (low, high)
            range is drawn from uniformly, once per batch.
        temporal_scale: share of the time steps that one block spans, likewise.
        aspect_ratio: range of height / width of a block, drawn from uniformly, once per batch;
            in [0.01, 100].
        max_temporal_keep: the context never sees time step `max(1, int(Nt * max_temporal_keep))`
            or later ones; in (0, 1].
        max_keep: most tokens that a context may hold after truncation, or `None`.

    Raises:
        ValueError: if an argument is out of its range.

    Example:

    >>> mask = MultiBlockMask(num_blocks=8, spatial_scale=0.15)
    >>> mask.block_size((8, 14, 14), np.array([0.0, 0.0, 0.5]))
    (8, 6, 5)
    """

    num_blocks: int
    spatial_scale: float | Range
    temporal_scale: float | Range = (1.0, 1.0)
    aspect_ratio: float | Range = (0.75, 1.5)
    max_temporal_keep: float = 1.0
    max_keep: int | None = None

    def __post_init__(self) -> None:
        # A list from a JSON file would not be hashable.
        object.__setattr__(self, "spatial_scale", _hashable(self.spatial_scale))
        object.__setattr__(self, "temporal_scale", _hashable(self.temporal_scale))
        object.__setattr__(self, "aspect_ratio", _hashable(self.aspect_ratio))
        check_whole(1, _MOST_BLOCKS, num_blocks=self.num_blocks)
        _check_ranges(
            "(0, 1]", spatial_scale=self.spatial_scale, temporal_scale=self.temporal_scale
        )
        _check_ranges("[0.01, 100]", aspect_ratio=self.aspect_ratio)
        check_number("(0, 1]", max_temporal_keep=self.max_temporal_keep)
        check_whole(1, optional=True, max_keep=self.max_keep)

    def block_size(self, grid: Grid, size_draws: NDArray[np.float64]) -> Grid:
        """Compute the time steps, rows and columns of a block.

        Args:
            grid: tokens per axis (Nt, Nh, Nw).
            size_draws: three uniform draws in [0, 1): temporal scale, spatial scale, aspect ratio.
        """
        num_steps, num_rows, num_columns = grid
        scales = (self.temporal_scale, self.spatial_scale, self.aspect_ratio)
        temporal_scale, spatial_scale, aspect_ratio = (
            low + float(draw) * (high - low)
            for (low, high), draw in zip(map(_as_range, scales), size_draws, strict=True)
        )
        area = int(num_rows * num_columns * spatial_scale)
        return (
            max(1, int(num_steps * temporal_scale)),
            min(num_rows, round(math.sqrt(area * aspect_ratio))),
            min(num_columns, round(math.sqrt(area / aspect_ratio))),
        )

    def num_context_steps(self, num_steps: int) -> int:
        """Return the number of first time steps, out of `num_steps`, that the context may see."""
        if self.max_temporal_keep == 1.0:
            return num_steps
        return max(1, int(num_steps * self.max_temporal_keep))

    def check_grid(self, grid: Grid) -> None:
        """Raise `ValueError` if blocks could be smaller than one token on `grid`."""
        for aspect_draw in (0.0, 1.0):
            if 0 in self.block_size(grid, np.array([0.0, 0.0, aspect_draw])):
                raise ValueError(
                    f"`spatial_scale` must give blocks of at least one token on the grid {grid}. "
                    f"Received: {self.spatial_scale}"
                )

    def token_counts(self, grid: Grid) -> None:
        """Return `None`, as the counts depend on how much the blocks overlap."""
        return None

    def num_draws(self, grid: Grid) -> int:
        """Return the number of draws: three coordinates per block."""
        return 3 * self.num_blocks

    def visible(
        self, grid: Grid, size_draws: NDArray[np.float64], position_draws: NDArray[np.float64]
    ) -> NDArray[np.bool_]:
        """Mark the tokens that the encoder sees as True.

        Args:
            grid: tokens per axis (Nt, Nh, Nw).
            size_draws: the three uniform draws of `block_size`, shared by all samples.
            position_draws: uniform draws in [0, 1), shape (samples, `num_draws(grid)`).

        Returns:
            Shape (samples, Nt, Nh, Nw). A sample's row may be all False: draw it again.
        """
        size = self.block_size(grid, size_draws)
        num_placements = np.subtract(grid, size) + 1
        draws = position_draws.reshape(-1, self.num_blocks, 3)
        starts = (draws * num_placements).astype(np.intp)
        stops = starts + size
        visible = np.ones((len(starts), *grid), np.bool_)
        for sample, sample_starts, sample_stops in zip(
            visible, starts.tolist(), stops.tolist(), strict=True
        ):
            for (t0, y0, x0), (t1, y1, x1) in zip(sample_starts, sample_stops, strict=True):
                sample[t0:t1, y0:y1, x0:x1] = False
        visible[:, self.num_context_steps(grid[0]) :] = False
        return visible


@dataclass(frozen=True)
class CausalMultiBlockMask(MultiBlockMask):
    """Hides blocks, and all but the clip's first frames (§4.4, causal multi-block).

    The paper's causal multi-block[p] has `num_context_frames=p` and 16 frames.

    Args:
        num_context_frames: frames that the context may see, from 1 to `num_frames`.
        num_frames: frames of a clip.

    The other arguments are those of `MultiBlockMask`.

    Raises:
        ValueError: if an argument is out of its range.

    Example:

    >>> mask = CausalMultiBlockMask(num_blocks=8, spatial_scale=0.15, num_context_frames=6)
    >>> mask.num_context_steps(8)
    3
    """

    num_context_frames: int = field(kw_only=True)
    num_frames: int = field(default=16, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(1, num_context_frames=self.num_context_frames, num_frames=self.num_frames)
        if self.num_context_frames > self.num_frames:
            raise ValueError(
                f"`num_context_frames` must be in [1, `num_frames`={self.num_frames}]. "
                f"Received: {self.num_context_frames}"
            )

    def num_context_steps(self, num_steps: int) -> int:
        """Return the number of first time steps, out of `num_steps`, that the context may see."""
        # In integers, because a float product of share and count may fall short of a whole number.
        causal_steps = max(1, num_steps * self.num_context_frames // self.num_frames)
        return min(causal_steps, super().num_context_steps(num_steps))


@dataclass(frozen=True)
class RandomTubeMask:
    """Hides random patches over the whole clip (§4.4, random-tube[r]).

    Args:
        ratio: share of the patches that is hidden, in (0, 1). All samples keep
            `int(Nh * Nw * (1 - ratio))` patches.
        max_keep: most tokens that a context may hold after truncation, or `None`.

    Raises:
        ValueError: if an argument is out of its range.

    Example:

    >>> RandomTubeMask(ratio=0.9).token_counts((8, 14, 14))
    (152, 1416)
    """

    ratio: float = 0.9
    max_keep: int | None = None

    def __post_init__(self) -> None:
        check_number("(0, 1)", ratio=self.ratio)
        check_whole(1, optional=True, max_keep=self.max_keep)

    def check_grid(self, grid: Grid) -> None:
        """Raise `ValueError` unless some patches stay visible and some are hidden."""
        if 0 in self.token_counts(grid):
            raise ValueError(
                f"`ratio` must leave patches to see and to predict on the grid {grid}. "
                f"Received: {self.ratio}"
            )

    def tubes(self, grid: Grid) -> Grid:
        """Return the number of tubes per axis; they tile the grid."""
        return 1, grid[1], grid[2]

    def token_counts(self, grid: Grid) -> tuple[int, int]:
        """Return the counts of context and target, which are the same in every sample."""
        num_tubes = math.prod(self.tubes(grid))
        num_kept = int(num_tubes * (1 - self.ratio))
        length = math.prod(grid) // num_tubes
        return length * num_kept, length * (num_tubes - num_kept)

    def num_draws(self, grid: Grid) -> int:
        """Return the number of draws: one per tube."""
        return math.prod(self.tubes(grid))

    def visible(
        self, grid: Grid, size_draws: NDArray[np.float64], position_draws: NDArray[np.float64]
    ) -> NDArray[np.bool_]:
        """Mark the tokens that the encoder sees as True, shape (samples, Nt, Nh, Nw).

        Args:
            grid: tokens per axis (Nt, Nh, Nw).
            size_draws: unused; tubes have one size.
            position_draws: uniform draws in [0, 1), shape (samples, `num_draws(grid)`); the
                tubes with the smallest draws stay visible.
        """
        num_kept = int(self.num_draws(grid) * (1 - self.ratio))
        kept = np.argpartition(position_draws, num_kept - 1, axis=1)[:, :num_kept]
        visible = np.zeros(position_draws.shape, np.bool_)
        np.put_along_axis(visible, kept, True, axis=1)
        tubes = visible.reshape(-1, *self.tubes(grid))
        return np.broadcast_to(tubes, (len(tubes), *grid))


@dataclass(frozen=True)
class RandomTokenMask(RandomTubeMask):
    """Hides random tokens, others in each time step: its tubes are one time step long.

    This kind is not in the paper. Hidden tokens can be guessed from the time steps before and
    after, so it is the easiest kind, for small models to which tubes and blocks give nothing to
    start from.

    Args:
        ratio: share of the tokens that is hidden, in (0, 1).
        max_keep: as in `RandomTubeMask`.

    Example:

    >>> RandomTokenMask(ratio=0.75).token_counts((4, 8, 8))
    (64, 192)
    """

    def tubes(self, grid: Grid) -> Grid:
        """Return the number of tubes per axis: one for each token."""
        return grid


SHORT_RANGE = MultiBlockMask(num_blocks=8, spatial_scale=0.15)
LONG_RANGE = MultiBlockMask(num_blocks=2, spatial_scale=0.7)
