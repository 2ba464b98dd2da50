"""The models of the table of gestures: of one block and width 8, with inputs and labels."""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_vjepa import (
    AdamW,
    VJEPAActionDetector,
    VJEPABackbone,
    VJEPAPredictor,
    VJEPAPretrainer,
    VJEPAProbe,
    VJEPAVideoClassifier,
)

# Names of arrays that contain token indices.
INDICES = ("context_indices", "target_indices", "context_indices_0", "target_indices_0")
CLASSES = 3
TOKENS = 8

Shapes = dict[str, tuple[int | None, ...]]


@dataclasses.dataclass(frozen=True)
class Kind:
    """One column of the table.

    Attributes:
        name: of the column.
        new: makes the model of a precision, with initial weights.
        shapes: of its inputs without the batch axis; one that is named "" is not in a dictionary.
        second: the same for inputs of another size.
        loss: of `compile`; None for a model that brings its own.
        frozen_part: freezes a part of the model, some of which would be trained otherwise.
        outputs: shape of a sample's output.
        dtype_of_outputs: "compute", "variable" or the name of a dtype.
    """

    name: str
    new: Callable[[str], keras.Model]
    shapes: Shapes
    second: Shapes
    loss: str | None
    freeze_part: Callable[[Any], keras.layers.Layer]
    outputs: tuple[int, ...]
    dtype_of_outputs: str

    def make(self, precision: str = "float32", seed: int = 0) -> Any:
        """Make the model; its weights are the same in each precision, and far from small ones."""
        model = self.new(precision)
        random = np.random.default_rng(seed)
        for weight in model.weights:
            noise = (0.3 * random.normal(size=weight.shape)).astype("float32")
            if "position_table" not in weight.path:
                weight.assign(noise + float(weight.path.endswith("gamma")))
        return model

    def inputs(self, batch: int = 3, second: bool = False, seed: int = 0) -> Any:
        """Make inputs: an array, or a dictionary of arrays."""
        random = np.random.default_rng(seed)
        arrays: dict[str, Any] = {}
        for name, shape in (self.second if second else self.shapes).items():
            if name in INDICES:
                first = 0 if name.startswith("context") else TOKENS - shape[0]
                row = np.arange(first, first + shape[0], dtype="int32")
                arrays[name] = np.tile(row, (batch, 1))
            elif name == "boxes":
                corners = random.uniform(0.0, 8.0, (batch, *shape)).astype("float32")
                arrays[name] = corners + np.array([0.0, 0.0, 8.0, 8.0], "float32")
            else:
                arrays[name] = random.normal(size=(batch, *shape)).astype("float32")
        return arrays.get("", arrays)

    def symbolic(self, shapes: Shapes) -> Any:
        """Make `keras.Input`s of shapes."""
        inputs = {
            name: keras.Input(shape, dtype="int32" if name in INDICES else None, name=name or None)
            for name, shape in shapes.items()
        }
        return inputs.get("", inputs)

    def signature(self, batch: int | None) -> Any:
        """Describe inputs for an exported file."""
        specs = {
            name: keras.InputSpec(
                shape=(batch, *shape),
                dtype="int32" if name in INDICES else "float32",
                name=name or "inputs",
            )
            for name, shape in self.shapes.items()
        }
        return specs.get("", specs)

    def labels(self, outputs: Any) -> Any:
        """Make labels that fit inputs whose outputs are given; None for a model without labels."""
        random = np.random.default_rng(5)
        if self.loss is None:
            return None
        if self.loss == "mse":
            return random.normal(size=outputs.shape).astype("float32")
        return np.arange(len(outputs), dtype="int32") % CLASSES

    def compile(self, model: Any) -> None:
        """Compile the model with our optimizer."""
        optimizer = AdamW(1e-2)
        if self.loss is None:
            model.compile(optimizer)
        elif self.loss == "mse":
            model.compile(optimizer, "mse")
        else:
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            model.compile(optimizer, loss, metrics=["accuracy"])


def _backbone(precision: str, **arguments: Any) -> VJEPABackbone:
    defaults = {"image_size": 16, "num_frames": 4, "patch_size": 8, "hidden_dim": 8}
    # There is one head, because narrower heads have too few rotations for three axes.
    return VJEPABackbone(
        **{**defaults, "num_layers": 1, "num_heads": 1, "dtype": precision, **arguments}
    )


