"""Convert weights from elsewhere to models of this package, and back (App. C, App. D.1).

It reads files in the authors' layout (V-JEPA and V-JEPA 2) and folders of the transformers package:

    from keras_vjepa import conversion

    pretrainer = conversion.convert("vitl16.pth.tar")
    backbone = conversion.convert_backbone("vitl16.pth.tar")
    classifier = conversion.convert_classifier(backbone, "k400-probe.pth.tar", num_clips=8)
    classifier = conversion.convert("vjepa2-vitl-fpc16-256-ssv2/")
    preprocessor = conversion.convert_preprocessor("vjepa2-vitl-fpc64-256/")

It also reads official files of the encoders that V-JEPA is compared with; in most cases the names
in the file tell the family:

    backbone = conversion.convert("dinov2_vitl14_pretrain.pth")
    backbone = conversion.convert("checkpoint.pth", family="videomae", image_size=224)

and writes them again:

    conversion.export_checkpoint(pretrainer, "mine.pth.tar")
"""

from pathlib import Path
from typing import Any

from keras_vjepa.arguments import check_choice
from keras_vjepa.conversion import authors, hugging_face
from keras_vjepa.conversion.authors import convert_classifier, convert_probe
from keras_vjepa.conversion.errors import CheckpointError
from keras_vjepa.conversion.export import export_checkpoint, export_hugging_face, export_probe
from keras_vjepa.conversion.families import official, transformers_folders
from keras_vjepa.conversion.families.layouts import LAYOUTS
from keras_vjepa.conversion.hugging_face import convert_preprocessor
from keras_vjepa.models.backbone import VJEPABackbone
from keras_vjepa.models.families import RivalBackbone
from keras_vjepa.tasks.classifier import VJEPAVideoClassifier
from keras_vjepa.tasks.pretrainer import VJEPAPretrainer

# What `family` may be; the first is not one of V-JEPA's rivals.
FAMILIES = ("vjepa", *LAYOUTS)

__all__ = [
    "FAMILIES",
    "CheckpointError",
    "convert",
    "convert_backbone",
    "convert_classifier",
    "convert_preprocessor",
    "convert_probe",
    "export_checkpoint",
    "export_hugging_face",
    "export_probe",
]


def convert(
    path: str | Path, *args: Any, family: str | None = None, **kwargs: Any
) -> VJEPAPretrainer | VJEPAVideoClassifier | RivalBackbone:
    """Convert a file or a folder to the model that it holds.

    Args:
        path: a file, or a folder of the transformers package.
        args: of the function that reads its layout.
        family: one of `FAMILIES`; None to find it by the names of the tensors.
        kwargs: further arguments: of `authors.convert` and `hugging_face.convert` for V-JEPA, of
            `families.official.convert` and `families.transformers_folders.convert` for its rivals.

    Raises:
        CheckpointError: if anything in it does not fit, or names do not tell the family.
    """
    is_folder = Path(path).is_dir()
    family = _family(path, family, kwargs)
    if family == "vjepa":
        return (hugging_face if is_folder else authors).convert(path, *args, **kwargs)
    layout = transformers_folders if is_folder else official
    return layout.convert(path, family, *args, **kwargs)


def convert_backbone(
    path: str | Path, *args: Any, family: str | None = None, **kwargs: Any
) -> VJEPABackbone | RivalBackbone:
    """Convert only the encoder of a file or a folder; the arguments are those of `convert`.

    Raises:
        CheckpointError: if anything in that part of the file or folder does not fit.
    """
    family = _family(path, family, kwargs)
    if family != "vjepa":
        model: Any = convert(path, *args, family=family, **kwargs)
        return getattr(model, "backbone", model)
    layout = hugging_face if Path(path).is_dir() else authors
    return layout.convert_backbone(path, *args, **kwargs)


def _family(path: str | Path, family: str | None, given: dict[str, Any]) -> str:
    """Return the family that is given or found; a file of no other family is V-JEPA's."""
    if family is not None:
        check_choice(FAMILIES, family=family)
        return family
    if given.get("probe") is not None:
        return "vjepa"
    find = transformers_folders if Path(path).is_dir() else official
    return find.find_family(path) or "vjepa"
