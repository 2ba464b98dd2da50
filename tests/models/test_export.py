"""Exported files and lower precisions give the backbone's numbers (docs/export.md)."""

import sys

import keras
import numpy as np
import pytest
from keras import ops

from keras_vjepa import (
    VJEPAActionDetector,
    VJEPABackbone,
    VJEPAProbe,
    VJEPAVideoClassifier,
)
from keras_vjepa.backend import exported_files
from keras_vjepa.models import HieraBackbone, export_check
from tests.exports import COLUMNS, ENDINGS, IN_FLOAT32, OFFERS, RUNNERS, installed_formats, table
from tests.support import ROOT, slow_but_on

compare = export_check._compare
BACKEND = keras.config.backend()
FORMATS = installed_formats(BACKEND)
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


@pytest.mark.data
def test_the_table_in_the_readme_is_the_tests():
    assert table() in (ROOT / "docs" / "export.md").read_text()


@pytest.mark.parametrize("position_embedding", ["sincos", "rotary"])
@pytest.mark.parametrize("format", FORMATS)
def test_exported_files_give_the_same_numbers(format, position_embedding, tmp_path):
    model, path = backbone(position_embedding), tmp_path / f"model{ENDINGS[format]}"
    model.export(path, format, batch_size=2, verbose=False)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    actual = RUNNERS[format](path, CLIPS)
    assert np.abs(actual - numpy(model(CLIPS))).max() <= 2e-5


@pytest.mark.slow
@pytest.mark.parametrize("features", ["last", "fused"])
@pytest.mark.parametrize("format", FORMATS)
def test_hiera_whose_tokens_change_their_order(format, features, tmp_path):
    fused = {"fusion": features == "fused", "num_pools": 2, "features": features}
    model = HieraBackbone(32, 4, embed_dim=4, embed_heads=1, depths=(1, 1, 1, 1), **fused)
    path = tmp_path / f"model{ENDINGS[format]}"
    model.export(path, format, batch_size=2, verbose=False)
    assert np.abs(RUNNERS[format](path, CLIPS) - numpy(model(CLIPS))).max() <= 2e-5


@slow_but_on("torch")
@pytest.mark.parametrize("format", FORMATS)
def test_a_fine_tuned_classifier_and_a_detector(format, tmp_path):
    """As a run of fine-tuning leaves them, with all that only training draws."""
    drawn = backbone(drop_path_rate=0.2)
    classifier = VJEPAVideoClassifier(
        drawn, 3, head="fine_tuning", head_dropout=0.5, encoder_norm=False, trainable_backbone=True
    )
    detector = VJEPAActionDetector(drawn, 3, dropout=0.5, trainable_backbone=True)
    boxes = np.array([[[1, 2, 20, 30], [0, 0, 32, 32]]] * 2, "float32")
    for name, model, inputs in (
        ("classifier", classifier, CLIPS),
        ("detector", detector, {"videos": CLIPS, "boxes": boxes}),
    ):
        signature = {}
        if format == "litert" and name == "detector":
            shapes = {key: array.shape for key, array in inputs.items()}
            signature["input_signature"] = [
                {key: keras.InputSpec(shape=shape, name=key) for key, shape in shapes.items()}
            ]
        path = tmp_path / f"{name}{ENDINGS[format]}"
        model.export(path, format, batch_size=2, verbose=False, **signature)
        found = RUNNERS[format](path, inputs)
        assert np.abs(found - numpy(model(inputs))).max() <= 1e-4


