"""Arguments of a backbone from the shapes of its tensors, and what no shape tells (App. D.1)."""

import math
from typing import Any

import numpy as np

from keras_vjepa.conversion.errors import CheckpointError
from keras_vjepa.conversion.families.layouts import Layout
from keras_vjepa.conversion.families.names import Names
from keras_vjepa.conversion.lazy_tensors import LazyTensor
from keras_vjepa.layers.image_positions import shared_table
from keras_vjepa.models.families import MVDBackbone

Tensors = dict[str, LazyTensor]
_USUAL = {"image_size": 224, "num_frames": 16}
_TABLE_TOLERANCE = 0.02


def architecture(
    layout: Layout, names: Names, tensors: Tensors, given: dict[str, Any]
) -> dict[str, Any]:
    """Read the arguments of a `VisionBackbone` from tensors.

    Args:
        layout: the family's.
        names: of the tensors.
        tensors: by the encoder's own names.
        given: arguments that count more than what the tensors say; sizes help where a table does
            not tell them.

    Returns:
        Arguments for which the tensors are; sizes are those of a stored table.

    Raises:
        CheckpointError: if a tensor is missing, or cannot be of such a model.
    """
    facts = layout.backbone.facts
    patch = _shape(tensors, f"{names.patch}.weight", 4 if facts.is_image_model else 5)
    block = f"{names.block}.0"
    is_swiglu = f"{block}.{names.swiglu[1]}.weight" in tensors
    last = names.swiglu[1] if is_swiglu else names.mlp[1]
    mlp_dim = _shape(tensors, f"{block}.{last}.weight", 2)[1]
    found: dict[str, Any] = {
        "patch_size": patch[-1],
        "tubelet_size": 1 if facts.is_image_model else patch[2],
        "hidden_dim": patch[0],
        "num_channels": patch[1],
        "num_layers": _count(tensors, names.block),
        "mlp_dim": mlp_dim,
        "final_norm": not facts.may_lack_norm or f"{names.norm}.weight" in tensors,
    }
    if "swiglu" in facts.activations:
        found["activation"] = "swiglu" if is_swiglu else "gelu"
    if facts.registers and names.registers in tensors:
        found["num_register_tokens"] = _shape(tensors, names.registers, 3)[1]
    if facts.projects and names.projection in tensors:
        shape = _shape(tensors, names.projection, 2)
        found["projection_dim"] = shape[0 if names.projection.endswith(".weight") else 1]
    found["num_heads"] = _num_heads(layout, patch[0], given.get("num_heads"))
    others = {name: value for name, value in given.items() if name not in _USUAL}
    return {**found, **others, **_sizes(layout, names, tensors, found, given)}


def _shape(tensors: Tensors, name: str, rank: int) -> tuple[int, ...]:
    if name not in tensors:
        raise CheckpointError(f"the encoder misses keys: {name}")
    shape = tensors[name].shape
    if len(shape) != rank or 0 in shape:
        raise CheckpointError(f"`{name}` must have {rank} axes. Received shape: {shape}")
    return shape


def _count(tensors: Tensors, block: str) -> int:
    place = block.count(".") + 1
    return len({name.split(".")[place] for name in tensors if name.startswith(f"{block}.")})


def _num_heads(layout: Layout, hidden_dim: int, given: int | None) -> int:
    known = {size.hidden_dim: size.num_heads for size in layout.backbone.sizes.values()}
    if given is None and hidden_dim not in known:
        raise CheckpointError(
            f"the number of heads cannot be read from shapes, and a width of {hidden_dim} is no "
            "usual size: pass `num_heads`"
        )
    return known[hidden_dim] if given is None else given


# --- Sizes ---------------------------------------------------------------------------------------


def _sizes(
    layout: Layout, names: Names, tensors: Tensors, found: dict[str, Any], given: dict[str, Any]
) -> dict[str, Any]:
    """Find the size that a stored table is for; that of a computed one is what is given."""
    facts, patch = layout.backbone.facts, found["patch_size"]
    if not facts.stores_table or (names.table not in tensors and facts.may_lack_norm):
        usual = {"image_size": _USUAL["image_size"] // patch * patch, "num_frames": 16}
        return {name: given.get(name) or usual[name] for name in usual}
    rank = 2 if names.is_plain else 3
    num_rows = _shape(tensors, names.table, rank)[-2] - facts.class_token
    if facts.is_image_model:
        frames, time = 1, 1
    elif layout.backbone is MVDBackbone:
        time = _steps_of_shared_table(tensors[names.table].read()[0])
        frames = time * found["tubelet_size"]
    else:
        frames = given.get("num_frames") or _USUAL["num_frames"]
        time = max(frames // found["tubelet_size"], 1)
    side = math.isqrt(max(num_rows, 0) // time)
    if time * side * side != num_rows or not side:
        raise CheckpointError(
            f"`{names.table}` must be of {time} time steps of a square: pass the `num_frames` that "
            f"the model was trained with. Received: {num_rows} positions"
        )
    return {"image_size": side * patch, "num_frames": frames}


def _steps_of_shared_table(table: np.ndarray) -> int:
    """Count the time steps of MVD's table, which is the same on each of them but for its share."""
    num_tokens, dim = table.shape
    for time in range(1, num_tokens + 1):
        side = math.isqrt(num_tokens // time)
        if time * side * side == num_tokens and dim % 16 == 0:
            fresh = shared_table(dim, (time, side, side))
            if np.abs(fresh - table).max() < _TABLE_TOLERANCE:
                return time
    raise CheckpointError("`pos_embed` is no table of a square clip with MVD's shares")
