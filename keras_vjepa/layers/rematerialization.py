"""Compute activations again in the backward pass, to save memory for large models (App. C).

There are two ways to ask for it: the argument `remat` of backbone and predictor, for their blocks,
and `keras.RematScope`, for any layer made within it. Neither changes the numbers of the model.

Departure from Keras: a scope's names may have `"mlp"`, for the MLPs of blocks. An MLP is several
layers, and to name each of them would save nothing: a layer keeps its input at least, which is what
the one before it made.
"""

from collections.abc import Callable
from typing import Any

import keras

from keras_vjepa.backend.keras_internals import names_computed_again
from keras_vjepa.backend.recomputation import forgetful
from keras_vjepa.types import Tensor

# What stands for the MLPs of blocks, with their norms, among the names of a `keras.RematScope`.
MLP = "mlp"
# What Keras calls the variable of a `keras.random.SeedGenerator`.
SEED_STATE = "seed_generator_state"


def rematerialized(
    layer: keras.layers.Layer, function: Callable[[Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    """Make a function keep its argument only, and compute the rest again in the backward pass.

    Args:
        layer: the layer that `function` calls.
        function: a function of one tensor. Gradients reach this tensor and variables, but no other
            tensor that the function uses.

    Returns:
        The function, with the same results and gradients.

    Raises:
        ValueError: by the function returned, if `layer` or a part of it adds a loss in the call.

    Example:

    >>> import keras
    >>> from keras_vjepa.layers.rematerialization import rematerialized
    >>> layer = keras.layers.Dense(3)
    >>> tuple(rematerialized(layer, layer)(keras.ops.ones((1, 2))).shape)
    (1, 3)
    """
    return keras.remat(_without_new_losses(layer, function))


def computes_mlp_again(block: keras.layers.Layer) -> bool:
    """Tell whether a block was made within a `keras.RematScope` that has `MLP` among its names."""
    return MLP in (names_computed_again(block) or ())


def _without_new_losses(
    layer: keras.layers.Layer, function: Callable[[Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    """Make a function raise an error if its layer adds a loss, which would have no gradient."""
    computed = forgetful(function)

    def checked(tokens: Tensor) -> Tensor:
        num_losses = len(layer.losses)
        outputs = computed(tokens)
        if len(layer.losses) > num_losses:
            raise ValueError(
                f"A part of `{layer.name}` adds a loss (`activity_regularizer` or `add_loss`), "
                "which does not go with computing its activations again in the backward pass: "
                "switch `remat` or the `keras.RematScope` off."
            )
        return outputs

    return checked


class Rematerializable(keras.layers.Layer):
    """Makes `keras.RematScope` work for a layer on every backend.

    Gradients flow through the first argument of the layer's `call` alone. Keras itself would pass
    all arguments to TensorFlow's rematerialization, which accepts neither None nor arguments that
    are passed by name.
    """

    def rematerialized_call(
        self, layer_call: Callable[..., Tensor], *args: Any, **kwargs: Any
    ) -> Callable[..., Tensor]:
        """Make `layer_call` compute again in the backward pass, if a `keras.RematScope` asks it."""
        if not args:
            return super().rematerialized_call(layer_call, **kwargs)

        def of_first_argument(first: Tensor) -> Tensor:
            return layer_call(first, *args[1:], **kwargs)

        checked = _without_new_losses(self, of_first_argument)
        function = super().rematerialized_call(checked, *args, **kwargs)
        if function is checked:
            return layer_call
        return lambda first, *_args, **_kwargs: function(first)


class DrawsInTraining(keras.layers.Layer):
    """Refuses to compute a layer again in the backward pass that draws random numbers in training.

    The backward pass would draw others, and gradients would be those of another forward pass.
    """

    def rematerialized_call(
        self, layer_call: Callable[..., Tensor], *args: Any, **kwargs: Any
    ) -> Callable[..., Tensor]:
        """Refuse if a `keras.RematScope` asks that the layer is computed again; else do nothing."""
        found = super().rematerialized_call(layer_call, *args, **kwargs)
        if found is not layer_call and any(v.name == SEED_STATE for v in self.variables):
            raise ValueError(
                f"`{self.name}` leaves out at random in training (`dropout`, `head_dropout`, "
                "`drop_path_rate`), and would do so differently when computed again in the "
                "backward pass: set these to 0, or name its blocks in the `keras.RematScope`."
            )
        return found
