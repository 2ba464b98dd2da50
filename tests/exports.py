"""What each backend writes for other programs: the table of docs/export.md, which tests demand."""

import dataclasses
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

COLUMNS = {
    "tf_saved_model": "SavedModel",
    "onnx": "ONNX (onnxruntime)",
    "litert": "LiteRT",
    "torch": "torch `.pt2`",
}
NAMES = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "torch"}
ENDINGS = {"tf_saved_model": "", "onnx": ".onnx", "litert": ".tflite", "torch": ".pt2"}
# Programs that read these formats compute in float32, whatever the model computes in.
IN_FLOAT32 = ("onnx", "litert")


@dataclasses.dataclass(frozen=True)
class Offer:
    """That a backend writes a format, and for what.

    Attributes:
        limit: of what it is offered for; "" for none.
        package: that it needs, under its name in the package index.
        imported: as that is imported.
        by_hand: version that it was tried with where the suite's requirements have none.
        any_batch: whether a file may take any number of samples.
    """

    limit: str = ""
    package: str = ""
    imported: str = ""
    by_hand: str = ""
    any_batch: bool = True

    @property
    def is_installed(self) -> bool:
        return not self.imported or importlib.util.find_spec(self.imported) is not None

    def __str__(self) -> str:
        """The cell of the table."""
        tried = f"; tried by hand with {self.by_hand}" if self.by_hand else ""
        needs = f" (needs {self.package}{tried})" if self.package else ""
        return f"{self.limit or 'yes'}{needs}"


OFFERS: dict[str, dict[str, Offer]] = {
    "tensorflow": {
        "tf_saved_model": Offer(),
        "onnx": Offer(package="tf2onnx", imported="tf2onnx"),
        "litert": Offer(),
    },
    "jax": {
        "tf_saved_model": Offer(package="TensorFlow", imported="tensorflow"),
        "onnx": Offer("backbones of one clip", "jax2onnx", "jax2onnx", "0.17.1", any_batch=False),
    },
    "torch": {
        "onnx": Offer(package="onnxscript", imported="onnxscript"),
        "litert": Offer(
            "all but predictors, of one batch size",
            "litert-torch",
            "litert_torch",
            "0.10.0",
            any_batch=False,
        ),
        "torch": Offer(),
    },
}


def table() -> str:
    """Write the table."""
    rows = [["backend", *COLUMNS.values()]]
    rows += [
        [NAMES[backend], *(str(offers.get(format, "")) for format in COLUMNS)]
        for backend, offers in OFFERS.items()
    ]
    lines = ["|" + "|".join(f" {cell} " if cell else " " for cell in row) + "|" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def installed_formats(backend: str) -> tuple[str, ...]:
    """List the formats that can be tried where the suite runs."""
    return tuple(format for format, offer in OFFERS[backend].items() if offer.is_installed)


# --- Other programs ------------------------------------------------------------------------------


def _run_tf_saved_model(path: Path, inputs: Any) -> np.ndarray:
    import tensorflow as tf

    # The model is kept, because its variables are freed with it.
    loaded = tf.saved_model.load(str(path))
    return np.asarray(loaded.serve(inputs))


def _run_onnx(path: Path, inputs: Any) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path))
    if not isinstance(inputs, dict):
        inputs = {session.get_inputs()[0].name: inputs}
    return session.run(None, inputs)[0]


def _run_litert(path: Path, inputs: Any) -> np.ndarray:
    if keras.config.backend() == "tensorflow":
        import tensorflow

        kind = tensorflow.lite.Interpreter
    else:
        from ai_edge_litert.interpreter import Interpreter as kind
    interpreter = kind(str(path))
    places = interpreter.get_input_details()
    arrays = inputs if isinstance(inputs, dict) else {"": inputs}
    found = {}
    for name, array in arrays.items():
        # The shortest match is taken, since the name of one input may be the beginning of
        # another's.
        place = min((p for p in places if name in p["name"]), key=lambda p: len(p["name"]))
        found[place["index"]] = array
        interpreter.resize_tensor_input(place["index"], array.shape, strict=True)
    interpreter.allocate_tensors()
    for index, array in found.items():
        interpreter.set_tensor(index, array)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


def _run_torch(path: Path, inputs: Any) -> np.ndarray:
    import torch

    tensors = keras.tree.map_structure(torch.tensor, inputs)
    outputs = torch.export.load(path).module()(tensors)
    return outputs.detach().double().numpy()


# The function that runs a file of each format on arrays.
RUNNERS: dict[str, Callable[[Path, Any], np.ndarray]] = {
    "tf_saved_model": _run_tf_saved_model,
    "onnx": _run_onnx,
    "litert": _run_litert,
    "torch": _run_torch,
}
