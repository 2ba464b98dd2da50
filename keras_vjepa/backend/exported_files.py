"""What each engine needs to be told for an exported file (§4.3: encoders run in other programs)."""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras

from keras_vjepa.backend import engine


def options(model: keras.Model, format: str, signature: Any) -> dict[str, Any]:
    """Return what `keras.Model.export` must be given for an `input_signature`; check the precision.

    Args:
        model: to export.
        format: of the file.
        signature: of the model's inputs.

    Raises:
        ValueError: for ONNX of a model that is not in float32, which programs that read it refuse.
    """
    policy = model.dtype_policy.name
    if format == "onnx" and policy != "float32":
        raise ValueError(
            "`dtype` must be 'float32' for format 'onnx': load the weights into a model that is. "
            f"Received: {policy!r}"
        )
    specs = keras.tree.flatten(signature)
    if format != "torch" or not any(None in spec.shape for spec in specs):
        return {}
    import torch

    # Keras would write a file for the size 1, and say nothing.
    batch = torch.export.Dim("batch")
    free = keras.tree.map_structure(lambda _: {0: batch}, signature)
    return {"dynamic_shapes": [tuple(free)]}


@contextlib.contextmanager
def refusing(model: keras.Model, format: str) -> Iterator[None]:
    """Say in one line that a file cannot be written here, whatever a converter says in how many.

    Args:
        model: to export.
        format: of the file.
    """
    try:
        yield
    except (ImportError, OSError):  # which name a package or a path
        raise
    except Exception as error:
        raise ValueError(
            f"`format` {format!r} does not work for {model.name} on {engine.name_and_version()}: "
            "take another format, backend or `batch_size`. "
            f"Received: {' '.join(str(error).split())[:200]}"
        ) from error


@contextlib.contextmanager
def readable_onnx() -> Iterator[None]:
    """Have Keras write ONNX files that programs can run, while this is open.

    tf2onnx moves transposes about to save some of them, and forgets that the terms of a sum may
    differ in shape: programs stop at such a file of a classifier. They save transposes themselves,
    when they load a file.
    """
    if keras.config.backend() != "tensorflow":
        yield
        return
    try:
        from tf2onnx.optimizer import TransposeOptimizer
    except ImportError:
        # Keras says what to install.
        yield
        return
    usual = TransposeOptimizer.optimize
    TransposeOptimizer.optimize = lambda self, graph, iteration: graph
    try:
        yield
    finally:
        TransposeOptimizer.optimize = usual
