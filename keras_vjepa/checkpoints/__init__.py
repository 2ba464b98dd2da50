"""Weights from elsewhere: the authors' checkpoints as models of this package (App. C, App. D.1).

Example:

    from keras_vjepa import checkpoints

    pretrainer = checkpoints.convert("vitl16.pth.tar")
    backbone = checkpoints.convert_backbone("vitl16.pth.tar")
    classifier = checkpoints.convert_classifier(backbone, "k400-probe.pth.tar", num_clips=8)
"""

from keras_vjepa.checkpoints.authors import (
    convert,
    convert_backbone,
    convert_classifier,
    convert_probe,
)
from keras_vjepa.checkpoints.torch_archive import CheckpointError

__all__ = [
    "CheckpointError",
    "convert",
    "convert_backbone",
    "convert_classifier",
    "convert_probe",
]
