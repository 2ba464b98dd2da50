"""Export of models whose inputs have a known shape (§4.3: encoders run in other programs)."""

from pathlib import Path
from typing import Any

import keras

from keras_vjepa import files
from keras_vjepa.arguments import check_whole
from keras_vjepa.backend import exported_files
from keras_vjepa.models.onnx_check import check_onnx


class Exportable(keras.Model):
    """A model with an `export` that knows the shapes of its inputs, called or not.

    A subclass overrides `export_inputs`.
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

        As `keras.Model.export`, which asks for the shape. An ONNX file is run, where onnxruntime is
        installed, and compared with the model; one that is wrong is removed.

        Args:
            filepath: what to write.
            format: `"tf_saved_model"`, `"onnx"`, `"litert"` or `"torch"`; the README says which
                backend offers which.
            batch_size: samples at a time; None for any number.
            kwargs: further ones of `keras.Model.export`. An `input_signature` replaces the shape.

        Raises:
            ValueError: for a format that the backend or the model's precision does not offer, an
                ONNX file that onnxruntime does not run as the model, and without an
                `input_signature` where the shapes are not known.
        """
        check_whole(1, optional=True, batch_size=batch_size)
        signature = kwargs.pop("input_signature", None)
        if signature is None:
            signature = [_specs(self.export_inputs(), batch_size)]
        options = exported_files.options(self, format, signature)
        given = {"format": format, "input_signature": signature, **options, **kwargs}
        with exported_files.refusing(self, format):
            if format == "onnx":
                self._export_onnx(Path(filepath), **given)
            else:
                super().export(filepath, **given)

    def _export_onnx(self, filepath: Path, verbose: bool | None = None, **given: Any) -> None:
        """Write a file, look whether it can be run, and only then move it to its place."""
        # Weights of more than 2 GB lie in a second file, which the first names.
        with files.scratch_folder(filepath.parent) as scratch:
            unfinished = scratch / filepath.name
            with exported_files.readable_onnx():
                super().export(unfinished, verbose=False, **given)
            is_checked = check_onnx(unfinished, self, given["input_signature"])
            for file in scratch.iterdir():
                files.move_file(file, filepath.parent / file.name)
        if verbose is not False:
            compared = "the model's numbers in onnxruntime" if is_checked else "not checked"
            print(f"Saved {filepath}: {compared}.")


def _specs(shapes: Any, batch_size: int | None) -> Any:
    """Describe inputs in Keras' way."""
    if isinstance(shapes, dict):
        return {name: _spec(name, shape, batch_size) for name, shape in shapes.items()}
    return _spec("videos", shapes, batch_size)


def _spec(name: str, shape: tuple[int, ...], batch_size: int | None) -> keras.InputSpec:
    dtype = "int32" if name.endswith("indices") else "float32"
    return keras.InputSpec(shape=(batch_size, *shape), dtype=dtype, name=name)
