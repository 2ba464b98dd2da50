"""On JAX, blocks that are alike are compiled once if the environment asks; numbers stay."""

import keras
import numpy as np
import pytest

from keras_vjepa import VJEPABackbone
from keras_vjepa.backend import scanned_blocks
from tests.backend import data_parallel_worker as worker

BACKEND = keras.config.backend()
only_on_jax = pytest.mark.skipif(BACKEND != "jax", reason="only JAX scans")


def backbone(num_layers=4, **arguments):
    keras.utils.set_random_seed(0)
    return VJEPABackbone(
        16, 4, patch_size=8, hidden_dim=16, num_layers=num_layers, num_heads=2, **arguments
    )


def program(model, videos, **arguments):
    """The operations of a forward pass and its gradient, and what they compute."""
    import jax

    def loss(weights, videos):
        outputs, _ = model.stateless_call(
            weights, [v.value for v in model.non_trainable_variables], videos, **arguments
        )
        signs = np.random.default_rng(1).normal(size=outputs.shape).astype("float32")
        return keras.ops.sum(outputs * signs), outputs

    values = [variable.value for variable in model.trainable_variables]
    function = jax.value_and_grad(loss, has_aux=True)
    text = str(jax.make_jaxpr(function)(values, videos))
    (_, outputs), gradients = jax.jit(function)(values, videos)
    return text, [np.asarray(outputs, "float32"), *(np.asarray(g) for g in gradients)]


@only_on_jax
@pytest.mark.parametrize(
    ("dtype", "arguments"),
    [
        ("float32", {}),
        ("mixed_bfloat16", {"remat": True}),
        ("float32", {"position_embedding": "rotary", "drop_path_rate": 0.5}),
        ("float32", {"level_layers": (1, 3), "modalities": True}),
    ],
)
def test_scanned_blocks_give_the_same_numbers(dtype, arguments, monkeypatch):
    model = backbone(dtype=dtype, **arguments)
    videos = np.random.default_rng(0).normal(size=(3, 4, 16, 16, 3)).astype("float32")
    call = {"training": True, "hierarchical": "level_layers" in arguments}
    one_by_one, expected = program(model, videos, **call)
    monkeypatch.setenv(scanned_blocks.VARIABLE, "1")
    scanned, found = program(model, videos, **call)
    assert "scan[" not in one_by_one
    # One loop forward and one backward; for each level, if there are two.
    assert scanned.count("scan[") == (4 if call["hierarchical"] else 2)
    if not call["hierarchical"]:
        assert len(scanned) < 0.7 * len(one_by_one)
    tolerance = 1e-6 if dtype == "float32" else 2e-2
    for one, other in zip(found, expected, strict=True):
        scale = max(np.abs(other).max(), 1.0)  # Gradients of keys' biases are rounding noise.
        np.testing.assert_allclose(one / scale, other / scale, rtol=0, atol=tolerance)


@only_on_jax
@pytest.mark.slow
def test_training_gives_the_same_weights(monkeypatch):
    states = []
    for value in ("0", "1"):
        monkeypatch.setenv(scanned_blocks.VARIABLE, value)
        pretrainer = worker.make_pretrainer(remat=True, accumulation_steps=3)
        losses = worker.train(worker.distribution.ALONE, pretrainer)
        states.append({"losses": losses, **worker.state(pretrainer)})
    for name, expected in states[0].items():
        np.testing.assert_allclose(states[1][name], expected, rtol=0, atol=1e-6, err_msg=name)


def test_only_blocks_that_are_alike_are_scanned():
    assert scanned_blocks.are_alike(backbone().blocks)
    assert not scanned_blocks.are_alike(backbone(num_layers=1).blocks)
    changes = {
        "a block with a dtype of its own": lambda blocks: setattr(
            blocks[1].mlp_hidden, "dtype_policy", keras.DTypePolicy("bfloat16")
        ),
        "a frozen block": lambda blocks: setattr(blocks[2], "trainable", False),
        "LoRA in one block": lambda blocks: blocks[0].mlp_hidden.enable_lora(2),
        "a loss": lambda blocks: setattr(
            blocks[3].mlp_norm, "activity_regularizer", keras.regularizers.L2(0.1)
        ),
        "a call of its own": lambda blocks: setattr(blocks[3], "call", lambda tokens: tokens),
    }
    for name, change in changes.items():
        model = backbone()
        change(model.blocks)
        assert not scanned_blocks.are_alike(model.blocks), name
    with keras.RematScope("list_of_layers", layer_names=["block_1"]):
        assert not scanned_blocks.are_alike(backbone().blocks)
    # The same change of all leaves them alike.
    with keras.RematScope("list_of_layers", layer_names=["mlp"]):
        assert scanned_blocks.are_alike(backbone().blocks)
    model = backbone()
    model.enable_lora(2)
    assert scanned_blocks.are_alike(model.blocks)


def test_other_values_are_refused(monkeypatch):
    model, videos = backbone(), np.zeros((1, 4, 16, 16, 3), "float32")
    monkeypatch.setenv(scanned_blocks.VARIABLE, "yes")
    if BACKEND != "jax":
        assert tuple(model(videos).shape) == (1, 8, 16)
        return
    with pytest.raises(ValueError, match="`KERAS_VJEPA_SCAN_BLOCKS` must be 0 or 1.*'yes'"):
        model(videos)
    # Empty is as if it was not there; outside of a program, blocks are called one by one.
    for value in ("", "0", "1"):
        monkeypatch.setenv(scanned_blocks.VARIABLE, value)
        assert tuple(model(videos).shape) == (1, 8, 16)
