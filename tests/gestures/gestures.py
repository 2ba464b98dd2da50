"""The rows of the table: what people do with a Keras model, each with what must then be true."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from tests.gestures.fresh_process import FreshProcess, facts
from tests.gestures.models import Kind

# The largest difference between two ways of computing the same numbers, relative to the largest of
# them.
TOLERANCES = {
    "float32": 2e-5,
    "float64": 2e-5,
    "float16": 1e-2,
    "mixed_float16": 1e-2,
    "bfloat16": 8e-2,
    "mixed_bfloat16": 8e-2,
}


@dataclasses.dataclass(frozen=True)
class Cell:
    """One place of the table, as a gesture sees it.

    Attributes:
        kind: of model.
        precision: of a dtype policy.
        folder: empty, for files.
        fresh: the other process.
    """

    kind: Kind
    precision: str
    folder: Path
    fresh: FreshProcess

    def make(self, seed: int = 0) -> Any:
        return self.kind.make(self.precision, seed)

    def trained(self) -> tuple[Any, Any, Any]:
        """A compiled model that has made one step, its inputs and labels."""
        model, inputs, labels = self.compiled()
        model.train_on_batch(inputs, labels)
        return model, inputs, labels

    def until_it_moves(self, model: Any, inputs: Any, labels: Any) -> None:
        """Train more where Keras leaves out steps until it has found a scale for the loss."""
        for _ in range(9 if self.precision == "mixed_float16" else 0):
            model.train_on_batch(inputs, labels)

    def compiled(self, second: bool = False) -> tuple[Any, Any, Any]:
        model, inputs = self.make(), self.kind.inputs(second=second)
        self.kind.compile(model)
        return model, inputs, self.kind.labels(numpy(model(inputs)))

    def assert_close(self, actual: Any, expected: Any, factor: float = 1.0) -> None:
        """Assert that two results are the same up to what the precision rounds."""
        actual, expected = numpy(actual), numpy(expected)
        assert actual.shape == expected.shape, (actual.shape, expected.shape)
        assert np.isfinite(expected).all() and np.isfinite(actual).all(), "not finite"
        allowed = factor * TOLERANCES[self.precision] * max(np.abs(expected).max(), 1e-3)
        difference = np.abs(actual - expected).max()
        assert difference <= allowed, f"differs by {difference:.2e}, allowed {allowed:.2e}"

    def assert_far(self, actual: Any, expected: Any) -> None:
        """Assert that two results differ by more than what the precision rounds."""
        difference = np.abs(numpy(actual) - numpy(expected)).max()
        assert difference > 1e-3, f"differs by {difference:.2e} only"


def numpy(tensor: Any) -> np.ndarray:
    return ops.convert_to_numpy(ops.cast(tensor, "float64"))


def dtype_of(tensor: Any) -> str:
    return keras.backend.standardize_dtype(tensor.dtype)


def values(model: Any) -> dict[str, np.ndarray]:
    """Copy the weights of a model, by their paths."""
    return {weight.path: numpy(weight).copy() for weight in model.weights}


def changed(before: dict[str, np.ndarray], model: Any) -> set[str]:
    """Paths of the weights that are not what they were."""
    return {path for path, now in values(model).items() if (now != before[path]).any()}


def assert_trained(before: dict[str, np.ndarray], model: Any, precision: str) -> None:
    """Assert that each trainable weight moved, stayed finite, and that no other one moved.

    A pretrainer's target encoder follows its encoder without being trainable.
    """
    moved = changed(before, model)
    trainable = {variable.path for variable in model.trainable_variables}
    followed = {path for path in moved - trainable if path.startswith("target_")}
    assert moved <= trainable | followed, f"moved, not trainable: {sorted(moved - trainable)[:2]}"
    still = trainable - moved
    # Gradients that are too small for float16 become zero.
    allowed = len(trainable) // 2 if "float16" in precision.split("_") else 0
    assert len(still) <= allowed, f"did not move: {sorted(still)[:3]} of {len(still)}"
    assert all(np.isfinite(value).all() for value in values(model).values()), "not finite"
    if getattr(model, "target_encoder", None) is not None:
        assert followed, "the target encoder does not follow"


# --- To look and to call -------------------------------------------------------------------------


def summary(cell: Cell) -> None:
    """A table that names the layers and the number of weights."""
    model, lines = cell.make(), []
    model.summary(print_fn=lambda line, *_args, **_kwargs: lines.append(line))
    text = "\n".join(lines)
    assert f"{model.count_params():,}" in text, "the number of weights is not in it"
    assert all(layer.name[:12] in text for layer in model.layers), "a layer is not in it"


def call(cell: Cell) -> None:
    """The numbers of float32, in the type that is promised; samples do not see each other."""
    model, inputs = cell.make(), cell.kind.inputs()
    outputs = model(inputs)
    promised = {
        "compute": model.compute_dtype,
        "variable": model.variable_dtype,
    }.get(cell.kind.dtype_of_outputs, cell.kind.dtype_of_outputs)
    assert tuple(outputs.shape) == (3, *cell.kind.outputs), tuple(outputs.shape)
    assert dtype_of(outputs) == promised, f"{dtype_of(outputs)} instead of {promised}"
    cell.assert_close(outputs, cell.kind.make("float32")(inputs), factor=3)
    first = keras.tree.map_structure(lambda array: array[:1], inputs)
    cell.assert_close(model(first), numpy(outputs)[:1])
    cell.assert_far(model(cell.kind.inputs(seed=1)), outputs)


def stateless_call(cell: Cell) -> None:
    """The numbers of a call, with weights that are given."""
    model, inputs = cell.make(), cell.kind.inputs()
    expected = numpy(model(inputs))
    trainable = [variable.value for variable in model.trainable_variables]
    others = [variable.value for variable in model.non_trainable_variables]
    outputs, new = model.stateless_call(trainable, others, inputs)
    cell.assert_close(outputs, expected)
    assert len(new) == len(others)
    outputs, _ = model.stateless_call([2 * value for value in trainable], others, inputs)
    cell.assert_far(outputs, expected)
    cell.assert_close(model(inputs), expected)


def predict(cell: Cell) -> None:
    """The numbers of a call, in batches of which the last is smaller."""
    model, inputs = cell.make(), cell.kind.inputs()
    cell.assert_close(model.predict(inputs, batch_size=2, verbose=0), model(inputs))


# --- To train ------------------------------------------------------------------------------------


def evaluate(cell: Cell) -> None:
    """The loss as NumPy computes it from the outputs."""
    model, inputs, labels = cell.compiled()
    before = values(model)
    found = model.evaluate(inputs, labels, batch_size=3, verbose=0, return_dict=True)["loss"]
    outputs = numpy(model(inputs))
    if cell.kind.loss is None:
        expected = outputs.mean()
    elif cell.kind.loss == "mse":
        expected = ((outputs - labels) ** 2).mean()
    else:
        logits = outputs - outputs.max(-1, keepdims=True)
        picked = np.take_along_axis(logits, labels[:, None], 1)[:, 0]
        expected = (np.log(np.exp(logits).sum(-1)) - picked).mean()
    cell.assert_close(found, expected, factor=3)
    assert not changed(before, model), "weights changed"


def fit(cell: Cell) -> None:
    """A falling loss; what is trainable has moved, and nothing else."""
    model, inputs, labels = cell.compiled()
    before = values(model)
    losses = model.fit(inputs, labels, batch_size=3, epochs=8, verbose=0).history["loss"]
    assert_trained(before, model, cell.precision)
    assert np.isfinite(losses).all(), losses
    assert losses[-1] < losses[0], f"the loss does not fall: {losses[0]:.4f}, {losses[-1]:.4f}"


def fit_after_a_second_shape(cell: Cell) -> None:
    """Training on one size, then on another."""
    model, inputs, labels = cell.compiled()
    model.fit(inputs, labels, batch_size=3, verbose=0)
    inputs = cell.kind.inputs(second=True)
    labels, before = cell.kind.labels(numpy(model(inputs))), values(model)
    model.fit(inputs, labels, batch_size=3, verbose=0)
    assert_trained(before, model, cell.precision)
    # In training, a classifier of several views uses only one of them.
    assert np.isfinite(model.predict(inputs, verbose=0)).all()


def train_on_batch(cell: Cell) -> None:
    """The loss of the weights before the step, and a step."""
    model, inputs, labels = cell.compiled()
    before = values(model)
    expected = model.evaluate(inputs, labels, batch_size=3, verbose=0, return_dict=True)["loss"]
    found = model.train_on_batch(inputs, labels, return_dict=True)["loss"]
    if cell.kind.name != "classifier 2x2":  # in training, its loss is the mean over its predictions
        cell.assert_close(found, expected, factor=3)
    if cell.precision != "mixed_float16":
        assert int(model.optimizer.iterations) == 1
    cell.until_it_moves(model, inputs, labels)
    assert_trained(before, model, cell.precision)


# --- To copy and to save -------------------------------------------------------------------------


def clone_model(cell: Cell) -> None:
    """Another model of the same arguments, which shares nothing with the first."""
    model, inputs = cell.make(), cell.kind.inputs()
    clone = keras.models.clone_model(model)
    assert as_json(clone.get_config()) == as_json(model.get_config())
    clone(inputs)
    assert not {id(v) for v in clone.weights} & {id(v) for v in model.weights}
    clone.set_weights(model.get_weights())
    expected = numpy(model(inputs))
    cell.assert_close(clone(inputs), expected)
    for variable in clone.trainable_variables:
        variable.assign(2 * ops.convert_to_tensor(variable))
    cell.assert_close(model(inputs), expected)
    cell.assert_far(clone(inputs), expected)


def as_json(config: Any) -> Any:
    return json.loads(json.dumps(config))


def config(cell: Cell) -> None:
    """The constructor's arguments, as text and back, also of a model that is frozen."""
    model, inputs = cell.make(), cell.kind.inputs()
    for trainable in (True, False):
        model.trainable = trainable
        text = json.dumps(keras.saving.serialize_keras_object(model))
        other = keras.saving.deserialize_keras_object(json.loads(text))
        assert type(other) is type(model)
        assert as_json(other.get_config()) == as_json(model.get_config())
        other = type(model).from_config(model.get_config())
        other(inputs)
        assert as_json(other.get_config()) == as_json(model.get_config())
        assert len(other.trainable_variables) == len(model.trainable_variables)
        assert other.dtype_policy.name == cell.precision


