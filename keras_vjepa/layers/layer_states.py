"""Keep what is set on a model's layers after it is made: frozen, quantized, LoRA (App. D.1).

A Keras model that makes its own layers is described by its arguments, and these do not say what was
done to a layer later. This module writes such changes down, by the layer's path within the model:

    trainable              if it differs from that of the layer around it
    quantization_config    the one that `quantize` was given or made
    lora_rank, lora_alpha  those of `enable_lora`; the path "" is the model itself

A model keeps these states as its argument `layer_states`, which its config holds only if there is
something to keep. So they survive saving, cloning and presets.
"""

import contextlib
import gc
import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import keras

from keras_vjepa.arguments import check_choice, check_flag, check_number, check_whole, shown
from keras_vjepa.backend.device import check_computes_in
from keras_vjepa.backend.keras_internals import layers_of, track_weights_anew

States = dict[str, dict[str, Any]]
Layers = Collection[keras.layers.Layer]

_NAMES = ("trainable", "quantization_config", "lora_rank", "lora_alpha")


class KeepsLayerStates(keras.layers.Layer):
    """Keeps in a model's config what was set on its layers after the model was made.

    A subclass's `build` does nothing if the model is built: users call it again, before `summary`,
    because a Keras model that makes its weights late needs that. It ends with a call of
    `restore_layer_states`.

    Args:
        layer_states: what the config of another model with the same arguments holds under this
            name; None for a model that is as its arguments say.
        args: positional arguments of Keras' constructor.
        kwargs: further arguments of Keras' constructor.

    Attributes:
        lora_rank: the rank that the model's own `enable_lora` was called with; None if it was not.

    Example:

    >>> from keras_vjepa import VJEPABackbone
    >>> backbone = VJEPABackbone(32, 4, hidden_dim=24, num_layers=2, num_heads=2)
    >>> backbone.blocks[0].trainable = False
    >>> backbone.get_config()["layer_states"]
    {'block_0': {'trainable': False}}
    >>> VJEPABackbone.from_config(backbone.get_config()).blocks[0].trainable
    False
    """

    lora_rank: int | None = None
    built: bool
    # True in a class that has an `enable_lora` of its own.
    takes_lora = False

    def __init__(
        self, *args: Any, layer_states: Mapping[str, Mapping[str, Any]] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        check_computes_in(self.dtype_policy)
        self._ahead = _Ahead(layer_states)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "trainable":
            # Layer by layer: an engine may skip the assignment of a value that a layer already has,
            # and the layers within it, which may have been set otherwise since, would keep theirs.
            set_on_each(self, bool(value))
            type(self).trainable.fset(self, value)
        else:
            super().__setattr__(name, value)

    # A method, not a property: Keras saves layers that a property returns a second time.
    def described_elsewhere(self) -> Layers:
        """Return the layers whose states this model does not keep: their own configs do."""
        return ()

    def restore_layer_states(self) -> None:
        """Set on the layers what the argument `layer_states` says.

        Raises:
            ValueError: for a layer that does not exist, and for a state that a layer cannot have.
        """
        layers = dict(layers_within(self, self.described_elsewhere()))
        if not self.trainable:
            # The model was made with `trainable=False`, before it had layers to pass this on to.
            for layer in layers.values():
                layer.trainable = False
        states = self._ahead.take()
        for path in states:
            if path not in layers and not (path == "" and self.takes_lora):
                raise ValueError(
                    f"`layer_states` must be of layers of {self.name}. Received: {shown(path)}"
                )
        self.lora_rank = states.pop("", {}).get("lora_rank")
        # In this order: LoRA is added last, beside weights that are quantized already, and it has
        # the last word on which of them are frozen.
        with _few_collections():
            for step in (_quantize, _set_trainable, _enable_lora):
                for path, layer in layers.items():
                    step(layer, states.get(path, {}))
        if any({"quantization_config", "lora_rank"} & state.keys() for state in states.values()):
            track_weights_anew(self)

    def quantize(self, *args: Any, **kwargs: Any) -> None:
        """Quantize the model, as `keras.Model.quantize` does; `layer_states` keeps the result."""
        with _few_collections():
            super().quantize(*args, **kwargs)

    def get_config(self) -> dict[str, Any]:
        states = _found(self, self.described_elsewhere()) or self._ahead.states
        return {**super().get_config(), **({"layer_states": states} if states else {})}


class _Ahead:
    """Holds states that are still to be set, in an object whose content Keras does not track."""

    def __init__(self, states: Any) -> None:
        """Check the states, which may come from a file."""
        if not isinstance(states, Mapping | None):
            raise ValueError(f"`layer_states` must be a dictionary. Received: {shown(states)}")
        for path, state in (states or {}).items():
            if not isinstance(path, str) or not isinstance(state, Mapping):
                raise ValueError(
                    "`layer_states` must hold dictionaries by paths of layers. "
                    f"Received: {shown(path)}: {shown(state)}"
                )
            for name in state:
                check_choice(_NAMES, layer_states=name)
            check_flag(trainable=state.get("trainable", True))
            check_whole(1, lora_rank=state.get("lora_rank", 1))
            check_number("(0, inf)", lora_alpha=state.get("lora_alpha", 1))
        self.states: States = {path: dict(state) for path, state in (states or {}).items()}

    def take(self) -> States:
        """Return the states the first time; later calls get an empty dictionary."""
        states, self.states = self.states, {}
        return states


# --- Layer by layer ------------------------------------------------------------------------------


def layers_within(
    around: keras.layers.Layer, elsewhere: Layers = (), prefix: str = ""
) -> Iterator[tuple[str, keras.layers.Layer]]:
    """Yield the path and the layer for all layers within another, outer layers first."""
    for layer in layers_of(around):
        if not any(layer is other for other in elsewhere):
            path = f"{prefix}{layer.name}"
            yield path, layer
            yield from layers_within(layer, elsewhere, f"{path}/")


def set_on_each(around: keras.layers.Layer, trainable: bool) -> None:
    """Set `trainable` on every layer within another, where it has another value."""
    for _, layer in layers_within(around):
        if layer.trainable != trainable:
            layer.trainable = trainable


def _found(model: KeepsLayerStates, elsewhere: Layers) -> States:
    """Read from the layers what is set on them."""
    states: States = {"": {} if model.lora_rank is None else {"lora_rank": model.lora_rank}}
    around = {"": model}
    for path, layer in layers_within(model, elsewhere):
        around[path], state = layer, states.setdefault(path, {})
        if layer.trainable != around[path.rpartition("/")[0]].trainable:
            state["trainable"] = layer.trainable
        if layer.quantization_mode != model.quantization_mode:
            config = keras.saving.serialize_keras_object(layer.quantization_config)
            # The same form that a file gives back: tuples become lists.
            state["quantization_config"] = json.loads(json.dumps(config))
        if getattr(layer, "lora_enabled", False):
            state.update(lora_rank=layer.lora_rank, lora_alpha=layer.lora_alpha)
    return {path: state for path, state in states.items() if state}


@contextlib.contextmanager
def _few_collections() -> Iterator[None]:
    """Let Python's garbage collections skip the objects that exist already.

    Keras starts a collection for each kernel that it replaces. In a process that has imported much,
    each would take a second, and a large model would take minutes.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _quantize(layer: keras.layers.Layer, state: Mapping[str, Any]) -> None:
    if "quantization_config" in state:
        layer.quantize(config=_quantization_config(state["quantization_config"]))


def _set_trainable(layer: keras.layers.Layer, state: Mapping[str, Any]) -> None:
    if "trainable" in state:
        layer.trainable = state["trainable"]


def _enable_lora(layer: keras.layers.Layer, state: Mapping[str, Any]) -> None:
    if "lora_rank" in state:
        if not hasattr(layer, "enable_lora"):
            raise ValueError(
                f"`layer_states` must give a `lora_rank` to dense layers. Received: {layer.name}"
            )
        # Without this limit a file could ask for any amount of memory.
        check_whole(1, min(layer.kernel.shape), lora_rank=state["lora_rank"])
        layer.enable_lora(state["lora_rank"], state.get("lora_alpha"))


def _quantization_config(described: Any) -> Any:
    """Make a quantization config from its description; allow no class but Keras' quantizers."""
    ahead = [described]
    while ahead:
        part = ahead.pop()
        if isinstance(part, Mapping):
            name = part.get("class_name", "Quantizer")
            if not isinstance(name, str) or not hasattr(keras.quantizers, name):
                raise ValueError(
                    "`quantization_config` must be made of classes of keras.quantizers. "
                    f"Received: {shown(name)}"
                )
            ahead += part.values()
    found = keras.saving.deserialize_keras_object(described)
    if not isinstance(found, keras.quantizers.QuantizationConfig):
        raise ValueError(
            f"`quantization_config` must be one of keras.quantizers. Received: {shown(described)}"
        )
    return found
