"""Activations computed again in the backward pass: the same numbers, on every backend."""

import functools
import gc
import weakref

import keras
import numpy as np
import pytest
from keras import ops

from keras_vjepa import VJEPABackbone, VJEPAVideoClassifier
from keras_vjepa.backend import token_ops
from keras_vjepa.layers import transformer
from tests.gradients import bytes_kept, loss_and_gradients
from tests.layers.small import OWNERS, TOKENS, WIDTH, block, inputs_of, part_of
from tests.support import compiled, slow_but_on

SCOPES = {
    "none": {"mode": None},
    "full": {"mode": "full"},
    "parts": {"mode": "list_of_layers", "layer_names": ["attention", "mlp_hidden", "mlp_norm"]},
    "blocks": {"mode": "list_of_layers", "layer_names": ["block_0"]},
    "mlp": {"mode": "list_of_layers", "layer_names": ["mlp"]},
    "larger_than": {"mode": "larger_than", "output_size_threshold": 2 * TOKENS * WIDTH},
    "argument": {"mode": None},
}


def made(name, scope, policy="float32"):
    """A block or model, made within a scope, with the same weights each time."""
    keras.utils.set_random_seed(0)
    arguments = {"remat": True} if scope == "argument" else {}
    with keras.RematScope(**SCOPES[scope]):
        return OWNERS[name](dtype=policy, **arguments)


@functools.cache
def computed(name, scope, policy):
    """Loss and gradients, and how often a part is computed for them."""
    owner = made(name, scope, policy)
    part, calls = part_of(owner, "mlp_hidden"), []
    call = part.call
    # Calls are counted when they begin, because torch aborts one as soon as it has what the
    # backward pass needs.
    part.call = lambda *args, **kwargs: calls.append(part) or call(*args, **kwargs)
    loss, gradients, program = loss_and_gradients(owner, *inputs_of(owner))
    # JAX traces each part once. What is computed again is a program within the program.
    return loss, gradients, len(calls) + program.count("remat2[")


def assert_same_gradients(actual, expected, bound):
    largest = max(np.abs(gradient).max() for gradient in expected)
    for gradient, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(gradient, other, rtol=0, atol=bound * largest)


@pytest.mark.parametrize(
    "name,scope,policy",
    [
        *(("backbone", scope, "float32") for scope in SCOPES if scope != "none"),
        ("backbone", "full", "mixed_bfloat16"),
        ("backbone", "blocks", "mixed_bfloat16"),
        ("backbone", "mlp", "mixed_bfloat16"),
        ("backbone", "argument", "mixed_bfloat16"),
        ("predictor", "full", "float32"),
        ("predictor", "argument", "float32"),
        ("predictor", "mlp", "float32"),
    ],
)
def test_computing_again_changes_no_number(name, scope, policy):
    expected_loss, expected_gradients, once = computed(name, "none", policy)
    loss, gradients, times = computed(name, scope, policy)
    bound = 1e-6 if policy == "float32" else 0.01
    np.testing.assert_allclose(loss, expected_loss, rtol=bound)
    assert_same_gradients(gradients, expected_gradients, bound)
    assert once == 1
    assert times >= 2


def kept_by(*names):
    """How many bytes a backbone of two blocks keeps, of which layers of these names compute again.

    Also how many the hidden layers of its MLPs have.
    """
    with keras.RematScope("list_of_layers", layer_names=names):
        model = VJEPABackbone(16, 2, 8, 2, WIDTH, 2, 2)
    hidden = 2 * inputs_of(model)[0].shape[0] * TOKENS * model.blocks[0].mlp_dim * 4
    return bytes_kept(model, *inputs_of(model)), hidden


