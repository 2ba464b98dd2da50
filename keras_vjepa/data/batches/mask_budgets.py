"""Tell which token budgets are usual on a grid, and describe those of a run (§3.2, App. C Table 9).

A budget is the fixed number of tokens to which `MaskSampler` cuts the lists of a mask kind.
"""

import math
from collections.abc import Sequence

from keras_vjepa.arguments import counted
from keras_vjepa.data.batches.mask_kinds import Grid, Mask
from keras_vjepa.data.batches.mask_sampler import MaskSampler, default_budgets, mean_counts

BUDGETS = ("context_budgets", "target_budgets")
# A usual budget is the mean length that lists have when they are cut to the shortest one in a
# batch, for a batch of any number of clips up to this one.
LARGEST_BATCH = 128
# A budget that differs by so many patches is usual too, because small grids allow few budgets, and
# means over few batches vary.
ROOM = 2


def usual_budgets(masks: Sequence[Mask], grid: Grid) -> tuple[list[range], list[range]]:
    """Find the range of budgets, in tokens, that fit a grid, whatever the size of the batch.

    Args:
        masks: mask kinds.
        grid: tokens per axis (Nt, Nh, Nw).

    Returns:
        Ranges of context and of target budgets, one per mask kind. Each begins at the mean length
        of lists that are cut to the shortest of 128, less two patches, and ends at that of lists
        that are not cut, plus two patches.

    Raises:
        ValueError: as `MaskSampler` does.

    Example:

    >>> from keras_vjepa.data.batches.mask_kinds import LONG_RANGE
    >>> usual_budgets([LONG_RANGE], (2, 4, 4))
    ([range(2, 13)], [range(18, 29)])
    """
    most, room = math.prod(grid), ROOM * grid[0]
    one = mean_counts(masks, grid, 1)
    # About as many samples as batches of 24 clips need for a mean.
    many = mean_counts(masks, grid, LARGEST_BATCH, 200)
    contexts, targets = (
        [
            range(max(1, low - room), min(most, high + room) + 1)
            for low, high in zip(*of_lists, strict=True)
        ]
        for of_lists in zip(many, one, strict=True)
    )
    return contexts, targets


def check_usual_budgets(
    masks: Sequence[Mask],
    grid: Grid,
    context_budgets: Sequence[int | None] | None,
    target_budgets: Sequence[int | None] | None,
) -> None:
    """Raise if a given budget is not one of `usual_budgets`, as it may be meant for another grid.

    Raises:
        ValueError: for the first such budget.

    Example:

    >>> from keras_vjepa.data.batches.mask_kinds import LONG_RANGE
    >>> check_usual_budgets([LONG_RANGE], (2, 4, 4), [8], None)
    """
    if not (context_budgets or target_budgets):
        return
    given = (context_budgets or (), target_budgets or ())
    for name, budgets, usual in zip(BUDGETS, given, usual_budgets(masks, grid), strict=True):
        for budget, fitting in zip(budgets, usual, strict=False):
            if budget is not None and budget not in fitting:
                raise ValueError(
                    f"`{name}` must be for the grid of {_grid_in_words(grid)} tokens, where "
                    f"{fitting[0]:,} to {fitting[-1]:,} are usual. "
                    f"Leave the option out for those of this grid. Received: {budget}"
                )


def are_exact(masks: Sequence[Mask], grid: Grid) -> bool:
    """Tell whether every sample has the same number of context tokens."""
    return all(mask.token_counts(grid) is not None for mask in masks)


def masks_in_words(name: str, sampler: MaskSampler) -> str:
    """Say which masks a run has, how many tokens they hold, and where these numbers are from.

    Args:
        name: name of the masks.
        sampler: draws the masks.

    Example:

    >>> from keras_vjepa.data.batches.mask_kinds import RandomTubeMask
    >>> masks_in_words("random_tube", MaskSampler([RandomTubeMask(0.9)], (8, 14, 14)))
    'Masks: random_tube, 1 set a clip, of 8 x 14 x 14 tokens; context 152, target 1,416 tokens'
    """
    sets = counted(len(sampler.masks), "set")
    head = f"Masks: {name}, {sets} a clip, of {_grid_in_words(sampler.grid)} tokens"
    if sampler.truncation == "batch_min":
        return f"{head}; every list is cut to the shortest of its batch"
    parts = []
    defaults = default_budgets(sampler.masks, sampler.grid, sampler.budget_batch_size)
    for budgets_name, usual in zip(BUDGETS, defaults, strict=True):
        budgets = getattr(sampler, budgets_name)
        text = f"{budgets_name.removesuffix('_budgets')} {_sum(budgets)}"
        parts.append(text if budgets == usual else f"{text} (by default {_sum(usual)})")
    text = f"{head}; {', '.join(parts)} tokens"
    if are_exact(sampler.masks, sampler.grid):
        return text
    if sampler.budget_batch_size == 1:
        return f"{text}, as many as uncut lists have on average"
    count = sampler.budget_batch_size
    return f"{text}, as many as lists cut to the shortest of {count} have on average"


def _grid_in_words(grid: Grid) -> str:
    return " x ".join(map(str, grid))


def _sum(counts: tuple[int, ...]) -> str:
    return " + ".join(f"{count:,}" for count in counts)
