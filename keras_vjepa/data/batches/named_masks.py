"""Make kinds of masks by the names that they have in a config (§3.2, Table 4, §4.4)."""

from collections.abc import Callable
from typing import Any

from keras_vjepa.data.batches.mask_kinds import (
    CausalMultiBlockMask,
    Mask,
    MultiBlockMask,
    RandomTokenMask,
    RandomTubeMask,
)

MASKS: dict[str, Callable[..., MultiBlockMask | RandomTubeMask]] = {
    "multi_block": MultiBlockMask,
    "causal_multi_block": CausalMultiBlockMask,
    "random_tube": RandomTubeMask,
    "random_tokens": RandomTokenMask,
}
# How many sets of masks each clip gets, for kinds of masks that are not made of blocks (§4.4; the
# second kind is not in the paper).
MASK_SETS = {"random_tube": 2, "random_tokens": 1}


def mask_kinds(config: Any) -> list[Mask]:
    """Make the kinds of masks of a config; each has a mask token and a term of the loss.

    Args:
        config: a config of the pretraining recipe.

    Raises:
        ValueError: for a number of sets that a kind of blocks does not have.
    """
    kinds = config.mask.make_each(MASKS[config.masks], num_frames=config.encoder.num_frames)
    if config.masks in MASK_SETS:
        sets = MASK_SETS[config.masks] if config.mask_sets is None else config.mask_sets
        return kinds * sets
    if config.mask_sets not in (None, len(kinds)):
        raise ValueError(
            f"`mask_sets` must be left out for {config.masks}, which has one for each of "
            f"`mask_num_blocks`. Received: {config.mask_sets}"
        )
    return kinds
