"""The ways to compute attention agree, forward and backward."""

import math

import keras
import numpy as np
import pytest
from keras import ops

from keras_vjepa.backend import attention as module
from keras_vjepa.backend.attention import (
    attention,
    attention_by_head,
    attention_to_leading_keys,
    fused_attention,
    plain_attention,
    token_order,
    wants_leading_keys,
)


def numpy(x):
    return ops.convert_to_numpy(x)


def inputs(num_queries=9, num_keys=7, seed=0):
    rng = np.random.default_rng(seed)
    query = rng.normal(size=(2, num_queries, 3, 4)).astype("float32")
    key, value = rng.normal(size=(2, 2, num_keys, 3, 4)).astype("float32")
    mask = np.arange(num_keys)[None] < np.array([[num_keys], [num_keys - 3]])
    return query, key, value, mask


def reference(query, key, value, mask):
    logits = np.einsum("bnhc,bmhc->bhnm", query, key, dtype="float64")
    logits = logits / math.sqrt(query.shape[-1])
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


@pytest.mark.parametrize("function", [fused_attention, plain_attention, attention_by_head])
def test_any_keys_may_be_left_out(function):
    query, key, value, _ = inputs()
    mask = np.array([[False, True, True, False, True, False, True], [True] * 3 + [False] * 4])
    actual = function(*map(ops.convert_to_tensor, (query, key, value, mask)))
    np.testing.assert_allclose(numpy(actual), reference(query, key, value, mask), atol=2e-6)


# JAX's kernel on a GPU needs an even number of tokens.
MASKS = np.array(
    [[False, True, True, False, True, False, True, False], [True] * 8, [True] + [False] * 7]
)


def test_tokens_that_take_part_come_first_and_go_back():
    order, inverse, keys = token_order(ops.convert_to_tensor(MASKS))
    order, inverse = numpy(order), numpy(inverse)
    np.testing.assert_array_equal(np.take_along_axis(MASKS, order, 1), numpy(keys.mask))
    np.testing.assert_array_equal(numpy(keys.mask), np.arange(8) < np.array([[4], [8], [1]]))
    np.testing.assert_array_equal(np.take_along_axis(order, inverse, 1), [range(8)] * 3)
    assert numpy(keys.count).tolist() == [4, 8, 1]
    assert {keras.backend.standardize_dtype(x.dtype) for x in keys[1:]} == {"int32"}
    # Token j of sample i is number 8 * i + j of all tokens.
    assert numpy(keys.edges).tolist() == [0, 4, 8, 16, 16, 17, 24]


def attention_of_sorted_tokens(query, key, value, mask, dtype="float32", **kernel):
    order, inverse, keys = token_order(ops.convert_to_tensor(mask))
    rows = ops.expand_dims(ops.expand_dims(order, -1), -1)
    arrays = (
        ops.cast(ops.take_along_axis(ops.convert_to_tensor(x), rows, axis=1), dtype)
        for x in (query, key, value)
    )
    function = attention_to_leading_keys if kernel else attention
    outputs = ops.cast(function(*arrays, keys, **kernel), "float32")
    return ops.take_along_axis(outputs, inverse[:, :, None, None], axis=1)


def sorted_case(head_dim=8):
    arrays = np.random.default_rng(0).normal(size=(3, 3, 8, 2, head_dim)).astype("float32")
    return arrays, reference(*arrays, MASKS)


@pytest.mark.parametrize("kernel", [{}, {"implementation": "xla"}])
def test_attention_of_tokens_in_that_order(kernel):
    if kernel and keras.config.backend() != "jax":
        pytest.skip("a kernel of JAX for any device")
    arrays, expected = sorted_case()
    actual = attention_of_sorted_tokens(*arrays, MASKS, **kernel)
    np.testing.assert_allclose(numpy(actual)[MASKS], expected[MASKS], atol=2e-6)


