"""Make an evaluation and a preprocessor see the same pixels of a video (App. D.1).

A preset's preprocessor says how the preset's encoder sees files, and an evaluation of that encoder
follows it. The classifier that results from the evaluation gets a preprocessor in turn.
"""

from typing import Any, TypeVar

from keras_vjepa.configuration import replace
from keras_vjepa.evaluation.settings import ProbeSettings
from keras_vjepa.evaluation.views import clip_settings
from keras_vjepa.preprocessor import VJEPAVideoPreprocessor
from keras_vjepa.presets.preset import PresetName

SettingsT = TypeVar("SettingsT", bound=ProbeSettings)

# Arguments of a preprocessor that a view of an evaluation has too.
_PIXELS = ("antialias", "interpolation", "short_side", "crop_rounding", "mean", "std")


def seen_as_by_the_preset(settings: SettingsT, preset: PresetName) -> SettingsT:
    """Set an evaluation to resize and normalise pixels as a preset does, unless options say how.

    Args:
        settings: settings of the evaluation; their `image_size`, if set, is the size of the clips.
        preset: the preset whose preprocessor is followed.

    Returns:
        The settings, with those options changed in which the preprocessor is not the usual one.

    Raises:
        FileNotFoundError: if the folder is no preset.
    """
    size = {} if settings.image_size is None else {"image_size": settings.image_size}
    described = VJEPAVideoPreprocessor.from_preset(preset, **size).get_config()
    usual, given = VJEPAVideoPreprocessor().get_config(), settings.view.arguments
    own = [k for k in _PIXELS if described[k] != usual[k] and k not in given]
    return replace(settings, **{name: described[name] for name in own})


def preprocessor_of(settings: ProbeSettings) -> VJEPAVideoPreprocessor:
    """Make the preprocessor that sees a video as an evaluation does.

    Args:
        settings: settings of the evaluation; they must have an `image_size`.

    Example:

    >>> from keras_vjepa.evaluation.settings import ProbeSettings
    >>> from keras_vjepa.evaluation_pixels import preprocessor_of
    >>> settings = ProbeSettings(image_size=32)
    >>> preprocessor_of(settings).short_side is None
    True
    """
    assert settings.image_size is not None
    clip, num_views = clip_settings(settings), settings.classifier.num_views
    pixels: dict[str, Any] = {name: getattr(settings.view, name) for name in _PIXELS}
    if num_views > 1:
        pixels["short_side"] = None
    return VJEPAVideoPreprocessor(
        settings.image_size,
        clip.frames_per_clip,
        clip.frame_step,
        clip.num_clips,
        num_views,
        **{**pixels, "antialias": bool(pixels["antialias"])},
    )
