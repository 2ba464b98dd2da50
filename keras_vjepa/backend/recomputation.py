"""Let go of what the backward pass computed again, as soon as it has been used (App. C)."""

from collections.abc import Callable

import keras

from keras_vjepa.types import Tensor


def forgetful(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Make a function that `keras.remat` is given keep nothing that torch computes again with it.

    torch ends the second computation by an error, for which Keras makes another one with the
    arguments of the layer that it passed through. The new error and a frame of Keras hold each
    other, and with them the tensors of all frames: until Python looks for such cycles, which may be
    after the step, memory is as large as if nothing was computed again. So Keras passes on errors
    as they are, the second time.

    Args:
        function: a function of one tensor, to be called once and then again.

    Returns:
        The function, with the same results.

    Example:

    >>> from keras import ops
    >>> from keras_vjepa.backend.recomputation import forgetful
    >>> float(forgetful(ops.square)(ops.convert_to_tensor(3.0)))
    9.0
    """
    if keras.config.backend() != "torch":
        return function
    was_called = False

    def called(tokens: Tensor) -> Tensor:
        nonlocal was_called
        if not was_called or not keras.config.is_traceback_filtering_enabled():
            was_called = True
            return function(tokens)
        keras.config.disable_traceback_filtering()
        try:
            return function(tokens)
        finally:
            keras.config.enable_traceback_filtering()

    return called
