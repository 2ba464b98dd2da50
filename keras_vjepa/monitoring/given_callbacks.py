"""Callbacks of anybody's, named on the command line: Weights & Biases, MLflow, one's own (App. C).

A name is that of a module that Python finds, and of something in it: `wandb.integration.keras:
WandbMetricsLogger`, without the space. What it names is a callback, a class of callbacks or a
function that makes one, which is called without arguments; for one that needs some, write a
function.
"""

import inspect
import pkgutil
from collections.abc import Callable, Sequence

import keras

from keras_vjepa.named_errors import one_line


def given_callbacks(names: Sequence[str]) -> list[keras.callbacks.Callback]:
    """Make the callbacks that names stand for.

    Args:
        names: each `package.module:Name`.

    Raises:
        ValueError: for a name that is not such, that cannot be imported, or of what is no callback.

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
    """Find what names stand for, and make nothing yet.

    Args:
        names: as in `given_callbacks`.

    Returns:
        What makes each, by its name.

    Raises:
        ValueError: for a name that is not such, or that cannot be imported.
    """
    return {name: _found(name) for name in names}


def _found(name: str) -> Callable[[], object]:
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise ValueError(f"`callbacks` must be package.module:Name. Received: {name}")
    try:
        found = pkgutil.resolve_name(name)
    except Exception as error:  # whatever a module raises while it is imported
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
    except ValueError:  # of a builtin, which says nothing of itself
        return True
    return True
