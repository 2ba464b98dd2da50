"""The encoders that a pretraining run begins with or learns from, by their presets (App. C).

A preset is told by its weights where both sides know them: it may have moved.
"""

from collections.abc import Mapping
from typing import Any

from keras_vjepa.models.backbone import VJEPABackbone
from keras_vjepa.presets.fingerprints import fingerprint_of_weights
from keras_vjepa.tasks.pretrainer import VJEPAPretrainer


def load_encoder(config: Any, field: str) -> VJEPABackbone | None:
    """Load the encoder of the preset that a field of the config names, if it names one.

    Args:
        config: of a run; has `dtype`.
        field: `"start_from"` or `"teacher"`.

    Raises:
        FileNotFoundError: if there is no such preset.
    """
    preset = getattr(config, field)
    if not preset:
        return None
    try:
        return VJEPABackbone.from_preset(preset, dtype=config.dtype, name=field)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"`{field}` must be a preset of a trained encoder: train it first. {error}"
        ) from None


def weights_of_presets(config: Any, pretrainer: VJEPAPretrainer) -> dict[str, str]:
    """Hash the weights that a fresh pretrainer has from presets, by the names of their fields.

    Args:
        config: of the run.
        pretrainer: as it is before the first step.
    """
    networks = {"start_from": pretrainer.encoder, "teacher": pretrainer.teacher}
    return {
        f"{field}_weights": fingerprint_of_weights(network)
        for field, network in networks.items()
        if getattr(config, field)
    }


def presets_as_they_are(config: Any, stored: Mapping[str, Any]) -> dict[str, str]:
    """Hash the weights of the presets of a run that is finished, in the words of its config.

    Args:
        config: of the run as it is asked for now.
        stored: what it left.
    """
    found = {}
    for field in ("start_from", "teacher"):
        name, path = f"{field}_weights", getattr(config, field)
        if path and name in stored:
            try:
                found[name] = fingerprint_of_weights(load_encoder(config, field))
            except OSError:
                # Results stay when the preset is gone.
                if path == stored.get(field):
                    found[name] = stored[name]
    return found
