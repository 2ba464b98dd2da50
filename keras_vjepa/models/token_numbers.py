"""Notice numbers of tokens that a clip does not have, if their values can be read (§3.2).

Tokens are picked from all samples of a batch at once. A number that is too large for its sample
would pick a token of another sample, on some engines without an error.
"""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_vjepa.arguments import shown
from keras_vjepa.backend.host_values import extremes_of


def check_token_numbers(num_tokens: int, numbers: Mapping[str, Any], least: int = 0) -> None:
    """Check numbers of tokens by their type, and by their values if those lie on the host.

    Args:
        num_tokens: number of tokens of a clip.
        numbers: arrays or tensors by their names; None is skipped.
        least: the smallest number allowed; -1 if that marks a missing token.

    Raises:
        ValueError: for numbers that are not whole, or that are no token's.

    Example:

    >>> from keras_vjepa.models.token_numbers import check_token_numbers
    >>> check_token_numbers(8, {"token_indices": [[0, 8]]})
    Traceback (most recent call last):
    ValueError: `token_indices` must be numbers of tokens, from 0 to 7. Received: 8
    """
    for name, given in numbers.items():
        if given is None:
            continue
        held = given if hasattr(given, "dtype") else np.asarray(given)
        kind = keras.backend.standardize_dtype(held.dtype)
        words = f"`{name}` must be numbers of tokens, from {least} to {num_tokens - 1}"
        if "int" not in kind:
            raise ValueError(f"{words}. Received: {shown(kind)}")
        for extreme in extremes_of(given) or ():
            if not least <= extreme < num_tokens:
                raise ValueError(f"{words}. Received: {extreme}")
