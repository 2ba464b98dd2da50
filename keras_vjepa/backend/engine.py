"""Name the engine that runs the models, for files and messages (App. C).

Code that works differently on another engine belongs into this folder. No code elsewhere may decide
by these names.
"""

import sys

import keras


def name() -> str:
    """Return `"jax"`, `"tensorflow"` or `"torch"`.

    Example:

    >>> from keras_vjepa.backend import engine
    >>> engine.name() in ("jax", "tensorflow", "torch")
    True
    """
    return keras.config.backend()


def name_and_version() -> str:
    """Return the engine's name and its version, such as `"torch 2.6.0"`."""
    return f"{name()} {sys.modules[name()].__version__}"
