"""Read checkpoints in the authors' layout (App. C, App. D.1; official-behaviour §10, §12).

A pretraining file holds the networks `encoder`, `predictor` and `target_encoder`. A probe file
holds `classifier`, or for V-JEPA 2 the list `classifiers`, of which the first is taken.
Architectures are read from the shapes. Reading is strict: an unknown key, a missing key or a wrong
shape is an error that names it.

A V-JEPA 2 file is recognised by its predictor, which has ten mask tokens, or, if there is no
predictor, by the missing position table. It may hold a position table nevertheless, which its model
does not use. A V-JEPA 2.1 file is recognised by names that only its networks have
(`authors_21.py`); in a distilled one, `ema_encoder` is in place of `target_encoder`.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from keras_vjepa.configuration import renamed
from keras_vjepa.conversion import authors_21
from keras_vjepa.conversion.authors_21 import averaged_name, has_version_21
from keras_vjepa.conversion.entries import (
    PATCH_KERNEL,
    SAME,
    TUBELET_KERNEL,
    WITHOUT_BATCH,
    Entry,
    linear_entries,
    load_entries,
    norm_entries,
)
from keras_vjepa.conversion.errors import CheckpointError, check_weights, listed, named
from keras_vjepa.conversion.lazy_tensors import LazyTensor
from keras_vjepa.conversion.network_shapes import Tensors, count, mlp_ratio, required
from keras_vjepa.conversion.torch_archive import read_checkpoint
from keras_vjepa.layers.positions import position_table
from keras_vjepa.models.backbone import SIZES, VJEPABackbone
from keras_vjepa.models.predictor import VJEPAPredictor
from keras_vjepa.tasks.classifier import VJEPAVideoClassifier
from keras_vjepa.tasks.pretrainer import VJEPAPretrainer
from keras_vjepa.tasks.probe import VJEPAProbe

# Position tables may differ from fresh ones by this much: one that went through the moving average
# differs by up to 6.5e-5 (official-behaviour §2).
_TABLE_TOLERANCE = 1e-3
_PREFIXES = ("module.", "backbone.")
_CROSS_ATTENTION = "pooler.cross_attention_block"
# These are in every probe file of the authors, and none of their probes uses them
# (official-behaviour §1).
DEAD_KEYS = (f"{_CROSS_ATTENTION}.xattn.proj.weight", f"{_CROSS_ATTENTION}.xattn.proj.bias")
_TABLES = {"pos_embed", "predictor_pos_embed"}
# Facts about V-JEPA 2 models, of which the last three cannot be read from the shapes in a file
# (official-behaviour §12).
_MASK_TOKENS = 10
_INPUT = {"image_size": 256, "num_frames": 64}
_PREDICTOR_HEADS, _PROBE_HEADS = 12, 16


def state_dict(checkpoint: dict[str, Any], name: str) -> Tensors:
    """Return the tensors of a network, by names without the prefixes that wrappers add.

    Raises:
        CheckpointError: if the network is missing or holds something else than tensors.
    """
    network = checkpoint.get(name)
    if name == "classifiers" and isinstance(network, list) and network:
        network = network[0]
    if not isinstance(network, dict):
        raise CheckpointError(
            f"the checkpoint has no `{name}`. Received keys: {listed(sorted(map(str, checkpoint)))}"
        )
    tensors = {}
    for key, tensor in network.items():
        if not isinstance(key, str) or not isinstance(tensor, LazyTensor):
            raise CheckpointError(
                f"`{name}.{listed([key])}` must be a tensor. Received: {type(tensor).__name__}"
            )
        for prefix in _PREFIXES:
            key = key.replace(prefix, "")
        tensors[key] = tensor
    return tensors


def networks(
    checkpoint: dict[str, Any], names: Iterable[str], position_embedding: str | None
) -> tuple[list[Tensors], str]:
    """Return the tensors that the model uses of some networks, and its `position_embedding`."""
    found = [state_dict(checkpoint, averaged_name(checkpoint, name)) for name in names]
    if has_version_21(found):
        return found, authors_21.check_positions(position_embedding)
    if position_embedding == authors_21.POSITIONS:
        raise CheckpointError(
            f"`position_embedding` must be 'sincos' or 'rotary' for a file that is not of V-JEPA "
            f"2.1. Received: {position_embedding!r}"
        )
    if position_embedding is None:
        keys = {
            *found[0],
            *(state_dict(checkpoint, "predictor") if "predictor" in checkpoint else ()),
        }
        is_rotary = count(keys, "mask_tokens") == _MASK_TOKENS or not keys & _TABLES
        position_embedding = "rotary" if is_rotary else "sincos"
    if position_embedding == "rotary":
        found = [{k: t for k, t in network.items() if k not in _TABLES} for network in found]
    return found, position_embedding


# --- The authors' names --------------------------------------------------------------------------


def block_entries(name: str, block: Any) -> Iterator[Entry]:
    """List the authors' name of every tensor of a block."""
    yield from norm_entries(f"{name}.norm1", block.attention_norm)
    yield from linear_entries([f"{name}.attn.qkv"], block.attention.query_key_value)
    yield from linear_entries([f"{name}.attn.proj"], block.attention.output_projection)
    yield from norm_entries(f"{name}.norm2", block.mlp_norm)
    yield from linear_entries([f"{name}.mlp.fc1"], block.mlp_hidden)
    yield from linear_entries([f"{name}.mlp.fc2"], block.mlp_output)


