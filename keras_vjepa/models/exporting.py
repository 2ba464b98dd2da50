"""Export of models whose inputs have a known shape (§4.3: encoders run in other programs)."""

from typing import Any

import keras

from keras_vjepa.arguments import check_whole
from keras_vjepa.backend import exported_files


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

        As `keras.Model.export`, which asks for the shape.

        Args:
            filepath: what to write.
            format: `"tf_saved_model"`, `"onnx"`, `"litert"` or `"torch"`; the README says which
                backend offers which.
            batch_size: samples at a time; None for any number.
            kwargs: further ones of `keras.Model.export`. An `input_signature` replaces the shape.

        Raises:
            ValueError: for a format that the backend or the model's precision does not offer, and
                without an `input_signature` where the shapes are not known.
        """
        check_whole(1, optional=True, batch_size=batch_size)
        signature = kwargs.pop("input_signature", None)
        if signature is None:
            signature = [_specs(self.export_inputs(), batch_size)]
        options = exported_files.options(self, format, signature)
        given = {"format": format, "input_signature": signature, **options, **kwargs}
        with exported_files.readable(format):
            super().export(filepath, **given)


def _specs(shapes: Any, batch_size: int | None) -> Any:
    """Describe inputs in Keras' way."""
    if isinstance(shapes, dict):
        return {name: _spec(name, shape, batch_size) for name, shape in shapes.items()}
    return _spec("videos", shapes, batch_size)


def _spec(name: str, shape: tuple[int, ...], batch_size: int | None) -> keras.InputSpec:
    dtype = "int32" if name.endswith("indices") else "float32"
    return keras.InputSpec(shape=(batch_size, *shape), dtype=dtype, name=name)
