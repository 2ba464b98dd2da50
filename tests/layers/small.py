"""A block, a backbone and a predictor with one block, as small as they get, and their inputs."""

import operator
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vjepa import VJEPABackbone, VJEPAPredictor
from keras_vjepa.layers import TransformerBlock

WIDTH, TOKENS = 12, 4
PARTS = (
    "attention_norm",
    "attention",
    "attention.query_key_value",
    "attention.output_projection",
    "mlp_norm",
    "mlp_hidden",
    "mlp_output",
)


def block(**arguments: Any) -> TransformerBlock:
    layer = TransformerBlock(2, 16, **arguments)
    layer.build((None, None, WIDTH))
    return layer


def backbone(**arguments: Any) -> VJEPABackbone:
    return VJEPABackbone(16, 2, 8, 2, WIDTH, 1, 2, **arguments)


def predictor(**arguments: Any) -> VJEPAPredictor:
    return VJEPAPredictor(WIDTH, (1, 2, 2), WIDTH, 1, 2, **arguments)


OWNERS: dict[str, Any] = {"block": block, "backbone": backbone, "predictor": predictor}


def inputs_of(owner: Any) -> tuple[Any, ...]:
    """What the block, backbone or predictor is called with."""
    rng = np.random.default_rng(0)
    if isinstance(owner, VJEPABackbone):
        return (ops.convert_to_tensor(rng.normal(size=(2, *owner.video_shape)).astype("float32")),)
    tokens = ops.convert_to_tensor(rng.normal(size=(2, TOKENS, WIDTH)).astype("float32"))
    if isinstance(owner, TransformerBlock):
        return (ops.cast(tokens, owner.compute_dtype),)
    indices = np.array([[0, 1], [2, 3]], "int32")
    return tokens[:, :2], *map(ops.convert_to_tensor, (indices, indices[::-1].copy()))


def part_of(owner: Any, path: str) -> keras.layers.Layer:
    """A part of the block, or of the model's block."""
    return operator.attrgetter(path)(getattr(owner, "blocks", [owner])[0])


def outputs_of(part: keras.layers.Layer) -> list[Any]:
    """A list that gets what the part computes from now on."""
    seen: list[Any] = []
    call = part.call

    def remembered(*args: Any, **kwargs: Any) -> Any:
        seen.append(call(*args, **kwargs))
        return seen[-1]

    part.call = remembered
    return seen


def numpy(x: Any) -> np.ndarray:
    """An array of a tensor."""
    return ops.convert_to_numpy(x)


def in_float32(x: Any) -> np.ndarray:
    """An array of a tensor of any precision."""
    return ops.convert_to_numpy(ops.cast(x, "float32"))
