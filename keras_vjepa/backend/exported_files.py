"""What each engine needs to be told for an exported file (§4.3: encoders run in other programs)."""

from typing import Any

import keras


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
