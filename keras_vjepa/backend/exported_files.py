"""What each engine can write for other programs, and must be told for it (§4.3: encoders there)."""

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
# What a SavedModel consists of.
_PARTS = {"assets", "fingerprint.pb", "saved_model.pb", "variables"}
# Programs that read these compute in float32, and stop at other types.
IN_FLOAT32 = ("onnx", "litert")
_MIXED = ("mixed_bfloat16", "mixed_float16")


def check_format(format: Any) -> None:
    """Check that the running engine can write a format.

    Args:
        format: of the file, as a user has given it.

    Raises:
        ValueError: if it cannot.
    """
    name = engine.name()
    if format not in _FORMATS[name]:
        *first, last = map(repr, _FORMATS[name])
        raise ValueError(
            f"`format` must be {', '.join(first)} or {last} on {name}. Received: {shown(format)}"
        )


def check_path(path: Path, format: str) -> None:
    """Check that a file of a format can be written, before minutes are spent on it.

    Args:
        path: of the file; of a SavedModel, its folder.
        format: of the file.

    Raises:
        ValueError: if the path ends as the files of another format.
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
    """Check that a model's weights are those that a format can hold.

    Args:
        model: to export.
        format: of the file.

    Raises:
        ValueError: for a model whose weights are not in float32, where programs that read the
            format take nothing else.
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
    """Return what `keras.Model.export` must be given for an `input_signature`.

    Args:
        format: of the file.
        signature: of the model's inputs.
        given: names of what a user gives besides.

    Raises:
        ValueError: for free axes where a file has one size, and for names that mean nothing.
    """
    if format == "onnx" and (unknown := sorted({*given} - {"opset_version"})):
        raise ValueError(
            f"`opset_version` is all that format 'onnx' takes besides. Received: {unknown}"
        )
    specs = keras.tree.flatten(signature)
    if engine.name() != "torch" or not any(None in spec.shape for spec in specs):
        return {}
    # Keras would write a file for the size 1, and say nothing.
    if format == "litert":
        raise ValueError(
            "`batch_size` must be a number, and all sizes be known, for format 'litert' on torch. "
            f"Received shapes: {shown([tuple(spec.shape) for spec in specs])}"
        )
    return {"dynamic_shapes": _free_axes(signature)} if format == "torch" else {}


def _free_axes(signature: Any) -> list[Any]:
    """Describe the free axes of inputs to torch."""
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
def in_float32(model: keras.Model) -> Iterator[bool]:
    """Have a model of mixed precision compute in float32, as its weights are, while this is open.

    Args:
        model: whose weights are in float32; `check_precision` says so.

    Yields:
        Whether anything is computed in another precision otherwise.
    """
    usual = [(layer, layer.dtype_policy) for layer in (model, *_layers_within(model))]
    mixed = [(layer, policy) for layer, policy in usual if policy.name.endswith(_MIXED)]
    try:
        for layer, policy in mixed:
            # Of a quantized layer, the name begins with how it is quantized.
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
    """Have Keras write ONNX files that programs can run, and say no more, while this is open.

    tf2onnx moves transposes about to save some of them, and forgets that the terms of a sum may
    differ in shape: programs stop at such a file of a classifier. They save transposes themselves,
    when they load a file. torch warns of each number that it takes for a constant: whether one was
    none is seen when the file is run.
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
        # Keras says what to install.
        yield
        return
    usual = TransposeOptimizer.optimize
    TransposeOptimizer.optimize = lambda self, graph, iteration: graph
    try:
        yield
    finally:
        TransposeOptimizer.optimize = usual


def litert_interpreter() -> Any:
    """Return the class that runs LiteRT files; None where none is installed."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        if keras.config.backend() != "tensorflow":
            return None
        import tensorflow

        return tensorflow.lite.Interpreter
    return Interpreter