def test_a_choice_of_layers_keeps_less():
    """Of an MLP neither what goes into GELU nor what comes out of it; of a block only its input."""
    kept, hidden = kept_by()
    without_mlp, without_first, without_blocks = (
        kept_by(*names)[0] for names in (["mlp"], ["block_0"], ["block_0", "block_1"])
    )
    assert without_mlp <= kept - 2 * hidden
    assert without_blocks < without_mlp
    share = (kept - without_first) / (kept - without_blocks)
    assert 0.45 < share < 0.55


@pytest.mark.skipif(keras.config.backend() != "torch", reason="elsewhere a step is one program")
@pytest.mark.parametrize("scope", ["full", "blocks", "mlp", "argument"])
def test_what_was_computed_again_is_gone_after_the_backward_pass(scope, monkeypatch):
    """Without waiting for Python to look for cycles: the next block needs the memory."""
    made_by_gelu = []

    def remembered(hidden):
        outputs = token_ops.gelu(hidden)
        made_by_gelu.extend([weakref.ref(hidden), weakref.ref(outputs)])
        return outputs

    monkeypatch.setattr(transformer, "gelu", remembered)
    model = made("backbone", scope)
    gc.disable()
    try:
        loss_and_gradients(model, *inputs_of(model))
        assert len(made_by_gelu) >= 4
        assert {reference() for reference in made_by_gelu} == {None}
    finally:
        gc.enable()
    assert keras.config.is_traceback_filtering_enabled()


@pytest.mark.parametrize("argument", ["padding_mask", "rotations"])
def test_optional_arguments_of_a_block_in_a_scope(argument):
    """Some are None, and TensorFlow takes no None where it computes again."""
    mask = ops.convert_to_tensor(np.arange(TOKENS)[None] < [[2], [3]])
    rotations = np.random.default_rng(0).normal(size=(1, TOKENS, WIDTH)).astype("float32")
    given = (mask, None) if argument == "padding_mask" else (None, rotations)
    again, plain = made("block", "full"), made("block", "none")
    (_, gradients, _), (_, expected, _) = (
        loss_and_gradients(each, *inputs_of(plain), *given) for each in (again, plain)
    )
    assert_same_gradients(gradients, expected, 1e-6)


@pytest.mark.parametrize("scope", ["full", "blocks", "argument"])
def test_a_loss_within_what_is_computed_again_is_refused(scope):
    """It would have no gradient on TensorFlow, and be out of reach on JAX."""
    model = made("backbone", scope)
    model.blocks[0].mlp_hidden.activity_regularizer = keras.regularizers.L2(0.5)
    with pytest.raises(ValueError, match="A part of `block_0` adds a loss .* switch `remat` or"):
        model(*inputs_of(model))


@slow_but_on("torch")
def test_a_task_made_within_a_scope_leaves_it_to_its_parts():
    """JAX and TensorFlow cannot compute again what takes `training`, or a dictionary."""
    made_within = []
    for scope in ("none", "full"):
        keras.utils.set_random_seed(0)
        with keras.RematScope(**SCOPES[scope]):
            made_within.append(VJEPAVideoClassifier(VJEPABackbone(16, 2, 8, 2, WIDTH, 1, 2), 3))
    videos = np.random.default_rng(0).normal(size=(2, 2, 16, 16, 3)).astype("float32")
    calls = (
        compiled(functools.partial(model, training=True))(ops.convert_to_tensor(videos))
        for model in made_within
    )
    plain, again = map(ops.convert_to_numpy, calls)
    np.testing.assert_allclose(again, plain, atol=1e-6)


def test_a_loss_of_what_is_itself_computed_again_is_kept():
    plain = block()
    with keras.RematScope(**SCOPES["parts"]):
        again = block()
    again.set_weights(plain.get_weights())
    for each in (again, plain):
        each.mlp_hidden.activity_regularizer = keras.regularizers.L2(0.5)
    (loss, gradients, _), (expected_loss, expected, _) = (
        loss_and_gradients(each, *inputs_of(each)) for each in (again, plain)
    )
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    assert_same_gradients(gradients, expected, 1e-6)
