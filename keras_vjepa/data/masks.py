"""Masks: the tokens that the context encoder sees and those that the predictor fills in.

Paper: §3.2 (short- and long-range multi-block masks), §4.4 (random-tube and causal multi-block),
App. C Table 9 (the numbers), App. E.3 (their ablation). `RandomTokenMask` is not in the paper.

A clip of `Nt * Nh * Nw` tokens is flattened time-major, then row, then column. A mask kind hides
some tokens of it; the context holds the indices of the visible ones, the target those of the
hidden ones.

Departures (the authors' code is followed rather than the paper's text):

- One block size serves a whole batch: every block of every sample of a mask kind, and one aspect
  ratio serves all kinds. The paper draws the aspect ratio "for all sampled blocks"; only the
  positions vary.
- Every list of a batch is cut to a common length, so that context and target are no longer
  complements of each other. Cutting removes the end of the list, the latest time steps, and
  lifts what the encoder does not see to the paper's "about 90 %".

The truncation "budget" is ours: it cuts to a fixed length instead of to the batch's shortest
sample, so that compiled backends see one shape. And each sample has a random stream of its own;
in the authors' code all devices draw the same positions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Grid = tuple[int, int, int]
Range = tuple[float, float]

PADDING = -1
MAX_DRAWS = 1000

# "mask" in ASCII: keeps these draws apart from others made from the same seed and step.
_STREAM = 0x6D61736B
_BLOCK_SIZE_STREAM = 0
_FIRST_POSITION_STREAM = 1


def _as_range(value: float | Range) -> Range:
    return (value, value) if isinstance(value, (int, float)) else value


def _check_range(name: str, value: float | Range, upper: float) -> None:
    low, high = _as_range(value)
    if not 0.0 < low <= high <= upper:
        raise ValueError(
            f"`{name}` must be a number or a (low, high) range in (0, {upper:g}]. Received: {value}"
        )


def _check_at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"`{name}` must be at least 1. Received: {value}")


class Mask(Protocol):
    """What a mask kind offers to `MaskSampler`."""

    @property
    def max_keep(self) -> int | None:
        """Most tokens that a context may hold after truncation, or `None`."""

    def check_grid(self, grid: Grid) -> None:
        """Raise `ValueError` if the mask cannot be drawn on `grid`."""

    def token_counts(self, grid: Grid) -> tuple[int, int] | None:
        """Context and target count if every sample has the same, else `None`."""

    def num_draws(self, grid: Grid) -> int:
        """Number of uniform draws that place one sample's mask."""

    def visible(
        self, grid: Grid, size_draws: NDArray[np.float64], position_draws: NDArray[np.float64]
    ) -> NDArray[np.bool_]:
        """True where the encoder sees the token, shape (samples, Nt, Nh, Nw)."""


