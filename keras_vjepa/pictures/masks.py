"""Show which parts of a video's frames masks hide (§3.2, Figs. 4 and 9)."""

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from keras_vjepa.data.batches.mask_sampler import MaskSampler


class TokenState(IntEnum):
    """Says whether a token is in a mask's context, is a target, or is neither.

    A token is neither if it was cut off because all masks of a batch need the same length.
    """

    NEITHER = 0
    CONTEXT = 1
    TARGET = 2


# Red, green and blue of hidden tokens; tokens of the context show the video itself.
_TARGET, _NEITHER = (40, 70, 120), (130, 130, 130)


def token_states(sampler: MaskSampler, num_clips: int) -> list[NDArray[np.uint8]]:
    """Draw random masks for the clips of a video, as for a batch of training.

    Args:
        sampler: draws the masks.
        num_clips: number of clips; each has masks of its own.

    Returns:
        For each kind of mask, values of `TokenState`, `(clips, time, rows, columns)`.

    Example:

    >>> from keras_vjepa.data import paper_masks
    >>> from keras_vjepa.pictures import TokenState, token_states
    >>> short, long = token_states(paper_masks((2, 4, 4)), num_clips=3)
    >>> short.shape, [int((short[0] == state).sum()) for state in TokenState]
    ((3, 2, 4, 4), [10, 10, 12])
    """
    batch = sampler(step=0, batch_size=num_clips)
    found = []
    for kind in range(len(sampler.masks)):
        states = np.zeros((num_clips, np.prod(sampler.grid)), np.uint8)
        for name, state in (("context", TokenState.CONTEXT), ("target", TokenState.TARGET)):
            for row, indices in zip(states, batch[f"{name}_indices_{kind}"], strict=True):
                row[indices[indices >= 0]] = state
        found.append(states.reshape(num_clips, *sampler.grid))
    return found


def hide(frames: NDArray[np.uint8], states: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Cover the parts of frames that the encoder does not see.

    Args:
        frames: uint8 `(frames, height, width, 3)`, RGB.
        states: values of `TokenState` for each frame, `(frames, rows, columns)`.

    Returns:
        The frames, with targets in dark blue, and tokens that are neither context nor target in
        grey.
    """
    height, width = frames.shape[1:3]
    rows = _places(height, states.shape[1])
    columns = _places(width, states.shape[2])
    of_pixels = states[:, rows][:, :, columns]
    drawn = frames.copy()
    drawn[of_pixels == TokenState.TARGET] = _TARGET
    drawn[of_pixels == TokenState.NEITHER] = _NEITHER
    return drawn


def _places(pixels: int, tokens: int) -> NDArray[np.int64]:
    """Return the number of the token that each pixel along an axis belongs to."""
    return np.arange(pixels) * tokens // pixels


def hidden_share(states: Sequence[NDArray[np.uint8]] | NDArray[np.uint8]) -> float:
    """Return the share of tokens that the encoder does not see."""
    return float((np.asarray(states) != TokenState.CONTEXT).mean())