@pytest.mark.parametrize("head_dim", [24, 64])
def test_a_kernel_that_skips_the_keys_left_out(head_dim):
    if not wants_leading_keys("bfloat16", MASKS.shape[1], head_dim):
        pytest.skip("needs a GPU")
    arrays, expected = sorted_case(head_dim)
    actual = numpy(attention_of_sorted_tokens(*arrays, MASKS, "bfloat16"))
    assert np.isfinite(actual).all()
    np.testing.assert_allclose(actual[MASKS], expected[MASKS], atol=0.03)


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


def weights_after_one_step(function, arrays=None):
    layer = Attend(function, arrays or inputs())
    model = keras.Sequential([layer])
    model.compile(keras.optimizers.SGD(10.0), loss=lambda y, p: ops.mean(p))
    model.fit(np.zeros((1, 1)), np.zeros((1, 1)), verbose=0)
    return [numpy(a) for a in layer.arrays]


@pytest.mark.skipif(keras.config.backend() != "torch", reason="an op of torch")
def test_that_kernel_of_torch_takes_what_it_is_given():
    """It has no public name in all versions; a new version may change it, and CI has no GPU."""
    import torch

    arguments = torch.ops.aten._flash_attention_forward.default._schema.arguments
    assert [a.name for a in arguments if not a.kwarg_only] == (
        ["query", "key", "value", "cum_seq_q", "cum_seq_k", "max_q", "max_k"]
        + ["dropout_p", "is_causal", "return_debug_mask"]
    )


@pytest.mark.parametrize("head_dim", [24, 64])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_of_tokens_in_that_order(dtype, head_dim):
    """In half precision, where there is a kernel for that, by this kernel."""
    arrays = (*sorted_case(head_dim)[0], MASKS)

    def left_in(function):
        return lambda *tensors: ops.where(MASKS[:, :, None, None], function(*tensors), 0.0)

    expected = weights_after_one_step(left_in(plain_attention), arrays)
    in_order = left_in(lambda *tensors: attention_of_sorted_tokens(*tensors, dtype))
    bound = 1e-5 if dtype == "float32" else 0.02
    for before, after, wanted in zip(
        arrays, weights_after_one_step(in_order, arrays), expected, strict=False
    ):
        np.testing.assert_allclose(after, wanted, atol=bound * np.abs(wanted - before).max())


def to_leading_keys(query, key, value, key_mask):
    """Of a mask whose keys come first already; with a kernel of JAX for any device."""
    return attention_to_leading_keys(query, key, value, token_order(key_mask).keys, "xla")


@pytest.mark.parametrize("queries_per_chunk", [4, 800])
def test_gradients_agree(queries_per_chunk, monkeypatch):
    monkeypatch.setattr(module, "_QUERIES_PER_CHUNK", queries_per_chunk)
    expected = weights_after_one_step(plain_attention)
    assert np.abs(expected[0] - inputs()[0]).max() > 1e-3
    functions = [fused_attention, attention_by_head]
    if keras.config.backend() == "jax":
        functions.append(to_leading_keys)
    for function in functions:
        for actual, wanted in zip(weights_after_one_step(function), expected, strict=True):
            np.testing.assert_allclose(actual, wanted, atol=1e-5)


def test_gradients_of_a_sample_without_any_key():
    """Its logits are all about minus a billion, beside which a logarithm of 7 would be lost."""
    *arrays, mask = inputs()
    mask = mask & np.array([[True], [False]])
    found = weights_after_one_step(attention_by_head, (*arrays, mask))
    expected = weights_after_one_step(plain_attention, (*arrays, mask))
    for array, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(array, other, atol=1e-4)


def test_one_function_chooses_for_long_sequences(monkeypatch):
    """Beyond the loop's threshold too, the numbers are the same."""
    monkeypatch.setattr(module, "_MIN_LOGITS_FOR_LOOP", 1)
    query, key, value, mask = inputs()
    actual = attention(query, key, value, ops.convert_to_tensor(mask))
    np.testing.assert_allclose(numpy(actual), reference(query, key, value, mask), atol=2e-6)
