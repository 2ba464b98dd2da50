"""Check arguments of Hiera, and count its weights, before a model is made (App. D.1)."""

import math
from collections.abc import Mapping
from typing import Any

from keras_vjepa.arguments import (
    MOST_LONG,
    check_choice,
    check_flag,
    check_number,
    check_size,
    check_whole,
    shown,
)
from keras_vjepa.models.dimensions import MOST_LAYERS, MOST_WEIGHTS, height_and_width

NUM_STAGES = 4
FEATURES = ("last", "fused")
PATCH_STRIDE, UNIT = 4, 8


def stem(num_frames: int) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Tell kernel and stride of the stem: overlapping patches; images have one frame."""
    return ((1, 7, 7), (1, 4, 4)) if num_frames == 1 else ((3, 7, 7), (2, 4, 4))


def hiera_grid(arguments: Mapping[str, Any]) -> tuple[int, int, int]:
    """Tell the token grid (time, row, column) after the stem.

    Raises:
        ValueError: for sides that are no multiples of 32, and frames of which there is no half.
    """
    sides = height_and_width(arguments["image_size"])
    if any(side % (PATCH_STRIDE * UNIT) for side in sides):
        raise ValueError(
            f"`image_size` must be a multiple of 32. Received: {shown(arguments['image_size'])}"
        )
    frames = arguments["num_frames"]
    if frames > 1 and frames % 2:
        raise ValueError(f"`num_frames` must be 1 or even. Received: {frames}")
    time = frames // stem(frames)[1][0]
    return time, sides[0] // PATCH_STRIDE, sides[1] // PATCH_STRIDE


def hiera_weights(arguments: Mapping[str, Any]) -> int:
    """Check arguments of `HieraBackbone`; count the numbers that its weights are.

    Raises:
        ValueError: for the first that is out of range.
    """
    check_size(image_size=arguments["image_size"])
    names = ("num_frames", "embed_dim", "embed_heads", "num_channels")
    check_whole(1, MOST_LONG, **{name: arguments[name] for name in names})
    depths = arguments["depths"]
    if not isinstance(depths, list | tuple) or len(depths) != NUM_STAGES:
        raise ValueError(f"`depths` must be {NUM_STAGES} numbers. Received: {shown(depths)}")
    for depth in depths:
        check_whole(1, MOST_LAYERS, depths=depth)
    check_whole(2, 3, num_pools=arguments["num_pools"])
    check_flag(fusion=arguments["fusion"], final_norm=arguments["final_norm"])
    check_choice(FEATURES, features=arguments["features"])
    check_number("(0, 1]", layer_norm_epsilon=arguments["layer_norm_epsilon"])
    check_number("[0, 1)", drop_path_rate=arguments["drop_path_rate"])
    if arguments["features"] == "fused" and not arguments["fusion"]:
        raise ValueError("`features` must be 'last' without `fusion`. Received: 'fused'")
    if arguments["fusion"] and arguments["num_pools"] != 2:
        raise ValueError("`fusion` must be False with three pools. Received: True")
    dim = arguments["embed_dim"]
    if dim % arguments["embed_heads"]:
        raise ValueError(
            f"`embed_dim` must be a multiple of `embed_heads`={arguments['embed_heads']}. "
            f"Received: {dim}"
        )
    total = _count(arguments, hiera_grid(arguments))
    if total > MOST_WEIGHTS:
        raise ValueError(
            f"`embed_dim`={dim} must give at most {MOST_WEIGHTS:,} weights. Received: {total:,}"
        )
    return total


def _count(arguments: Mapping[str, Any], grid: tuple[int, int, int]) -> int:
    dim, frames = arguments["embed_dim"], arguments["num_frames"]
    kernel = math.prod(stem(frames)[0]) * arguments["num_channels"] * dim + dim
    positions = (grid[1] * grid[2] + (grid[0] if frames > 1 else 0)) * dim
    total, before = kernel + positions, dim
    for stage, depth in enumerate(arguments["depths"]):
        width = dim * 2**stage
        for number in range(depth):
            inner = before if number == 0 else width
            changes = (inner + 1) * width if inner != width else 0
            attention = (inner + 1) * 3 * width + (width + 1) * width
            mlp = (width + 1) * 4 * width + (4 * width + 1) * width
            total += 2 * inner + attention + 2 * width + mlp + changes
        before = width
    if arguments["fusion"]:
        total += (16 * dim + 1) * before + (4 * 2 * dim + 1) * before + 2 * before
    return total + 2 * before * arguments["final_norm"]
