"""Checkpoints in the authors' layout (App. C, App. D.1; official-behaviour §10).

A pretraining file holds the networks `encoder`, `predictor` and `target_encoder`, a probe file
`classifier`. Architectures are read from the shapes. Strict both ways: an unknown key, a missing
key or a wrong shape is an error that names it.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from keras_vjepa.backbone import SIZES, VJEPABackbone
from keras_vjepa.checkpoints.entries import (
    PATCH_KERNEL,
    SAME,
    TRANSPOSED,
    TUBELET_KERNEL,
    WITHOUT_BATCH,
    Entry,
    load_entries,
)
from keras_vjepa.checkpoints.torch_archive import CheckpointError, LazyTensor, read_checkpoint
from keras_vjepa.classifier import VJEPAVideoClassifier
from keras_vjepa.layers import position_table
from keras_vjepa.predictor import VJEPAPredictor
from keras_vjepa.pretrainer import VJEPAPretrainer
from keras_vjepa.probe import VJEPAProbe

# A table that went through the moving average is up to 6.5e-5 off (official-behaviour §2).
_TABLE_TOLERANCE = 1e-3
_PREFIXES = ("module.", "backbone.")
# In every probe file of the authors, used by none of their probes (official-behaviour §1).
_CROSS_ATTENTION = "pooler.cross_attention_block"
_DEAD_KEYS = (f"{_CROSS_ATTENTION}.xattn.proj.weight", f"{_CROSS_ATTENTION}.xattn.proj.bias")

Tensors = dict[str, LazyTensor]


def state_dict(checkpoint: dict[str, Any], name: str) -> Tensors:
    """One network's tensors, without the wrappers' prefixes.

    Raises:
        CheckpointError: if the network is missing or holds something else than tensors.
    """
    if not isinstance(checkpoint.get(name), dict):
        raise CheckpointError(
            f"the checkpoint has no `{name}`. Received keys: {sorted(map(str, checkpoint))}"
        )
    tensors = {}
    for key, tensor in checkpoint[name].items():
        if not isinstance(tensor, LazyTensor):
            raise CheckpointError(f"`{name}.{key}` must be a tensor. Received: {type(tensor)}")
        for prefix in _PREFIXES:
            key = key.replace(prefix, "")
        tensors[key] = tensor
    return tensors


# --- The authors' names --------------------------------------------------------------------------


def _linear(name: str, layer: Any) -> Iterator[Entry]:
    yield Entry((f"{name}.weight",), layer.kernel, TRANSPOSED)
    yield Entry((f"{name}.bias",), layer.bias, SAME)


def _norm(name: str, layer: Any) -> Iterator[Entry]:
    yield Entry((f"{name}.weight",), layer.gamma, SAME)
    yield Entry((f"{name}.bias",), layer.beta, SAME)


def _block(name: str, block: Any) -> Iterator[Entry]:
    yield from _norm(f"{name}.norm1", block.attention_norm)
    yield from _linear(f"{name}.attn.qkv", block.attention.query_key_value)
    yield from _linear(f"{name}.attn.proj", block.attention.output_projection)
    yield from _norm(f"{name}.norm2", block.mlp_norm)
    yield from _linear(f"{name}.mlp.fc1", block.mlp_hidden)
    yield from _linear(f"{name}.mlp.fc2", block.mlp_output)


def encoder_entries(encoder: VJEPABackbone) -> Iterator[Entry]:
    """The authors' name of every tensor of an encoder."""
    kernel = PATCH_KERNEL if encoder.is_image_model else TUBELET_KERNEL
    yield Entry(("pos_embed",), encoder.position_table, WITHOUT_BATCH)
    yield Entry(("patch_embed.proj.weight",), encoder.tubelet_embedding.kernel, kernel)
    yield Entry(("patch_embed.proj.bias",), encoder.tubelet_embedding.bias, SAME)
    for i, block in enumerate(encoder.blocks):
        yield from _block(f"blocks.{i}", block)
    yield from _norm("norm", encoder.norm)