def encoder_entries(encoder: VJEPABackbone) -> Iterator[Entry]:
    """Yield every variable of an encoder with the authors' name for it."""
    kernel = PATCH_KERNEL if encoder.is_image_model else TUBELET_KERNEL
    if encoder.position_embedding == "sincos":
        yield Entry(("pos_embed",), encoder.position_table, WITHOUT_BATCH)
    yield Entry(("patch_embed.proj.weight",), encoder.tubelet_embedding.kernel, kernel)
    yield Entry(("patch_embed.proj.bias",), encoder.tubelet_embedding.bias, SAME)
    for i, block in enumerate(encoder.blocks):
        yield from block_entries(f"blocks.{i}", block)
    if encoder.level_layers is None:
        yield from norm_entries("norm", encoder.norm)
    yield from authors_21.encoder_entries(encoder)


def predictor_entries(predictor: VJEPAPredictor) -> Iterator[Entry]:
    """Yield every variable of a predictor with the authors' name for it."""
    if predictor.position_embedding == "sincos":
        yield Entry(("predictor_pos_embed",), predictor.position_table, WITHOUT_BATCH)
    if predictor.num_levels == 1:
        yield from linear_entries(["predictor_embed"], predictor.input_projection)
    for i, mask_token in enumerate(predictor.mask_tokens):
        yield Entry((f"mask_tokens.{i}",), mask_token, SAME)
    for i, block in enumerate(predictor.blocks):
        yield from block_entries(f"predictor_blocks.{i}", block)
    yield from norm_entries("predictor_norm", predictor.norm)
    yield from linear_entries(["predictor_proj"], predictor.output_projection)
    yield from authors_21.predictor_entries(predictor)


def probe_entries(probe: VJEPAProbe) -> Iterator[Entry]:
    """Yield every variable of a built probe with the authors' name, without `DEAD_KEYS`."""
    pooler = probe.pooler
    yield Entry(("pooler.query_tokens",), pooler.query_token, SAME)
    yield from norm_entries(f"{_CROSS_ATTENTION}.norm1", pooler.tokens_norm)
    yield from linear_entries([f"{_CROSS_ATTENTION}.xattn.q"], pooler.query)
    yield from linear_entries([f"{_CROSS_ATTENTION}.xattn.kv"], pooler.key_value)
    yield from norm_entries(f"{_CROSS_ATTENTION}.norm2", pooler.mlp_norm)
    yield from linear_entries([f"{_CROSS_ATTENTION}.mlp.fc1"], pooler.mlp_hidden)
    yield from linear_entries([f"{_CROSS_ATTENTION}.mlp.fc2"], pooler.mlp_output)
    for i, block in enumerate(pooler.blocks):
        yield from block_entries(f"pooler.blocks.{i}", block)
    yield from linear_entries(["linear"], probe.linear)


