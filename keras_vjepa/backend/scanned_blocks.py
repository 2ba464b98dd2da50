"""Compile blocks that are alike once and repeat them, if asked to, on JAX (§3.3, App. C).

A program of JAX holds each block of a network by itself, for each kind of masks again, and takes
longer to compile the more blocks there are. With `KERAS_VJEPA_SCAN_BLOCKS=1` in the environment, it
holds one block and a loop (`jax.lax.scan`). The results are the same but for rounding. The weights
of all blocks are joined for the loop in each step, which takes memory (docs/backends.md).
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import keras
from keras import ops

from keras_vjepa.backend.keras_internals import (
    layers_of,
    names_computed_again,
    value_in_scope,
)
from keras_vjepa.types import Tensor

VARIABLE = "KERAS_VJEPA_SCAN_BLOCKS"
Block = TypeVar("Block", bound=keras.layers.Layer)


def in_turn(
    blocks: Sequence[Block],
    tokens: Tensor,
    call: Callable[[Block, Tensor, Any], Tensor],
    scales: Tensor | None = None,
) -> Tensor:
    """Pass tokens through blocks, one after the other.

    Args:
        blocks: built layers.
        tokens: what the first block is called with.
        call: calls a block with tokens and its own part of `scales`, or None; what it returns has
            the shape and dtype of the tokens.
        scales: a tensor with a first axis of blocks, or None.

    Returns:
        What the last block returns.

    Raises:
        ValueError: on JAX, if the variable of the environment is neither 0 nor 1.

    Example:

    >>> import keras
    >>> from keras_vjepa.backend.scanned_blocks import in_turn
    >>> blocks = [keras.layers.Rescaling(2.0), keras.layers.Rescaling(3.0)]
    >>> float(in_turn(blocks, keras.ops.ones(()), lambda block, x, _: block(x)))
    6.0
    """
    if _is_asked_for() and _is_traced(tokens) and are_alike(blocks):
        return _scanned(blocks, tokens, call, scales)
    for number, block in enumerate(blocks):
        tokens = call(block, tokens, None if scales is None else scales[number])
    return tokens


def _is_asked_for(environment: Mapping[str, str] = os.environ) -> bool:
    value = environment.get(VARIABLE, "") or "0"
    if keras.config.backend() != "jax" or value == "0":
        return False
    if value != "1":
        raise ValueError(f"`{VARIABLE}` must be 0 or 1. Received: {value!r}")
    return True


def _is_traced(tokens: Tensor) -> bool:
    """Tell whether a program is being made; outside of one, a loop would be compiled each time."""
    import jax

    return isinstance(tokens, jax.core.Tracer)


def are_alike(blocks: Sequence[keras.layers.Layer]) -> bool:
    """Tell whether there are several blocks, and one of them can do for all with their weights.

    Args:
        blocks: built layers.
    """
    if len(blocks) < 2:
        return False
    form = _form(blocks[0])
    return all(_keeps_nothing(block) and _form(block) == form for block in blocks)


def _parts(block: keras.layers.Layer) -> list[keras.layers.Layer]:
    return [block, *(part for layer in layers_of(block) for part in _parts(layer))]


def _keeps_nothing(block: keras.layers.Layer) -> bool:
    """Tell whether calls leave a block as it is: they draw no numbers, and add no losses."""
    return len(block.variables) == len(block.weights) and all(
        part.activity_regularizer is None and "call" not in vars(part) for part in _parts(block)
    )


def _form(block: keras.layers.Layer) -> Any:
    """Return everything of a block but its name and the values of its weights."""
    weights = [(w.name, tuple(w.shape), w.dtype, w.trainable) for w in block.variables]
    parts = [(type(part), {**part.get_config(), "name": None}) for part in _parts(block)]
    # A `keras.RematScope` may name one block and not another.
    again = [part.name in (names_computed_again(part) or ()) for part in _parts(block)]
    return weights, parts, again


def _scanned(
    blocks: Sequence[Block],
    tokens: Tensor,
    call: Callable[[Block, Tensor, Any], Tensor],
    scales: Tensor | None,
) -> Tensor:
    import jax

    first = blocks[0]

    def body(tokens: Tensor, own: tuple[list[Tensor], Any]) -> tuple[Tensor, None]:
        weights, scales = own
        with keras.StatelessScope(state_mapping=[*zip(first.variables, weights, strict=True)]):
            return call(first, tokens, scales), None

    weights = [
        ops.stack([value_in_scope(variable) for variable in alike])
        for alike in zip(*(block.variables for block in blocks), strict=True)
    ]
    return jax.lax.scan(body, tokens, (weights, scales))[0]
