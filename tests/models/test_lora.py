"""LoRA on a backbone and a predictor: what learns, what stays, files."""

import h5py
import keras
import numpy as np
import pytest

from keras_vjepa import (
    AdamW,
    VJEPABackbone,
    VJEPAPredictor,
    VJEPAPretrainer,
    VJEPAProbe,
    VJEPAVideoClassifier,
)
from tests.models.test_layer_states import (
    LABELS,
    VIDEOS,
    backbone,
    disturb_lora,
    lora_beside_int8,
    numpy,
)
from tests.support import slow_but_on


def names(model):
    return {variable.name for variable in model.trainable_variables}


def compiled(model):
    model.compile(
        AdamW(1e-2, weight_decay=1.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=keras.config.backend() == "jax",
    )
    return model


OF_LORA = {"lora_kernel_a", "lora_kernel_b", "bias"}


def test_nothing_undoes_it():
    model = backbone()
    plain = numpy(model(VIDEOS))
    model.enable_lora(2)
    np.testing.assert_allclose(numpy(model(VIDEOS)), plain, atol=1e-6)
    assert names(model) == OF_LORA and len(model.trainable_variables) == 6
    for wrapped in (
        VJEPAVideoClassifier(model, 2),
        VJEPAVideoClassifier(model, 2, trainable_backbone=True),
    ):
        assert names(wrapped.backbone) == OF_LORA and wrapped.trainable_backbone
    model.trainable = False
    assert not any(variable.trainable for variable in model.variables)
    model.trainable = True
    assert names(model) == OF_LORA and len(model.trainable_variables) == 6
    assert not names(VJEPAVideoClassifier(model, 2, trainable_backbone=False).backbone)
    with pytest.raises(ValueError, match="`enable_lora` must be called only once"):
        model.enable_lora(2)
    with pytest.raises(ValueError, match="`rank` must be at most 8. Received: 9"):
        backbone().enable_lora(9)


def predictor():
    return VJEPAPredictor(8, (1, 2, 2), hidden_dim=8, num_layers=1, num_heads=1)


@slow_but_on("torch")
def test_mask_tokens_of_a_predictor_stay_as_they_are(tmp_path):
    model = predictor()
    model.enable_lora(2)
    assert names(model) == OF_LORA
    tokens = np.random.default_rng(0).normal(size=(2, 2, 8)).astype("float32")
    indices = np.tile(np.arange(4, dtype="int32"), (2, 1))
    inputs = {
        "context": tokens,
        "context_indices": indices[:, :2],
        "target_indices": indices[:, 2:],
    }
    model.compile(AdamW(1e-2, weight_decay=1.0), "mse")
    before = {v.path: numpy(v) for v in model.variables}
    model.train_on_batch(inputs, tokens)
    moved = {v.path for v in model.variables if (numpy(v) != before[v.path]).any()}
    assert moved == {v.path for v in model.trainable_variables}
    model.save(tmp_path / "model.keras")
    for copy in (
        keras.saving.load_model(tmp_path / "model.keras"),
        keras.models.clone_model(model),
        # The pretrainer sets `trainable` of its predictor again.
        VJEPAPretrainer(backbone(num_layers=1), model).predictor,
    ):
        assert names(copy) == OF_LORA and len(copy.trainable_variables) == 3
    model.trainable = False
    model.trainable = True
    assert names(model) == OF_LORA


def test_a_probe_refuses_it():
    probe = VJEPAProbe(3, num_heads=1)
    with pytest.raises(NotImplementedError, match="`backbone.enable_lora`"):
        probe.enable_lora(2)
    states = {"": {"lora_rank": 2}}
    with pytest.raises(ValueError, match="`layer_states` must be of layers of"):
        VJEPAProbe(3, num_heads=1, layer_states=states).build((None, None, 8))


def test_by_hand_the_kernel_alone_is_frozen():
    model = backbone()
    model.blocks[0].attention.query_key_value.enable_lora(2)
    model.trainable = False
    model.trainable = True
    frozen = [v.path for v in model.variables if not v.trainable]
    kernel = "block_0/attention/query_key_value/kernel"
    assert {path.split("/", 1)[1] for path in frozen} == {kernel, "position_table"}


@slow_but_on("torch")
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_a_training_goes_on(dtype, tmp_path):
    backbone_of_dtype = backbone(dtype=dtype)
    backbone_of_dtype.enable_lora(2)
    model = compiled(VJEPAVideoClassifier(backbone_of_dtype, 2, dtype=dtype))
    before = {v.path: numpy(v) for v in model.variables}
    model.fit(VIDEOS, LABELS, epochs=2, shuffle=False, verbose=0)
    moved = {v.path for v in model.variables if (numpy(v) != before[v.path]).any()}
    assert moved == {v.path for v in model.trainable_variables}
    model.save(tmp_path / "model.keras")
    restored = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(numpy(restored(VIDEOS)), numpy(model(VIDEOS)))
    losses = [
        m.fit(VIDEOS, LABELS, shuffle=False, verbose=0).history["loss"] for m in (model, restored)
    ]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    for one, other in zip(model.variables, restored.variables, strict=True):
        np.testing.assert_allclose(numpy(one), numpy(other), atol=1e-5)


def test_files_of_models_with_and_without_it(tmp_path):
    model = backbone()
    model.save_weights(tmp_path / "plain.weights.h5")
    model.enable_lora(2, lora_alpha=4.0)
    disturb_lora(model)
    model.save_weights(tmp_path / "lora.weights.h5")
    plain = backbone()
    plain.load_weights(tmp_path / "lora.weights.h5")
    np.testing.assert_allclose(numpy(plain(VIDEOS)), numpy(model(VIDEOS)), atol=1e-5)
    # LoRA's matrices start anew, in a state in which they can learn.
    model.load_weights(tmp_path / "plain.weights.h5")
    plain.load_weights(tmp_path / "plain.weights.h5")
    np.testing.assert_allclose(numpy(model(VIDEOS)), numpy(plain(VIDEOS)), atol=1e-6)
    assert np.abs(numpy(model.blocks[0].attention.query_key_value.lora_kernel_a)).min() > 0


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method")
def test_a_quantized_layer_does_not_take_it_silently(tmp_path):
    model = backbone()
    lora_beside_int8(model)
    model.save_weights(tmp_path / "model.weights.h5")
    other = backbone()
    other.quantize("int8")
    with pytest.raises(ValueError, match="2 objects could not be loaded"):
        other.load_weights(tmp_path / "model.weights.h5")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_file_of_its_own_holds_all_that_it_learns(dtype, tmp_path):
    model, path = backbone(dtype=dtype), tmp_path / "tuned.lora.h5"
    other, older = backbone(dtype=dtype), backbone(dtype=dtype)
    for copy in (other, older):
        copy.set_weights(model.get_weights())
    model.enable_lora(2)
    disturb_lora(model)
    plain = [numpy(block.attention.query_key_value.bias) for block in older.blocks]
    for variable in model.trainable_variables:
        variable.assign(variable + 0.5)
    model.save_lora_weights(path)
    other.load_lora_weights(path)
    np.testing.assert_array_equal(numpy(other(VIDEOS)), numpy(model(VIDEOS)))
    # Files were once written without biases.
    with h5py.File(path, "r+") as file:
        for block in ("block_0", "block_1"):
            del file[f"{block}/attention/query_key_value/bias"]
    older.load_lora_weights(path)
    for block, bias in zip(older.blocks, plain, strict=True):
        np.testing.assert_array_equal(numpy(block.attention.query_key_value.bias), bias)
    with h5py.File(path, "r+") as file:
        file["block_0/attention/query_key_value/bias"] = np.zeros(3)
    with pytest.raises(ValueError, match=r"tuned.lora.h5.* biases of the shape \(24,\)"):
        older.load_lora_weights(path)


def test_the_matrices_have_files_of_their_own(tmp_path):
    model, path = backbone(), tmp_path / "tuned.lora.h5"
    other = backbone()
    other.set_weights(model.get_weights())
    with pytest.raises(ValueError, match="`enable_lora` must be called before"):
        model.save_lora_weights(path)
    model.enable_lora(2, lora_alpha=4.0)
    disturb_lora(model)
    with pytest.raises(ValueError, match=r"`filepath` must end in .lora.h5"):
        model.save_lora_weights(tmp_path / "tuned.h5")
    model.save_lora_weights(path)
    assert path.stat().st_size < 20_000
    other.load_lora_weights(path)
    np.testing.assert_array_equal(numpy(other(VIDEOS)), numpy(model(VIDEOS)))
    assert names(other) == OF_LORA
    third = backbone()
    third.enable_lora(3)
    with pytest.raises(ValueError, match="tuned.lora.h5.* of rank 3"):
        third.load_lora_weights(path)
    deeper = VJEPABackbone(8, 2, 4, hidden_dim=8, num_layers=3, num_heads=2)
    with pytest.raises(ValueError, match="tuned.lora.h5.*LoRA weights of the model's 3 layers"):
        deeper.load_lora_weights(path)
    model.save_weights(tmp_path / "plain.weights.h5")
    (tmp_path / "cut.lora.h5").write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="cut.lora.h5 cannot be read"):
        backbone().load_lora_weights(tmp_path / "cut.lora.h5")
