"""The released weights of V-JEPA's rivals as presets (Tables 5 and 6; App. D.1).

As `zoo.py`: an entry says where a file is kept, and what it must hold. Some files cannot be had by
a plain download, because they lie on Google Drive or behind a form; their entries say where to get
them and how to convert them. None of the files could be read where this package was made, and
nobody has stated their hashes.
"""

import functools
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from keras_vjepa.conversion import convert
from keras_vjepa.conversion.families import hiera_folders
from keras_vjepa.conversion.families.layouts import LAYOUTS
from keras_vjepa.conversion.families.official import preprocessor_of
from keras_vjepa.conversion.families.transformers_names import FOLDERS
from keras_vjepa.preprocessor import VJEPAVideoPreprocessor
from keras_vjepa.presets.downloads import RemoteFile
from keras_vjepa.presets.preset import BUILT_IN, CONFIG_FILE, CONVERTERS
from keras_vjepa.zoo import Configs, Entry, check, convert_folder, converted, described

# Arguments of the converter that no file contains.
_TOLD = ("image_size", "num_frames", "activation")


@dataclass(frozen=True)
class RivalEntry(Entry):
    """Describes the encoder of an official file.

    Attributes:
        description: one line.
        family: one of `LAYOUTS`.
        size: one of the family's sizes.
        address: of the file; where it cannot be downloaded, of the page that leads to it.
        licence: of the weights.
        source: where the authors publish them.
        is_download: whether `address` is the file.
        arguments: further ones of the backbone.
        pixels: height and width of the input that it is evaluated on.
    """

    description: str
    family: str
    size: str
    address: str
    licence: str
    source: str
    is_download: bool = True
    arguments: Mapping[str, Any] = field(default_factory=dict)
    pixels: int = 224

    @property
    def backbone(self) -> Any:
        """Return the class of the backbone."""
        return LAYOUTS[self.family].backbone

    @property
    def encoder(self) -> dict[str, Any]:
        """Return all arguments of the backbone that are not its usual ones."""
        return {**self.backbone.arguments_of_size(self.size), **self.arguments}

    @property
    def checkpoint(self) -> RemoteFile | None:
        """Return the file, if it can be downloaded."""
        return RemoteFile(self.address) if self.is_download else None

    def classes(self) -> tuple[str, ...]:
        return self.backbone.__name__, "VJEPAVideoPreprocessor"

    def describe(self) -> dict[str, Any]:
        file, frames = self.checkpoint, self.preprocessor().num_frames
        return {
            "description": self.description,
            "parameters": self.backbone.number_of_weights(**self.encoder),
            "input": [frames, self.pixels, self.pixels, 3],
            "licence": self.licence,
            "source": self.source,
            "files": [] if file is None else [asdict(file)],
            "scores": {},
        }

    def preprocessor(self) -> VJEPAVideoPreprocessor:
        facts = self.backbone.facts
        if not hasattr(facts, "mean"):  # a Hiera's depend on its kind of input
            facts = self.backbone.facts_of(self.encoder.get("num_frames", 16))
        frames = 1 if facts.is_image_model else 16
        return VJEPAVideoPreprocessor(self.pixels, frames, mean=facts.mean, std=facts.std)

    def configs(self) -> Configs:
        return {CONFIG_FILE: described(self.backbone, **self.encoder)}

    def write_models(self, folder: Path, trust_on_first_use: bool) -> None:
        if self.checkpoint is None:
            raise ValueError(
                f"{self.description} cannot be downloaded from here: get the file from "
                f"{self.address}, then: keras-vjepa convert FILE FOLDER --family {self.family}"
            )
        with converted(self.checkpoint, trust_on_first_use) as path:
            told = {name: self.encoder[name] for name in _TOLD if name in self.encoder}
            backbone = convert(path, family=self.family, **told)
            check(backbone, self.encoder)
            backbone.save_to_preset(folder)


_META = "https://dl.fbaipublicfiles.com"
_HUB = "https://huggingface.co"
_GITHUB = "https://github.com"
_NON_COMMERCIAL = "CC BY-NC 4.0"


def _add(name: str, *arguments: Any, **further: Any) -> None:
    BUILT_IN[name] = RivalEntry(*arguments, **further)


#   size, address of a page of Google Drive
_VIDEOMAE = {
    "base": "1tEhLyskjb755TJ65ptsrafUG2llSwQE1",
    "large": "1qLOXWb_MGEvaI7tvuAe94CV7S2HXRwT3",
    "huge": "1AJQR1Rsi2N1pDn9tLyJ8DQrUREiBA1bO",
}
for _size, _key in _VIDEOMAE.items():
    _add(
        f"videomae_{_size}_patch16_224_kinetics400",
        f"VideoMAE ViT-{_size[0].upper()}/16, pretrained on Kinetics-400",
        "videomae",
        _size,
        f"https://drive.google.com/file/d/{_key}/view",
        _NON_COMMERCIAL,
        f"{_GITHUB}/MCG-NJU/VideoMAE",
        is_download=False,
    )
