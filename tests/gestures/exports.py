"""Rows of the table for exported files, which other programs run."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from tests.gestures.gestures import Cell, numpy
from tests.gestures.outcome import is_clear

# As the README's table; the other formats of Keras need packages that are not installed here.
FORMATS = {
    "jax": ("tf_saved_model",),
    "tensorflow": ("tf_saved_model", "onnx", "litert"),
    "torch": ("onnx", "torch"),
}
# Models that cannot know the shape of their inputs: it must be given.
OF_ANY_LENGTH = ("predictor", "probe")
SUFFIXES = {"tf_saved_model": "", "onnx": ".onnx", "litert": ".tflite", "torch": ".pt2"}


def run_tf_saved_model(path: Path, inputs: Any) -> np.ndarray:
    import tensorflow as tf

    # Held: its variables go with it.
    loaded = tf.saved_model.load(str(path))
    return np.asarray(loaded.serve(inputs))


def run_onnx(path: Path, inputs: Any) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path))
    if not isinstance(inputs, dict):
        inputs = {session.get_inputs()[0].name: inputs}
    return session.run(None, inputs)[0]


def run_litert(path: Path, inputs: Any) -> np.ndarray:
    import tensorflow as tf

    interpreter = tf.lite.Interpreter(str(path))
    places = interpreter.get_input_details()
    arrays = inputs if isinstance(inputs, dict) else {"": inputs}
    found = {}
    for name, array in arrays.items():
        # The shortest: one input's name may begin another's.
        place = min((p for p in places if name in p["name"]), key=lambda p: len(p["name"]))
        found[place["index"]] = array
        interpreter.resize_tensor_input(place["index"], array.shape, strict=True)
    interpreter.allocate_tensors()
    for index, array in found.items():
        interpreter.set_tensor(index, array)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


def run_torch(path: Path, inputs: Any) -> np.ndarray:
    import torch

    tensors = keras.tree.map_structure(torch.tensor, inputs)
    return numpy(torch.export.load(path).module()(tensors))


RUNNERS: dict[str, Callable[[Path, Any], np.ndarray]] = {
    "tf_saved_model": run_tf_saved_model,
    "onnx": run_onnx,
    "litert": run_litert,
    "torch": run_torch,
}


def export(cell: Cell, format: str, called: bool, batch_size: int | None) -> None:
    """A file that another program runs to the same numbers, for one batch size or for all."""
    model = cell.make()
    if called:
        model(cell.kind.inputs())
    path = cell.folder / f"model{SUFFIXES[format]}"
    arguments: dict[str, Any] = {}
    if cell.kind.name in OF_ANY_LENGTH:
        with pytest.raises(ValueError) as raised:
            model.export(path, format=format, batch_size=batch_size, verbose=False)
        assert is_clear(str(raised.value)), str(raised.value)
        arguments["input_signature"] = [cell.kind.signature(batch_size)]
    model.export(path, format=format, batch_size=batch_size, verbose=False, **arguments)
    for batch in (batch_size,) if batch_size else (3, 1):
        inputs = cell.kind.inputs(batch)
        cell.assert_close(RUNNERS[format](path, inputs), model(inputs), factor=2)


def export_gestures(backend: str) -> dict[str, Callable[[Cell], None]]:
    """Return the rows for a backend: each format with a batch size, and for any batch."""
    rows: dict[str, Callable[[Cell], None]] = {}
    for format in FORMATS[backend]:
        rows[f"export {format}"] = functools.partial(
            export, format=format, called=False, batch_size=2
        )
        rows[f"export {format}, any batch"] = functools.partial(
            export, format=format, called=True, batch_size=None
        )
    return rows
