"""Freeze and unfreeze parts of a backbone, whatever kind of Keras model it is (§4.3, App. D.1)."""

import dataclasses
from collections.abc import Sequence

import keras

from keras_vjepa.layers.layer_states import layers_within, set_on_each
from keras_vjepa.models.lora import has_lora


def is_trained(backbone: keras.Model) -> bool:
    """Tell whether any weight of a backbone is trained when a model that holds it is.

    Its `trainable` alone does not tell: Keras trains a layer that was unfrozen within a frozen
    model.
    """
    return any(variable.trainable for variable in backbone.variables)


def set_trainable(backbone: keras.Model, trainable: bool | None) -> None:
    """Freeze a backbone, or make sure that it is not frozen.

    Args:
        backbone: any Keras model.
        trainable: False freezes all of it. True unfreezes a backbone that is frozen, and leaves any
            other as it is. None means True for a backbone with LoRA, else False.

    Example:

    >>> from keras_vjepa import VJEPABackbone
    >>> from keras_vjepa.models.frozen import is_trained, set_trainable
    >>> backbone = VJEPABackbone(32, 4, hidden_dim=24, num_layers=1, num_heads=2)
    >>> set_trainable(backbone, False)
    >>> is_trained(backbone)
    False
    """
    if trainable is None:
        trainable = has_lora(backbone)
    if trainable and not backbone.trainable:
        backbone.trainable = True
    elif not trainable:
        # In a model from elsewhere that was made with `trainable=False`, layers may be trainable.
        backbone.trainable = False
        set_on_each(backbone, False)


@dataclasses.dataclass(frozen=True)
class Flags:
    """Remembers the value of `trainable` of some layers; a layer precedes those within it."""

    layers: Sequence[tuple[keras.layers.Layer, bool]]

    def restore(self) -> bool:
        """Set `trainable` back where it has changed; return whether it had changed anywhere."""
        before = [layer.trainable for layer, _ in self.layers]
        for layer, trainable in self.layers:
            if layer.trainable != trainable:
                layer.trainable = trainable
        return before != [trainable for _, trainable in self.layers]


def kept_flags(backbone: keras.Model, trainable: bool | None) -> Flags:
    """Remember which layers of a backbone from a file are trained, before a task changes that.

    Args:
        backbone: the backbone, as it was made from its config.
        trainable: the argument `trainable` that the task's constructor will get.

    Returns:
        The flags to restore. There are none if `trainable` differs from the backbone's own: then
        somebody wants the change.
    """
    if trainable is None or backbone.trainable != trainable:
        return Flags([])
    within = [layer for _, layer in layers_within(backbone)]
    return Flags([(layer, layer.trainable) for layer in (backbone, *within)])
