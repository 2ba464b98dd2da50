"""Make Keras models behave as users of torch expect of a module (§3.1).

On torch a Keras model is a `torch.nn.Module`. But the names in its `state_dict` contain the name
that Keras gave the model, which differs for each model made in a process, and some weights are
there twice; `bfloat16()` changes the weights but not the layers that compute with them; and
`requires_grad_` does not change `trainable`. With this module they work as for a module of torch.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import keras

from keras_vjepa.backend.keras_internals import follow_stored_dtype, layers_of, stored_value
from keras_vjepa.types import Tensor


def weights_by_name(model: keras.layers.Layer) -> dict[str, keras.Variable]:
    """List the weights of a model by names that do not depend on the model's own name.

    Args:
        model: the model, built.

    Returns:
        Each weight once. A name consists of the attributes that lead to the weight, such as
        `backbone.block_0.attention.query_key_value.kernel`; a layer in a list has its own name.

    Example:

    >>> from keras_vjepa import VJEPABackbone
    >>> from keras_vjepa.backend.torch_modules import weights_by_name
    >>> backbone = VJEPABackbone(32, 4, hidden_dim=24, num_layers=1, num_heads=2, name="any")
    >>> sorted(weights_by_name(backbone))[-2:]
    ['tubelet_embedding.bias', 'tubelet_embedding.kernel']
    """
    names: dict[int, str] = {}
    for prefix, layer in _layers_by_name(model):
        for weight in layer.weights:
            # Layers within this one come later, and replace the name by a longer one.
            names[id(weight)] = prefix + weight.name
    return {names[id(weight)]: weight for weight in model.weights}


def _layers_by_name(layer: keras.layers.Layer, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield a layer and all layers within it, each after the prefix of its weights' names."""
    yield prefix, layer
    held = dict(vars(layer))
    if isinstance(layer, TorchModule) and hasattr(layer, "named_children"):
        # torch keeps these attributes in another place.
        held |= dict(layer.named_children())
    attributes = {id(value): name for name, value in held.items()}
    for child in layers_of(layer):
        name = attributes.get(id(child), child.name)
        yield from _layers_by_name(child, f"{prefix}{name}.")


if TYPE_CHECKING or keras.config.backend() == "torch":
    import torch

    class TorchModule(keras.layers.Layer):
        """Makes a Keras model behave as a module that users of torch know.

        It is a mixin, which must precede `keras.Model` among the bases.

        Example:

        >>> import keras
        >>> from keras_vjepa import VJEPABackbone
        >>> backbone = VJEPABackbone(32, 4, hidden_dim=24, num_layers=1, num_heads=2)
        >>> if keras.config.backend() == "torch":
        ...     another = VJEPABackbone(32, 4, hidden_dim=24, num_layers=1, num_heads=2)
        ...     _ = another.load_state_dict(backbone.state_dict())
        ...     _ = backbone.bfloat16().to("cpu").requires_grad_(False)
        """

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.register_state_dict_post_hook(_forget_names_of_keras)
            self.register_load_state_dict_post_hook(_miss_no_names_of_keras)

        def _save_to_state_dict(
            self, destination: dict[str, Any], prefix: str, keep_vars: bool
        ) -> None:
            """Write the weights, except those of models within, which write their own."""
            for name, weight in self._own_weights().items():
                value = stored_value(weight)
                destination[prefix + name] = value if keep_vars else value.detach()

        def _load_from_state_dict(
            self,
            state_dict: dict[str, Any],
            prefix: str,
            local_metadata: dict[str, Any],
            strict: bool,
            missing_keys: list[str],
            unexpected_keys: list[str],
            error_msgs: list[str],
        ) -> None:
            """Read weights and remove them from the dictionary: what remains is unexpected."""
            if local_metadata.get("assign_to_params_buffers"):
                raise ValueError("`assign` must be False for a model of Keras. Received: True")
            for name, weight in self._own_weights().items():
                if prefix + name not in state_dict:
                    missing_keys.append(prefix + name)
                    continue
                value = state_dict.pop(prefix + name)
                if tuple(value.shape) == tuple(weight.shape):
                    weight.assign(value)
                else:
                    error_msgs.append(
                        f"`{prefix}{name}` must have the shape {tuple(weight.shape)}. "
                        f"Received: {tuple(value.shape)}"
                    )
            within = tuple(f"{prefix}{name}." for name, _ in self._models_within())
            for name in [name for name in state_dict if name.startswith(prefix)]:
                if not name.startswith(within or ("\0",)):
                    unexpected_keys.append(name)
                    del state_dict[name]

        def _models_within(self) -> list[tuple[str, "TorchModule"]]:
            children = self.named_children()
            return [(name, child) for name, child in children if isinstance(child, TorchModule)]

        def _own_weights(self) -> dict[str, keras.Variable]:
            within = {id(w) for _, model in self._models_within() for w in model.weights}
            every = weights_by_name(self).items()
            return {name: weight for name, weight in every if id(weight) not in within}

        def requires_grad_(self, requires_grad: bool = True) -> "TorchModule":
            """Set `trainable`, which decides whether Keras' layers get a gradient."""
            self.trainable = requires_grad
            return self

        def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "TorchModule":
            """Change the dtype or device of all weights, for `bfloat16`, `half` and `to`."""
            values = [stored_value(weight) for weight in self.weights]
            before = next(value for value in values if value.is_floating_point())
            after = fn(torch.zeros_like(before[:0]))
            _check_device(after)
            changes = before.dtype != after.dtype
            layers = [layer for _, layer in _layers_by_name(self)]
            if changes and any(layer.quantization_mode is not None for layer in layers):
                raise ValueError(
                    "The type of a model must be changed before it is quantized. "
                    f"Received: {keras.backend.standardize_dtype(after.dtype)}"
                )
            super()._apply(fn, recurse)
            if changes:
                _compute_in(self, keras.backend.standardize_dtype(after.dtype))
            return self

else:

    class TorchModule:
        """Adds nothing, since on other engines a Keras model is no module of torch."""


# --- Names that Keras gives ----------------------------------------------------------------------


def _names_of_keras(module: Any) -> set[str]:
    """Return the names that a model's layers gave torch; some weights have several."""
    return {name for name, _ in torch.nn.Module.named_parameters(module, remove_duplicate=False)}


def _forget_names_of_keras(module: Any, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    for name in _names_of_keras(module):
        state.pop(prefix + name, None)


def _miss_no_names_of_keras(module: Any, incompatible: Any) -> None:
    names = tuple(_names_of_keras(module))
    kept = [name for name in incompatible.missing_keys if not name.endswith(names)]
    incompatible.missing_keys[:] = kept


# --- Types and devices ---------------------------------------------------------------------------


def _check_device(weight: Tensor) -> None:
    device = keras.ops.zeros(()).device
    if weight.device != device:
        raise ValueError(
            f"`to` must name the device that Keras computes on, '{device}'; another is chosen by "
            f"`with keras.device(...)` around what makes and calls the model. "
            f"Received: '{weight.device}'"
        )


def _compute_in(model: keras.layers.Layer, dtype: str) -> None:
    """Tell layers and weights that were cast the dtype that they have now."""
    for _, layer in _layers_by_name(model):
        layer.dtype_policy = keras.dtype_policies.get(dtype)
    for weight in model.weights:
        follow_stored_dtype(weight)