# --- The architecture, from shapes ---------------------------------------------------------------


def _grid_of_table(table: np.ndarray, is_image_model: bool) -> tuple[tuple[int, int, int], bool]:
    """Find the token grid and the `uniform_power` that give this position table."""
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


def _num_heads(hidden_dim: int, num_heads: int | None, is_rotary: bool = False) -> int:
    # Two giant sizes have the same width and different heads; one is V-JEPA's, one V-JEPA 2's.
    unlikely = "giant" if is_rotary else "giant_xformers"
    known = {s.hidden_dim: s.num_heads for name, s in SIZES.items() if name != unlikely}
    if num_heads is None and hidden_dim not in known:
        raise CheckpointError(
            f"the number of heads cannot be read from shapes, and a width of {hidden_dim} is no "
            "usual size: pass `num_heads`"
        )
    return num_heads if num_heads is not None else known[hidden_dim]


def encoder_config(
    tensors: Tensors,
    num_heads: int | None,
    position_embedding: str = "sincos",
    level_layers: Any = None,
) -> dict[str, Any]:
    """Read the arguments of `VJEPABackbone` from the shapes of the network `encoder`."""
    patch = required("encoder", tensors, "patch_embed.proj.weight", 5)
    mlp_dim = required("encoder", tensors, "blocks.0.mlp.fc1.weight", 2)[0]
    hidden_dim, is_image_model = patch[0], len(patch) == 4
    tubelet_size, is_rotary = 1 if is_image_model else patch[2], position_embedding != "sincos"
    clip: dict[str, Any] = {**_INPUT, **({"num_frames": 1} if is_image_model else {})}
    if not is_rotary:
        required("encoder", tensors, "pos_embed", 3)
        grid, uniform_power = _grid_of_table(tensors["pos_embed"].read()[0], is_image_model)
        clip = {"image_size": grid[1] * patch[-1], "num_frames": grid[0] * tubelet_size}
        clip["uniform_power"] = uniform_power
    if position_embedding == authors_21.POSITIONS:
        clip = authors_21.encoder_config(tensors, patch[-1], level_layers)
    return {
        **clip,
        "patch_size": patch[-1],
        "tubelet_size": tubelet_size,
        "hidden_dim": hidden_dim,
        "num_layers": count(tensors, "blocks"),
        "num_heads": _num_heads(hidden_dim, num_heads, is_rotary),
        "mlp_ratio": mlp_ratio(mlp_dim, hidden_dim),
        "num_channels": patch[1],
        "position_embedding": position_embedding,
    }


def predictor_config(
    tensors: Tensors, encoder: VJEPABackbone, num_heads: int | None
) -> dict[str, Any]:
    """Read the arguments of `VJEPAPredictor` from the shapes of the network `predictor`."""
    own: dict[str, Any]
    if encoder.position_embedding == authors_21.POSITIONS:
        own = authors_21.predictor_config(tensors, encoder)
    else:
        own = {"hidden_dim": required("predictor", tensors, "predictor_embed.weight", 2)[0]}
    mlp_dim = required("predictor", tensors, "predictor_blocks.0.mlp.fc1.weight", 2)[0]
    is_rotary = encoder.position_embedding != "sincos"
    usual_heads = _PREDICTOR_HEADS if is_rotary else encoder.num_heads
    return {
        "encoder_dim": encoder.hidden_dim,
        "grid_shape": encoder.position_axes,
        **own,
        "num_layers": count(tensors, "predictor_blocks"),
        "num_heads": usual_heads if num_heads is None else num_heads,
        "num_mask_tokens": count(tensors, "mask_tokens"),
        "mlp_ratio": mlp_ratio(mlp_dim, own["hidden_dim"]),
        "position_embedding": encoder.position_embedding,
        "uniform_power": encoder.uniform_power,
    }