def assert_survives(cell: Cell, model: Any, inputs: Any, preset: bool = False) -> None:
    """Assert that a model is the same after it was saved, and loaded in a fresh process."""
    path = cell.folder / ("preset" if preset else "model.keras")
    if preset:
        model.save_to_preset(path)
    else:
        model.save(path)
    found = cell.fresh.load(path, inputs, type(model).__name__ if preset else "")
    cell.assert_close(found.pop("outputs"), model(inputs), factor=0.1)
    expected = as_json(facts(model))
    if preset:
        # A preset is a starting point: it is not compiled, and a classifier has a preprocessor.
        for facts_of in (found, expected):
            del facts_of["iterations"]
            facts_of["config"].pop("preprocessor", None)
    wrong = [name for name in expected if found[name] != expected[name]]
    assert not wrong, "; ".join(
        f"{name} is {str(found[name])[:80]} instead of {str(expected[name])[:80]}" for name in wrong
    )


def save_and_load(cell: Cell) -> None:
    """The same numbers in a fresh process, with the optimizer's state."""
    model, inputs, _ = cell.trained()
    assert_survives(cell, model, inputs)


def save_weights(cell: Cell) -> None:
    """Weights of one model in another one."""
    model, other, inputs = cell.make(), cell.make(seed=1), cell.kind.inputs()
    cell.assert_far(other(inputs), model(inputs))
    model.save_weights(cell.folder / "model.weights.h5")
    other.load_weights(cell.folder / "model.weights.h5")
    cell.assert_close(other(inputs), model(inputs), factor=0.1)


