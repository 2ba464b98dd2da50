"""Check arguments of encoder and predictor, and count their weights, without making them (App. B).

A constructor checks its arguments here first, so a model that no machine could hold ends in an
error of one line. Code that reads a config and weights from files checks even before it calls the
constructor: a short text can describe a model of any size, and such a model is made only if a file
really holds its weights.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from keras_vjepa.arguments import (
    MOST,
    MOST_LONG,
    check_choice,
    check_flag,
    check_number,
    check_size,
    check_whole,
    shown,
)

POSITION_EMBEDDINGS = ("sincos", "rotary", "rotary_pairs")
MOST_LAYERS = 1024
# Standard deviation of the initial values of a modality's vector (vjepa21 §1).
MODALITY_STDDEV = 1e-6
# 550 GB in float32, which is more than any model of this kind has. A larger number is a mistake or
# an attack.
MOST_WEIGHTS = 2**37


def encoder_weights(arguments: Mapping[str, Any]) -> int:
    """Check the arguments of a `VJEPABackbone`, and count the numbers in its weights.

    Args:
        arguments: all arguments of the constructor, by name.

    Raises:
        ValueError: for the first argument that is out of range.
    """
    _check_transformer(arguments)
    check_size(image_size=arguments["image_size"])
    check_number("[0, 1)", drop_path_rate=arguments["drop_path_rate"])
    lengths = {name: arguments[name] for name in ("num_frames", "patch_size", "tubelet_size")}
    check_whole(1, MOST_LONG, **lengths, num_channels=arguments["num_channels"])
    patch, dim = arguments["patch_size"], arguments["hidden_dim"]
    grid = token_grid(arguments)
    tubelet = arguments["num_frames"] // grid[0]
    kernel = tubelet * patch * patch * arguments["num_channels"] * dim
    check_levels(arguments["num_layers"], arguments["level_layers"])
    total = kernel + dim + _block_weights(arguments)
    total += 2 * dim * len(arguments["level_layers"] or (0,))
    if arguments["modalities"]:
        if arguments["num_frames"] == 1:
            raise ValueError(
                "`num_frames` must be more than 1 with `modalities`: such a model takes images as "
                "clips of one frame. Received: 1"
            )
        # The tokenizer of images, and the two vectors of the modalities.
        total += kernel // tubelet + dim + 2 * dim
    return _checked(total, math.prod(grid), arguments, "image_size")


def check_levels(num_layers: int, level_layers: Any) -> None:
    """Check the numbers of the blocks whose outputs have norms of their own.

    Args:
        num_layers: number of blocks.
        level_layers: the argument of `VJEPABackbone`; None for a single norm.

    Raises:
        ValueError: if they are no list that rises and ends with the last block.
    """
    if level_layers is None:
        return
    is_list = isinstance(level_layers, list | tuple) and len(level_layers) > 0
    for layer in level_layers if is_list else ():
        check_whole(0, num_layers - 1, level_layers=layer)
    if not is_list or [*level_layers] != sorted({*level_layers, num_layers - 1}):
        raise ValueError(
            f"`level_layers` must rise and end with the last block, {num_layers - 1}. "
            f"Received: {shown(level_layers)}"
        )


def token_grid(arguments: Mapping[str, Any]) -> tuple[int, int, int]:
    """Tell the token grid (time, row, column) of a `VJEPABackbone` without making it.

    Args:
        arguments: those of the backbone, by name. Only sizes are read, which must be positive.

    Raises:
        ValueError: if the size of the clips is not a multiple of the patch.
    """
    height, width = height_and_width(arguments["image_size"])
    frames = arguments["num_frames"]
    for name, sides, step in (
        ("image_size", (height, width), "patch_size"),
        ("num_frames", (frames,), "tubelet_size" if frames > 1 else ""),
    ):
        if step and any(side % arguments[step] for side in sides):
            raise ValueError(
                f"`{name}` must be a multiple of `{step}`={arguments[step]}. "
                f"Received: {arguments[name]}"
            )
    patch, tubelet = arguments["patch_size"], 1 if frames == 1 else arguments["tubelet_size"]
    return frames // tubelet, height // patch, width // patch


def height_and_width(size: int | Sequence[int]) -> tuple[int, int]:
    """Return a size as height and width; one number is used for both."""
    if isinstance(size, int):
        return size, size
    height, width = size
    return height, width


def predictor_weights(arguments: Mapping[str, Any]) -> int:
    """Check the arguments of a `VJEPAPredictor`, and count the numbers in its weights.

    Args:
        arguments: all arguments of the constructor, by name.

    Raises:
        ValueError: for the first argument that is out of range.
    """
    # A predictor without layers is allowed: it takes the place of one whose weights a file does not
    # contain.
    _check_transformer(arguments, least_layers=0)
    check_whole(1, MOST_LONG, encoder_dim=arguments["encoder_dim"])
    # The limit is as large as the number of values in a tubelet of pixels may be.
    check_whole(1, MOST, optional=True, output_dim=arguments["output_dim"])
    check_whole(1, MOST_LAYERS, num_mask_tokens=arguments["num_mask_tokens"])
    grid, dim = arguments["grid_shape"], arguments["hidden_dim"]
    if not isinstance(grid, Sequence) or isinstance(grid, str) or len(grid) not in (1, 2, 3):
        raise ValueError(f"`grid_shape` must be tokens along each axis. Received: {shown(grid)}")
    for tokens in grid:
        check_whole(1, MOST_LONG, grid_shape=tokens)
    encoder_dim = arguments["encoder_dim"]
    levels = arguments["num_levels"]
    check_whole(1, MOST_LAYERS, num_levels=levels)
    check_flag(predicts_context=arguments["predicts_context"])
    output_dim = arguments["output_dim"] or levels * encoder_dim
    projections = (encoder_dim + 1) * dim + (dim + 1) * output_dim
    if levels > 1:
        projections += (levels * encoder_dim + 1) * encoder_dim
    if arguments["predicts_context"]:
        projections += (dim + 1) * output_dim
    tokens = (arguments["num_mask_tokens"] + 2 * arguments["modalities"]) * dim
    total = projections + tokens + _block_weights(arguments) + 2 * dim
    return _checked(total, math.prod(grid), arguments, "grid_shape")


def _check_transformer(arguments: Mapping[str, Any], least_layers: int = 1) -> None:
    check_whole(1, MOST_LONG, hidden_dim=arguments["hidden_dim"], num_heads=arguments["num_heads"])
    check_whole(least_layers, MOST_LAYERS, num_layers=arguments["num_layers"])
    if arguments["hidden_dim"] % arguments["num_heads"]:
        raise ValueError(
            f"`hidden_dim` must be a multiple of `num_heads`={arguments['num_heads']}. "
            f"Received: {arguments['hidden_dim']}"
        )
    check_number("(0, 64]", mlp_ratio=arguments["mlp_ratio"])
    if _mlp_dim(arguments) < 1:
        raise ValueError(
            f"`mlp_ratio` must give a hidden layer of at least 1. "
            f"Received: {arguments['mlp_ratio']}"
        )
    check_number("(0, 1]", layer_norm_epsilon=arguments["layer_norm_epsilon"])
    check_choice(POSITION_EMBEDDINGS, position_embedding=arguments["position_embedding"])
    check_number("(0, inf)", optional=True, position_reach=arguments["position_reach"])
    if arguments["position_embedding"] == "sincos":
        if arguments["position_reach"] is not None:
            raise ValueError(
                "`position_reach` must be None for a position table. "
                f"Received: {arguments['position_reach']}"
            )
    else:
        width = arguments["hidden_dim"] // arguments["num_heads"]
        if width % 2:
            raise ValueError(
                f"`hidden_dim` must give each of `num_heads`={arguments['num_heads']} an even "
                f"width for rotary positions. Received: {arguments['hidden_dim']}, {width} each"
            )
    names = ("uniform_power", "remat", "modalities")
    check_flag(**{name: arguments[name] for name in names})


def _mlp_dim(arguments: Mapping[str, Any]) -> int:
    return int(arguments["hidden_dim"] * arguments["mlp_ratio"])


def _block_weights(arguments: Mapping[str, Any]) -> int:
    """Count the numbers in all blocks: two norms, attention and MLP, each layer with its bias."""
    dim, mlp_dim = arguments["hidden_dim"], _mlp_dim(arguments)
    attention = (dim + 1) * 3 * dim + (dim + 1) * dim
    mlp = (dim + 1) * mlp_dim + (mlp_dim + 1) * dim
    return arguments["num_layers"] * (4 * dim + attention + mlp)


def _checked(total: int, num_tokens: int, arguments: Mapping[str, Any], grid: str) -> int:
    if num_tokens > MOST:
        raise ValueError(
            f"`{grid}` must give at most {MOST:,} tokens. Received: {shown(arguments[grid])}"
        )
    table = num_tokens * arguments["hidden_dim"]
    if arguments["position_embedding"] == "sincos":
        if table > MOST:
            raise ValueError(
                f"`{grid}` must give a position table of at most {MOST:,} numbers. "
                f"Received: {shown(arguments[grid])}"
            )
        total += table
    if total > MOST_WEIGHTS:
        raise ValueError(
            f"`hidden_dim`={arguments['hidden_dim']} and `num_layers`={arguments['num_layers']} "
            f"must give at most {MOST_WEIGHTS:,} weights. Received: {total:,}"
        )
    return total
