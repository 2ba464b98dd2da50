"""Exported files and lower precisions give the backbone's numbers (the README's two tables)."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_vjepa import VJEPABackbone, VJEPAProbe
from keras_vjepa.models import onnx_check
from tests.support import slow_but_on

compare = onnx_check._compare
BACKEND = keras.config.backend()
# What each backend can write; JAX also ONNX, through jax2onnx, which is not installed here.
FORMATS = {
    "jax": ("tf_saved_model",),
    "tensorflow": ("tf_saved_model", "onnx", "litert"),
    "torch": ("onnx", "torch"),
}
CLIPS = np.random.default_rng(0).normal(size=(2, 4, 32, 32, 3)).astype("float32")


def numpy(x):
    return ops.convert_to_numpy(ops.cast(x, "float32"))


def backbone(position_embedding="sincos", **arguments):
    """With weights far from their small initial values."""
    model = VJEPABackbone(
        32,
        4,
        hidden_dim=48,
        num_layers=2,
        num_heads=2,
        position_embedding=position_embedding,
        **arguments,
    )
    rng = np.random.default_rng(1)
    for variable in model.trainable_variables:
        variable.assign(variable + 0.1 * rng.normal(size=variable.shape))
    return model


def run_tf_saved_model(path):
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))
    return np.asarray(loaded.serve(CLIPS))


def run_onnx(path, clips=CLIPS):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path))
    return session.run(None, {session.get_inputs()[0].name: clips})[0]


def run_litert(path):
    import tensorflow as tf

    interpreter = tf.lite.Interpreter(str(path))
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], CLIPS)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


def run_torch(path):
    import torch

    return torch.export.load(path).module()(torch.tensor(CLIPS)).detach().numpy()


SUFFIXES = {"tf_saved_model": "", "onnx": ".onnx", "litert": ".tflite", "torch": ".pt2"}


@pytest.mark.parametrize("position_embedding", ["sincos", "rotary"])
@pytest.mark.parametrize("format", FORMATS[BACKEND])
def test_exported_files_give_the_same_numbers(format, position_embedding, tmp_path):
    model, path = backbone(position_embedding), tmp_path / f"model{SUFFIXES[format]}"
    model.export(path, format, batch_size=2, verbose=False)
    actual = globals()[f"run_{format}"](path)
    assert np.abs(actual - numpy(model(CLIPS))).max() <= 2e-5


@pytest.mark.skipif("onnx" not in FORMATS[BACKEND], reason="ONNX")
def test_an_onnx_file_takes_the_place_of_another_or_leaves_it(tmp_path, monkeypatch, capsys):
    model, path = backbone(), tmp_path / "model.onnx"
    path.write_text("another's")
    monkeypatch.setattr(
        onnx_check, "_compare", lambda found, expected: compare(found + 1, expected)
    )
    with pytest.raises(ValueError) as error:
        model.export(path, "onnx")
    assert "`format` 'onnx' does not work for vjepa_backbone" in str(error.value)
    assert "Received: a difference of 1" in str(error.value) and "\n" not in str(error.value)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    assert path.read_text() == "another's"
    monkeypatch.undo()
    model.export(path, "onnx")
    assert capsys.readouterr().out.endswith("model.onnx: the model's numbers in onnxruntime.\n")
    assert np.abs(run_onnx(path, CLIPS[:1]) - numpy(model(CLIPS[:1]))).max() <= 2e-5


def cosine(a, b):
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


@pytest.mark.parametrize(
    "precision,least", [("bfloat16", 0.9995), ("mixed_bfloat16", 0.9995), ("int8", 0.999)]
)
def test_features_in_lower_precision(precision, least):
    model = backbone()
    expected = numpy(model(CLIPS))
    if precision == "int8":
        model.quantize("int8")
        kernels = [block.mlp_hidden.kernel for block in model.blocks]
        assert all(keras.backend.standardize_dtype(kernel.dtype) == "int8" for kernel in kernels)
    else:
        weights = model.get_weights()
        model = backbone(dtype=precision)
        model.set_weights(weights)
    actual = numpy(model(CLIPS))
    assert 1e-4 < np.abs(actual - expected).max()
    assert cosine(actual, expected).min() >= least


@slow_but_on("torch")
def test_a_probe_in_int8():
    """Its pooling reads a kernel by itself, which must not have become integers."""
    probe = VJEPAProbe(num_classes=5, num_heads=2)
    tokens = np.random.default_rng(2).normal(size=(3, 7, 48)).astype("float32")
    probe(tokens)
    rng = np.random.default_rng(3)
    for variable in probe.trainable_variables:
        variable.assign(variable + 0.1 * rng.normal(size=variable.shape))
    expected = numpy(probe(tokens))
    probe.quantize("int8")
    actual = numpy(probe(tokens))
    assert 1e-6 < np.abs(actual - expected).max() <= 0.05 * np.abs(expected).max()
