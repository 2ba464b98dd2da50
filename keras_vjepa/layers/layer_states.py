"""What is set on the layers of a model after it was made: frozen, quantized, LoRA (App. D.1).

A Keras model that makes its layers itself is described by its arguments, which know nothing of what
was done to a layer since. Here that is written down, by the layer's path within the model:

    trainable              if it is not that of the layer around it
    quantization_config    that `quantize` was given, or made
    lora_rank, lora_alpha  of `enable_lora`; the path "" is the model itself

A model keeps it as the argument `layer_states`, which its config has only if there is something to
keep. So it outlives saving, cloning and presets.
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
    """A model whose config holds what was set on its layers after it was made.

    Its `build` ends with a call of `restore_layer_states`.

    Args:
        layer_states: what the config of another model of the same arguments has under this name;
            None for a model as its arguments say.
        args: of Keras.
        kwargs: of Keras.

    Attributes:
        lora_rank: that the model's own `enable_lora` was given, if it has one and it was called.

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
    # Of a class whose own `enable_lora` there is.
    takes_lora = False

    def __init__(
        self, *args: Any, layer_states: Mapping[str, Mapping[str, Any]] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        check_computes_in(self.dtype_policy)
        self._ahead = _Ahead(layer_states)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "trainable":
            # One by one: an engine may pass over an assignment of what a layer has already, and
            # layers within that, which may have been set since, would not hear of it.
            set_on_each(self, bool(value))
            type(self).trainable.fset(self, value)
        else:
            super().__setattr__(name, value)

    # A method: Keras takes a property that returns layers for another place to save them in.
    def described_elsewhere(self) -> Layers:
        """Return layers whose states are not for this model to keep: they have a config."""
        return ()

    def restore_layer_states(self) -> None:
        """Set on the layers what the argument `layer_states` says.

        Raises:
            ValueError: for a layer that does not exist, and a state that it cannot have.
        """
        layers = dict(layers_within(self, self.described_elsewhere()))
        if not self.trainable:
            # Made so, before there were layers to tell.
            for layer in layers.values():
                layer.trainable = False
        states = self._ahead.take()
        for path in states:
            if path not in layers and not (path == "" and self.takes_lora):
                raise ValueError(
                    f"`layer_states` must be of layers of {self.name}. Received: {shown(path)}"
                )
        self.lora_rank = states.pop("", {}).get("lora_rank")
        # In this order: adapters stand beside weights that are as they will be, and freeze them.
        with _few_collections():
            for step in (_quantize, _set_trainable, _enable_lora):
                for path, layer in layers.items():
                    step(layer, states.get(path, {}))
        if any({"quantization_config", "lora_rank"} & state.keys() for state in states.values()):
            track_weights_anew(self)

    def quantize(self, *args: Any, **kwargs: Any) -> None:
        """As `keras.Model.quantize`; `layer_states` keeps it."""
        with _few_collections():
            super().quantize(*args, **kwargs)

    def get_config(self) -> dict[str, Any]:
        states = _found(self, self.described_elsewhere()) or self._ahead.states
        return {**super().get_config(), **({"layer_states": states} if states else {})}


class _Ahead:
    """States that are to be set, out of sight of what Keras does with attributes."""

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
        """Return the states, once."""
        states, self.states = self.states, {}
        return states


# --- One layer after the other -------------------------------------------------------------------


def layers_within(
    around: keras.layers.Layer, elsewhere: Layers = (), prefix: str = ""
) -> Iterator[tuple[str, keras.layers.Layer]]:
    """Yield path and layer of all layers within another, each before those that it holds."""
    for layer in layers_of(around):
        if not any(layer is other for other in elsewhere):
            path = f"{prefix}{layer.name}"
            yield path, layer
            yield from layers_within(layer, elsewhere, f"{path}/")


def set_on_each(around: keras.layers.Layer, trainable: bool) -> None:
    """Set `trainable` on every layer within another that has it not."""
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
            # As it will be when it comes out of a file.
            state["quantization_config"] = json.loads(json.dumps(config))
        if getattr(layer, "lora_enabled", False):
            state.update(lora_rank=layer.lora_rank, lora_alpha=layer.lora_alpha)
    return {path: state for path, state in states.items() if state}


@contextlib.contextmanager
def _few_collections() -> Iterator[None]:
    """Let Python's collections pass over what exists already.

    Keras asks for one for each kernel that it replaces. Each then takes a second in a process that
    has imported much, and all of them minutes for a large model.
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
        # More would be a file's way to ask for any amount of memory.
        check_whole(1, min(layer.kernel.shape), lora_rank=state["lora_rank"])
        layer.enable_lora(state["lora_rank"], state.get("lora_alpha"))


def _quantization_config(described: Any) -> Any:
    """Make a quantization config, of classes of `keras.quantizers` alone."""
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