def preset(cell: Cell) -> None:
    """A folder that a fresh process loads."""
    assert_survives(cell, cell.make(), cell.kind.inputs(), preset=True)


def quantize(cell: Cell) -> None:
    """Nearly the same numbers from int8, and exactly those after a file."""
    model, inputs = cell.make(), cell.kind.inputs()
    before = numpy(model(inputs))
    model.quantize("int8")
    after = numpy(model(inputs))
    assert any("int8" in dtype_of(weight) for weight in model.weights), "nothing is int8"
    error = np.abs(after - before).max() / np.abs(before).max()
    assert error < 0.15, f"differs by {error:.2f}"
    path = cell.folder / "model.keras"
    model.save(path)
    cell.assert_close(cell.fresh.load(path, inputs)["outputs"], after, factor=0.1)


def with_lora(model: Any) -> Any:
    """The part of a model that LoRA is for: its encoder, or itself."""
    for part in ("encoder", "backbone"):
        if hasattr(model, part):
            return getattr(model, part)
    return model


def lora(cell: Cell) -> None:
    """Few weights to train, which survive a file, with those that they belong to."""
    model, inputs = cell.make(), cell.kind.inputs()
    part = with_lora(model)
    count = sum(int(np.prod(v.shape)) for v in part.trainable_variables)
    before = numpy(model(inputs))
    part.enable_lora(2)
    cell.assert_close(model(inputs), before)
    paths = [variable.path for variable in part.trainable_variables]
    assert paths and any("lora" in path for path in paths), "no weights of LoRA"
    assert sum(int(np.prod(v.shape)) for v in part.trainable_variables) < count or not count
    cell.kind.compile(model)
    was, labels = values(part), cell.kind.labels(before)
    model.train_on_batch(inputs, labels)
    cell.until_it_moves(model, inputs, labels)
    moved = changed(was, part)
    assert moved and moved <= set(paths), f"moved: {sorted(moved)[:3]}"
    assert_survives(cell, model, inputs)


