"""`summary` of every model, and the argument names by which Keras makes it."""

import inspect

import keras
import pytest

from keras_vjepa import (
    VJEPABackbone,
    VJEPAPredictor,
    VJEPAPretrainer,
    VJEPAProbe,
    VJEPAVideoClassifier,
)

# This runs once, because names and shapes are the same on each backend.
pytestmark = pytest.mark.data


def subclasses(of):
    found = {c for c in of.__subclasses__() if c.__module__.startswith("keras_vjepa.")}
    return found.union(*(subclasses(c) for c in of.__subclasses__()))


def names(method):
    """Names of a method's arguments, those of a catch-all aside."""
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    arguments = list(inspect.signature(method).parameters.values())[1:]
    return [argument.name for argument in arguments if argument.kind not in kinds]


def problem(layer):
    """What keeps Keras from calling `compute_output_shape` and `build` of a class, if anything.

    With several arguments each is the shape of one of `call`. `summary` gives the former what the
    latter was given, by the same names.
    """
    plain = keras.layers.Layer
    shapes, build = layer.compute_output_shape, layer.build
    for method in (shapes, build):
        own = method not in (plain.compute_output_shape, plain.build)
        if own and len(names(method)) > 1:
            unknown = {*names(method)} - {f"{name}_shape" for name in names(layer.call)}
            if unknown:
                return f"{method.__name__}: {unknown} of no argument of `call`"
    if plain.compute_output_shape is not shapes and plain.build is not build and names(build):
        try:
            inspect.signature(shapes).bind(None, **dict.fromkeys(names(build), (1,)))
        except TypeError as error:
            return f"compute_output_shape: {error}"
    return None


def test_keras_can_call_all_layers_and_models():
    found = subclasses(keras.layers.Layer)
    assert {VJEPABackbone, VJEPAPredictor, VJEPAProbe, VJEPAVideoClassifier} <= found
    assert len(found) >= 10
    problems = {layer.__name__: problem(layer) for layer in found}
    assert not {name: said for name, said in problems.items() if said}


def test_names_that_keras_cannot_use_are_found():
    class Shapes(keras.layers.Layer):
        def call(self, tokens, mask=None):
            return tokens

        def build(self, input_shape):
            pass

        def compute_output_shape(self, tokens_shape, mask_shape=None):
            return tokens_shape

    class Call(Shapes):
        def build(self, tokens_shape):
            pass

        def compute_output_shape(self, tokens_shape, padding_shape=None):
            return tokens_shape

    assert "compute_output_shape: missing a required argument: 'tokens_shape'" in problem(Shapes)
    assert "compute_output_shape: {'padding_shape'}" in problem(Call)


def models():
    backbone = VJEPABackbone(32, 4, hidden_dim=24, num_layers=2, num_heads=2)
    predictor = VJEPAPredictor(24, backbone.position_axes, 12, 1, 2)
    probe = VJEPAProbe(5, num_heads=2)
    probe.build((None, None, 24))
    return {
        "backbone": backbone,
        "predictor": predictor,
        "probe": probe,
        "pretrainer": VJEPAPretrainer(backbone, predictor),
        "classifier": VJEPAVideoClassifier(backbone, 5),
    }


# For each model, one of its parts with its output shape and its number of weights.
ROWS = {
    "backbone": ("tubelet_embedding", "(None, 8, 24)", 36888),
    "predictor": ("output_projection", "(None, None, 24)", 312),
    "probe": ("linear", "(None, 5)", 125),
    "pretrainer": ("vjepa_predictor", "(None, None, 24)", None),
    "classifier": ("vjepa_backbone", "(None, 8, 24)", None),
}


@pytest.mark.parametrize("name", ROWS)
def test_summary(name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    model, lines = models()[name], []
    model.summary(print_fn=lines.append, line_length=120, expand_nested=True)
    part, shape, count = ROWS[name]
    (row,) = [line for line in lines[0].splitlines() if f"│ {part}" in line]
    assert shape in row
    if count is not None:
        assert f"{count:,}" in row
    assert f"Total params: {model.count_params():,}" in lines[0]
    # No layer that has weights has an unknown shape.
    assert "│ ?" not in lines[0]
