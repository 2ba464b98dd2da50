"""How the transformers package calls the tensors of V-JEPA's rivals (Tables 5 and 6; App. D.1)."""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from keras_vjepa.conversion.errors import CheckpointError
from keras_vjepa.conversion.families.names import Names

_ARGUMENTS: Mapping[str, str] = {
    "image_size": "image_size",
    "num_heads": "num_attention_heads",
    "layer_norm_epsilon": "layer_norm_eps",
}


@dataclasses.dataclass(frozen=True)
class Folder:
    """Describes a family's folders.

    Attributes:
        model_types: of config.json, the usual one first.
        architecture: class that is written.
        names: of the tensors.
        prefixes: prefixes that the names of an encoder may have.
        others: pattern of names that are not converted.
        arguments: of the backbone by theirs in config.json.
        describe: what else config.json has of a backbone.
        head: of a fine-tuned model, its norm of the mean and its linear layer.
        written_prefix: prefix of names that are written.
        unprefixed: beginnings of names that do not get this prefix.
    """

    model_types: tuple[str, ...]
    architecture: str
    names: Names
    prefixes: tuple[str, ...]
    others: str
    describe: Callable[[Any], dict[str, Any]]
    arguments: Mapping[str, str] = dataclasses.field(default_factory=lambda: _ARGUMENTS)
    head: tuple[str, str] | None = None
    written_prefix: str = ""
    unprefixed: tuple[str, ...] = ()

    def own_names(self, names: Iterable[str]) -> dict[str, str | None]:
        """Find the encoder's own name of each; None for one that is known and not converted."""
        own: dict[str, str | None] = {}
        for name in names:
            bare = next((name.removeprefix(p) for p in self.prefixes if name.startswith(p)), name)
            own[name] = None if re.match(self.others, bare) else bare
        return own

    def prefix_of(self, name: str) -> str:
        """Tell what a name begins with where it is written."""
        return "" if name.startswith(self.unprefixed) else self.written_prefix


def _vit(norms: tuple[str, str], mlp: tuple[str, str], **names: Any) -> Names:
    """Names that the package's vision transformers share."""
    attention = "attention.attention"
    return Names(
        **{
            "patch": "embeddings.patch_embeddings.projection",
            "class_token": "embeddings.cls_token",
            "table": "embeddings.position_embeddings",
            "registers": "embeddings.register_tokens",
            "norm": "layernorm",
            "block": "encoder.layer",
            "attention_norm": norms[0],
            "qkv": tuple(f"{attention}.{part}" for part in ("query", "key", "value")),
            "value_bias": (f"{attention}.q_bias", f"{attention}.v_bias"),
            "output": "attention.output.dense",
            "mlp_norm": norms[1],
            "mlp": mlp,
            "swiglu": ("mlp.weights_in", "mlp.weights_out"),
            "scales": ("layer_scale1.lambda1", "layer_scale2.lambda1"),
            **names,
        }
    )


_OLDER = (("layernorm_before", "layernorm_after"), ("intermediate.dense", "output.dense"))


def _videomae(backbone: Any) -> dict[str, Any]:
    if not backbone.final_norm:
        raise CheckpointError("`final_norm` must be True in that layout. Received: False")
    return {
        "intermediate_size": backbone.mlp_dim,
        "tubelet_size": backbone.tubelet_size,
        "use_mean_pooling": False,
        "qv_bias": True,
    }


def _dinov2(backbone: Any) -> dict[str, Any]:
    dim, is_swiglu = backbone.hidden_dim, backbone.activation == "swiglu"
    ratio = backbone.mlp_dim / dim
    if is_swiglu:
        ratio = next((r for r in range(1, 65) if _swiglu_width(dim, r) == backbone.mlp_dim), 0.0)
    if not ratio or int(ratio) != ratio:
        raise CheckpointError(
            f"`mlp_dim` must be a whole multiple of `hidden_dim` in that layout. "
            f"Received: {backbone.mlp_dim}"
        )
    described = {
        "mlp_ratio": int(ratio),
        "use_swiglu_ffn": is_swiglu,
        "hidden_act": "gelu",
        "use_mask_token": False,
        # The usual values, which transformers assumes where they are missing. keras-hub does not.
        "layerscale_value": 1.0,
        "hidden_dropout_prob": 0.0,
        "drop_path_rate": 0.0,
    }
    if backbone.num_register_tokens:
        described |= {
            "model_type": "dinov2_with_registers",
            "architectures": ["Dinov2WithRegistersModel"],
            "num_register_tokens": backbone.num_register_tokens,
        }
    return described


def _swiglu_width(dim: int, ratio: int) -> int:
    """Compute two thirds of the hidden layer of a usual MLP, rounded up to a multiple of 8."""
    return math.ceil(int(dim * ratio * 2 / 3) / 8) * 8


def _plain(backbone: Any) -> dict[str, Any]:
    return {"intermediate_size": backbone.mlp_dim}


def _clip(backbone: Any) -> dict[str, Any]:
    if backbone.projection_dim is None:
        raise CheckpointError("`projection_dim` must be given in that layout. Received: None")
    return {**_plain(backbone), "projection_dim": backbone.projection_dim}


FOLDERS = {
    "videomae": Folder(
        ("videomae",),
        "VideoMAEModel",
        _vit(*_OLDER, table=""),
        ("videomae.",),
        r"decoder\.|encoder_to_decoder\.|mask_token$",
        _videomae,
        {**_ARGUMENTS, "num_frames": "num_frames"},
        head=("fc_norm", "classifier"),
    ),
    "dinov2": Folder(
        ("dinov2", "dinov2_with_registers"),
        "Dinov2Model",
        _vit(("norm1", "norm2"), ("mlp.fc1", "mlp.fc2")),
        ("dinov2.", "dinov2_with_registers."),
        r"embeddings\.mask_token$|classifier\.",
        _dinov2,
    ),
    "ijepa": Folder(
        ("ijepa",),
        "IJepaModel",
        _vit(*_OLDER),
        ("ijepa.",),
        r"classifier\.|pooler\.",
        _plain,
    ),
    "openclip": Folder(
        ("clip_vision_model", "clip"),
        "CLIPVisionModelWithProjection",
        Names(
            patch="embeddings.patch_embedding",
            table="embeddings.position_embedding.weight",
            class_token="embeddings.class_embedding",
            # The transformers package spells the name like this.
            input_norm="pre_layrnorm",
            norm="post_layernorm",
            projection="visual_projection.weight",
            block="encoder.layers",
            attention_norm="layer_norm1",
            qkv=tuple(f"self_attn.{part}_proj" for part in ("q", "k", "v")),
            output="self_attn.out_proj",
            mlp_norm="layer_norm2",
            mlp=("mlp.fc1", "mlp.fc2"),
            is_plain=True,
        ),
        ("vision_model.",),
        r"text_model\.|text_projection\.|logit_scale$|embeddings\.position_ids$",
        _clip,
        written_prefix="vision_model.",
        unprefixed=("visual_projection",),
    ),
}