@dataclass(frozen=True)
class MultiBlockMask:
    """Hides the union of blocks of one size at random positions (§3.2).

    Args:
        num_blocks: number of blocks, at least 1. They may overlap.
        spatial_scale: share of a frame's area that one block covers, in (0, 1]; a (low, high)
            range is drawn from uniformly, once per batch.
        temporal_scale: share of the time steps that one block spans, likewise.
        aspect_ratio: range of height / width of a block, drawn from uniformly, once per batch.
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
        _check_at_least_one("num_blocks", self.num_blocks)
        _check_range("spatial_scale", self.spatial_scale, upper=1.0)
        _check_range("temporal_scale", self.temporal_scale, upper=1.0)
        _check_range("aspect_ratio", self.aspect_ratio, upper=math.inf)
        if not 0.0 < self.max_temporal_keep <= 1.0:
            raise ValueError(
                f"`max_temporal_keep` must be in (0, 1]. Received: {self.max_temporal_keep}"
            )
        if self.max_keep is not None:
            _check_at_least_one("max_keep", self.max_keep)

    def block_size(self, grid: Grid, size_draws: NDArray[np.float64]) -> Grid:
        """Time steps, rows and columns of a block.

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
        """Number of leading time steps, out of `num_steps`, that the context may see."""
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
        """`None`: the counts depend on how much the blocks overlap."""
        return None

    def num_draws(self, grid: Grid) -> int:
        """Three coordinates per block."""
        return 3 * self.num_blocks

    def visible(
        self, grid: Grid, size_draws: NDArray[np.float64], position_draws: NDArray[np.float64]
    ) -> NDArray[np.bool_]:
        """True where the encoder sees the token.

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
    """Multi-block whose context is limited to the clip's first frames (§4.4, causal multi-block).

    The paper's causal multi-block[p] has `num_context_frames=p` and 16 frames.

    Args:
        num_context_frames: frames that the context may see, from 1 to `num_frames`.
        num_frames: frames of a clip.

    The others are those of `MultiBlockMask`.

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
        if not 1 <= self.num_context_frames <= self.num_frames:
            raise ValueError(
                f"`num_context_frames` must be in [1, `num_frames`={self.num_frames}]. "
                f"Received: {self.num_context_frames}"
            )

    def num_context_steps(self, num_steps: int) -> int:
        """Number of leading time steps, out of `num_steps`, that the context may see."""
        # In integers: the float product of a share and a count may fall short of a whole number.
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
        if not 0.0 < self.ratio < 1.0:
            raise ValueError(f"`ratio` must be in (0, 1). Received: {self.ratio}")
        if self.max_keep is not None:
            _check_at_least_one("max_keep", self.max_keep)

    def check_grid(self, grid: Grid) -> None:
        """Raise `ValueError` unless some patches stay visible and some are hidden."""
        if 0 in self.token_counts(grid):
            raise ValueError(
                f"`ratio` must leave patches to see and to predict on the grid {grid}. "
                f"Received: {self.ratio}"
            )

    def tubes(self, grid: Grid) -> Grid:
        """Number of tubes per axis; they tile the grid."""
        return 1, grid[1], grid[2]

    def token_counts(self, grid: Grid) -> tuple[int, int]:
        """Context and target count, the same in every sample."""
        num_tubes = math.prod(self.tubes(grid))
        num_kept = int(num_tubes * (1 - self.ratio))
        length = math.prod(grid) // num_tubes
        return length * num_kept, length * (num_tubes - num_kept)

    def num_draws(self, grid: Grid) -> int:
        """One per tube."""
        return math.prod(self.tubes(grid))

    def visible(
        self, grid: Grid, size_draws: NDArray[np.float64], position_draws: NDArray[np.float64]
    ) -> NDArray[np.bool_]:
        """True where the encoder sees the token, shape (samples, Nt, Nh, Nw).

        Args:
            grid: tokens per axis (Nt, Nh, Nw).
            size_draws: unused; tubes have one size.
            position_draws: uniform draws in [0, 1), shape (samples, `num_draws(grid)`); the
                tubes with the smallest stay visible.
        """
        num_kept = int(self.num_draws(grid) * (1 - self.ratio))
        kept = np.argpartition(position_draws, num_kept - 1, axis=1)[:, :num_kept]
        visible = np.zeros(position_draws.shape, np.bool_)
        np.put_along_axis(visible, kept, True, axis=1)
        tubes = visible.reshape(-1, *self.tubes(grid))
        return np.broadcast_to(tubes, (len(tubes), *grid))


@dataclass(frozen=True)
class RandomTokenMask(RandomTubeMask):
    """Hides random tokens, each time step's anew: tubes that are one time step long.

    Not in the paper: what is hidden can be guessed from the time steps before and after, so it is
    the easiest kind, for small models that tubes and blocks give nothing to start from.

    Args:
        ratio: share of the tokens that is hidden, in (0, 1).
        max_keep: as in `RandomTubeMask`.

    Example:

    >>> RandomTokenMask(ratio=0.75).token_counts((4, 8, 8))
    (64, 192)
    """

    def tubes(self, grid: Grid) -> Grid:
        """Number of tubes per axis: one for each token."""
        return grid


SHORT_RANGE = MultiBlockMask(num_blocks=8, spatial_scale=0.15)
LONG_RANGE = MultiBlockMask(num_blocks=2, spatial_scale=0.7)