def predictor_entries(predictor: VJEPAPredictor) -> Iterator[Entry]:
    """As `encoder_entries`, for the predictor."""
    yield Entry(("predictor_pos_embed",), predictor.position_table, WITHOUT_BATCH)
    yield from _linear("predictor_embed", predictor.input_projection)
    for i, mask_token in enumerate(predictor.mask_tokens):
        yield Entry((f"mask_tokens.{i}",), mask_token, SAME)
    for i, block in enumerate(predictor.blocks):
        yield from _block(f"predictor_blocks.{i}", block)
    yield from _norm("predictor_norm", predictor.norm)
    yield from _linear("predictor_proj", predictor.output_projection)


def probe_entries(probe: VJEPAProbe) -> Iterator[Entry]:
    """As `encoder_entries`, for a built probe; without the dead projection."""
    pooler = probe.pooler
    yield Entry(("pooler.query_tokens",), pooler.query_token, SAME)
    yield from _norm(f"{_CROSS_ATTENTION}.norm1", pooler.tokens_norm)
    yield from _linear(f"{_CROSS_ATTENTION}.xattn.q", pooler.query)
    yield from _linear(f"{_CROSS_ATTENTION}.xattn.kv", pooler.key_value)
    yield from _norm(f"{_CROSS_ATTENTION}.norm2", pooler.mlp_norm)
    yield from _linear(f"{_CROSS_ATTENTION}.mlp.fc1", pooler.mlp_hidden)
    yield from _linear(f"{_CROSS_ATTENTION}.mlp.fc2", pooler.mlp_output)
    for i, block in enumerate(pooler.blocks):
        yield from _block(f"pooler.blocks.{i}", block)
    yield from _linear("linear", probe.linear)


# --- The architecture, from shapes ---------------------------------------------------------------


def _count(tensors: Tensors, prefix: str) -> int:
    return len({key.split(".")[1] for key in tensors if key.startswith(prefix + ".")})


def _required(network: str, tensors: Tensors, key: str, rank: int) -> tuple[int, ...]:
    if key not in tensors:
        raise CheckpointError(f"`{network}` misses keys: {key}")
    if len(tensors[key].shape) != rank and not (key == "patch_embed.proj.weight" and rank == 5):
        raise CheckpointError(
            f"`{network}.{key}` must have {rank} axes. Received shape: {tensors[key].shape}"
        )
    return tensors[key].shape


