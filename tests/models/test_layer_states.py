"""What is set on layers after a model was made comes back with it: frozen, quantized, LoRA."""

import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import ops

from keras_vjepa import (
    AdamW,
    FeatureDecoder,
    VJEPABackbone,
    VJEPAPredictor,
    VJEPAPretrainer,
    VJEPAProbe,
    VJEPAVideoClassifier,
)
from keras_vjepa.conversion import export_checkpoint
from keras_vjepa.conversion.errors import CheckpointError
from keras_vjepa.layers.layer_states import KeepsLayerStates, layers_within
from keras_vjepa.models.diffusion_network import DiffusionNetwork
from tests.gestures.models import KINDS
from tests.models.test_rivals_in_tasks import MADE
from tests.support import ROOT, slow_but_on

VIDEOS = np.random.default_rng(0).normal(size=(2, 2, 8, 8, 3)).astype("float32")
LABELS = np.array([0, 1])


def backbone(num_layers=2, **arguments):
    return VJEPABackbone(8, 2, 4, hidden_dim=8, num_layers=num_layers, num_heads=2, **arguments)


def numpy(x):
    return ops.convert_to_numpy(ops.cast(x, "float32"))


def disturb_lora(model):
    """What training does to matrices of LoRA, which begin without effect."""
    rng = np.random.default_rng(1)
    for variable in model.variables:
        if variable.name == "lora_kernel_b":
            variable.assign(0.3 * rng.normal(size=variable.shape))


def lora_beside_int8(model):
    model.quantize("int8")
    model.enable_lora(2, lora_alpha=3.0)


def only_last_trained(model):
    model.trainable = False
    model.blocks[-1].trainable = True


STATES = {
    "frozen_block": lambda model: setattr(model.blocks[0], "trainable", False),
    "last_trained": only_last_trained,
    "int8": lambda model: model.quantize("int8"),
    "int8_in_part": lambda model: model.quantize("int8", filters="mlp_hidden"),
    "int4": lambda model: model.quantize(
        config=keras.quantizers.Int4QuantizationConfig(block_size=4)
    ),
    "lora": lambda model: model.enable_lora(2),
    "lora_in_part": lambda model: model.blocks[1].mlp_hidden.enable_lora(1),
    "lora_beside_int8": lora_beside_int8,
}


def assert_alike(actual, expected, call=lambda model: model(VIDEOS)):
    assert actual.get_config() == expected.get_config()
    flags = [[(v.name, v.dtype, v.trainable) for v in m.variables] for m in (actual, expected)]
    assert flags[0] == flags[1]
    assert len(actual.trainable_variables) == len(expected.trainable_variables)
    np.testing.assert_array_equal(numpy(call(actual)), numpy(call(expected)))


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method")
@pytest.mark.parametrize(
    "state",
    [
        state
        if state in ("last_trained", "lora_beside_int8")
        else pytest.param(state, marks=slow_but_on("torch"))
        for state in STATES
    ],
)
def test_a_backbone_keeps_what_was_set(state, tmp_path):
    model = backbone()
    STATES[state](model)
    disturb_lora(model)
    plain, changed = backbone().get_config(), model.get_config()
    assert changed.keys() - plain.keys() == {"layer_states"}

    model.save(tmp_path / "model.keras")
    assert_alike(keras.saving.load_model(tmp_path / "model.keras"), model)
    clone = keras.models.clone_model(model)
    model.save_weights(tmp_path / "model.weights.h5")
    clone.load_weights(tmp_path / "model.weights.h5")
    assert_alike(clone, model)
    model.save_to_preset(tmp_path / "preset")
    assert_alike(VJEPABackbone.from_preset(tmp_path / "preset"), model)


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method")
@pytest.mark.parametrize(
    "state",
    ["lora", *(pytest.param(s, marks=slow_but_on("torch")) for s in ("last_trained", "int8"))],
)
def test_a_classifier_keeps_what_was_set_on_its_backbone(state, tmp_path):
    model = VJEPAVideoClassifier(backbone(), 2)
    STATES[state](model.backbone)
    disturb_lora(model)
    model.probe.pooler.query.trainable = False
    model.save(tmp_path / "model.keras")
    assert_alike(keras.saving.load_model(tmp_path / "model.keras"), model)
    model.save_to_preset(tmp_path / "preset")
    restored = VJEPAVideoClassifier.from_preset(tmp_path / "preset", preprocessor=None)
    assert_alike(restored, model)
    # The caller's argument takes precedence over the saved state.
    frozen = VJEPAVideoClassifier.from_preset(tmp_path / "preset", trainable_backbone=False)
    assert not any(variable.trainable for variable in frozen.backbone.variables)


BUILT = {
    **{name: lambda kind=kind: kind.new("float32") for name, kind in KINDS.items()},
    **MADE,
    "fine-tuned": lambda: VJEPAVideoClassifier(backbone(), 2, head="fine_tuning"),
    "decoder": lambda: FeatureDecoder(
        DiffusionNetwork((2, 4, 8), 6, (2, 1, 2), 8, (1,), 1, (), groups=4)
    ),
}


