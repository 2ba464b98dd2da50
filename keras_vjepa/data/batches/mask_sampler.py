"""Draw the context and target tokens of every sample of a batch (§3.2, App. C Table 9).

Departure (the authors' code is followed rather than the paper's text): every list of a batch is cut
to a common length, so that context and target are no longer complements of each other. Cutting
removes the end of the list, the latest time steps, and so raises the share of tokens that the
encoder does not see to the paper's "about 90 %".

The truncation "budget" is ours: it cuts to a fixed length instead of to the batch's shortest
sample, so that compiled backends see one shape. That length is the mean of the lengths to which the
authors' code cuts, for the grid and the masks at hand. Lists of one length may have fewer late
targets than lists of many lengths with that mean, because the longest of these add late targets. At
224 pixels .056 of the short-range targets would lie in the last two of eight time steps instead of
.065. So a budget of targets is as much longer as it takes (768 in place of 752, where .067 are
late). Besides, each sample has a random stream of its own; in the authors' code all devices draw
the same positions.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from keras_vjepa.arguments import MOST_LONG, MOST_SEED, check_whole, shown
from keras_vjepa.data.batches.mask_kinds import (
    BLOCK_SIZE_STREAM,
    FIRST_POSITION_STREAM,
    LONG_RANGE,
    MAX_DRAWS,
    SHORT_RANGE,
    Mask,
)

Grid = tuple[int, int, int]

PADDING = -1

# "mask" in ASCII: keeps these draws apart from others made from the same seed and step.
MASK_STREAM = 0x6D61736B

# Tokens in this many last time steps count as late.
_LATE_STEPS = 2
# A budget is chosen so that the share of late targets is close to that in lists which are cut to
# the batch minimum: at least this factor of it. But it exceeds the mean length of such lists by at
# most the second factor.
_LATE_TOLERANCE = 0.04
_MOST_FROM_MEAN = 1.05


@dataclass
class MaskSampler:
    """Draws the context and target indices of a batch, as a pure function of the step (§3.2).

    Args:
        masks: mask kinds, in the order of the predictor's mask tokens.
        grid: tokens per axis (Nt, Nh, Nw).
        truncation: "budget" cuts or pads every list to a fixed number of tokens; "batch_min" cuts
            to the shortest list of the batch, as the authors' code does. Either way the first
            indices of a list stay.
        context_budgets: tokens per context, one number per mask kind. `None`, for one kind or in
            place of all numbers, takes the kind's token count if it is always the same, as that of
            `RandomTubeMask` is, or else what `default_budgets` gives.
        target_budgets: tokens per target, likewise.
        seed: non-negative.
        budget_batch_size: number of clips in the batches for which budgets are computed where none
            are given. It is the batch of a device in the authors' code: 24 (Table 9), and 10 for
            ViT-H/16 at 384 pixels. So budgets never depend on the number of devices or on the
            batch at hand.

    Raises:
        ValueError: if a mask does not fit the grid, or a budget is out of its range.

    Example:

    >>> from keras_vjepa.data.batches.mask_kinds import LONG_RANGE, SHORT_RANGE
    >>> sampler = MaskSampler([SHORT_RANGE, LONG_RANGE], (8, 14, 14), context_budgets=(368, None))
    >>> batch = sampler(step=0, batch_size=4)
    >>> {name: indices.shape for name, indices in batch.items()}  # doctest: +NORMALIZE_WHITESPACE
    {'context_indices_0': (4, 368), 'target_indices_0': (4, 768),
     'context_indices_1': (4, 104), 'target_indices_1': (4, 1104)}
    """

    masks: Sequence[Mask]
    grid: Grid
    truncation: Literal["budget", "batch_min"] = "budget"
    context_budgets: Sequence[int | None] | None = None
    target_budgets: Sequence[int | None] | None = None
    seed: int = 0
    # `repr` leaves this out. It is used to describe a run, for which the budgets are enough, and
    # descriptions of runs that are older than this argument must still match.
    budget_batch_size: int = field(default=24, repr=False)

    def __post_init__(self) -> None:
        if not self.masks:
            raise ValueError("`masks` must hold at least one mask. Received: none")
        if not isinstance(self.grid, tuple | list) or len(self.grid) != 3:
            raise ValueError(f"`grid` must be three positive numbers. Received: {self.grid}")
        for tokens in self.grid:
            check_whole(1, MOST_LONG, grid=tokens)
        if self.truncation not in ("budget", "batch_min"):
            raise ValueError(
                f'`truncation` must be "budget" or "batch_min". Received: {self.truncation!r}'
            )
        check_whole(0, MOST_SEED, seed=self.seed)
        if self.truncation == "batch_min" and (self.context_budgets or self.target_budgets):
            raise ValueError(
                "`context_budgets` and `target_budgets` must be None with "
                f'`truncation`="batch_min". Received: {self.context_budgets} and '
                f"{self.target_budgets}"
            )
        check_whole(1, budget_batch_size=self.budget_batch_size)
        for mask in self.masks:
            mask.check_grid(self.grid)
        self.masks, self.grid = tuple(self.masks), (*self.grid,)
        self._budgets: list[tuple[int, int]] | None = None
        if self.truncation == "budget":
            contexts = self._complete("context_budgets", self.context_budgets)
            targets = self._complete("target_budgets", self.target_budgets)
            self.context_budgets, self.target_budgets = contexts, targets
            self._budgets = list(zip(contexts, targets, strict=True))

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
        check_whole(1, batch_size=batch_size)
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
        """Draw the tokens of each sample that the encoder would see before any truncation.

        Args:
            kind: position of the mask in `masks`.
            step: as in `__call__`, like the other arguments.

        Returns:
            Shape (batch_size, tokens); at least one token of each sample is visible.
        """
        mask = self.masks[kind]
        size_draws = np.random.Generator(self._random(step, BLOCK_SIZE_STREAM, 0)).random(3)
        num_draws = mask.num_draws(self.grid)
        # Philox can jump to any place in its stream, in units of four draws. Each sample has such
        # units of its own, so that its draws depend only on its position in the global batch.
        num_units = -(-num_draws // 4)
        visible = np.zeros((batch_size, *self.grid), np.bool_)
        pending = np.arange(batch_size)
        for attempt in range(MAX_DRAWS):
            stream = self._random(step, FIRST_POSITION_STREAM + kind, attempt)
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

    def _complete(self, name: str, budgets: Sequence[int | None] | None) -> tuple[int, ...]:
        """Complete the given budgets by the default ones where they are None."""
        if budgets is None:
            budgets = [None] * len(self.masks)
        check_one_per_mask(name, budgets, self.masks)
        is_context = name == "context_budgets"
        if None in budgets:
            own = default_budgets(self.masks, self.grid, self.budget_batch_size)
            pairs = zip(budgets, own[0 if is_context else 1], strict=True)
            budgets = [default if budget is None else budget for budget, default in pairs]
        resolved = []
        for mask, budget in zip(self.masks, budgets, strict=True):
            most = math.prod(self.grid)
            if is_context and mask.max_keep is not None:
                most = min(most, mask.max_keep)
            if budget is None or not 1 <= budget <= most:
                raise ValueError(
                    f"`{name}` must be in [1, {most}] (tokens of the grid, or `max_keep`) for "
                    f"{type(mask).__name__}; `mean_counts` estimates it. Received: {budget}"
                )
            resolved.append(budget)
        return tuple(resolved)

    def _list_lengths(self, kind: int, visible: NDArray[np.bool_]) -> tuple[int, int]:
        if self._budgets is not None:
            return self._budgets[kind]
        num_visible = visible.sum(axis=1)
        max_keep = self.masks[kind].max_keep
        num_context = int(num_visible.min())
        if max_keep is not None:
            num_context = min(num_context, max_keep)
        return num_context, visible.shape[1] - int(num_visible.max())

    def _random(self, step: int, stream: int, attempt: int) -> np.random.Philox:
        key = np.random.SeedSequence(self.seed, spawn_key=(MASK_STREAM, step, stream, attempt))
        return np.random.Philox(key)


def check_one_per_mask(
    name: str, budgets: Sequence[int | None] | None, masks: Sequence[Mask]
) -> None:
    """Raise `ValueError` if budgets are given, but not one for each mask kind."""
    if budgets is not None and len(budgets) != len(masks):
        raise ValueError(
            f"`{name}` must hold one number per mask ({len(masks)}). Received: {shown(budgets)}"
        )


def paper_masks(grid: Grid, seed: int = 0, budget_batch_size: int = 24) -> MaskSampler:
    """Make the paper's masks, short range and long range (Table 9), for any token grid.

    Args:
        grid: tokens per axis (Nt, Nh, Nw).
        seed: non-negative.
        budget_batch_size: as in `MaskSampler`.

    Raises:
        ValueError: if the grid is too small for the blocks.

    Example:

    >>> from keras_vjepa.data.batches.mask_sampler import paper_masks
    >>> sampler = paper_masks((2, 4, 4))
    >>> sampler.context_budgets, sampler.target_budgets
    ((10, 6), (12, 22))
    """
    masks = (SHORT_RANGE, LONG_RANGE)
    return MaskSampler(masks, grid, seed=seed, budget_batch_size=budget_batch_size)


def default_budgets(
    masks: Sequence[Mask], grid: Grid, batch_size: int, num_batches: int = 1000, seed: int = 0
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Find the fixed lengths that come closest to lists cut to the shortest of their batch.

    They are the budgets of a `MaskSampler` that is given none. A context has the mean length. A
    target has the mean length too, if as large a share of it lies in the last two time steps as of
    lists that are cut. If not, it has the next longer length with this share, to 4 %; where no
    length up to 5 % above the mean has it, the one of these whose share is closest.

    Args:
        masks: as in `mean_counts`, like the other arguments.

    Returns:
        Context budgets and target budgets, one per mask kind.

    Raises:
        ValueError: as `MaskSampler` does.

    Example:

    >>> from keras_vjepa.data.batches.mask_kinds import LONG_RANGE, SHORT_RANGE
    >>> default_budgets([SHORT_RANGE, LONG_RANGE], (8, 14, 14), batch_size=24)
    ((368, 104), (768, 1104))
    """
    drawn = tuple(masks), (*grid,), batch_size, num_batches, seed
    contexts, means = mean_counts(*drawn)
    counts = counts_after_truncation(*drawn)[..., 1]
    targets = tuple(
        _as_late(math.prod(grid) - visible, early, mean, _rounding(of_kind, grid[0]))
        for (visible, early), mean, of_kind in zip(_drawn(*drawn), means, counts, strict=True)
    )
    return contexts, targets