@pytest.mark.parametrize("format", FORMATS)
def test_inputs_of_a_signature_without_types_have_those_of_the_model(format, tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(VJEPABackbone, "_write", lambda *args, **given: seen.update(given) or "")
    spec = keras.InputSpec(shape=(1, 4, 32, 32, 3), name="videos")
    backbone().export(tmp_path / f"model{ENDINGS[format]}", format, input_signature=[spec])
    [given] = seen["input_signature"]
    assert (given.dtype, given.shape, given.name) == ("float32", spec.shape, "videos")


@pytest.mark.parametrize("format", [*COLUMNS, "coreml", None])
def test_what_is_not_offered_is_refused(format, tmp_path):
    if format in OFFERS[BACKEND]:
        assert exported_files.check_format(format) is None
        return
    with pytest.raises(ValueError, match="`format` must be '.* or '.*' on .*Received: ") as error:
        backbone().export(tmp_path / f"model{ENDINGS.get(format, '')}", format)
    for offered in OFFERS[BACKEND]:
        assert repr(offered) in str(error.value)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("format", [f for f, offer in OFFERS[BACKEND].items() if offer.by_hand])
def test_a_package_that_is_missing_is_named(format, tmp_path, monkeypatch):
    offer = OFFERS[BACKEND][format]
    monkeypatch.setitem(sys.modules, offer.imported, None)
    with pytest.raises(ImportError, match=f"pip install {offer.package}") as error:
        backbone().export(tmp_path / f"model{ENDINGS[format]}", format)
    assert "\n" not in str(error.value)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("model", ValueError, "`filepath` must end in {ending} for format"),
        ("model.x", ValueError, "`filepath` must end in {ending} for format"),
        ("folder{ending}", FileExistsError, "`filepath` must be a file. .*, which is a folder"),
        ("file/model{ending}", NotADirectoryError, "`filepath` must lie in a folder. .*is a file"),
    ],
)
@pytest.mark.parametrize("format", [f for f in OFFERS[BACKEND] if ENDINGS[f]])
def test_paths_that_a_file_cannot_have(format, name, error, message, tmp_path):
    ending = ENDINGS[format]
    (tmp_path / f"folder{ending}").mkdir()
    (tmp_path / "file").write_text("another's")
    with pytest.raises(error, match=message.format(ending=ending)) as caught:
        backbone().export(tmp_path / name.format(ending=ending), format)
    assert "\n" not in str(caught.value)
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["file", f"folder{ending}"]


@pytest.mark.data
def test_paths_that_a_saved_model_cannot_have(tmp_path):
    with pytest.raises(ValueError, match="must be a folder for .*, or `format` 'onnx'. Received"):
        exported_files.check_path(tmp_path / "model.onnx", "tf_saved_model")
    for name in ("saved_model.pb", "fingerprint.pb"):
        (tmp_path / name).write_text("of an earlier one")
    exported_files.check_path(tmp_path, "tf_saved_model")
    (tmp_path / "thesis.tex").write_text("another's")
    for taken in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(FileExistsError, match="must not exist, be empty or be a SavedModel"):
            exported_files.check_path(taken, "tf_saved_model")


