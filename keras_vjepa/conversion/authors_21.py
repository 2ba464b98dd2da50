"""Say what V-JEPA 2.1's files have that those of V-JEPA and V-JEPA 2 lack (vjepa21 §1, §2, §6).

Its networks have modality vectors, a second tokenizer, norms of several levels and a second output
of the predictor. In a file of a distilled model (base, large), `ema_encoder` is in place of
`target_encoder`, and the predictor writes vectors of the teacher's width.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from keras_vjepa.conversion.entries import SAME, TUBELET_KERNEL, Entry, linear_entries, norm_entries
from keras_vjepa.conversion.errors import CheckpointError
from keras_vjepa.conversion.network_shapes import Tensors, count, required
from keras_vjepa.models.backbone import VJEPABackbone
from keras_vjepa.models.predictor import VJEPAPredictor
from keras_vjepa.presets.recognition import OWN_TENSORS

DISTILLED_AVERAGE = "ema_encoder"
# The blocks after which the levels are taken, by the number of blocks; no other number is known.
LEVELS = {
    12: (2, 5, 8, 11),
    24: (5, 11, 17, 23),
    40: (9, 19, 29, 39),
    48: (11, 23, 37, 47),
}
POSITIONS = "rotary_pairs"
# Side of the images in pixels that rows and columns are counted for, whatever the clip's size.
_COUNTED_SIDE = 256
_INPUT = {"image_size": 384, "num_frames": 64}
# Weight of the loss at the context tokens.
CONTEXT_LOSS_WEIGHT = 0.5


def has_version_21(networks: Iterable[Tensors]) -> bool:
    """Tell whether any of some networks has tensors that only V-JEPA 2.1 has."""
    return any(key.startswith(OWN_TENSORS) for tensors in networks for key in tensors)


def averaged_name(checkpoint: Mapping[str, Any], name: str) -> str:
    """Return what a file calls a network: a distilled one has another name for the average."""
    is_other = name == "target_encoder" and name not in checkpoint
    return DISTILLED_AVERAGE if is_other and DISTILLED_AVERAGE in checkpoint else name


def check_positions(position_embedding: str | None) -> str:
    """Return the positions of V-JEPA 2.1; refuse others that a user asks for."""
    if position_embedding not in (None, POSITIONS):
        raise CheckpointError(
            f"`position_embedding` must be {POSITIONS!r} for V-JEPA 2.1. "
            f"Received: {position_embedding!r}"
        )
    return POSITIONS


def encoder_config(tensors: Tensors, patch_size: int, level_layers: Any = None) -> dict[str, Any]:
    """Read the arguments of `VJEPABackbone` that V-JEPA and V-JEPA 2 leave at their defaults.

    Args:
        tensors: the encoder's tensors.
        patch_size: height and width of a patch.
        level_layers: the levels' blocks if the user gave them, else None.

    Raises:
        CheckpointError: if the levels do not follow from the number of blocks.
    """
    num_layers, num_levels = count(tensors, "blocks"), count(tensors, "norms_block")
    if level_layers is None:
        level_layers = LEVELS.get(num_layers)
    if level_layers is None and num_levels == num_layers:
        level_layers = tuple(range(num_layers))
    if level_layers is None:
        raise CheckpointError(
            f"the levels of an encoder of {num_layers} blocks are not known: pass `level_layers`, "
            f"the numbers of {num_levels} blocks"
        )
    return {
        **_INPUT,
        "position_reach": max(_COUNTED_SIDE // patch_size - 1, 1),
        "level_layers": level_layers,
        "modalities": True,
    }


def predictor_config(tensors: Tensors, encoder: VJEPABackbone) -> dict[str, Any]:
    """Read the arguments of `VJEPAPredictor` that V-JEPA and V-JEPA 2 leave at their defaults."""
    is_hierarchical = "predictor_embed.0.weight" in tensors
    num_levels = 1
    if is_hierarchical:
        width = required("predictor", tensors, "predictor_embed.0.weight", 2)[1]
        num_levels = max(width // encoder.hidden_dim, 2)
    name = "predictor_embed.2.weight" if is_hierarchical else "predictor_embed.weight"
    return {
        "hidden_dim": required("predictor", tensors, name, 2)[0],
        "num_levels": num_levels,
        "output_dim": required("predictor", tensors, "predictor_proj.weight", 2)[0],
        "position_reach": encoder.position_reach,
        "predicts_context": True,
        "modalities": True,
    }


def objective(is_distilled: bool) -> dict[str, Any]:
    """Return the arguments of `VJEPAPretrainer` for V-JEPA 2.1 (vjepa21 §3, §5)."""
    return {
        "target": "given" if is_distilled else "features",
        "context_loss_weight": CONTEXT_LOSS_WEIGHT,
        # Masks of all kinds share one token: the authors count groups of clips of one length.
        "mask_token": 0,
    }


def check_expressible(encoder: VJEPABackbone, predictor: VJEPAPredictor | None) -> bool:
    """Tell whether a model is of V-JEPA 2.1; refuse a mixture, which the authors' code has not.

    Args:
        encoder: the encoder.
        predictor: its predictor, or None for an encoder alone.

    Raises:
        CheckpointError: if some arguments are V-JEPA 2.1's, and others are not.
    """
    reach = max(_COUNTED_SIDE // encoder.patch_size - 1, 1)
    found = {
        f"position_embedding={POSITIONS!r}": encoder.position_embedding == POSITIONS,
        f"position_reach={reach}": encoder.position_reach == reach,
        "level_layers": encoder.level_layers is not None,
        "modalities=True": encoder.modalities,
    }
    if predictor is not None:
        found |= {
            "predictor's predicts_context=True": predictor.predicts_context,
            "predictor's modalities=True": predictor.modalities,
            f"predictor's position_embedding={POSITIONS!r}": (
                predictor.position_embedding == POSITIONS
            ),
        }
    if len({*found.values()}) > 1:
        words = [
            ", ".join(name for name, is_there in found.items() if is_there is wanted)
            for wanted in (True, False)
        ]
        raise CheckpointError(
            f"a model of V-JEPA 2.1 must have all of its arguments in that layout. Received: "
            f"{words[0]}, but not {words[1]}"
        )
    return encoder.modalities


def encoder_entries(encoder: VJEPABackbone) -> Iterator[Entry]:
    """Yield the variables of an encoder that only V-JEPA 2.1 has, with the authors' names."""
    if encoder.level_layers is not None:
        for i, layer in enumerate(encoder.level_layers):
            yield from norm_entries(f"norms_block.{i}", encoder.norm_of(layer))
    if encoder.modalities:
        tokenizer = encoder.image_embedding
        yield Entry(("patch_embed_img.proj.weight",), tokenizer.kernel, TUBELET_KERNEL)
        yield Entry(("patch_embed_img.proj.bias",), tokenizer.bias, SAME)
        yield from _modality_entries(encoder)


def predictor_entries(predictor: VJEPAPredictor) -> Iterator[Entry]:
    """Yield the variables of a predictor that only V-JEPA 2.1 has, with the authors' names."""
    if predictor.num_levels > 1:
        yield from linear_entries(["predictor_embed.0"], predictor.level_projection)
        yield from linear_entries(["predictor_embed.2"], predictor.input_projection)
    if predictor.predicts_context:
        yield from linear_entries(["predictor_proj_context"], predictor.context_projection)
    if predictor.modalities:
        yield from _modality_entries(predictor)


def _modality_entries(network: VJEPABackbone | VJEPAPredictor) -> Iterator[Entry]:
    yield Entry(("video_mod_embed",), network.video_vector, SAME)
    yield Entry(("img_mod_embed",), network.image_vector, SAME)
