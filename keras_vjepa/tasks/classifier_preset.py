"""Save classifiers as presets, and make classifiers from presets of any model (App. D.1)."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import keras

from keras_vjepa.arguments import arguments_of
from keras_vjepa.models.backbone_preset import load_backbone_of_size
from keras_vjepa.models.frozen import kept_flags, set_trainable
from keras_vjepa.presets.preprocessing import Preprocessor, preset_preprocessor
from keras_vjepa.presets.preset import (
    CONFIG_FILE,
    PREPROCESSOR_FILE,
    WEIGHTS_FILE,
    Preset,
    PresetName,
    check_claims,
    find_preset,
    lacks,
    load_backbone,
    read_config,
)

# Constructor arguments that determine the shapes of the probe's weights, or what they mean.
PROBE_ARGUMENTS = (
    "num_classes",
    "pooling",
    "num_heads",
    "head_dim",
    "num_layers",
    "mlp_ratio",
    "layer_norm_epsilon",
    "self_attention",
)
# Constructor arguments that determine which head the classifier has, and what the head reads.
_HEAD_ARGUMENTS = ("head", "encoder_norm")

PROBE_FILE = "task.weights.h5"
_SIZES = ("image_size", "num_frames")

_LOG = logging.getLogger(__name__)


class ClassifierPreset(Preset):
    """Adds `from_preset` and `save_to_preset` to a classifier of backbone, probe and preprocessor.

    Attributes:
        backbone: the backbone of the classifier.
        probe: the probe of the classifier.
        preprocessor: the preprocessor of the classifier, or None.
        num_classes: number of classes of the probe.
        head_arguments: constructor arguments that determine what the head's weights mean; the
            first of them is `num_classes`.
    """

    config_file = "task.json"
    head_arguments: ClassVar[tuple[str, ...]] = (*PROBE_ARGUMENTS, *_HEAD_ARGUMENTS)

    backbone: keras.Model
    probe: keras.Model
    preprocessor: Preprocessor | None
    num_classes: int

    def head_model(self) -> keras.Model:
        """Return the part that is trained on labels, whose weights have a file of their own."""
        return self.probe

    def with_backbone(self, backbone: keras.Model) -> Self:
        """Make a model with the same arguments and head on another backbone.

        Args:
            backbone: its tokens must have the same width.
        """
        own: Any = self
        other: Any = self.from_config({**own.get_config(), "backbone": backbone})
        other.head_model().set_weights(self.head_model().get_weights())
        return cast(Self, other)

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Self:
        parts = {
            name: keras.saving.deserialize_keras_object(config[name], custom_objects=custom_objects)
            for name in ("backbone", "preprocessor")
            # Configs from before classifiers had preprocessors do not name one.
            if isinstance(config.get(name), dict)
        }
        config = {**config, **parts}
        as_it_was = kept_flags(config["backbone"], config.get("trainable_backbone"))
        model: Any = cls(**config)
        if as_it_was.restore():
            # The constructor has compiled the model before this changed what is trained.
            model.compile()
        return cast(Self, model)

    def preset_files(self) -> dict[str, Any]:
        files = {
            CONFIG_FILE: self.backbone,
            WEIGHTS_FILE: self.backbone,
            self.config_file: self,
            PROBE_FILE: self.head_model(),
        }
        if self.preprocessor is not None:
            files[PREPROCESSOR_FILE] = self.preprocessor
        return files

    @classmethod
    def from_preset(
        cls,
        preset: PresetName,
        load_weights: bool = True,
        trust_on_first_use: bool = False,
        **overrides: Any,
    ) -> Self:
        """Restore a classifier from its preset, or begin one from a backbone's or pretrainer's.

        The preprocessor of the preset comes with the classifier, set to its clips and views.

        Args:
            preset, load_weights, trust_on_first_use: as in `Preset.from_preset`. From a backbone's
                or pretrainer's preset, the probe is fresh.
            overrides: constructor arguments. `num_classes` or `class_names` is needed if the preset
                holds no classifier. If it holds one for other classes, a fresh probe takes the
                place of the stored one, and the log says so. `dtype` applies to the backbone as
                well; `drop_path_rate` goes to the backbone; `image_size` and `num_frames` go to the
                backbone and the preprocessor.

        Raises:
            FileNotFoundError: if the folder is no preset.
            ValueError: without classes for a preset that holds no classifier, and for overrides
                that the probe's weights do not fit.
        """
        sizes = {name: overrides.pop(name) for name in _SIZES if name in overrides}
        drop_path = {k: overrides.pop(k) for k in ("drop_path_rate",) if k in overrides}
        arguments_of(cls, {"backbone": None, **overrides})
        has_classes = bool({"num_classes", "class_names"} & {*overrides})
        # Of a built-in name this is known before its files are downloaded.
        cls._check_classes(has_classes or not lacks(preset, cls.config_file), preset)
        folder = find_preset(preset, load_weights, trust_on_first_use)
        precision = {**drop_path, **{k: v for k, v in overrides.items() if k == "dtype"}}
        is_classifier = (folder / cls.config_file).is_file()
        cls._check_classes(has_classes or is_classifier, preset)
        stored: dict[str, Any] = {}
        if is_classifier:
            stored = read_config(folder, cls.config_file, cls.__name__)["config"]
        if not is_classifier or needs_new_head(stored, overrides):
            backbone = load_backbone_of_size(folder, load_weights, sizes, **precision)
            arguments = begun_anew(stored, _with_preprocessor(folder, stored, overrides, sizes))
            model = cls(**{**arguments, "backbone": backbone})
            if is_classifier and load_weights:
                _LOG.warning(
                    "Left out of %s: the probe of its %s classes; that of %d classes begins anew",
                    os.fspath(preset),
                    stored.get("num_classes"),
                    model.num_classes,
                )
            return model
        overrides = _with_preprocessor(folder, stored, overrides, sizes)
        model = cls._with_its_probe(folder, stored, load_weights, precision, overrides)
        if not sizes:
            return model
        backbone = load_backbone_of_size(folder, load_weights, sizes, model.backbone, **precision)
        set_trainable(backbone, model.backbone.trainable)
        return model.with_backbone(backbone)

    @classmethod
    def _check_classes(cls, are_known: bool, preset: PresetName) -> None:
        if not are_known:
            raise ValueError(
                f"`num_classes` must be given for a preset that holds no {cls.config_file}, or "
                f"`class_names`. Received: {os.fspath(preset)}"
            )

    @classmethod
    def _with_its_probe(
        cls,
        folder: Path,
        stored: dict[str, Any],
        load_weights: bool,
        precision: dict[str, Any],
        overrides: dict[str, Any],
    ) -> Self:
        if load_weights:
            # The backbone is made from its own config file, and the probe from the classifier's,
            # which describes both: each file is checked for what is made from it.
            check_claims(folder, CONFIG_FILE, keras.Model, precision)
            check_claims(folder, cls.config_file, cls, overrides)
        stored = {"head": "probe", **stored}  # presets from before there were two heads name none
        for name in cls.head_arguments[1:]:
            if load_weights and overrides.get(name, stored.get(name)) != stored.get(name):
                raise ValueError(
                    f"`{name}` must be {stored.get(name)!r}, as the probe of {folder}, or pass its "
                    f"backbone to {cls.__name__} for a fresh one. Received: {overrides[name]!r}"
                )
        overrides["backbone"] = load_backbone(folder, load_weights=False, **precision)
        if "trainable_backbone" in overrides:
            # The override takes precedence over what the backbone's config says of single layers.
            set_trainable(overrides["backbone"], overrides["trainable_backbone"])
        return super().from_preset(folder, load_weights, **overrides)


def needs_new_head(stored: Mapping[str, Any], overrides: Mapping[str, Any]) -> bool:
    """Tell whether the classes of a preset differ from those that are asked for.

    Args:
        stored: arguments of the classifier in the preset.
        overrides: arguments to change.

    Returns:
        Whether they differ. Classes without names that are given names stay the same classes.

    Example:

    >>> from keras_vjepa.tasks.classifier_preset import needs_new_head
    >>> needs_new_head({"num_classes": 2}, {"class_names": ["a", "b"]})
    False
    """
    names, stored_names = overrides.get("class_names"), stored.get("class_names")
    number = overrides.get("num_classes")
    if number is None:
        number = stored.get("num_classes") if names is None else len(names)
    renamed = None not in (names, stored_names) and list(names or ()) != stored_names
    return number != stored.get("num_classes") or renamed


def begun_anew(stored: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Merge arguments for a classifier with a new head, without the names of the old classes.

    Args:
        stored: arguments of the classifier in the preset.
        overrides: arguments to change.
    """
    of_the_head = ("name", "class_names", "layer_states")
    kept = {name: value for name, value in stored.items() if name not in of_the_head}
    if overrides.get("num_classes") is None:
        kept.pop("num_classes", None)
    return {**kept, **overrides}


def _with_preprocessor(
    folder: Path, stored: Mapping[str, Any], overrides: Mapping[str, Any], sizes: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the overrides, with the preset's preprocessor added unless they name one."""
    if "preprocessor" in overrides:
        return dict(overrides)
    views = {name: overrides.get(name, stored.get(name, 1)) for name in ("num_clips", "num_views")}
    return {**overrides, "preprocessor": preset_preprocessor(folder, **views, **sizes)}
