"""The official files of each family: where weights lie in them and what else does (App. D.1).

Facts from the repositories' saving and loading code; see docs/rivals.md for their addresses.
"""

import dataclasses
import re
from collections.abc import Iterable
from typing import Any

from keras_vjepa.conversion.families.names import Names
from keras_vjepa.models.families import (
    DINOv2Backbone,
    HieraBackbone,
    IJEPABackbone,
    MVDBackbone,
    OmniMAEBackbone,
    OpenCLIPBackbone,
    VideoMAEBackbone,
    VideoMAEv2Backbone,
)

# Prefixes that wrappers of a model add to its names, in any order.
_WRAPPERS = re.compile(r"((_orig_mod|module|backbone)\.)+")
# DINOv2's trainer keeps blocks in chunks; the second number is the block's in the whole network.
_CHUNKED = re.compile(r"blocks\.\d+\.(?=\d+\.)")


@dataclasses.dataclass(frozen=True)
class Layout:
    """Describes a family's official files.

    Attributes:
        backbone: class of its models.
        names: of the tensors.
        networks: keys that a dictionary of tensors may have in the file, the first that is there
            counts; without any of them the file itself is that dictionary.
        prefix: before the encoder's names, in a file that has such names at all.
        others: pattern of names without `prefix`, in such a file, that are of another part.
        ignored: pattern of the encoder's own names that are not converted.
        of_decoder: pattern of names that are of another part where some are `ignored`.
        head: of a fine-tuned file, its norm of the mean and its linear layer.
        written: the keys that pretrained and fine-tuned weights are written under; "" for none.
    """

    backbone: Any
    names: Names = Names()
    networks: tuple[str, ...] = ()
    prefix: str = ""
    others: str = "(?!)"
    ignored: str = "(?!)"
    of_decoder: str = "(?!)"
    head: tuple[str, str] | None = None
    written: tuple[str, str] = ("", "")

    def own_names(self, names: Iterable[str]) -> dict[str, str | None]:
        """Find the encoder's own name for each name of a file.

        Args:
            names: as they are in the file.

        Returns:
            Own names, without wrappers and `prefix`, by those in the file; None for a name that is
            known and not converted.
        """
        bare = {name: _unwrapped(name) for name in names}
        has_prefix = self.prefix and any(one.startswith(self.prefix) for one in bare.values())
        own: dict[str, str | None] = {}
        has_decoder = any(re.match(self.prefix + self.ignored, one) for one in bare.values())
        for name, one in bare.items():
            if has_decoder and re.match(self.of_decoder, one):
                own[name] = None
                continue
            if has_prefix and not one.startswith(self.prefix):
                own[name] = None if re.match(self.others, one) else one
            else:
                one = one.removeprefix(self.prefix)
                own[name] = None if re.match(self.ignored, one) else one
        return own


def _unwrapped(name: str) -> str:
    wrapper = _WRAPPERS.match(name)
    return _CHUNKED.sub("blocks.", name[wrapper.end() :] if wrapper else name, count=1)


_TRAINERS = ("model", "module")
_FINE_TUNED = ("fc_norm", "head")
_VIDEOMAE = {
    "names": Names(table=""),
    "networks": _TRAINERS,
    "prefix": "encoder.",
    "others": r"decoder\.|encoder_to_decoder\.|mask_token$",
    "head": _FINE_TUNED,
    "written": _TRAINERS,
}

_TEXT_TOWER = (
    r"(transformer|token_embedding|ln_final|text)\.|(positional_embedding|text_projection|"
    r"logit_scale|logit_bias|attn_mask|input_resolution|context_length|vocab_size)$"
)

LAYOUTS = {
    "videomae": Layout(VideoMAEBackbone, **_VIDEOMAE),  # type: ignore[arg-type]
    "videomaev2": Layout(VideoMAEv2Backbone, **_VIDEOMAE),  # type: ignore[arg-type]
    "mvd": Layout(
        MVDBackbone,
        networks=_TRAINERS,
        ignored=r"(decoder|down|mask_token|pos_embed)_(img|vid)(\.|$)",
        head=_FINE_TUNED,
        written=_TRAINERS,
    ),
    "omnimae": Layout(
        OmniMAEBackbone,
        Names(patch="patch_embed.proj.1"),
        networks=("model",),
        prefix="trunk.",
        ignored=r"(decoder\.|mask_token$)",
        of_decoder=r"head\.",
        head=("norm", "head"),
    ),
    "hiera": Layout(
        HieraBackbone,
        networks=("model_state",),
        ignored=r"decoder_|mask_token$",
        head=("norm", "head.projection"),
        written=("model_state", "model_state"),
    ),
    "dinov2": Layout(
        DINOv2Backbone, networks=("teacher",), ignored=r"mask_token$|(dino|ibot)_head\."
    ),
    "openclip": Layout(
        OpenCLIPBackbone,
        Names(
            patch="conv1",
            table="positional_embedding",
            class_token="class_embedding",
            input_norm="ln_pre",
            norm="ln_post",
            projection="proj",
            block="transformer.resblocks",
            attention_norm="ln_1",
            qkv=("attn.in_proj",),
            joint="_",
            output="attn.out_proj",
            mlp_norm="ln_2",
            mlp=("mlp.c_fc", "mlp.c_proj"),
            is_plain=True,
        ),
        networks=("state_dict",),
        prefix="visual.",
        others=_TEXT_TOWER,
    ),
    "ijepa": Layout(IJEPABackbone, networks=("target_encoder", "encoder")),
}
