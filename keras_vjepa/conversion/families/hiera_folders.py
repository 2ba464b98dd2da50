"""Hiera of images in folders of the transformers package: other names, the same tensors (App. D.1).

That package has no Hiera of clips, and no model with two pooling stages but the pretraining one.
"""

import re
from collections.abc import Mapping
from typing import Any

from keras_vjepa.arguments import shown
from keras_vjepa.conversion.errors import CheckpointError
from keras_vjepa.conversion.families.finding import Tensors
from keras_vjepa.models.families import HieraBackbone
from keras_vjepa.models.families.hiera_arguments import NUM_STAGES, PATCH_STRIDE, UNIT

MODEL_TYPE = "hiera"
# What all official models have, and the only values that a `HieraBackbone` has.
_FIXED: Mapping[str, Any] = {
    "patch_size": [7, 7],
    "patch_stride": [PATCH_STRIDE, PATCH_STRIDE],
    "patch_padding": [3, 3],
    "query_stride": [2, 2],
    "masked_unit_size": [UNIT, UNIT],
    "masked_unit_attention": [True, True, False, False],
    "embed_dim_multiplier": 2.0,
    "mlp_ratio": 4.0,
    "hidden_act": "gelu",
}
# Beginnings of names, theirs and the official ones; of a block, what follows its number.
_OUTSIDE = (
    ("embeddings.patch_embeddings.projection.", "patch_embed.proj."),
    ("embeddings.position_embeddings", "pos_embed"),
    ("pooler.layernorm.", "norm."),
    ("classifier.", "head.projection."),
    ("multiscale_fusion.multi_scale_fusion_heads.", "multi_scale_fusion_heads."),
)
_IN_BLOCKS = (("layernorm_before.", "norm1."), ("layernorm_after.", "norm2."))
_BLOCK = re.compile(r"encoder\.stages\.(\d+)\.layers\.(\d+)\.")


def official_names(tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    """Call tensors as the official files do, without those of a decoder.

    Args:
        tensors: of a folder.
        config: its config.json.

    Raises:
        CheckpointError: for a block that the config does not have.
    """
    depths = depths_of(config)
    bare = {name.removeprefix("hiera."): tensor for name, tensor in tensors.items()}
    return {
        _official(name, depths): tensor
        for name, tensor in bare.items()
        if not name.startswith("decoder.")
    }


def _official(name: str, depths: list[int]) -> str:
    block = _BLOCK.match(name)
    if block is None:
        return _replaced(name, _OUTSIDE)
    stage, number = map(int, block.groups())
    if stage >= len(depths) or number >= depths[stage]:
        raise CheckpointError(f"`depths` must have the block of `{name}`. Received: {depths}")
    return f"blocks.{sum(depths[:stage]) + number}.{_replaced(name[block.end() :], _IN_BLOCKS)}"


def _replaced(name: str, pairs: tuple[tuple[str, str], ...]) -> str:
    for start, other in pairs:
        if name.startswith(start):
            return other + name.removeprefix(start)
    return name


def depths_of(config: Mapping[str, Any]) -> list[int]:
    """Read the number of blocks of each stage.

    Raises:
        CheckpointError: if config.json does not tell.
    """
    depths = config.get("depths")
    is_list = isinstance(depths, list) and len(depths) == NUM_STAGES
    if not is_list or not all(type(depth) is int and depth > 0 for depth in depths or []):
        raise CheckpointError(f"`depths` must be {NUM_STAGES} numbers. Received: {shown(depths)}")
    return list(depths or [])


def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Read arguments of a `HieraBackbone` that tensors do not tell.

    Raises:
        CheckpointError: for a model that it cannot be; the message names the setting.
    """
    for name, value in _FIXED.items():
        if config.get(name, value) != value:
            raise CheckpointError(f"`{name}` must be {value}. Received: {shown(config[name])}")
    heads = config.get("num_heads")
    if not isinstance(heads, list) or heads != [heads[0] * 2**i for i in range(NUM_STAGES)]:
        raise CheckpointError(f"`num_heads` must double with each stage. Received: {shown(heads)}")
    size = config.get("image_size", 224)
    return {
        "image_size": (*size,) if isinstance(size, list) else size,
        "num_heads": heads[0],
        "num_pools": config.get("num_query_pool", NUM_STAGES - 1),
        "layer_norm_epsilon": config.get("layer_norm_eps", 1e-6),
    }


def described(backbone: HieraBackbone) -> dict[str, Any]:
    """Make the content of config.json.

    Raises:
        CheckpointError: for a model that the package does not have.
    """
    is_one = backbone.is_image_model and backbone.final_norm and backbone.num_pools == 3
    if not is_one:
        raise CheckpointError(
            "transformers has Hiera of images alone, with three pooling stages and a final norm"
        )
    size = backbone.image_size
    return {
        "model_type": MODEL_TYPE,
        "architectures": ["HieraModel"],
        "dtype": "float32",
        **_FIXED,
        "image_size": [size, size] if isinstance(size, int) else [*size],
        "embed_dim": backbone.embed_dim,
        "depths": [*backbone.depths],
        "num_heads": [backbone.embed_heads * 2**i for i in range(NUM_STAGES)],
        "num_query_pool": backbone.num_pools,
        "num_channels": backbone.num_channels,
        "layer_norm_eps": backbone.layer_norm_epsilon,
    }


def their_name(name: str, depths: tuple[int, ...]) -> str:
    """Call a tensor of an official file as the package does."""
    found = re.match(r"blocks\.(\d+)\.", name)
    if found is None:
        return _replaced(name, tuple((new, old) for old, new in _OUTSIDE))
    number, stage = int(found.group(1)), 0
    while number >= depths[stage]:
        number, stage = number - depths[stage], stage + 1
    rest = _replaced(name[found.end() :], tuple((new, old) for old, new in _IN_BLOCKS))
    return f"encoder.stages.{stage}.layers.{number}.{rest}"
