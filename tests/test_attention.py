"""The ways to compute attention agree, forward and backward."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_vjepa import attention as module
from keras_vjepa.attention import (
    attention,
    attention_by_head,
    attention_to_first_keys,
    fused_attention,
    ordered_keys,
    plain_attention,
)


def to_first_keys(query, key, value, key_mask):
    """What an NVIDIA device computes with its own kernel, with JAX's on any device."""
    if keras.config.backend() != "jax":
        pytest.skip("a kernel of JAX")
    return attention_to_first_keys(query, key, value, ordered_keys(key_mask), "xla")


def numpy(x):
    return ops.convert_to_numpy(x)


def inputs(num_queries=9, num_keys=7, seed=0):
    rng = np.random.default_rng(seed)
    query = rng.normal(size=(2, num_queries, 3, 4)).astype("float32")
    key, value = rng.normal(size=(2, 2, num_keys, 3, 4)).astype("float32")
    mask = np.arange(num_keys)[None] < np.array([[num_keys], [num_keys - 3]])
    return query, key, value, mask


def reference(query, key, value, mask):
    logits = np.einsum("bnhc,bmhc->bhnm", query, key, dtype="float64") / 2.0
    logits = np.where(mask[:, None, None, :], logits, -np.inf)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("bhnm,bmhc->bnhc", weights, value)


@pytest.mark.parametrize(
    "function", [fused_attention, plain_attention, attention_by_head, attention]
)
@pytest.mark.parametrize("masked", [True, False])
def test_equals_numpy(function, masked):
    query, key, value, mask = inputs()
    if not masked:
        mask = np.ones_like(mask)
    actual = function(query, key, value, ops.convert_to_tensor(mask) if masked else None)
    np.testing.assert_allclose(numpy(actual), reference(query, key, value, mask), atol=2e-6)


@pytest.mark.parametrize(
    "function", [fused_attention, plain_attention, attention_by_head, to_first_keys]
)
def test_any_keys_may_be_left_out(function):
    query, key, value, _ = inputs()
    mask = np.array([[False, True, True, False, True, False, True], [True] * 3 + [False] * 4])
    actual = function(*map(ops.convert_to_tensor, (query, key, value, mask)))
    np.testing.assert_allclose(numpy(actual), reference(query, key, value, mask), atol=2e-6)


@pytest.mark.parametrize("function", [fused_attention, plain_attention, attention_by_head])
def test_each_way_takes_a_prepared_mask(function):
    query, key, value, mask = inputs()
    arrays = map(ops.convert_to_tensor, (query, key, value))
    actual = function(*arrays, ordered_keys(ops.convert_to_tensor(mask)))
    np.testing.assert_allclose(numpy(actual), reference(query, key, value, mask), atol=2e-6)


class Attend(keras.layers.Layer):
    def __init__(self, function, arrays):
        super().__init__()
        self.function = function
        self.arrays = [self.add_weight(shape=a.shape) for a in arrays[:3]]
        for variable, array in zip(self.arrays, arrays[:3], strict=True):
            variable.assign(array)
        self.mask = arrays[3]

    def call(self, x):
        outputs = self.function(
            *(ops.convert_to_tensor(a) for a in self.arrays), ops.convert_to_tensor(self.mask)
        )
        return ops.mean(ops.square(outputs)) + 0.0 * x


def weights_after_one_step(function):
    layer = Attend(function, inputs())
    model = keras.Sequential([layer])
    model.compile(keras.optimizers.SGD(10.0), loss=lambda y, p: ops.mean(p))
    model.fit(np.zeros((1, 1)), np.zeros((1, 1)), verbose=0)
    return [numpy(a) for a in layer.arrays]


@pytest.mark.parametrize("queries_per_chunk", [4, 800])
def test_gradients_agree(queries_per_chunk, monkeypatch):
    monkeypatch.setattr(module, "_QUERIES_PER_CHUNK", queries_per_chunk)
    expected = weights_after_one_step(plain_attention)
    assert np.abs(expected[0] - inputs()[0]).max() > 1e-3
    functions = [fused_attention, attention_by_head]
    if keras.config.backend() == "jax":
        functions.append(to_first_keys)
    for function in functions:
        for actual, wanted in zip(weights_after_one_step(function), expected, strict=True):
            np.testing.assert_allclose(actual, wanted, atol=1e-5)


def test_one_function_chooses_for_long_sequences(monkeypatch):
    """Beyond the loop's threshold too, the numbers are the same."""
    monkeypatch.setattr(module, "_MIN_LOGITS_FOR_LOOP", 1)
    query, key, value, mask = inputs()
    actual = attention(query, key, value, ops.convert_to_tensor(mask))
    np.testing.assert_allclose(numpy(actual), reference(query, key, value, mask), atol=2e-6)
