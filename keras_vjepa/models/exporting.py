"""Export models whose inputs have a known shape, for other programs to run (§4.3)."""

import contextlib
from pathlib import Path
from typing import Any

import keras

from keras_vjepa import files
from keras_vjepa.arguments import check_whole
from keras_vjepa.backend import exported_files
from keras_vjepa.models.export_check import check_export


class Exportable(keras.Model):
    """Adds an `export` to a model that needs no shape of its inputs, called before or not.

    A subclass overrides `export_inputs`, which describes the inputs.
    """

    def export_inputs(self) -> Any:
        """Describe the inputs of `call`: a shape without the batch axis, or a dictionary of them.

        Raises:
            ValueError: if their shapes are not known.
        """
        raise NotImplementedError

    def export(
        self,
        filepath: Any,
        format: str = "tf_saved_model",
        batch_size: int | None = 1,
        **kwargs: Any,
    ) -> None:
        """Write the model for other programs, for inputs of the size that it is made for.

        It works as `keras.Model.export`, but finds the shape itself. The file appears complete or
        not at all. A file in ONNX or LiteRT is first run and compared with the model, if a runtime
        for it is installed. Files in these two formats compute in float32, even if the model
        computes in mixed precision, for its weights are float32.

        Args:
            filepath: the file to write, ending in `.onnx`, `.tflite` or `.pt2` as the format asks;
                for a SavedModel, a folder.
            format: `"tf_saved_model"`, `"onnx"`, `"litert"` or `"torch"`; docs/export.md says which
                backend offers which.
            batch_size: samples at a time; None for any number.
            kwargs: further arguments of `keras.Model.export`. An `input_signature` replaces the
                shape. With arguments for LiteRT's converter, which may round weights, the file is
                not compared.

        Raises:
            ValueError: for a format that the backend or the model's precision does not offer, for a
                file that does not compute what the model does, and if neither an `input_signature`
                is given nor the shapes are known.
            FileExistsError: if there is something else in the place of the file.
            ImportError: if the package that writes the format is not installed.
        """
        check_whole(1, optional=True, batch_size=batch_size)
        exported_files.check_format(format)
        path = Path(filepath).expanduser()
        exported_files.check_path(path, format)
        signature = kwargs.pop("input_signature", None)
        if signature is None:
            signature = [_specs(self.export_inputs(), batch_size)]
        # Some formats are written without the type of the inputs, others not.
        signature = keras.tree.map_structure(_typed, signature)
        verbose = kwargs.pop("verbose", None)
        exported_files.check_precision(self, format)
        options = exported_files.options(format, signature, kwargs)
        given = {"format": format, "input_signature": signature, **options, **kwargs}
        with exported_files.refusing(self, format):
            how = self._write(path, is_compared=not kwargs.keys() - {"opset_version"}, **given)
        if verbose is not False:
            print(f"Saved {path}{how}.")

    def _write(self, path: Path, format: str, is_compared: bool, **given: Any) -> str:
        """Write a file, check that it can be run, and only then move it to its place.

        Returns:
            What the message about the file says of its precision and of the check.
        """
        if format == exported_files.SAVED_MODEL:
            with files.unfinished_folder(path, existing="replace") as unfinished:
                super().export(unfinished, format=format, verbose=False, **given)
            return ""
        precision: Any = contextlib.nullcontext(False)
        if format in exported_files.IN_FLOAT32:
            precision = exported_files.in_float32(self)
        checked_in = None
        # Weights of more than 2 GB go into a second file, which the first one refers to by name.
        with files.scratch_folder(path.parent) as scratch, precision as is_mixed:
            unfinished = scratch / path.name
            with exported_files.readable_onnx():
                super().export(unfinished, format=format, verbose=False, **given)
            if is_compared:
                checked_in = check_export(unfinished, format, self, given["input_signature"])
            for file in scratch.iterdir():
                files.move_file(file, path.parent / file.name)
        said = " in float32 instead of mixed precision" if is_mixed else ""
        if format in exported_files.IN_FLOAT32:
            said += f": the model's numbers in {checked_in}" if checked_in else ": not checked"
        return said


def _specs(shapes: Any, batch_size: int | None) -> Any:
    """Describe inputs by Keras' `InputSpec`, one or a dictionary of them."""
    if isinstance(shapes, dict):
        return {name: _spec(name, shape, batch_size) for name, shape in shapes.items()}
    return _spec("videos", shapes, batch_size)


def _spec(name: str, shape: tuple[int, ...], batch_size: int | None) -> keras.InputSpec:
    return _typed(keras.InputSpec(shape=(batch_size, *shape), name=name))


def _typed(spec: Any) -> Any:
    """Add the type of an input to a Keras' `InputSpec` that does not say it."""
    if not isinstance(spec, keras.InputSpec) or spec.dtype is not None or spec.shape is None:
        return spec
    dtype = "int32" if (spec.name or "").endswith("indices") else "float32"
    return keras.InputSpec(shape=spec.shape, dtype=dtype, name=spec.name)
