"""Activations computed again in the backward pass instead of kept (App. C: memory of large models).

Two ways lead here, and both give the numbers that a model gives without: the argument `remat` of
backbone and predictor, for their blocks, and `keras.RematScope`, for any layer made within it.
"""

from collections.abc import Callable
from typing import Any

import keras

from keras_vjepa.types import Tensor


def rematerialized(
    layer: keras.layers.Layer, function: Callable[[Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    """Make a function keep its argument only, and compute the rest again in the backward pass.

    Args:
        layer: what `function` calls.
        function: of one tensor. It has no gradient for other tensors that it uses, variables aside.

    Returns:
        The function, with the same results and gradients.

    Raises:
        ValueError: when called, if `layer` or a part of it adds a loss meanwhile.

    Example:

    >>> import keras
    >>> from keras_vjepa.layers.rematerialization import rematerialized
    >>> layer = keras.layers.Dense(3)
    >>> tuple(rematerialized(layer, layer)(keras.ops.ones((1, 2))).shape)
    (1, 3)
    """
    return keras.remat(_without_new_losses(layer, function))


def _without_new_losses(
    layer: keras.layers.Layer, function: Callable[[Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    """`function`, with an error for losses that it adds: they would have no gradient."""

    def checked(tokens: Tensor) -> Tensor:
        num_losses = len(layer.losses)
        outputs = function(tokens)
        if len(layer.losses) > num_losses:
            raise ValueError(
                f"A part of `{layer.name}` adds a loss (`activity_regularizer` or `add_loss`), "
                "which does not go with computing its activations again in the backward pass: "
                "switch `remat` or the `keras.RematScope` off."
            )
        return outputs

    return checked


class Rematerializable(keras.layers.Layer):
    """A layer that `keras.RematScope` works for on every backend.

    The first argument of its `call` is the one that gradients flow through. Keras hands over all
    arguments alike, and TensorFlow refuses None among them, and any that is passed by name.
    """

    def rematerialized_call(
        self, layer_call: Callable[..., Tensor], *args: Any, **kwargs: Any
    ) -> Callable[..., Tensor]:
        """Make `layer_call` compute again in the backward pass, where a scope asks for it."""
        if not args:
            return super().rematerialized_call(layer_call, **kwargs)

        def of_first_argument(first: Tensor) -> Tensor:
            return layer_call(first, *args[1:], **kwargs)

        checked = _without_new_losses(self, of_first_argument)
        function = super().rematerialized_call(checked, *args, **kwargs)
        if function is checked:
            return layer_call
        return lambda first, *_args, **_kwargs: function(first)
