"""A fixed sample of the table of gestures; `python -m tests.gestures` makes all of it."""

import keras
import pytest

from tests.exports import OFFERS, installed_formats
from tests.gestures.fresh_process import FreshProcess
from tests.gestures.gestures import GESTURES
from tests.gestures.models import KINDS
from tests.gestures.outcome import REFUSES, WORKS
from tests.gestures.table import Place, places, run_cell

BACKEND = keras.config.backend()

# Every gesture and every model occurs once; on torch, where nothing is compiled, there are more
# combinations.
SAMPLE = [
    Place("float32", "backbone rotary", "call"),
    Place("mixed_bfloat16", "backbone sincos", "stateless_call"),
    Place("mixed_bfloat16", "predictor", "unknown axes"),
    Place("float32", "probe", "clone_model"),
    Place("float32", "backbone sincos", "get/from_config"),
    Place("float32", "image model", "predict"),
    Place("float32", "pretrainer", "evaluate"),
]
ON_TORCH = [
    *(Place("float32", "backbone rotary", gesture) for gesture in GESTURES if gesture != "call"),
    *(Place("float16", model, "call") for model in KINDS),
    *(Place("float32", model, "in a functional model") for model in KINDS),
    *(Place("float32", model, "unknown axes") for model in KINDS),
    Place("float32", "backbone rotary", "export onnx, any batch"),
    Place("float32", "classifier 2x2", "export onnx, any batch"),
    Place("float32", "predictor", "export torch, any batch"),
    Place("float32", "predictor", "fit after a second shape"),
    Place("float32", "probe", "preset"),
    Place("float32", "pretrainer", "export onnx"),
    Place("mixed_bfloat16", "backbone sincos", "export onnx"),
]
# tf2onnx removes transposes here that the model needs.
ON_TENSORFLOW = [
    pytest.param(Place("float32", "classifier", "export onnx, any batch"), marks=pytest.mark.slow)
]
OF_BACKEND = {"torch": ON_TORCH, "tensorflow": ON_TENSORFLOW}
# Combinations that cannot work, and are refused with a message.
REFUSED = {
    ("probe", "preset"),
    ("pretrainer", "export onnx"),
}


@pytest.fixture(scope="module")
def fresh():
    process = FreshProcess()
    yield process
    process.end()


@pytest.mark.parametrize("place", [*SAMPLE, *OF_BACKEND.get(BACKEND, ())], ids=str)
def test_a_sample_of_the_table(place, fresh):
    outcome = run_cell(place, fresh)
    expected = REFUSES if (place.model, place.gesture) in REFUSED else WORKS
    assert (outcome.word, outcome.message if expected == WORKS else "") == (expected, "")


@pytest.mark.data
@pytest.mark.parametrize("backend", OFFERS)
def test_the_table_is_whole(backend):
    """Each model with each gesture in the two usual precisions, on each backend."""
    cells = places(backend)
    assert len(set(cells)) == len(cells)
    gestures = len(GESTURES) + 2 * len(installed_formats(backend))
    assert sum(cell.precision == "mixed_bfloat16" for cell in cells) == len(KINDS) * gestures
    others = gestures if backend == "torch" else 3
    assert sum(cell.precision == "float64" for cell in cells) == len(KINDS) * others
    assert {(p.model, p.gesture) for p in SAMPLE} <= {(p.model, p.gesture) for p in cells}
