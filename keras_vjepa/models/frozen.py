"""Which parts of a backbone are trained, whatever kind of Keras model it is (§4.3, App. D.1)."""

import dataclasses
from collections.abc import Sequence

import keras

from keras_vjepa.layers.layer_states import layers_within, set_on_each
from keras_vjepa.models.lora import has_lora


def is_trained(backbone: keras.Model) -> bool:
    """Tell whether a model that holds the backbone trains any of its weights.

    Not its `trainable` alone: Keras trains a layer that was unfrozen within a frozen model.
    """
    return any(variable.trainable for variable in backbone.variables)


def set_trainable(backbone: keras.Model, trainable: bool | None) -> None:
    """Freeze a backbone, or see to it that it is not frozen.

    Args:
        backbone: any Keras model.
        trainable: False freezes all of it. True leaves it as it is, unless all of it is frozen.
            None is True for a backbone with LoRA, else False.

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
        # Layers of a foreign model that was made with `trainable=False` are trainable.
        backbone.trainable = False
        set_on_each(backbone, False)


@dataclasses.dataclass(frozen=True)
class Flags:
    """What `trainable` was of some layers, each before those that it holds."""

    layers: Sequence[tuple[keras.layers.Layer, bool]]

    def restore(self) -> bool:
        """Set it again where it has changed; tell whether it has."""
        before = [layer.trainable for layer, _ in self.layers]
        for layer, trainable in self.layers:
            if layer.trainable != trainable:
                layer.trainable = trainable
        return before != [trainable for _, trainable in self.layers]


def kept_flags(backbone: keras.Model, trainable: bool | None) -> Flags:
    """Note which layers of a backbone from a file are trained, to outlive a constructor.

    Args:
        backbone: as it was made of its config.
        trainable: what the constructor is going to be told.

    Returns:
        Nothing to restore if that is not what the backbone is: it is a change that somebody wants.
    """
    if trainable is None or backbone.trainable != trainable:
        return Flags([])
    within = [layer for _, layer in layers_within(backbone)]
    return Flags([(layer, layer.trainable) for layer in (backbone, *within)])
