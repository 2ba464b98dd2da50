"""Check that other programs compute a model's numbers from its exported file (§4.3)."""

from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from keras_vjepa.backend.exported_files import litert_interpreter
from keras_vjepa.files import PathLike

# Relative to the largest number. Devices differ by less than this, and a wrong file by far more.
_TOLERANCE = 1e-3
# The numbers of samples for which a file with any batch size is tested.
_BATCH_SIZES = (1, 3)


def check_export(path: PathLike, format: str, model: keras.Model, signature: Any) -> str | None:
    """Run an exported file and the model it was made of, and compare their outputs.

    This is needed because some converters write files that cannot be run, without an error.

    Args:
        path: the file.
        format: the format of the file.
        model: the model, built.
        signature: the model's inputs, as `keras.Model.export` takes them.

    Returns:
        The name of the program that ran the file; None if there is none for the format, or it is
        not installed.

    Raises:
        Exception: if the file cannot be run, or gives other numbers.
    """
    if format not in _RUNTIMES:
        return None
    name, load = _RUNTIMES[format]
    run = load(str(path))
    if run is None:
        return None
    for batch_size in _BATCH_SIZES if _is_free(signature) else (None,):
        inputs = _inputs(signature, batch_size)
        _compare(run(inputs), ops.convert_to_numpy(model(inputs)))
    return name


def _onnx(path: str) -> Any:
    """Return a function that runs an ONNX file; None without the package onnxruntime."""
    try:
        import onnxruntime
    except ImportError:
        return None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(path, options)
    names = [taken.name for taken in session.get_inputs()]
    return lambda inputs: session.run(None, _by_name(names, inputs))[0]


def _litert(path: str) -> Any:
    """Return a function that runs a LiteRT file; None without a package that can."""
    interpreter = litert_interpreter()
    if interpreter is None:
        return None
    run = interpreter(path).get_signature_runner()
    names = [*run.get_input_details()]
    return lambda inputs: next(iter(run(**_by_name(names, inputs)).values()))


_RUNTIMES = {"onnx": ("onnxruntime", _onnx), "litert": ("LiteRT", _litert)}


def _is_free(signature: Any) -> bool:
    return any(spec.shape[0] is None for spec in keras.tree.flatten(signature))


def _inputs(signature: Any, batch_size: int | None) -> Any:
    """Make arrays that a signature of one argument describes: random floats, indices of zero."""
    rng = np.random.default_rng(0)

    def array(spec: Any) -> NDArray[Any]:
        # Other free axes than the batch are lengths of tokens or of lists of indices.
        shape = (spec.shape[0] or batch_size or 1, *(axis or 2 for axis in spec.shape[1:]))
        if "float" in str(spec.dtype):
            return rng.normal(size=shape).astype(str(spec.dtype))
        return np.zeros(shape, str(spec.dtype)) + (str(spec.dtype) == "bool")

    return keras.tree.map_structure(array, signature[0])


def _by_name(names: list[str], inputs: Any) -> dict[str, NDArray[Any]]:
    """Return the inputs of a model by the names that its exported file has for them."""
    if isinstance(inputs, dict):
        return {name: array for name, array in inputs.items() if name in names}
    return {names[0]: inputs}


def _compare(found: NDArray[Any], expected: NDArray[Any]) -> None:
    if found.shape != expected.shape:
        raise ValueError(f"shape {found.shape} instead of {expected.shape}")
    difference = np.abs(found - expected).max()
    if not difference <= _TOLERANCE * np.abs(expected).max():
        raise ValueError(f"a difference of {difference:.2g}")
