"""Whose weights a file holds, as far as names and shapes tell (Tables 5, 6; App. D.1)."""

import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from keras_vjepa.conversion.errors import CheckpointError, listed
from keras_vjepa.conversion.families.layouts import Layout
from keras_vjepa.conversion.lazy_tensors import LazyTensor
from keras_vjepa.conversion.torch_index import Placeholder, asks_to_run
from keras_vjepa.layers.image_positions import column_first_table
from keras_vjepa.models.families import VisionBackbone

Tensors = dict[str, LazyTensor]
_MODEL_KEYS = ("model", "module", "model_state", "state_dict", "teacher")
_TABLE_TOLERANCE = 0.02


def family_of(content: dict[str, Any]) -> str | None:
    """Name the family of a file.

    Args:
        content: of the file.

    Returns:
        None for a file of none of these families, which may be V-JEPA's.

    Raises:
        CheckpointError: if two families have such files and their models differ.
    """
    if "target_encoder" in content:
        return "ijepa" if _has_column_first_table(content["target_encoder"]) else None
    inner = (content[key] for key in _MODEL_KEYS if isinstance(content.get(key), dict))
    network = next(inner, content)
    names = {own for own in Layout(VisionBackbone).own_names(_texts(network)).values() if own}
    for family, told in (
        ("openclip", any(name.startswith("visual.") for name in names)),
        ("omnimae", any(name.startswith("trunk.") for name in names)),
        ("dinov2", "blocks.0.ls1.gamma" in names),
        (
            "hiera",
            "patch_embed.proj.weight" in names
            and "blocks.0.attn.qkv.bias" in names
            # Where the width changes, the tokens that are added to are projected.
            and any(re.fullmatch(r"blocks\.\d+\.proj\.weight", name) for name in names),
        ),
        ("videomae", "encoder.blocks.0.attn.q_bias" in names),
        ("mvd", {"blocks.0.attn.q_bias", "pos_embed"} <= names),
    ):
        if told:
            return family
    if "blocks.0.attn.q_bias" in names:
        raise CheckpointError(
            "fine-tuned files of VideoMAE and MVD have the same names: pass `family`"
        )
    return None


def _has_column_first_table(network: Any) -> bool:
    """Tell I-JEPA's encoder from V-JEPA's of single images, which has the row first."""
    for name in ("module.pos_embed", "pos_embed"):
        tensor = network.get(name) if isinstance(network, dict) else None
        if not isinstance(tensor, LazyTensor) or len(tensor.shape) != 3:
            continue
        _, num_tokens, dim = tensor.shape
        side = round(num_tokens**0.5)
        if side * side != num_tokens or dim % 4:
            return False
        difference = np.abs(tensor.read()[0] - column_first_table(dim, (side, side)))
        return bool(difference.max() < _TABLE_TOLERANCE)
    return False


def network_of(content: dict[str, Any], layout: Layout, network: str | None = None) -> Tensors:
    """Take the tensors of the encoder, and of a head, out of a file.

    Args:
        content: of the file.
        layout: the family's.
        network: which of several networks; None for the usual one.

    Returns:
        Tensors by the encoder's own names; those of a head keep theirs.

    Raises:
        CheckpointError: if it is not there, or holds something else than tensors.
    """
    if network is not None and network not in content:
        raise CheckpointError(
            f"the file has no `{network}`. Received keys: {listed(sorted(map(str, content)))}"
        )
    keys = [key for key in layout.networks if isinstance(content.get(key), dict)]
    if network is not None:
        keys = [network]
    found = content[keys[0]] if keys else content
    tensors: Tensors = {}
    own = layout.own_names(_texts(found))
    for name, tensor in found.items():
        if name in own and own[name] is None:
            continue
        if isinstance(tensor, Placeholder):
            raise CheckpointError(f"`{listed([name])}`: {asks_to_run(tensor.name)}")
        if name not in own or not isinstance(tensor, LazyTensor):
            raise CheckpointError(
                f"`{listed([name])}` must be a tensor. Received: {type(tensor).__name__}"
            )
        if own[name] in tensors:
            raise CheckpointError(f"the file has `{listed([own[name]])}` twice")
        tensors[own[name]] = tensor  # type: ignore[index]
    return tensors


def _texts(names: Iterable[Any]) -> list[str]:
    return [name for name in names if isinstance(name, str)]
