"""Load backbones from presets, also for clips of another size than theirs (§3.3, App. C).

Departure from the authors' code, which stretches the position table each time it encodes a clip of
another size: here the table is stretched once, and the backbone is then made for that size.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from keras import ops

from keras_vjepa.arguments import shown
from keras_vjepa.models.adapters import Size
from keras_vjepa.models.dimensions import height_and_width
from keras_vjepa.presets.preset import (
    CONFIG_FILE,
    Preset,
    PresetName,
    check_class,
    find_preset,
    load_backbone,
    read_config,
)

_LOG = logging.getLogger(__name__)

# Arguments that determine the shapes of the weights, or their meaning.
_OF_WEIGHTS = (
    "patch_size",
    "tubelet_size",
    "hidden_dim",
    "num_layers",
    "num_heads",
    "mlp_ratio",
    "mlp_dim",
    "activation",
    "final_norm",
    "num_register_tokens",
    "projection_dim",
    "num_channels",
    "position_embedding",
    "level_layers",
    "modalities",
)


class BackbonePreset(Preset):
    """Adds `from_preset`, which can change the size, and `save_to_preset` to a backbone."""

    @classmethod
    def from_preset(
        cls,
        preset: PresetName,
        load_weights: bool = True,
        trust_on_first_use: bool = False,
        **overrides: Any,
    ) -> Self:
        """Restore a backbone from a preset of any kind.

        Args:
            preset, load_weights, trust_on_first_use: as in `Preset.from_preset`.
            overrides: constructor arguments to change. For another `image_size` or `num_frames` the
                position table is stretched once, or, with `position_mode="fresh"`, made again; the
                log says so. Rotary positions need neither.

        Raises:
            FileNotFoundError: if the folder is not a preset.
            ValueError: for overrides that do not exist, or that do not fit the weights.
        """
        if not load_weights or not overrides:
            return super().from_preset(preset, load_weights, trust_on_first_use, **overrides)
        check_class(preset, cls)
        folder = find_preset(preset, load_weights, trust_on_first_use)
        stored = read_config(folder, CONFIG_FILE, cls.__name__)["config"]
        _check_fit(folder, stored, overrides)
        sizes: dict[str, Any] = {
            name: overrides.pop(name) for name in ("image_size", "num_frames") if name in overrides
        }
        model = super().from_preset(folder, **overrides)
        return resized(model, sizes, f"Positions of {folder}") if sizes else model


def load_backbone_of_size(
    folder: Path,
    load_weights: bool,
    sizes: Mapping[str, Any],
    loaded: Any = None,
    **overrides: Any,
) -> Any:
    """Load the backbone of a preset folder, whatever its class, for clips of another size.

    Args:
        folder: the folder of the preset.
        load_weights: False gives fresh weights.
        sizes: `image_size`, `num_frames`, both or none.
        loaded: the backbone, if its weights have been read already; None to read them.
        overrides: further arguments to change.

    Raises:
        FileNotFoundError: if the folder holds no backbone.
        ValueError: for sizes that do not fit the weights, and for any size if the backbone comes
            from another package.
    """
    if not sizes or not load_weights:
        return load_backbone(folder, load_weights, **sizes, **overrides)
    _check_fit(folder, read_config(folder, CONFIG_FILE, "VJEPABackbone")["config"], sizes)
    backbone = load_backbone(folder, **overrides) if loaded is None else loaded
    if not isinstance(backbone, BackbonePreset):
        raise ValueError(
            f"{' and '.join(map('`{}`'.format, sizes))} must be left out for a backbone that is "
            f"of another package. Received: {folder}"
        )
    return resized(backbone, sizes, f"Positions of {folder}")


def load_backbone_to_evaluate(
    preset: PresetName, image_size: Size | None = None, **overrides: Any
) -> Any:
    """Load a preset's backbone; one of the rivals' for frames of the wanted size (App. D.1).

    Args:
        preset: the preset.
        image_size: height and width; None for the size that a rival is evaluated at, which for
            DINOv2 is 224 and not the 518 pixels that its positions are stored for. V-JEPA's own
            encoders keep their size.
        overrides: further arguments to change.

    Raises:
        ValueError: for a size that the rival has no positions for.
    """
    backbone = load_backbone(preset, **overrides)
    # The encoders with a size to be evaluated at are the rivals'; some take one size alone.
    evaluated_at = getattr(backbone, "input_size", None)
    if evaluated_at is None or backbone.input_shapes == "one":
        return backbone
    wanted = image_size or evaluated_at
    if height_and_width(wanted) == height_and_width(backbone.image_size):
        return backbone
    return resized(backbone, {"image_size": wanted}, f"Positions of {preset}")


def _check_fit(folder: Path, stored: Mapping[str, Any], overrides: Mapping[str, Any]) -> None:
    for name in _OF_WEIGHTS:
        if name in overrides and _as_stored(overrides[name]) != stored.get(name):
            raise ValueError(
                f"`{name}` must be {stored.get(name)!r} for the weights of {folder / CONFIG_FILE}; "
                f"pass `load_weights=False` for fresh ones. Received: {shown(overrides[name])}"
            )
    num_frames = overrides.get("num_frames", stored.get("num_frames"))
    if (num_frames == 1) != (stored.get("num_frames") == 1):
        wanted = "more than 1" if num_frames == 1 else "1"
        kind = "clips" if num_frames == 1 else "single images"
        raise ValueError(
            f"`num_frames` must be {wanted} for the weights of {folder}, which are of {kind}. "
            f"Received: {shown(num_frames)}"
        )


def _as_stored(value: Any) -> Any:
    """Return an argument as a JSON file gives it back, which has no tuples."""
    return [*value] if isinstance(value, tuple) else value


def resized(backbone: Any, sizes: Mapping[str, Any], subject: str) -> Any:
    """Make a backbone of another size with the weights of one that has been trained.

    Args:
        backbone: the trained backbone.
        sizes: `image_size`, `num_frames` or both.
        subject: how the line in the log begins, such as "Positions of FOLDER"; the line is written
            if there is a position table.

    Returns:
        The new backbone, or `backbone` itself if it has that size.

    Raises:
        ValueError: for sizes that the constructor refuses.
    """
    config = backbone.get_config()
    new = type(backbone).from_config({**config, **sizes})
    if new.video_shape == backbone.video_shape:
        return backbone
    weights = backbone.get_weights()
    positions = backbone.table_for(new)
    if positions is not None:
        place = [variable is backbone.position_table for variable in backbone.weights].index(True)
        table, verb = positions
        weights[place] = ops.convert_to_numpy(table)
        was, now = (
            "{} x {} x {}".format(one.num_frames, *height_and_width(one.image_size))
            for one in (backbone, new)
        )
        _LOG.warning("%s %s from %s to %s", subject, verb, was, now)
    new.set_weights(weights)
    return new


def copy_weights(source: Any, target: Any, **preset: str) -> None:
    """Copy the weights of a backbone to another one of the same architecture.

    Args:
        source: the trained backbone.
        target: the backbone that gets the weights.
        preset: one pair for messages: the argument that named the source's preset, and that name.

    Raises:
        ValueError: if an argument that determines the architecture differs between the two; the
            message names the first of these.
    """
    ((argument, name),) = preset.items()
    free = {"name", "dtype", "remat", "trainable", "drop_path_rate"}
    wanted, found = target.get_config(), source.get_config()
    for option in sorted(wanted.keys() - free):
        if wanted[option] != found[option]:
            raise ValueError(
                f"`{argument}` must be an encoder of the config's architecture, with `{option}`="
                f"{wanted[option]}. Received: {found[option]} in {name}"
            )
    target.set_weights(source.get_weights())