class MaskSampler:
    """Draws the context and target indices of a batch, as a pure function of the step (§3.2).

    Args:
        masks: mask kinds, in the order of the predictor's mask tokens.
        grid: tokens per axis (Nt, Nh, Nw).
        truncation: "budget" cuts or pads every list to a fixed number of tokens; "batch_min" cuts
            to the shortest list of the batch, as the authors' code does. Either way the first
            indices stay.
        context_budgets: tokens per context, one number per mask kind. Needed by "budget" unless
            the kind has one count, as `RandomTubeMask` does; then it defaults to that. `None`, or
            `None` for that kind.
        target_budgets: tokens per target, likewise.
        seed: non-negative.

    Raises:
        ValueError: if a mask does not fit the grid, or a budget is missing or too large.

    Example:

    >>> sampler = MaskSampler([SHORT_RANGE, LONG_RANGE], (8, 14, 14), "budget",
    ...                       context_budgets=(368, 96), target_budgets=(752, 1104))
    >>> batch = sampler(step=0, batch_size=4)
    >>> {name: indices.shape for name, indices in batch.items()}  # doctest: +NORMALIZE_WHITESPACE
    {'context_indices_0': (4, 368), 'target_indices_0': (4, 752),
     'context_indices_1': (4, 96), 'target_indices_1': (4, 1104)}
    """

    def __init__(
        self,
        masks: Sequence[Mask],
        grid: Grid,
        truncation: Literal["budget", "batch_min"] = "budget",
        context_budgets: Sequence[int | None] | None = None,
        target_budgets: Sequence[int | None] | None = None,
        seed: int = 0,
    ) -> None:
        if not masks:
            raise ValueError("`masks` must hold at least one mask. Received: none")
        if len(grid) != 3 or min(grid) < 1:
            raise ValueError(f"`grid` must be three positive numbers. Received: {grid}")
        if truncation not in ("budget", "batch_min"):
            raise ValueError(
                f'`truncation` must be "budget" or "batch_min". Received: {truncation!r}'
            )
        if seed < 0:
            raise ValueError(f"`seed` must not be negative. Received: {seed}")
        if truncation == "batch_min" and (context_budgets or target_budgets):
            raise ValueError(
                "`context_budgets` and `target_budgets` must be None with "
                f'`truncation`="batch_min". Received: {context_budgets} and {target_budgets}'
            )
        for mask in masks:
            mask.check_grid(grid)
        self.masks = tuple(masks)
        self.grid = grid
        self.seed = seed
        self.context_budgets: tuple[int, ...] | None = None
        self.target_budgets: tuple[int, ...] | None = None
        if truncation == "budget":
            self.context_budgets = self._budgets("context_budgets", context_budgets)
            self.target_budgets = self._budgets("target_budgets", target_budgets)

    def __call__(self, step: int, batch_size: int, start: int = 0) -> dict[str, NDArray[np.int32]]:
        """Draw the masks of `batch_size` samples.

        Args:
            step: number of the training step, from 0.
            batch_size: number of samples that this process draws.
            start: position of its first sample in the global batch. With "budget", the parts of
                a batch drawn by several processes equal the batch drawn by one; with "batch_min"
                every process cuts to its own shortest sample, as in the authors' code.

        Returns:
            `context_indices_{i}` and `target_indices_{i}` for mask kind i: ascending indices into
            the time-major flattened tokens, int32, shape (batch_size, tokens). With "budget",
            lists that are too short end in -1.

        Raises:
            ValueError: if an argument is out of range, or if a mask hides everything again and
                again.
        """
        if step < 0 or start < 0:
            raise ValueError(
                f"`step` and `start` must not be negative. Received: {step} and {start}"
            )
        _check_at_least_one("batch_size", batch_size)
        batch = {}
        for kind in range(len(self.masks)):
            visible = self.draw_visible(kind, step, batch_size, start)
            num_context, num_target = self._list_lengths(kind, visible)
            batch[f"context_indices_{kind}"] = _first_indices(visible, num_context)
            batch[f"target_indices_{kind}"] = _first_indices(~visible, num_target)
        return batch

    def draw_visible(
        self, kind: int, step: int, batch_size: int, start: int = 0
    ) -> NDArray[np.bool_]:
        """Draw what the encoder would see of each sample before any truncation.

        Args:
            kind: position of the mask in `masks`.
            step: as in `__call__`, like the other arguments.

        Returns:
            Shape (batch_size, tokens); at least one token of each sample is visible.
        """
        mask = self.masks[kind]
        size_draws = np.random.Generator(self._random(step, _BLOCK_SIZE_STREAM, 0)).random(3)
        num_draws = mask.num_draws(self.grid)
        # Philox jumps to any place of its stream, in units of four draws: each sample owns such
        # units, so that its draws depend on its position in the global batch alone.
        num_units = -(-num_draws // 4)
        visible = np.zeros((batch_size, *self.grid), np.bool_)
        pending = np.arange(batch_size)
        for attempt in range(MAX_DRAWS):
            stream = self._random(step, _FIRST_POSITION_STREAM + kind, attempt)
            stream.advance(start * num_units)
            draws = np.random.Generator(stream).random((batch_size, 4 * num_units))
            visible[pending] = mask.visible(self.grid, size_draws, draws[pending, :num_draws])
            pending = pending[~visible[pending].any(axis=(1, 2, 3))]
            if not pending.size:
                return visible.reshape(batch_size, -1)
        raise ValueError(
            f"`masks` must leave something visible on the grid {self.grid}, but {MAX_DRAWS} draws "
            f"hid everything: use fewer or smaller blocks. Received: {mask}"
        )

    def _budgets(self, name: str, budgets: Sequence[int | None] | None) -> tuple[int, ...]:
        """The given budgets, completed by the exact counts of the kinds that have such."""
        if budgets is None:
            budgets = [None] * len(self.masks)
        if len(budgets) != len(self.masks):
            raise ValueError(
                f"`{name}` must hold one number per mask ({len(self.masks)}). Received: {budgets}"
            )
        is_context = name == "context_budgets"
        resolved = []
        for mask, budget in zip(self.masks, budgets, strict=True):
            most = math.prod(self.grid)
            if is_context and mask.max_keep is not None:
                most = min(most, mask.max_keep)
            counts = mask.token_counts(self.grid)
            if budget is None and counts is not None:
                budget = min(most, counts[0 if is_context else 1])
            if budget is None or not 1 <= budget <= most:
                raise ValueError(
                    f"`{name}` must be in [1, {most}] (tokens of the grid, or `max_keep`) for "
                    f"{type(mask).__name__}; `mean_counts` estimates it. Received: {budget}"
                )
            resolved.append(budget)
        return tuple(resolved)

    def _list_lengths(self, kind: int, visible: NDArray[np.bool_]) -> tuple[int, int]:
        if self.context_budgets is not None and self.target_budgets is not None:
            return self.context_budgets[kind], self.target_budgets[kind]
        num_visible = visible.sum(axis=1)
        max_keep = self.masks[kind].max_keep
        num_context = int(num_visible.min())
        if max_keep is not None:
            num_context = min(num_context, max_keep)
        return num_context, visible.shape[1] - int(num_visible.max())

    def _random(self, step: int, stream: int, attempt: int) -> np.random.Philox:
        key = np.random.SeedSequence(self.seed, spawn_key=(_STREAM, step, stream, attempt))
        return np.random.Philox(key)


def mean_counts(
    masks: Sequence[Mask], grid: Grid, batch_size: int, num_batches: int = 1000, seed: int = 0
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Mean context and target counts after truncation to the batch minimum: sensible budgets.

    Args:
        masks: mask kinds.
        grid: tokens per axis (Nt, Nh, Nw).
        batch_size: samples per device, among which the authors' code takes the minimum.
        num_batches: batches to average over.
        seed: non-negative; the result is a function of the arguments.

    Returns:
        Context counts and target counts, one per mask kind, each the multiple of Nt nearest to
        the mean. To be used as `context_budgets` and `target_budgets` of `MaskSampler`.

    Raises:
        ValueError: as `MaskSampler` does.

    Example:

    >>> mean_counts([RandomTubeMask(ratio=0.9)], (8, 14, 14), batch_size=2, num_batches=3)
    ((152,), (1416,))
    """
    _check_at_least_one("num_batches", num_batches)
    sampler = MaskSampler(masks, grid, truncation="batch_min", seed=seed)
    counts = [
        [
            sampler._list_lengths(kind, sampler.draw_visible(kind, step, batch_size))
            for step in range(num_batches)
        ]
        for kind in range(len(masks))
    ]
    mean_steps = np.mean(counts, axis=1) / grid[0]
    rounded = grid[0] * np.maximum(1, np.rint(mean_steps)).astype(int)
    return tuple(rounded[:, 0].tolist()), tuple(rounded[:, 1].tolist())


def _first_indices(chosen: NDArray[np.bool_], num_indices: int) -> NDArray[np.int32]:
    """Positions of the first `num_indices` true entries of each row, padded at the end."""
    indices = np.full((len(chosen), num_indices), PADDING, np.int32)
    for row, chosen_row in zip(indices, chosen, strict=True):
        found = chosen_row.nonzero()[0][:num_indices]
        row[: len(found)] = found
    return indices