def _grid_of_table(table: np.ndarray, is_image_model: bool) -> tuple[tuple[int, int, int], bool]:
    """The token grid and `uniform_power` whose fresh position table this is."""
    num_tokens, hidden_dim = table.shape
    for time in range(1, num_tokens + 1):
        side = math.isqrt(num_tokens // time)
        if time * side * side != num_tokens or (is_image_model and time > 1):
            continue
        axes = (side, side) if is_image_model else (time, side, side)
        for uniform_power in (True, False):
            if not uniform_power and hidden_dim % 8:
                continue
            fresh = position_table(hidden_dim, axes, uniform_power)
            if np.abs(fresh - table).max() < _TABLE_TOLERANCE:
                return (time, side, side), uniform_power
    raise CheckpointError(
        f"`encoder.pos_embed` with {num_tokens} tokens is no sine-cosine table of a square clip"
    )


def _num_heads(hidden_dim: int, num_heads: int | None) -> int:
    known = {size.hidden_dim: size.num_heads for size in SIZES.values()}
    if num_heads is None and hidden_dim not in known:
        raise CheckpointError(
            f"the number of heads cannot be read from shapes, and a width of {hidden_dim} is no "
            "usual size: pass `num_heads`"
        )
    return num_heads if num_heads is not None else known[hidden_dim]


def encoder_config(tensors: Tensors, num_heads: int | None) -> dict[str, Any]:
    """Arguments of `VJEPABackbone`, from the shapes of `encoder`."""
    patch = _required("encoder", tensors, "patch_embed.proj.weight", 5)
    _required("encoder", tensors, "pos_embed", 3)
    mlp_dim = _required("encoder", tensors, "blocks.0.mlp.fc1.weight", 2)[0]
    hidden_dim, is_image_model = patch[0], len(patch) == 4
    tubelet_size = 1 if is_image_model else patch[2]
    grid, uniform_power = _grid_of_table(tensors["pos_embed"].read()[0], is_image_model)
    return {
        "image_size": grid[1] * patch[-1],
        "num_frames": grid[0] * tubelet_size,
        "patch_size": patch[-1],
        "tubelet_size": tubelet_size,
        "hidden_dim": hidden_dim,
        "num_layers": _count(tensors, "blocks"),
        "num_heads": _num_heads(hidden_dim, num_heads),
        "mlp_ratio": _ratio(mlp_dim, hidden_dim),
        "uniform_power": uniform_power,
        "num_channels": patch[1],
    }


def _ratio(mlp_dim: int, hidden_dim: int) -> float:
    """A ratio that gives `mlp_dim` back: `int(hidden_dim * ratio)`."""
    ratio = mlp_dim / hidden_dim
    return ratio if int(hidden_dim * ratio) == mlp_dim else math.nextafter(ratio, math.inf)


def predictor_config(
    tensors: Tensors, encoder: VJEPABackbone, num_heads: int | None
) -> dict[str, Any]:
    """Arguments of `VJEPAPredictor`, from the shapes of `predictor`."""
    hidden_dim = _required("predictor", tensors, "predictor_embed.weight", 2)[0]
    mlp_dim = _required("predictor", tensors, "predictor_blocks.0.mlp.fc1.weight", 2)[0]
    return {
        "encoder_dim": encoder.hidden_dim,
        "grid_shape": encoder.position_axes,
        "hidden_dim": hidden_dim,
        "num_layers": _count(tensors, "predictor_blocks"),
        "num_heads": encoder.num_heads if num_heads is None else num_heads,
        "num_mask_tokens": _count(tensors, "mask_tokens"),
        "mlp_ratio": _ratio(mlp_dim, hidden_dim),
        "uniform_power": encoder.uniform_power,
    }


# --- From file to model --------------------------------------------------------------------------


def convert(
    path: str | Path,
    probe: str | Path | None = None,
    num_heads: int | None = None,
    predictor_num_heads: int | None = None,
    probe_num_heads: int | None = None,
    **arguments: Any,
) -> VJEPAPretrainer | VJEPAVideoClassifier:
    """The pretrainer that a checkpoint holds, or with a probe's beside it the classifier.

    Args:
        path: a pretraining checkpoint in the authors' layout.
        probe: None, or a probe checkpoint in the authors' layout.
        num_heads: heads of the encoder; needed only where its width is no usual size.
        predictor_num_heads: heads of the predictor; the encoder's if None, as in the paper.
        probe_num_heads: heads of the probe; the encoder's if None, as in the reference.
        arguments: further ones of `VJEPABackbone`, which count more than what the file says.

    Raises:
        CheckpointError: if anything in the files does not fit.
    """
    if probe is not None:
        backbone = convert_backbone(path, num_heads=num_heads, **arguments)
        return convert_classifier(backbone, probe, probe_num_heads)
    checkpoint = read_checkpoint(path)
    tensors = {n: state_dict(checkpoint, n) for n in ("encoder", "predictor", "target_encoder")}
    encoder = _built(
        VJEPABackbone, **{**encoder_config(tensors["encoder"], num_heads), **arguments}
    )
    predictor = _built(
        VJEPAPredictor, **predictor_config(tensors["predictor"], encoder, predictor_num_heads)
    )
    pretrainer = VJEPAPretrainer(encoder, predictor)
    load_entries("encoder", tensors["encoder"], encoder_entries(encoder))
    load_entries("predictor", tensors["predictor"], predictor_entries(predictor))
    target = pretrainer.target_encoder
    load_entries("target_encoder", tensors["target_encoder"], encoder_entries(target))
    return pretrainer


def convert_backbone(
    path: str | Path,
    network: str = "target_encoder",
    num_heads: int | None = None,
    **arguments: Any,
) -> VJEPABackbone:
    """One encoder of a checkpoint; nothing else of the file is read.

    Args:
        path: as in `convert`.
        network: `"target_encoder"`, which is the one that is evaluated, or `"encoder"`.
        num_heads: as in `convert`.
        arguments: as in `convert`.

    Raises:
        CheckpointError: if anything in that part of the file does not fit.
    """
    tensors = state_dict(read_checkpoint(path), network)
    encoder = _built(VJEPABackbone, **{**encoder_config(tensors, num_heads), **arguments})
    load_entries(network, tensors, encoder_entries(encoder))
    return encoder


def _built(cls: Any, **arguments: Any) -> Any:
    try:
        return cls(**arguments)
    except ValueError as error:
        raise CheckpointError(str(error)) from None


def probe_config(tensors: Tensors, num_heads: int) -> dict[str, Any]:
    """Arguments of `VJEPAProbe`, from the shapes of `classifier`."""
    num_classes, dim = _required("classifier", tensors, "linear.weight", 2)
    mlp_dim = _required("classifier", tensors, f"{_CROSS_ATTENTION}.mlp.fc1.weight", 2)[0]
    blocks = {key.split(".")[2] for key in tensors if key.startswith("pooler.blocks.")}
    return {
        "num_classes": num_classes,
        "num_heads": num_heads,
        "num_layers": 1 + len(blocks),
        "mlp_ratio": _ratio(mlp_dim, dim),
    }


def convert_probe(path: str | Path, num_heads: int | None = None) -> VJEPAProbe:
    """The probe that a probe checkpoint holds; it takes tokens `(batch, tokens, dim)`.

    Args:
        path: a probe checkpoint in the authors' layout.
        num_heads: heads of the probe, in the reference its encoder's; needed only where its width
            is no usual size.

    Raises:
        CheckpointError: if anything in the file does not fit.
    """
    tensors = state_dict(read_checkpoint(path), "classifier")
    dim = _required("classifier", tensors, "linear.weight", 2)[1]
    probe = _built(VJEPAProbe, **probe_config(tensors, _num_heads(dim, num_heads)))
    try:
        probe.build((None, None, dim))
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    alive = {key: tensor for key, tensor in tensors.items() if key not in _DEAD_KEYS}
    load_entries("classifier", alive, probe_entries(probe))
    return probe


def convert_classifier(
    backbone: VJEPABackbone, path: str | Path, num_heads: int | None = None, **arguments: Any
) -> VJEPAVideoClassifier:
    """A classifier of a backbone and the probe of a probe checkpoint.

    Args:
        backbone: what the probe was trained on, e.g. `convert_backbone(...)`.
        path: a probe checkpoint in the authors' layout.
        num_heads: heads of the probe; the backbone's if None, as in the reference.
        arguments: further ones of `VJEPAVideoClassifier`, e.g. `num_clips`.

    Raises:
        CheckpointError: if anything in the file does not fit, or not with the backbone.
    """
    probe = convert_probe(path, backbone.num_heads if num_heads is None else num_heads)
    width = probe.linear.kernel.shape[0]
    if width != backbone.hidden_dim:
        raise CheckpointError(
            f"the probe must be {backbone.hidden_dim} wide, as the encoder. Received: {width}"
        )
    classifier = VJEPAVideoClassifier(
        backbone,
        probe.num_classes,
        num_heads=num_heads,
        num_layers=probe.num_layers,
        mlp_ratio=probe.mlp_ratio,
        **arguments,
    )
    classifier.probe.set_weights(probe.get_weights())
    return classifier
