"""Load the encoders that a pretraining run begins with or learns from, by their presets (App. C).

A preset is recognised by the hash of its weights where that is known, because its folder may have
moved.
"""

from collections.abc import Mapping
from typing import Any

from keras_vjepa.arguments import shown
from keras_vjepa.models.backbone import VJEPABackbone
from keras_vjepa.presets.fingerprints import fingerprint_of_weights
from keras_vjepa.presets.preset import CONFIG_FILE, check_preset, find_preset, read_config
from keras_vjepa.tasks.pretrainer import VJEPAPretrainer

# Arguments of an encoder that change how it computes, but not the result.
_FREE = {"remat"}


def architecture_to_begin_with(config: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Read the encoder's options from the preset that a run begins with.

    Args:
        config: config of a recipe; `encoder` is a part of it.
        given: options that a user has set, by name.

    Returns:
        Values of options, by name; empty if the run begins with no preset.

    Raises:
        FileNotFoundError: if the preset is not there.
        ValueError: for an option that the user has set to another value than the preset's.
    """
    preset = given.get("start_from", config.start_from)
    if not preset:
        return {}
    check_preset(preset, "start_from")
    folder = find_preset(preset, load_weights=False)
    stored = read_config(folder, CONFIG_FILE, VJEPABackbone.__name__)["config"]
    found = {}
    known = config.encoder.parameters.keys() - config.encoder.supplied
    for argument in stored.keys() & known - _FREE:
        option, value = config.encoder.option_name(argument), stored[argument]
        found[option] = tuple(value) if isinstance(value, list) else value
        if option in given and given[option] != found[option]:
            raise ValueError(
                f"`{option}` must be left out with `start_from`, or be {shown(found[option])}, as "
                f"{preset} has it. Received: {shown(given[option])}"
            )
    return found


def load_encoder(config: Any, field: str) -> VJEPABackbone | None:
    """Load the encoder of the preset that a field of the config names, if it names one.

    Args:
        config: config of a run; has `dtype`, `encoder` and `images`.
        field: `"start_from"` or `"teacher"`.

    Raises:
        FileNotFoundError: if there is no such preset.
        ValueError: for a teacher that takes no images, if the run reads some.
    """
    preset = getattr(config, field)
    if not preset:
        return None
    try:
        # Pretraining never leaves blocks out, even if the preset was trained that way.
        encoder = VJEPABackbone.from_preset(
            preset, dtype=config.dtype, name=field, drop_path_rate=0.0, **_size_of(config, field)
        )
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"`{field}` must be a preset of a trained encoder: train it first. {error}"
        ) from None
    if field == "teacher" and config.images.data and not encoder.modalities:
        raise ValueError(
            f"`teacher` must be a preset with `modalities`, such as one of V-JEPA 2.1, with "
            f"`image_data`. Received: {preset}, which does not take images"
        )
    return encoder


def _size_of(config: Any, field: str) -> dict[str, Any]:
    """Return the clips that a teacher is made for: those of the encoder, if it has no table."""
    if field != "teacher" or config.encoder.position_embedding == "sincos":
        return {}
    return {name: getattr(config.encoder, name) for name in ("image_size", "num_frames")}


def weights_of_presets(config: Any, pretrainer: VJEPAPretrainer) -> dict[str, str]:
    """Hash the weights that a fresh pretrainer took from presets, by the presets' config fields.

    Args:
        config: config of the run.
        pretrainer: as it is before the first step.
    """
    networks = {"start_from": pretrainer.encoder, "teacher": pretrainer.teacher}
    return {
        f"{field}_weights": fingerprint_of_weights(network)
        for field, network in networks.items()
        if getattr(config, field)
    }


def presets_as_they_are(config: Any, stored: Mapping[str, Any]) -> dict[str, str]:
    """Hash the weights that the presets of a finished run hold now, by the names in its config.

    Args:
        config: config of the run as it is asked for now.
        stored: config that the run has stored.
    """
    found = {}
    for field in ("start_from", "teacher"):
        name, path = f"{field}_weights", getattr(config, field)
        if path and name in stored:
            try:
                found[name] = fingerprint_of_weights(load_encoder(config, field))
            except OSError:
                # The results of a run stay valid when its preset is gone.
                if path == stored.get(field):
                    found[name] = stored[name]
    return found