@slow_but_on("tensorflow")
@pytest.mark.skipif("tf_saved_model" not in FORMATS, reason="SavedModel")
def test_a_saved_model_takes_the_place_of_another(tmp_path, monkeypatch):
    """At home, as everywhere; whatever lay in the other is gone with it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model" / "assets").mkdir(parents=True)
    (tmp_path / "model" / "assets" / "names.txt").write_text("of another model")
    model = backbone()
    model.export("~/model", batch_size=2, verbose=False)
    assert not (tmp_path / "model" / "assets" / "names.txt").exists()
    actual = RUNNERS["tf_saved_model"](tmp_path / "model", CLIPS)
    assert np.abs(actual - numpy(model(CLIPS))).max() <= 2e-5


WRITTEN_TO_FILES = sorted((f for f in FORMATS if f in IN_FLOAT32), reverse=True)


@pytest.mark.parametrize(
    "format",
    [
        *WRITTEN_TO_FILES[:1],
        *(pytest.param(f, marks=slow_but_on("torch")) for f in WRITTEN_TO_FILES[1:]),
    ],
)
def test_a_file_takes_the_place_of_another_or_leaves_it(format, tmp_path, monkeypatch, capsys):
    ending = ENDINGS[format]
    model, path = backbone(), tmp_path / f"model{ending}"
    path.write_text("another's")
    monkeypatch.setattr(
        export_check, "_compare", lambda found, expected: compare(found + 1, expected)
    )
    with pytest.raises(ValueError) as error:
        model.export(path, format)
    assert f"`format` '{format}' does not work for vjepa_backbone" in str(error.value)
    assert "Received: a difference of 1" in str(error.value) and "\n" not in str(error.value)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert path.read_text() == "another's"
    monkeypatch.undo()
    model.export(path, format)
    runtime = {"onnx": "onnxruntime", "litert": "LiteRT"}[format]
    said = capsys.readouterr().out
    assert said.endswith(f"Saved {path}: the model's numbers in {runtime}.\n"), said
    assert np.abs(RUNNERS[format](path, CLIPS[:1]) - numpy(model(CLIPS[:1]))).max() <= 2e-5


# --- Precision -----------------------------------------------------------------------------------


def quantized_and_mixed():
    """A classifier in float32 of a backbone in mixed precision, some of it int8."""
    classifier = VJEPAVideoClassifier(backbone(dtype="mixed_bfloat16"), 3)
    classifier.backbone.blocks[0].mlp_hidden.quantize("int8")
    return classifier


@slow_but_on("torch", "tensorflow")
def test_mixed_precision_is_left_for_a_while():
    model = quantized_and_mixed()
    layers = [model.backbone, *model.backbone.blocks, model.backbone.blocks[0].mlp_hidden]
    policies = [layer.dtype_policy.name for layer in layers]
    assert policies[-1] == "int8_from_mixed_bfloat16"
    before = numpy(model(CLIPS))
    with exported_files.in_float32(model) as was_mixed:
        alone = numpy(model(CLIPS))
        tokens = model.backbone(CLIPS)
        assert [layer.compute_dtype for layer in layers] == ["float32"] * len(layers)
    assert was_mixed and keras.backend.standardize_dtype(tokens.dtype) == "float32"
    assert [layer.dtype_policy.name for layer in layers] == policies
    np.testing.assert_array_equal(numpy(model(CLIPS)), before)

    usual = VJEPAVideoClassifier(backbone(), 3)
    usual.backbone.blocks[0].mlp_hidden.quantize("int8")
    usual.set_weights(model.get_weights())
    np.testing.assert_array_equal(numpy(usual(CLIPS)), alone)
    assert 1e-4 < np.abs(before - alone).max()
    with exported_files.in_float32(usual) as was_mixed:
        assert not was_mixed


@pytest.mark.parametrize("format", IN_FLOAT32)
# JAX has float64 only if it is configured to.
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", *["float64"][: BACKEND != "jax"]])
def test_weights_that_such_a_file_cannot_hold_are_refused(dtype, format):
    model = VJEPAVideoClassifier(backbone(dtype=dtype), 3)
    with pytest.raises(ValueError, match=f"`dtype` must be 'float32' or mixed .*'{dtype}'"):
        exported_files.check_precision(model, format)
    assert exported_files.check_precision(model, "torch") is None
    assert exported_files.check_precision(quantized_and_mixed(), format) is None


@slow_but_on("torch")
@pytest.mark.parametrize("format", [f for f in FORMATS if f in IN_FLOAT32])
def test_a_file_of_a_model_in_mixed_precision(format, tmp_path, capsys):
    model = VJEPAVideoClassifier(backbone(dtype="mixed_bfloat16"), 3)
    path = tmp_path / f"model{ENDINGS[format]}"
    any_batch = OFFERS[BACKEND][format].any_batch
    model.export(path, format, batch_size=None if any_batch else 2)
    assert f"Saved {path} in float32 instead of mixed precision: the model" in (
        capsys.readouterr().out
    )
    with exported_files.in_float32(model):
        expected = numpy(model(CLIPS))
    assert np.abs(RUNNERS[format](path, CLIPS) - expected).max() <= 2e-5


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
