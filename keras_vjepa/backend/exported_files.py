"""Tell what each engine can export for other programs, and prepare it for that (§4.3)."""

import contextlib
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import keras

from keras_vjepa.arguments import shown
from keras_vjepa.backend import engine
from keras_vjepa.backend.keras_internals import layers_of

SAVED_MODEL = "tf_saved_model"
_FORMATS = {
    "jax": (SAVED_MODEL, "onnx"),
    "tensorflow": (SAVED_MODEL, "onnx", "litert"),
    "torch": ("onnx", "litert", "torch"),
}
_ENDINGS = {"onnx": ".onnx", "litert": ".tflite", "torch": ".pt2"}
# The files and folders that a SavedModel consists of.
_PARTS = {"assets", "fingerprint.pb", "saved_model.pb", "variables"}
# Programs that read these compute in float32, and stop at other types.
IN_FLOAT32 = ("onnx", "litert")
_MIXED = ("mixed_bfloat16", "mixed_float16")


def check_format(format: Any) -> None:
    """Check that the running engine can write a format.

    Args:
        format: the format of the file, as a user has given it.

    Raises:
        ValueError: if the engine cannot write it.
    """
    name = engine.name()
    if format not in _FORMATS[name]:
        *first, last = map(repr, _FORMATS[name])
        raise ValueError(
            f"`format` must be {', '.join(first)} or {last} on {name}. Received: {shown(format)}"
        )


def check_path(path: Path, format: str) -> None:
    """Check that a file of a format can be written at a path, before minutes are spent on it.

    Args:
        path: the file, or the folder of a SavedModel.
        format: the format of the file.

    Raises:
        ValueError: if the path ends as files of another format do.
        FileExistsError: if something else is there, which would be lost.
        NotADirectoryError: if the path leads through a file.
    """
    ending = _ENDINGS.get(format, "")
    if ending and path.suffix != ending:
        raise ValueError(f"`filepath` must end in {ending} for format {format!r}. Received: {path}")
    if not ending and path.suffix in _ENDINGS.values():
        meant = next(name for name, suffix in _ENDINGS.items() if suffix == path.suffix)
        raise ValueError(
            f"`filepath` must be a folder for format {format!r}, or `format` {meant!r}. "
            f"Received: {path}"
        )
    if ending and path.is_dir():
        raise FileExistsError(f"`filepath` must be a file. Received: {path}, which is a folder")
    if not ending and path.exists():
        names = {found.name for found in path.iterdir()} if path.is_dir() else {path.name}
        if names - _PARTS:
            raise FileExistsError(
                f"`filepath` must not exist, be empty or be a SavedModel. Received: {path}"
            )
    around = next(folder for folder in path.absolute().parents if folder.exists())
    if not around.is_dir():
        raise NotADirectoryError(
            f"`filepath` must lie in a folder. Received: {path}, and {around} is a file"
        )


def check_precision(model: keras.Model, format: str) -> None:
    """Check that a format can hold weights of a model's dtype.

    Args:
        model: the model to export.
        format: the format of the file.

    Raises:
        ValueError: for a model whose weights are not in float32, if programs that read the format
            accept nothing else.
    """
    if format not in IN_FLOAT32:
        return
    for layer in (model, *_layers_within(model)):
        kind = layer.variable_dtype
        if keras.backend.is_float_dtype(kind) and kind != "float32":
            raise ValueError(
                f"`dtype` must be 'float32' or mixed for format {format!r}: load the weights into "
                f"a model that is. Received: {layer.dtype_policy.name!r}"
            )


def options(format: str, signature: Any, given: Collection[str]) -> dict[str, Any]:
    """Return the arguments that `keras.Model.export` needs for an `input_signature`.

    Args:
        format: the format of the file.
        signature: the signature of the model's inputs.
        given: names of the further arguments that a user gives.

    Raises:
        ValueError: for free axes in a format whose files have one size, and for names of arguments
            that mean nothing.
    """
    if format == "onnx" and (unknown := sorted({*given} - {"opset_version"})):
        raise ValueError(
            "`opset_version` is the only further argument that format 'onnx' takes. "
            f"Received: {unknown}"
        )
    specs = keras.tree.flatten(signature)
    if engine.name() != "torch" or not any(None in spec.shape for spec in specs):
        return {}
    # Keras would write a file for the size 1, without an error.
    if format == "litert":
        raise ValueError(
            "`batch_size` and all sizes of inputs must be numbers for format 'litert' on torch. "
            f"Received shapes: {shown([tuple(spec.shape) for spec in specs])}"
        )
    return {"dynamic_shapes": _free_axes(signature)} if format == "torch" else {}