_add(
    "videomaev2_giant_patch14_224_hybrid",
    "VideoMAEv2 ViT-g/14, pretrained on UnlabeledHybrid",
    "videomaev2",
    "giant",
    f"{_HUB}/OpenGVLab/VideoMAE2/tree/main (vit_g_hybrid_pt_1200e.pth, after a form)",
    "MIT (code); weights on request",
    f"{_GITHUB}/OpenGVLab/VideoMAEv2",
    is_download=False,
    arguments={"patch_size": 14},
)
_add(
    "mvd_large_patch16_224_kinetics400",
    "MVD ViT-L/16 from a teacher of ViT-L, pretrained on Kinetics-400",
    "mvd",
    "large",
    "https://drive.google.com/file/d/1Zr3ayWxlauFm1bVfMzxaQIzfYvDXhMW-/view",
    _NON_COMMERCIAL,
    f"{_GITHUB}/ruiwang2021/mvd",
    is_download=False,
)
for _size, _patch in (("base", 16), ("large", 16), ("huge", 14)):
    _add(
        f"omnimae_{_size}_patch{_patch}_224",
        f"OmniMAE ViT-{_size[0].upper()}/{_patch}, pretrained on ImageNet-1K and SSv2",
        "omnimae",
        _size,
        f"{_META}/omnivore/omnimae_ckpts/vit{_size[0]}_pretrain.torch",
        _NON_COMMERCIAL,
        f"{_GITHUB}/facebookresearch/omnivore",
        arguments={"patch_size": _patch},
    )
for _size in ("base", "base_plus", "large", "huge"):
    _add(
        f"hiera_{_size}_16x224_mae",
        f"Hiera-{_size}, masked autoencoder of Kinetics-400",
        "hiera",
        _size,
        f"{_META}/hiera/mae_hiera_{_size}_16x224.pth",
        _NON_COMMERCIAL,
        f"{_GITHUB}/facebookresearch/hiera",
        arguments={"num_pools": 2, "fusion": True, "features": "fused"},
    )
for _size in ("small", "base", "large", "giant"):
    for _ending, _registers in (("", 0), ("_reg4", 4)):
        _file = f"dinov2_vit{_size[0]}14"
        _add(
            f"dinov2_{_size}_patch14{_ending}",
            f"DINOv2 ViT-{_size[0]}/14" + (" with 4 registers" if _registers else ""),
            "dinov2",
            _size,
            f"{_META}/dinov2/{_file}/{_file}{_ending}_pretrain.pth",
            "Apache-2.0",
            f"{_GITHUB}/facebookresearch/dinov2",
            arguments={"image_size": 518, "patch_size": 14, "num_register_tokens": _registers},
        )
#   name, size, patch, pixels, file
_IJEPA = (
    ("ijepa_huge_patch14_224_in1k", "huge", 14, 224, "IN1K-vit.h.14-300e"),
    ("ijepa_huge_patch16_448_in1k", "huge", 16, 448, "IN1K-vit.h.16-448px-300e"),
    ("ijepa_huge_patch14_224_in22k", "huge", 14, 224, "IN22K-vit.h.14-900e"),
    ("ijepa_giant_patch16_224_in22k", "giant", 16, 224, "IN22K-vit.g.16-600e"),
)
for _name, _size, _patch, _pixels, _file in _IJEPA:
    _add(
        _name,
        f"I-JEPA ViT-{_size[0].upper()}/{_patch} at {_pixels} pixels",
        "ijepa",
        _size,
        f"{_META}/ijepa/{_file}.pth.tar",
        _NON_COMMERCIAL,
        f"{_GITHUB}/facebookresearch/ijepa",
        arguments={"image_size": _pixels, "patch_size": _patch},
        pixels=_pixels,
    )
#   size, repository, width of the embedding
_OPENCLIP = (
    ("huge", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K", 1024),
    ("giant", "laion/CLIP-ViT-g-14-laion2B-s12B-b42K", 1024),
    ("bigG", "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k", 1280),
)
for _size, _repository, _width in _OPENCLIP:
    _add(
        f"openclip_{_size}_patch14_224_laion2b",
        f"OpenCLIP ViT-{_size}/14, trained on LAION-2B",
        "openclip",
        _size,
        f"{_HUB}/{_repository}/resolve/main/open_clip_pytorch_model.bin",
        "see the card of the weights",
        f"{_HUB}/{_repository}",
        arguments={"patch_size": 14, "projection_dim": _width},
    )


# --- Folders of the transformers package ----------------------------------------------------------


def _preprocessor(folder: Path, model: Any) -> VJEPAVideoPreprocessor:
    return preprocessor_of(getattr(model, "backbone", model))


for _kind in (*(k for one in FOLDERS.values() for k in one.model_types), hiera_folders.MODEL_TYPE):
    CONVERTERS[_kind] = functools.partial(convert_folder, make_preprocessor=_preprocessor)
