"""Make callbacks named on the command line: Weights & Biases, MLflow, one's own (App. C).

A name consists of a module that Python finds, a colon and an object in that module:
`wandb.integration.keras:WandbMetricsLogger`. The object is a callback, or a class or function that
is called without arguments to make one. For a callback that needs arguments, write a function.
"""

import inspect
import pkgutil
from collections.abc import Callable, Sequence

import keras

from keras_vjepa.named_errors import one_line


def given_callbacks(names: Sequence[str]) -> list[keras.callbacks.Callback]:
    """Make callbacks from their names.

    Args:
        names: each of the form `package.module:Name`.

    Raises:
        ValueError: for a name of another form, one that cannot be imported, and one that is not
            a callback.

    Example:

    >>> from keras_vjepa.monitoring.given_callbacks import given_callbacks
    >>> [type(one).__name__ for one in given_callbacks(["keras.callbacks:TerminateOnNaN"])]
    ['TerminateOnNaN']
    """
    found = [(name, make()) for name, make in check_callbacks(names).items()]
    for name, callback in found:
        if not isinstance(callback, keras.callbacks.Callback):
            raise ValueError(
                f"`callbacks` must be callbacks of Keras. Received: {name}, which is not"
            )
    return [callback for _, callback in found]


def check_callbacks(names: Sequence[str]) -> dict[str, Callable[[], object]]:
    """Find objects by their names, without making callbacks yet.

    Args:
        names: as in `given_callbacks`.

    Returns:
        For each name, a function that makes the callback.

    Raises:
        ValueError: for a name of another form, or one that cannot be imported.
    """
    return {name: _found(name) for name in names}


def _found(name: str) -> Callable[[], object]:
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise ValueError(f"`callbacks` must be package.module:Name. Received: {name}")
    try:
        found = pkgutil.resolve_name(name)
    except Exception as error:  # a module may raise anything while it is imported
        raise ValueError(
            f"`callbacks` must be importable. Received: {name} "
            f"({type(error).__name__}: {one_line(error)})"
        ) from error
    if isinstance(found, keras.callbacks.Callback) or not callable(found):
        return lambda: found
    if not _takes_nothing(found):
        raise ValueError(
            "`callbacks` must be made without arguments; write a function that makes it. "
            f"Received: {name}"
        )
    return found


def _takes_nothing(function: Callable[..., object]) -> bool:
    try:
        inspect.signature(function).bind()
    except TypeError:
        return False
    except ValueError:  # some builtins have no signature that can be read
        return True
    return True