def _free_axes(signature: Any) -> list[Any]:
    """Describe the free axes of inputs in the way that torch's exporter expects."""
    import torch

    def describe(spec: Any) -> dict[int, Any]:
        names = {
            axis: f"{spec.name}_{axis}" if axis else "batch"
            for axis, size in enumerate(spec.shape)
            if size is None
        }
        return {axis: torch.export.Dim(name) for axis, name in names.items()}

    return [tuple(keras.tree.map_structure(describe, signature))]


# --- While a file is written ---------------------------------------------------------------------


@contextlib.contextmanager
def refusing(model: keras.Model, format: str) -> Iterator[None]:
    """Turn any error of a converter into one line that says that the file cannot be written.

    Args:
        model: the model to export.
        format: the format of the file.
    """
    try:
        yield
    except (ImportError, OSError):  # These name a package or a path, and stay as they are.
        raise
    except Exception as error:
        raise ValueError(
            f"`format` {format!r} does not work for {model.name} on {engine.name_and_version()}: "
            "take another format, backend or `batch_size`. "
            f"Received: {' '.join(str(error).split())[:200]}"
        ) from error


@contextlib.contextmanager
def in_float32(model: keras.Model) -> Iterator[bool]:
    """Let a model of mixed precision compute in float32, the type of its weights, within a block.

    Args:
        model: a model whose weights are in float32, which `check_precision` checks.

    Yields:
        Whether any layer computes in another precision outside the block.
    """
    usual = [(layer, layer.dtype_policy) for layer in (model, *_layers_within(model))]
    mixed = [(layer, policy) for layer, policy in usual if policy.name.endswith(_MIXED)]
    try:
        for layer, policy in mixed:
            # The name of a quantized layer's policy begins with the kind of quantization.
            name = policy.name
            for one in _MIXED:
                name = name.replace(one, "float32")
            layer.dtype_policy = keras.dtype_policies.get(name)
        yield bool(mixed)
    finally:
        for layer, policy in mixed:
            layer.dtype_policy = policy


def _layers_within(layer: keras.layers.Layer) -> Iterator[keras.layers.Layer]:
    for child in layers_of(layer):
        yield child
        yield from _layers_within(child)


@contextlib.contextmanager
def readable_onnx() -> Iterator[None]:
    """Let Keras write ONNX files that programs can run, without needless warnings, in a block.

    To save transposes, tf2onnx moves them, and it forgets that the terms of a sum may differ in
    shape; programs cannot run such a file of a classifier. The moves are not needed, since programs
    save transposes themselves when they load a file. torch warns of each number that it takes for a
    constant. Whether a number should not have been one shows when the file is run.
    """
    with contextlib.ExitStack() as open_ones:
        if engine.name() == "torch":
            import torch

            open_ones.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore", torch.jit.TracerWarning)
        elif engine.name() == "tensorflow":
            open_ones.enter_context(_without_moved_transposes())
        yield


@contextlib.contextmanager
def _without_moved_transposes() -> Iterator[None]:
    try:
        from tf2onnx.optimizer import TransposeOptimizer
    except ImportError:
        # Keras itself will say what to install.
        yield
        return
    usual = TransposeOptimizer.optimize
    TransposeOptimizer.optimize = lambda self, graph, iteration: graph
    try:
        yield
    finally:
        TransposeOptimizer.optimize = usual


def litert_interpreter() -> Any:
    """Return the class that runs LiteRT files; None if none is installed."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        if keras.config.backend() != "tensorflow":
            return None
        import tensorflow

        return tensorflow.lite.Interpreter
    return Interpreter