def _predictor(precision: str) -> VJEPAPredictor:
    return VJEPAPredictor(8, (2, 2, 2), 8, 1, 1, num_mask_tokens=1, dtype=precision)


def _pretrainer(precision: str) -> VJEPAPretrainer:
    return VJEPAPretrainer(_backbone(precision), _predictor(precision), dtype=precision)


def _probe(precision: str) -> VJEPAProbe:
    probe = VJEPAProbe(CLASSES, num_heads=1, dtype=precision)
    probe.build((None, None, 8))
    return probe


def _classifier(precision: str, **arguments: Any) -> VJEPAVideoClassifier:
    return VJEPAVideoClassifier(_backbone(precision), CLASSES, dtype=precision, **arguments)


def _detector(precision: str) -> VJEPAActionDetector:
    return VJEPAActionDetector(_backbone(precision), CLASSES, dtype=precision)


def _first_block(model: Any) -> keras.layers.Layer:
    model.blocks[0].trainable = False
    return model.blocks[0]


def _first_block_of_the_encoder(model: Any) -> keras.layers.Layer:
    return _first_block(model.encoder)


def _first_block_of_the_backbone(model: Any) -> keras.layers.Layer:
    model.backbone.trainable = True
    return _first_block(model.backbone)


def _hidden_layer_of_the_pooler(model: Any) -> keras.layers.Layer:
    model.pooler.mlp_hidden.trainable = False
    return model.pooler.mlp_hidden


_CLIP, _LONG_CLIP = (4, 16, 16, 3), (8, 16, 16, 3)
_MASKS = {"context_indices_0": (3,), "target_indices_0": (4,)}
_OTHER_MASKS = {"context_indices_0": (4,), "target_indices_0": (3,)}
_TOKENS = {"context": (3, 8), "context_indices": (3,), "target_indices": (4,)}
_OTHER_TOKENS = {"context": (4, 8), "context_indices": (4,), "target_indices": (3,)}


KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            "backbone sincos",
            _backbone,
            {"": _CLIP},
            {"": _LONG_CLIP},
            "mse",
            _first_block,
            (TOKENS, 8),
            "compute",
        ),
        Kind(
            "backbone rotary",
            lambda precision: _backbone(precision, position_embedding="rotary"),
            {"": _CLIP},
            {"": _LONG_CLIP},
            "mse",
            _first_block,
            (TOKENS, 8),
            "compute",
        ),
        Kind(
            "image model",
            lambda precision: _backbone(precision, num_frames=1),
            {"": (16, 16, 3)},
            {"": (24, 24, 3)},
            "mse",
            _first_block,
            (4, 8),
            "compute",
        ),
        Kind(
            "predictor",
            _predictor,
            _TOKENS,
            _OTHER_TOKENS,
            "mse",
            _first_block,
            (4, 8),
            "compute",
        ),
        Kind(
            "pretrainer",
            _pretrainer,
            {"videos": _CLIP, **_MASKS},
            {"videos": _CLIP, **_OTHER_MASKS},
            None,
            _first_block_of_the_encoder,
            (),
            "float32",
        ),
        Kind(
            "probe",
            _probe,
            {"": (5, 8)},
            {"": (7, 8)},
            "crossentropy",
            _hidden_layer_of_the_pooler,
            (CLASSES,),
            "variable",
        ),
        Kind(
            "classifier",
            _classifier,
            {"": _CLIP},
            {"": _LONG_CLIP},
            "crossentropy",
            _first_block_of_the_backbone,
            (CLASSES,),
            "variable",
        ),
        Kind(
            "classifier 2x2",
            lambda precision: _classifier(precision, num_clips=2, num_views=2),
            {"": (2, 2, *_CLIP)},
            {"": (2, 1, *_LONG_CLIP)},
            "crossentropy",
            _first_block_of_the_backbone,
            (CLASSES,),
            "variable",
        ),
        Kind(
            "detector",
            _detector,
            {"videos": _CLIP, "boxes": (2, 4)},
            {"videos": _LONG_CLIP, "boxes": (3, 4)},
            "mse",
            _first_block_of_the_backbone,
            (2, CLASSES),
            "variable",
        ),
    )
}
