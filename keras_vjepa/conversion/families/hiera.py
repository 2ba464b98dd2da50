"""Hiera's tensors: architectures from shapes, names in official files (App. D.1)."""

import math
from collections.abc import Iterator
from typing import Any

from keras_vjepa.conversion.entries import (
    PATCH_KERNEL,
    SAME,
    TUBELET_KERNEL,
    WITHOUT_BATCH,
    Entry,
    linear_entries,
    norm_entries,
)
from keras_vjepa.conversion.errors import CheckpointError
from keras_vjepa.conversion.lazy_tensors import LazyTensor
from keras_vjepa.models.dimensions import height_and_width
from keras_vjepa.models.families import HieraBackbone
from keras_vjepa.models.families.hiera_arguments import NUM_STAGES, PATCH_STRIDE

Tensors = dict[str, LazyTensor]
# Prefixes of tensors that only a masked autoencoder has.
_FUSION = ("encoder_norm.", "multi_scale_fusion_heads.")


def entries(backbone: HieraBackbone) -> Iterator[Entry]:
    """List the official name of every tensor of a backbone."""
    kernel = PATCH_KERNEL if backbone.is_image_model else TUBELET_KERNEL
    yield Entry(("patch_embed.proj.weight",), backbone.patch_kernel, kernel)
    yield Entry(("patch_embed.proj.bias",), backbone.patch_bias, SAME)
    if backbone.is_image_model:
        yield Entry(("pos_embed",), backbone.spatial_table, WITHOUT_BATCH)
    else:
        yield Entry(("pos_embed_spatial",), backbone.spatial_table, WITHOUT_BATCH)
        yield Entry(("pos_embed_temporal",), backbone.temporal_table, WITHOUT_BATCH)
    for number, block in enumerate(backbone.blocks):
        yield from _of_block(f"blocks.{number}", block)
    if backbone.norm is not None:
        yield from norm_entries("norm", backbone.norm)
    if backbone.fusion_norm is not None:
        yield from norm_entries("encoder_norm", backbone.fusion_norm)
    for number, head in enumerate(backbone.fusion_heads):
        name = f"multi_scale_fusion_heads.{number}"
        yield Entry((f"{name}.weight",), head.kernel, kernel)
        yield Entry((f"{name}.bias",), head.bias, SAME)


def _of_block(name: str, block: Any) -> Iterator[Entry]:
    yield from norm_entries(f"{name}.norm1", block.attention_norm)
    yield from linear_entries([f"{name}.attn.qkv"], block.query_key_value)
    yield from linear_entries([f"{name}.attn.proj"], block.output_projection)
    yield from norm_entries(f"{name}.norm2", block.mlp_norm)
    yield from linear_entries([f"{name}.mlp.fc1"], block.mlp_hidden)
    yield from linear_entries([f"{name}.mlp.fc2"], block.mlp_output)
    if block.shortcut is not None:
        yield from linear_entries([f"{name}.proj"], block.shortcut)


def architecture(tensors: Tensors, given: dict[str, Any]) -> dict[str, Any]:
    """Read the arguments of a `HieraBackbone` from its tensors.

    Args:
        tensors: by their official names.
        given: arguments that count more. `num_heads` is of the first stage, and needed for a width
            that is not released; `image_size` is needed for rectangles. `num_pools` 3 makes the
            architecture that is fine-tuned of the weights of a masked autoencoder.

    Raises:
        CheckpointError: if a tensor is missing, or sizes do not fit.
    """
    is_image_model = "pos_embed" in tensors
    patch = _shape(tensors, "patch_embed.proj.weight", 4 if is_image_model else 5)
    table = "pos_embed" if is_image_model else "pos_embed_spatial"
    num_places = _shape(tensors, table, 3)[1]
    frames = 1 if is_image_model else 2 * _shape(tensors, "pos_embed_temporal", 3)[1]
    wanted = given.get("num_frames") or frames
    if wanted != frames:
        raise CheckpointError(f"`num_frames` must be {frames}, as in the file. Received: {wanted}")
    is_autoencoder = "encoder_norm.weight" in tensors
    num_pools = given.get("num_pools") or (2 if is_autoencoder else 3)
    fusion = is_autoencoder and num_pools == 2
    others = {k: v for k, v in given.items() if k not in ("num_heads", "image_size", "num_frames")}
    return {
        "image_size": _image_size(num_places, given.get("image_size")),
        "num_frames": frames,
        "embed_dim": patch[0],
        "embed_heads": _heads(patch[0], given.get("num_heads")),
        "depths": _depths(tensors, patch[0]),
        "num_pools": num_pools,
        "fusion": fusion,
        "final_norm": "norm.weight" in tensors,
        "features": "fused" if fusion else "last",
        "num_channels": patch[1],
        **others,
    }


def without_fusion(tensors: Tensors, own: dict[str, Any]) -> Tensors:
    """Leave out what fuses stages where the architecture has no place for it."""
    return {k: t for k, t in tensors.items() if own["fusion"] or not k.startswith(_FUSION)}


def _shape(tensors: Tensors, name: str, rank: int) -> tuple[int, ...]:
    if name not in tensors:
        raise CheckpointError(f"the encoder misses keys: {name}")
    shape = tensors[name].shape
    if len(shape) != rank or 0 in shape:
        raise CheckpointError(f"`{name}` must have {rank} axes. Received shape: {shape}")
    return shape


def _image_size(num_places: int, given: Any) -> Any:
    if given is None:
        side = math.isqrt(num_places)
        if side * side != num_places:
            raise CheckpointError(
                f"`image_size` must be given for a rectangle, of {num_places} patches of "
                f"{PATCH_STRIDE} pixels"
            )
        return side * PATCH_STRIDE
    height, width = (side // PATCH_STRIDE for side in height_and_width(given))
    if height * width != num_places:
        raise CheckpointError(
            f"`image_size` must have {num_places} patches of {PATCH_STRIDE} pixels, as the file's "
            f"positions. Received: {given}"
        )
    return given


def _heads(embed_dim: int, given: int | None) -> int:
    known = {size.embed_dim: size.embed_heads for size in HieraBackbone.sizes.values()}
    if given is None and embed_dim not in known:
        raise CheckpointError(
            "the number of heads cannot be read from shapes, and a width of "
            f"{embed_dim} is no usual size: pass `num_heads`, of the first stage"
        )
    return known[embed_dim] if given is None else given


def _depths(tensors: Tensors, embed_dim: int) -> list[int]:
    numbers = {int(name.split(".")[1]) for name in tensors if name.startswith("blocks.")}
    widths = [_shape(tensors, f"blocks.{i}.attn.proj.weight", 2)[0] for i in sorted(numbers)]
    depths = [widths.count(embed_dim * 2**stage) for stage in range(NUM_STAGES)]
    if widths != [
        embed_dim * 2**stage for stage in range(NUM_STAGES) for _ in range(depths[stage])
    ]:
        raise CheckpointError(
            f"the widths of blocks must double from stage to stage. Received: {widths}"
        )
    return depths