def partly_frozen(cell: Cell) -> None:
    """A part that stays as it is while the others are trained, also after a file."""
    model, inputs = cell.make(), cell.kind.inputs()
    part = cell.kind.freeze_part(model)
    cell.kind.compile(model)
    before, part_before = values(model), values(part)
    model.train_on_batch(inputs, cell.kind.labels(numpy(model(inputs))))
    assert not changed(part_before, part), "what is frozen has moved"
    assert_trained(before, model, cell.precision)
    assert_survives(cell, model, inputs)


# --- To build with -------------------------------------------------------------------------------


def nested_in_functional(cell: Cell) -> None:
    """A layer of a functional model, for any batch; shapes and types are known beforehand."""
    model, inputs = cell.make(), cell.kind.inputs()
    symbolic = cell.kind.symbolic(cell.kind.shapes)
    outputs, real = model(symbolic), model(inputs)
    assert tuple(outputs.shape) == (None, *cell.kind.outputs), tuple(outputs.shape)
    assert dtype_of(outputs) == dtype_of(real), f"{dtype_of(outputs)}, in truth {dtype_of(real)}"
    functional = keras.Model(symbolic, outputs)
    cell.assert_close(functional.predict(inputs, batch_size=2, verbose=0), real)
    functional.save(cell.folder / "model.keras")
    found = cell.fresh.load(cell.folder / "model.keras", inputs)
    cell.assert_close(found["outputs"], real, factor=0.1)


def nested_in_sequential(cell: Cell) -> None:
    """A layer of a sequential model."""
    model, inputs = cell.make(), cell.kind.inputs()
    symbolic = cell.kind.symbolic(cell.kind.shapes)
    # Keras' `Sequential` cannot have a symbolic input of several arrays.
    begin = [] if isinstance(symbolic, dict) else [symbolic]
    sequential = keras.Sequential([*begin, model])
    cell.assert_close(sequential.predict(inputs, batch_size=2, verbose=0), model(inputs))
    sequential.save(cell.folder / "model.keras")
    found = cell.fresh.load(cell.folder / "model.keras", inputs)
    cell.assert_close(found["outputs"], model(inputs), factor=0.1)


def unknown_axes(cell: Cell) -> None:
    """A functional model for any number of frames or tokens."""
    model, kind = cell.make(), cell.kind
    shapes = {
        name: tuple(
            None if size != other else size
            for size, other in zip(shape, kind.second[name], strict=True)
        )
        for name, shape in kind.shapes.items()
    }
    symbolic = kind.symbolic(shapes)
    functional = keras.Model(symbolic, model(symbolic))
    for second in (False, True):
        inputs = kind.inputs(second=second)
        cell.assert_close(functional.predict(inputs, verbose=0), model(inputs))


GESTURES: dict[str, Callable[[Cell], None]] = {
    "summary": summary,
    "call": call,
    "predict": predict,
    "evaluate": evaluate,
    "fit": fit,
    "fit after a second shape": fit_after_a_second_shape,
    "train_on_batch": train_on_batch,
    "stateless_call": stateless_call,
    "clone_model": clone_model,
    "get/from_config": config,
    "save and load": save_and_load,
    "save_weights": save_weights,
    "preset": preset,
    "quantize, save, load": quantize,
    "LoRA, save, load": lora,
    "partly frozen, save, load": partly_frozen,
    "in a functional model": nested_in_functional,
    "in a Sequential": nested_in_sequential,
    "unknown axes": unknown_axes,
}
