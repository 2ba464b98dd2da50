"""Load the models that pictures are made with, from a preset of any kind (App. C, App. D)."""

import functools
import os
from dataclasses import dataclass
from pathlib import Path

from keras_vjepa.data.transforms.crops import Colour
from keras_vjepa.models.backbone import VJEPABackbone
from keras_vjepa.models.predictor import VJEPAPredictor
from keras_vjepa.pictures.videos import PicturedBackbone
from keras_vjepa.preprocessor import VJEPAVideoPreprocessor
from keras_vjepa.presets.preset import PresetName, find_preset, load_backbone
from keras_vjepa.tasks.classifier import VJEPAVideoClassifier
from keras_vjepa.tasks.pretrainer import VJEPAPretrainer


@dataclass(frozen=True)
class Pictured:
    """Holds the models of a preset, and loads each when it is asked for.

    Args:
        preset: name of the preset as the user gave it.
        folder: folder of the preset.
    """

    preset: str
    folder: Path

    @functools.cached_property
    def backbone(self) -> PicturedBackbone:
        """Return the encoder.

        Raises:
            ValueError: if it is of another package.
        """
        found = load_backbone(self.folder)
        if not isinstance(found, PicturedBackbone):
            raise ValueError(
                f"`preset` must hold a backbone of keras_vjepa.models, whose patches are known. "
                f"Received: {self.preset}, of {type(found).__name__}"
            )
        # Frozen, because gradients are not needed, and computing them would keep every activation.
        found.trainable = False
        return found

    @property
    def encoder(self) -> VJEPABackbone:
        """Return the encoder where a predictor belongs to it.

        Raises:
            ValueError: if it is of another family than V-JEPA's.
        """
        found = self.backbone
        if not isinstance(found, VJEPABackbone):
            raise ValueError(
                f"`preset` must hold a VJEPABackbone, which masks and a predictor belong to. "
                f"Received: {self.preset}, of {type(found).__name__}"
            )
        return found

    @functools.cached_property
    def classifier(self) -> VJEPAVideoClassifier | None:
        """Return the classifier; None if the preset has none."""
        if not (self.folder / VJEPAVideoClassifier.config_file).is_file():
            return None
        found = VJEPAVideoClassifier.from_preset(self.folder)
        found.trainable = False
        return found

    @functools.cached_property
    def pretrainer(self) -> VJEPAPretrainer:
        """Return the pretrainer, which has encoder, predictor and targets.

        Raises:
            FileNotFoundError: if the preset has no predictor.
        """
        if (self.folder / VJEPAPretrainer.config_file).is_file():
            found = VJEPAPretrainer.from_preset(self.folder)
        else:
            predictor = VJEPAPredictor.from_preset(self.folder)
            found = VJEPAPretrainer(self.encoder, predictor)
        found.trainable = False
        return found

    @property
    def pretrainer_with_targets(self) -> VJEPAPretrainer:
        """Return the pretrainer if it can tell what its predictor should have predicted.

        Raises:
            FileNotFoundError: if the preset has no predictor.
            ValueError: if the predictor was distilled from a teacher that is not in the preset.
        """
        if self.pretrainer.target == "given":
            raise ValueError(
                "`preset` must hold what its predictor learnt to predict. "
                f"Received: {self.preset}, distilled from a teacher that is not in it"
            )
        return self.pretrainer

    @functools.cached_property
    def preprocessor(self) -> VJEPAVideoPreprocessor:
        """Return the preprocessor for the encoder's input, with one clip and one view."""
        return VJEPAVideoPreprocessor.from_preset(self.folder, num_clips=1, num_views=1)

    @property
    def colour(self) -> tuple[Colour, Colour]:
        """Return mean and deviation of red, green and blue with which the encoder was trained."""
        return self.preprocessor.mean, self.preprocessor.std


def load_pictured(preset: PresetName, needs_predictor: bool = False) -> Pictured:
    """Find a preset; its models are loaded only when they are asked for.

    Args:
        preset: as in `VJEPABackbone.from_preset`.
        needs_predictor: whether a preset without a predictor is refused.

    Raises:
        FileNotFoundError: if there is no such preset.
        ValueError: if there is no such name, or if a predictor is needed and missing.

    Example:

    >>> import tempfile
    >>> from pathlib import Path
    >>> from keras_vjepa import VJEPABackbone
    >>> from keras_vjepa.pictures.loading import load_pictured
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     backbone = VJEPABackbone(32, 4, hidden_dim=24, num_layers=1, num_heads=2)
    ...     backbone.save_to_preset(Path(folder) / "small")
    ...     load_pictured(Path(folder) / "small").backbone.num_tokens
    8
    """
    found = Pictured(os.fspath(preset), find_preset(preset))
    kinds = (VJEPAPretrainer, VJEPAPredictor)
    if needs_predictor and not any((found.folder / kind.config_file).is_file() for kind in kinds):
        raise ValueError(
            "`preset` must have a predictor, as that of a pretraining run has. "
            f"Received: {found.preset}"
        )
    return found
