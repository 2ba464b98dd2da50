"""Convert weights from elsewhere to models of this package, and back (App. C, App. D.1).

It reads files in the authors' layout (V-JEPA and V-JEPA 2) and folders of the transformers package:

    from keras_vjepa import conversion

    pretrainer = conversion.convert("vitl16.pth.tar")
    backbone = conversion.convert_backbone("vitl16.pth.tar")
    classifier = conversion.convert_classifier(backbone, "k400-probe.pth.tar", num_clips=8)
    classifier = conversion.convert("vjepa2-vitl-fpc16-256-ssv2/")
    preprocessor = conversion.convert_preprocessor("vjepa2-vitl-fpc64-256/")

and writes them again:

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
    """Convert a file or a folder to the model that it holds.

    A folder is read by `hugging_face.convert` and a file by `authors.convert`, which describe the
    arguments.

    Raises:
        CheckpointError: if anything in the file or folder does not fit.
    """
    layout = hugging_face if Path(path).is_dir() else authors
    return layout.convert(path, *args, **kwargs)


def convert_backbone(path: str | Path, *args: Any, **kwargs: Any) -> VJEPABackbone:
    """Convert only the encoder of a file or a folder.

    A folder is read by `hugging_face.convert_backbone` and a file by `authors.convert_backbone`,
    which describe the arguments.

    Raises:
        CheckpointError: if anything in that part of the file or folder does not fit.
    """
    layout = hugging_face if Path(path).is_dir() else authors
    return layout.convert_backbone(path, *args, **kwargs)