def probe_config(name: str, tensors: Tensors, num_heads: int) -> dict[str, Any]:
    """Read the arguments of `VJEPAProbe` from the shapes of its tensors."""
    num_classes, dim = required(name, tensors, "linear.weight", 2)
    mlp_dim = required(name, tensors, f"{_CROSS_ATTENTION}.mlp.fc1.weight", 2)[0]
    blocks = {key.split(".")[2] for key in tensors if key.startswith("pooler.blocks.")}
    return {
        "num_classes": num_classes,
        "num_heads": num_heads,
        "num_layers": 1 + len(blocks),
        "mlp_ratio": mlp_ratio(mlp_dim, dim),
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
    """Convert a checkpoint to a pretrainer, or together with a probe's checkpoint to a classifier.

    Args:
        path: a pretraining checkpoint in the authors' layout.
        probe: None, or a probe checkpoint in the authors' layout.
        num_heads: heads of the encoder; needed only if its width is no usual size.
        predictor_num_heads: heads of the predictor; if None, as many as the encoder has, as in the
            paper, or 12 for V-JEPA 2.
        probe_num_heads: heads of the probe; if None, as many as the encoder has, as in the
            reference, or 16 for V-JEPA 2.
        arguments: arguments of `VJEPABackbone`, which override those of the file. A V-JEPA 2 file
            does not hold `image_size` and `num_frames`; they are 256 and 64 if not given, or 384
            and 64 for V-JEPA 2.1. The latter does not hold `level_layers` either, which are known
            for 12, 24, 40 and 48 blocks.

    Raises:
        CheckpointError: if anything in the files does not fit.
    """
    if probe is not None:
        backbone = convert_backbone(path, num_heads=num_heads, **arguments)
        with _naming(num_heads="probe_num_heads"):
            return convert_classifier(backbone, probe, probe_num_heads)
    with named(path):
        checkpoint = read_checkpoint(path)
        (online, predicting, averaged), positions = networks(
            checkpoint,
            ("encoder", "predictor", "target_encoder"),
            arguments.get("position_embedding"),
        )
        levels = arguments.get("level_layers")
        config = {**encoder_config(online, num_heads, positions, levels), **arguments}
        encoder = _make(VJEPABackbone, path, **config)
        with _naming(num_heads="predictor_num_heads"):
            config = predictor_config(predicting, encoder, predictor_num_heads)
            predictor = _make(VJEPAPredictor, path, **config)
        average = averaged_name(checkpoint, "target_encoder")
        objective = {}
        if positions == authors_21.POSITIONS:
            objective = authors_21.objective(average == authors_21.DISTILLED_AVERAGE)
        pretrainer = VJEPAPretrainer(encoder, predictor, **objective)
        load_entries("encoder", online, encoder_entries(encoder))
        load_entries("predictor", predicting, predictor_entries(predictor))
        load_entries(average, averaged, encoder_entries(pretrainer.target_encoder))
    return pretrainer


def convert_backbone(
    path: str | Path,
    network: str = "target_encoder",
    num_heads: int | None = None,
    **arguments: Any,
) -> VJEPABackbone:
    """Convert one encoder of a checkpoint; nothing else in the file is read.

    Args:
        path: as in `convert`.
        network: `"target_encoder"`, which the authors' evaluations use, or `"encoder"`. A distilled
            V-JEPA 2.1 file calls the first one `"ema_encoder"`.
        num_heads: as in `convert`.
        arguments: as in `convert`.

    Raises:
        CheckpointError: if anything in that part of the file does not fit.
    """
    with named(path):
        checkpoint, wanted = read_checkpoint(path), arguments.get("position_embedding")
        [tensors], positions = networks(checkpoint, [network], wanted)
        levels = arguments.get("level_layers")
        config = {**encoder_config(tensors, num_heads, positions, levels), **arguments}
        encoder = _make(VJEPABackbone, path, **config)
        load_entries(averaged_name(checkpoint, network), tensors, encoder_entries(encoder))
    return encoder


def _make(cls: Any, path: str | Path, **arguments: Any) -> Any:
    asked_for = cls.number_of_weights(**arguments)
    check_weights(f"a {cls.__name__}", asked_for, Path(path).stat().st_size)
    return cls(**arguments)


@contextmanager
def _naming(**names: str) -> Iterator[None]:
    """Rename arguments of a part in errors of a block to the names that `convert` has for them."""
    try:
        yield
    except ValueError as error:
        known = {own: f"`{name}`" for own, name in names.items()}
        raise type(error)(renamed(str(error), known)) from None


def convert_probe(path: str | Path, num_heads: int | None = None) -> VJEPAProbe:
    """Convert a probe checkpoint to a probe, which takes tokens `(batch, tokens, dim)`.

    Args:
        path: a probe checkpoint in the authors' layout.
        num_heads: heads of the probe. If None, as many as an encoder of that width has, as in the
            reference, or 16 for V-JEPA 2.

    Raises:
        CheckpointError: if anything in the file does not fit.
    """
    with named(path):
        checkpoint = read_checkpoint(path)
        name = "classifiers" if "classifiers" in checkpoint else "classifier"
        tensors = state_dict(checkpoint, name)
        dim = required(name, tensors, "linear.weight", 2)[1]
        if name == "classifier":
            tensors = {key: tensor for key, tensor in tensors.items() if key not in DEAD_KEYS}
            num_heads, self_attention = _num_heads(dim, num_heads), "query"
        else:
            num_heads, self_attention = num_heads or _PROBE_HEADS, "tokens"
        config = {**probe_config(name, tensors, num_heads), "self_attention": self_attention}
        asked_for = VJEPAProbe.number_of_weights(dim, **config)
        check_weights("a VJEPAProbe", asked_for, Path(path).stat().st_size)
        probe = VJEPAProbe(**config)
        probe.build((None, None, dim))
        load_entries(name, tensors, probe_entries(probe))
    return probe


def convert_classifier(
    backbone: VJEPABackbone, path: str | Path, num_heads: int | None = None, **arguments: Any
) -> VJEPAVideoClassifier:
    """Make a classifier from a backbone and the probe of a probe checkpoint.

    Args:
        backbone: the backbone that the probe was trained on, e.g. `convert_backbone(...)`.
        path: a probe checkpoint in the authors' layout.
        num_heads: heads of the probe; if None, as many as the backbone has, as in the reference, or
            16 for V-JEPA 2.
        arguments: further arguments of `VJEPAVideoClassifier`, e.g. `num_clips`.

    Raises:
        CheckpointError: if anything in the file does not fit, by itself or to the backbone.
    """
    if num_heads is None and backbone.position_embedding == "sincos":
        num_heads = backbone.num_heads
    probe = convert_probe(path, num_heads)
    width = probe.linear.kernel.shape[0]
    if width != backbone.hidden_dim:
        raise CheckpointError(
            f"{path}: the probe must be {backbone.hidden_dim} wide, as the encoder. "
            f"Received: {width}"
        )
    classifier = VJEPAVideoClassifier(
        backbone,
        probe.num_classes,
        num_heads=None if probe.num_heads == backbone.num_heads else probe.num_heads,
        num_layers=probe.num_layers,
        mlp_ratio=probe.mlp_ratio,
        self_attention=probe.self_attention,
        **arguments,
    )
    classifier.probe.set_weights(probe.get_weights())
    return classifier
