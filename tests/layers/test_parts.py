"""A block's parts are Keras layers: what Keras hangs on a layer acts on them too."""

import keras
import numpy as np
import pytest

from keras_vjepa.layers import TokenDense, TransformerBlock, transformer
from tests.gradients import loss_and_gradients
from tests.layers.small import (
    OWNERS,
    PARTS,
    block,
    in_float32,
    inputs_of,
    numpy,
    outputs_of,
    part_of,
)
from tests.support import slow_but_on


@pytest.mark.parametrize("name", OWNERS)
def test_an_activity_regularizer_adds_its_loss(name):
    owner = OWNERS[name]()
    parts = [part_of(owner, path) for path in PARTS]
    parts += getattr(owner, "blocks", [])
    outputs = [outputs_of(part) for part in parts]
    for part in parts:
        part.activity_regularizer = keras.regularizers.L2(0.5)
    owner(*inputs_of(owner))
    expected = [0.5 * np.sum(np.square(numpy(seen))) / 2 for (seen,) in outputs]
    assert min(expected) > 0.0
    np.testing.assert_allclose(sorted(map(float, owner.losses)), sorted(expected), rtol=1e-5)


def test_a_loss_has_its_gradient():
    plain, regularized = block(), block()
    regularized.set_weights(plain.get_weights())
    regularized.mlp_hidden.activity_regularizer = keras.regularizers.L2(0.5)
    (loss, gradients, _), (other_loss, other_gradients, _) = (
        loss_and_gradients(each, *inputs_of(each)) for each in (plain, regularized)
    )
    assert other_loss > loss
    kernel = [v.path.endswith("mlp_hidden/kernel") for v in plain.trainable_variables].index(True)
    assert np.abs(other_gradients[kernel] - gradients[kernel]).max() > 1e-4


class CountedDense(TokenDense):
    """Counts its calls, in an overridden `__call__`, and remembers whether it was training."""

    def __init__(self, units, name, dtype):
        super().__init__(units, name=name, dtype=dtype)
        self.num_calls = 0
        self.training = None

    def __call__(self, *args, **kwargs):
        self.num_calls += 1
        return super().__call__(*args, **kwargs)

    def call(self, inputs, training=None):
        self.training = training
        return super().call(inputs)


class CountedBlock(TransformerBlock):
    """A block that counts its calls likewise."""

    num_calls = 0

    def __call__(self, *args, **kwargs):
        self.num_calls += 1
        return super().__call__(*args, **kwargs)


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("name", ["backbone", "predictor"])
def test_an_overridden_call_is_called(name, remat, monkeypatch):
    original = OWNERS[name]()
    monkeypatch.setattr(transformer, "TransformerBlock", CountedBlock)
    monkeypatch.setattr(transformer, "dense", CountedDense)
    owner = OWNERS[name](remat=remat)
    owner.set_weights(original.get_weights())
    outputs = owner(*inputs_of(owner), training=True)
    np.testing.assert_allclose(numpy(outputs), numpy(original(*inputs_of(owner))), atol=1e-6)
    assert owner.blocks[0].num_calls == 1
    parts = [part_of(owner, path) for path in PARTS]
    counted = [part for part in parts if isinstance(part, CountedDense)]
    assert [part.num_calls for part in counted] == [1] * 4
    # Keras passes `training` on to every layer whose call has this argument.
    assert [part.training for part in counted] == [True] * 4


@pytest.mark.parametrize("of_class", [TokenDense, keras.layers.Layer])
def test_a_call_replaced_for_a_class_is_called(of_class, monkeypatch):
    owner, seen, call = block(), [], of_class.__call__

    def replaced(self, *args, **kwargs):
        seen.append(self.name)
        return call(self, *args, **kwargs)

    monkeypatch.setattr(of_class, "__call__", replaced)
    owner(*inputs_of(owner))
    expected = [path.split(".")[-1] for path in PARTS]
    if of_class is TokenDense:
        expected = [n for n in expected if n != "attention" and "norm" not in n]
    assert [n for n in seen if n in expected] == expected


@pytest.mark.parametrize(
    "name,policy",
    [
        *(("backbone", p) for p in ("float32", "mixed_bfloat16", "mixed_float16", "bfloat16")),
        ("predictor", "mixed_bfloat16"),
        ("block", "mixed_bfloat16"),
    ],
)
def test_stateless_call_gives_what_the_call_gives(name, policy):
    owner = OWNERS[name](dtype=policy)
    values = (
        [v.value for v in part]
        for part in (owner.trainable_variables, owner.non_trainable_variables)
    )
    outputs, _ = owner.stateless_call(*values, *inputs_of(owner))
    expected = owner(*inputs_of(owner))
    assert keras.backend.standardize_dtype(outputs.dtype) == owner.compute_dtype
    np.testing.assert_array_equal(in_float32(outputs), in_float32(expected))


@pytest.mark.parametrize(
    "policy,own",
    [("mixed_bfloat16", "float32"), ("float32", "mixed_bfloat16"), ("float32", "bfloat16")],
)
@pytest.mark.parametrize("path", PARTS)
def test_a_part_may_have_a_policy_of_its_own(path, policy, own):
    owner = block(dtype=policy)
    expected = in_float32(owner(*inputs_of(owner)))
    part = part_of(owner, path)
    part.dtype_policy = own
    outputs = outputs_of(part)
    actual = owner(*inputs_of(owner))
    assert keras.backend.standardize_dtype(actual.dtype) == owner.compute_dtype
    # The output of attention has the dtype of its own last part.
    of_type = part if path != "attention" else owner.attention.output_projection
    assert keras.backend.standardize_dtype(outputs[0].dtype) == of_type.compute_dtype
    np.testing.assert_allclose(in_float32(actual), expected, atol=0.05)


@pytest.mark.parametrize(
    "policy", [pytest.param("float32", marks=slow_but_on("torch")), "mixed_bfloat16"]
)
def test_quantized_parts(policy):
    owner = block(dtype=policy)
    for path in ("attention.query_key_value", "mlp_hidden"):
        part_of(owner, path).kernel.assign(10 * part_of(owner, path).kernel)
    expected = in_float32(owner(*inputs_of(owner)))
    for path in PARTS:
        if isinstance(part_of(owner, path), TokenDense):
            part_of(owner, path).quantize("int8")
            assert part_of(owner, path)._kernel.dtype == "int8"
    difference = np.abs(in_float32(owner(*inputs_of(owner))) - expected).max()
    assert 0.0 < difference < 0.05


@pytest.mark.parametrize("name", OWNERS)
def test_lora_acts(name):
    owner, merged = OWNERS[name](), OWNERS[name]()
    merged.set_weights(owner.get_weights())
    before = numpy(owner(*inputs_of(owner)))
    layer = part_of(owner, "attention.query_key_value")
    layer.enable_lora(rank=2)
    np.testing.assert_array_equal(numpy(owner(*inputs_of(owner))), before)
    layer.lora_kernel_b.assign(np.random.default_rng(1).normal(size=layer.lora_kernel_b.shape))
    after = numpy(owner(*inputs_of(owner)))
    assert np.abs(after - before).max() > 1e-3
    part_of(merged, "attention.query_key_value").kernel.assign(layer.kernel)
    np.testing.assert_allclose(after, numpy(merged(*inputs_of(merged))), atol=1e-6)