@pytest.mark.data
@pytest.mark.parametrize("name", BUILT)
def test_a_built_model_is_not_built_again(name):
    """As users do before `summary`, because Keras' own models that are made in parts need it."""
    model = BUILT[name]()
    parts = [layer for _, layer in layers_within(model) if isinstance(layer, KeepsLayerStates)]
    for part in (model, *parts):
        before = [*part.weights]
        shapes = part.get_build_config() or {"input_shape": None}
        part.build(*shapes.get("shapes_dict", shapes).values())
        assert [id(weight) for weight in part.weights] == [id(weight) for weight in before]


@slow_but_on("torch")
@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method")
def test_other_models_keep_what_was_set(tmp_path):
    encoder = backbone()
    predictor = VJEPAPredictor(8, encoder.position_axes, 8, 1, 2, num_mask_tokens=1)
    encoder.blocks[0].trainable = False
    pretrainer = VJEPAPretrainer(encoder, predictor)
    probe = VJEPAProbe(2, num_heads=2, num_layers=2)
    probe.build((None, None, 8))
    tokens = np.random.default_rng(0).normal(size=(1, 3, 8)).astype("float32")
    batch = {
        "videos": VIDEOS[:1],
        "context_indices_0": np.array([[0, 1]], "int32"),
        "target_indices_0": np.array([[2, 3]], "int32"),
    }
    for model, inputs in ((probe, tokens), (pretrainer, batch)):
        model.quantize("int8")
        model.save(tmp_path / "model.keras")
        restored = keras.saving.load_model(tmp_path / "model.keras")
        assert_alike(restored, model, lambda model, inputs=inputs: model(inputs))
    assert len(restored.trainable_variables) < len(pretrainer.variables) / 3


@slow_but_on("torch")
@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method")
def test_another_process_loads_it(tmp_path):
    model = VJEPAVideoClassifier(backbone(), 2)
    lora_beside_int8(model.backbone)
    disturb_lora(model)
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "videos.npy", VIDEOS)
    program = (
        "import sys, keras, keras_vjepa, numpy as np\n"
        "model = keras.saving.load_model(sys.argv[1] + '/model.keras')\n"
        "outputs = model(np.load(sys.argv[1] + '/videos.npy'))\n"
        "np.save(sys.argv[1] + '/outputs.npy', keras.ops.convert_to_numpy(outputs))"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, cwd=ROOT)
    np.testing.assert_array_equal(np.load(tmp_path / "outputs.npy"), numpy(model(VIDEOS)))


def test_states_that_cannot_be_are_refused():
    quantizer = keras.saving.serialize_keras_object(keras.quantizers.AbsMaxQuantizer())
    for states, message in (
        ([], "`layer_states` must be a dictionary. Received: \\[\\]"),
        ({"block_7": {"trainable": False}}, "must be of layers of .*Received: 'block_7'"),
        ({"block_0": 3}, "must hold dictionaries by paths of layers. Received: 'block_0': 3"),
        ({"block_0": {"units": 3}}, "`layer_states` must be 'trainable', .* Received: 'units'"),
        ({"block_0": {"trainable": 1}}, "`trainable` must be True or False. Received: 1"),
        ({"block_0": {"lora_rank": 1}}, "must give a `lora_rank` to dense layers"),
        ({"block_0/mlp_hidden": {"lora_rank": 10**6}}, "`lora_rank` must be at most 8"),
        ({"block_0/mlp_hidden": {"lora_alpha": -1}}, "`lora_alpha` must be positive"),
        (
            {"block_0/mlp_hidden": {"quantization_config": {"class_name": "Dense", "config": {}}}},
            "must be made of classes of keras.quantizers. Received: 'Dense'",
        ),
        (
            {"norm": {"quantization_config": quantizer}},
            "`quantization_config` must be one of keras.quantizers",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            backbone(layer_states=states)
    probe = VJEPAProbe(2, num_heads=2, layer_states={"": {"lora_rank": 2}})
    with pytest.raises(ValueError, match="must be of layers of .*Received: ''"):
        probe.build((None, None, 8))


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method")
def test_a_layout_without_quantized_weights_gets_none(tmp_path):
    model = backbone()
    model.quantize("int8")
    with pytest.raises(CheckpointError, match="must not be quantized"):
        export_checkpoint(model, tmp_path / "model.pth.tar")


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method")
def test_parts_that_differ_from_their_copy_are_refused():
    encoder = backbone()
    predictor = VJEPAPredictor(8, encoder.position_axes, 8, 1, 2, num_mask_tokens=1)
    model = VJEPAPretrainer(encoder, predictor)
    model.trainable = False
    model.trainable = True
    assert not any(variable.trainable for variable in model.target_encoder.variables)
    model.compile(AdamW(1e-3))
    model.target_encoder.trainable = True
    with pytest.raises(ValueError, match="`trainable` must stay False for target_"):
        model.compile(AdamW(1e-3))
    model.target_encoder.trainable = False
    encoder.enable_lora(2)
    with pytest.raises(
        ValueError, match="`encoder` has changed since .* before the pretrainer is made"
    ):
        model.compile(AdamW(1e-3))