def mean_counts(
    masks: Sequence[Mask], grid: Grid, batch_size: int, num_batches: int = 1000, seed: int = 0
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Estimate the mean context and target counts after truncation to the batch minimum.

    They are what the authors' code gives on average. They depend on the arguments alone, so that
    every process finds the same, and so does a run that continues. The second call with the same
    arguments takes no time.

    Args:
        masks: mask kinds; hashable, as frozen dataclasses are.
        grid: tokens per axis (Nt, Nh, Nw).
        batch_size: samples per device, among which the authors' code takes the minimum.
        num_batches: batches to average over; 1000 give the paper's means to about 1 %.
        seed: non-negative.

    Returns:
        Context counts and target counts, one per mask kind. It is the kind's count if that is
        always the same, or else the mean, rounded to whole tubes: to a multiple of Nt or, where Nt
        does not divide all counts, as with causal masks, of their greatest common divisor.

    Raises:
        ValueError: as `MaskSampler` does.

    Example:

    >>> from keras_vjepa.data.batches.mask_kinds import RandomTubeMask
    >>> mean_counts([RandomTubeMask(ratio=0.9)], (8, 14, 14), batch_size=2, num_batches=3)
    ((152,), (1416,))
    """
    counts = counts_after_truncation(masks, grid, batch_size, num_batches, seed)
    contexts, targets = (
        tuple(_rounded_mean(of_kind, grid[0]) for of_kind in of_lists)
        for of_lists in np.moveaxis(counts, 2, 0)
    )
    return contexts, targets


def counts_after_truncation(
    masks: Sequence[Mask], grid: Grid, batch_size: int, num_batches: int = 1000, seed: int = 0
) -> NDArray[np.int64]:
    """Count the tokens of each list of some batches after truncation to the batch minimum.

    Args:
        masks: as in `mean_counts`, like the other arguments.

    Returns:
        Shape (masks, num_batches, 2): context and target.

    Example:

    >>> from keras_vjepa.data.batches.mask_kinds import RandomTubeMask
    >>> counts_after_truncation([RandomTubeMask(0.9)], (8, 14, 14), batch_size=2, num_batches=1)
    array([[[ 152, 1416]]])
    """
    check_whole(1, batch_size=batch_size, num_batches=num_batches)
    visible = _drawn(tuple(masks), (*grid,), batch_size, num_batches, seed)[:, 0]
    contexts, targets = visible.min(axis=2), math.prod(grid) - visible.max(axis=2)
    for of_kind, mask in zip(contexts, masks, strict=True):
        if mask.max_keep is not None:
            np.minimum(of_kind, mask.max_keep, out=of_kind)
    return np.stack([contexts, targets], axis=2)


@functools.cache
def _drawn(
    masks: tuple[Mask, ...], grid: Grid, batch_size: int, num_batches: int, seed: int
) -> NDArray[np.int64]:
    """Count the visible tokens of each clip and the hidden ones that are not late.

    Returns:
        A read-only array of shape (masks, 2, num_batches, batch_size).
    """
    sampler = MaskSampler(masks, grid, truncation="batch_min", seed=seed)
    # In clips of one or two time steps every token is late.
    num_early = math.prod(grid[1:]) * max(0, grid[0] - _LATE_STEPS)
    counts = np.empty((len(masks), 2, num_batches, batch_size), np.int64)
    for kind, mask in enumerate(masks):
        # If a kind of mask always gives the same count, all of its samples have equal lengths.
        alike = mask.token_counts(grid) is not None
        for step in range(1 if alike else num_batches):
            visible = sampler.draw_visible(kind, step, batch_size)
            counts[kind, 0, step] = visible.sum(axis=1)
            counts[kind, 1, step] = num_early - visible[:, :num_early].sum(axis=1)
        if alike:
            counts[kind] = counts[kind, :, :1]
    counts.setflags(write=False)
    return counts


def _as_late(hidden: NDArray[np.int64], early: NDArray[np.int64], mean: int, rounding: int) -> int:
    """Find the length nearest the mean with as many late tokens as lists cut to a batch's least.

    Args:
        hidden: tokens of each list, shape (batches, batch_size).
        early: tokens of each list that are not late, likewise.
        mean: mean length of the shortest list of a batch, rounded.
        rounding: the number of which lengths are multiples.
    """
    wanted = _late_share(hidden, early, hidden.min(axis=1, keepdims=True))
    longest = max(mean, min(int(_MOST_FROM_MEAN * mean), int(hidden.max())))
    best, distance = mean, abs(_late_share(hidden, early, mean) - wanted)
    # Only longer lists are tried, because those of the mean length have too few late tokens, and
    # shorter ones would have even fewer.
    for length in range(mean + rounding, longest + 1, rounding):
        if distance <= _LATE_TOLERANCE * wanted:
            break
        found = abs(_late_share(hidden, early, length) - wanted)
        if found < distance:
            best, distance = length, found
    return best


def _late_share(
    hidden: NDArray[np.int64], early: NDArray[np.int64], length: int | NDArray[np.int64]
) -> float:
    """Compute the share of late tokens in lists that are cut to a length."""
    cut = np.minimum(hidden, length)
    return float(np.maximum(0, cut - early).sum() / cut.sum())


def _rounded_mean(counts: NDArray[np.int64], num_steps: int) -> int:
    """Round the mean of counts to the nearest multiple of what `_rounding` gives."""
    rounding = _rounding(counts, num_steps)
    return rounding * round(float(counts.mean()) / rounding)


def _rounding(counts: NDArray[np.int64], num_steps: int) -> int:
    """Return the number of time steps if it divides all counts, or their greatest divisor."""
    divisor = int(np.gcd.reduce(counts))
    return num_steps if divisor % num_steps == 0 else divisor


def _first_indices(chosen: NDArray[np.bool_], num_indices: int) -> NDArray[np.int32]:
    """Return the positions of the first `num_indices` true entries of each row, padded."""
    indices = np.full((len(chosen), num_indices), PADDING, np.int32)
    for row, chosen_row in zip(indices, chosen, strict=True):
        found = chosen_row.nonzero()[0][:num_indices]
        row[: len(found)] = found
    return indices
