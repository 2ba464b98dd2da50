"""Check arguments of the encoders that V-JEPA is compared with, and count their weights (App. D.1).

As `models/dimensions.py` does for V-JEPA's: before a model is made.
"""

import math
from collections.abc import Mapping
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
from keras_vjepa.models.dimensions import MOST_LAYERS, MOST_WEIGHTS, token_grid

# DINOv2 adds this to the number of patches, to be safe from rounding errors.
_OFFSET = 0.1


def completed(facts: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Put the family's values in the place of None.

    Args:
        facts: the family's `Facts`.
        arguments: of `VisionBackbone`, by name.
    """
    own = dict(arguments)
    check_whole(1, MOST_LONG, hidden_dim=own["hidden_dim"])
    usual = {
        "num_frames": 1 if facts.is_image_model else 16,
        "tubelet_size": 1 if facts.is_image_model else 2,
        "mlp_dim": 4 * own["hidden_dim"],
        "activation": facts.activations[0],
        "layer_norm_epsilon": facts.layer_norm_epsilon,
    }
    if facts.interpolates:
        check_whole(0, MOST_LONG, num_register_tokens=own["num_register_tokens"])
        has_registers = own["num_register_tokens"] > 0
        usual["interpolate_offset"] = 0.0 if has_registers else _OFFSET
        usual["interpolate_antialias"] = has_registers
    return {**own, **{name: usual[name] for name in usual if own[name] is None}}


def vision_weights(facts: Any, arguments: Mapping[str, Any]) -> int:
    """Check arguments of a `VisionBackbone`; count the numbers that its weights are.

    Args:
        facts: the family's `Facts`.
        arguments: all of them, completed, by name.

    Raises:
        ValueError: for the first that is out of range, or that the family does not have.
    """
    _check_numbers(arguments)
    _check_family(facts, arguments)
    dim, patch = arguments["hidden_dim"], arguments["patch_size"]
    tokens = math.prod(token_grid(arguments))
    if tokens > MOST or tokens * dim > MOST:
        raise ValueError(
            f"`image_size` must give a table of at most {MOST:,} numbers. "
            f"Received: {shown(arguments['image_size'])}"
        )
    kernel = arguments["tubelet_size"] * patch * patch * arguments["num_channels"] * dim
    rows = facts.class_token + arguments["num_register_tokens"]
    rows += (tokens + facts.class_token) * facts.stores_table
    norms = 2 * dim * (arguments["final_norm"] + facts.input_norm)
    blocks = arguments["num_layers"] * _block_weights(facts, arguments)
    projection = dim * (arguments["projection_dim"] or 0)
    total = kernel + dim * facts.patch_bias + rows * dim + norms + blocks + projection
    if total > MOST_WEIGHTS:
        raise ValueError(
            f"`hidden_dim`={dim} and `num_layers`={arguments['num_layers']} must give at most "
            f"{MOST_WEIGHTS:,} weights. Received: {total:,}"
        )
    return total


def _check_numbers(arguments: Mapping[str, Any]) -> None:
    names = ("num_frames", "patch_size", "tubelet_size", "hidden_dim", "num_heads", "mlp_dim")
    check_size(image_size=arguments["image_size"])
    check_whole(1, MOST_LONG, **{name: arguments[name] for name in names})
    check_whole(1, MOST_LONG, num_channels=arguments["num_channels"])
    check_whole(1, MOST_LAYERS, num_layers=arguments["num_layers"])
    check_whole(0, MOST_LONG, num_register_tokens=arguments["num_register_tokens"])
    check_number("(0, 1]", layer_norm_epsilon=arguments["layer_norm_epsilon"])
    check_number("[0, 1)", drop_path_rate=arguments["drop_path_rate"])
    check_whole(1, MOST_LONG, optional=True, projection_dim=arguments["projection_dim"])
    offset, antialias = arguments["interpolate_offset"], arguments["interpolate_antialias"]
    check_number("[0, 1)", optional=True, interpolate_offset=offset)
    if antialias is not None:
        check_flag(interpolate_antialias=antialias)
    flags = ("final_norm", "with_class_token", "remat")
    check_flag(**{name: arguments[name] for name in flags})
    if arguments["hidden_dim"] % arguments["num_heads"]:
        raise ValueError(
            f"`hidden_dim` must be a multiple of `num_heads`={arguments['num_heads']}. "
            f"Received: {arguments['hidden_dim']}"
        )


def check_square(grid_shape: tuple[int, int, int], received: Any) -> None:
    """Refuse a grid whose rows and columns differ in number.

    Args:
        grid_shape: tokens along time, row and column.
        received: what to name.

    Raises:
        ValueError: if they do.
    """
    if grid_shape[1] != grid_shape[2]:
        raise ValueError(
            f"`image_size` must be a square in this family. Received: {shown(received)}"
        )


def _check_family(facts: Any, arguments: Mapping[str, Any]) -> None:
    check_choice(facts.activations, activation=arguments["activation"])
    wanted = {
        "num_frames": (1, facts.is_image_model),
        "tubelet_size": (1, facts.is_image_model),
        "final_norm": (True, not facts.may_lack_norm),
        "num_register_tokens": (0, not facts.registers),
        "with_class_token": (False, not facts.class_token),
        "projection_dim": (None, not facts.projects),
        "interpolate_offset": (None, not facts.interpolates),
        "interpolate_antialias": (None, not facts.interpolates),
    }
    for name, (value, is_fixed) in wanted.items():
        if is_fixed and arguments[name] != value:
            raise ValueError(
                f"`{name}` must be {value} in this family. Received: {shown(arguments[name])}"
            )


def _block_weights(facts: Any, arguments: Mapping[str, Any]) -> int:
    dim, mlp_dim = arguments["hidden_dim"], arguments["mlp_dim"]
    attention = 4 * dim * dim + (4 if facts.key_bias else 3) * dim
    width = 2 * mlp_dim if arguments["activation"] == "swiglu" else mlp_dim
    mlp = (dim + 1) * width + (mlp_dim + 1) * dim
    return 4 * dim + attention + mlp + 2 * dim * facts.layer_scale
