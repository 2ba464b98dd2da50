"""Weights from elsewhere, as models of this package (App. C, App. D.1).

Files in the authors' layout (V-JEPA and V-JEPA 2) and folders of the transformers package:

    from keras_vjepa import conversion

    pretrainer = conversion.convert("vitl16.pth.tar")
    backbone = conversion.convert_backbone("vitl16.pth.tar")
    classifier = conversion.convert_classifier(backbone, "k400-probe.pth.tar", num_clips=8)
    classifier = conversion.convert("vjepa2-vitl-fpc16-256-ssv2/")
    preprocessor = conversion.convert_preprocessor("vjepa2-vitl-fpc64-256/")

and back again:

    conversion.export_checkpoint(pretrainer, "mine.pth.tar")
"""

from pathlib import Path
from typing import Any

from keras_vjepa.conversion import authors, hugging_face
from keras_vjepa.conversion.authors import convert_classifier, convert_probe
from keras_vjepa.conversion.errors import CheckpointError
from keras_vjepa.conversion.export import export_checkpoint, export_hugging_face, export_probe
from keras_vjepa.conversion.hugging_face import convert_preprocessor
from keras_vjepa.models.backbone import VJEPABackbone
from keras_vjepa.tasks.classifier import VJEPAVideoClassifier
from keras_vjepa.tasks.pretrainer import VJEPAPretrainer

__all__ = [
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


def convert(path: str | Path, *args: Any, **kwargs: Any) -> VJEPAPretrainer | VJEPAVideoClassifier:
    """Whatever a file or folder holds: `authors.convert` or `hugging_face.convert`, see there.

    Raises:
        CheckpointError: if anything in it does not fit.
    """
    layout = hugging_face if Path(path).is_dir() else authors
    return layout.convert(path, *args, **kwargs)


def convert_backbone(path: str | Path, *args: Any, **kwargs: Any) -> VJEPABackbone:
    """Its encoder alone: `authors.convert_backbone` or `hugging_face.convert_backbone`.

    Raises:
        CheckpointError: if anything in that part of it does not fit.
    """
    layout = hugging_face if Path(path).is_dir() else authors
    return layout.convert_backbone(path, *args, **kwargs)
