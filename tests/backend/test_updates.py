"""Updates of all weights at once give what each alone would get."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_vjepa.backend import updates

SHAPES = [(3, 4), (4,), ()]


def numpy(x):
    return ops.convert_to_numpy(ops.cast(x, "float32"))


def arrays(seed):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype("float32") for shape in SHAPES]


def variables(seed, dtype="float32"):
    made = [keras.Variable(ops.zeros(shape, dtype), dtype=dtype) for shape in SHAPES]
    for variable, array in zip(made, arrays(seed), strict=True):
        variable.assign(array)
    return made


@pytest.mark.parametrize("rate", [0.25, np.float32(0.25)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("target_dtype, tolerance", [("float32", 1e-6), ("bfloat16", 2e-2)])
def test_move_towards(rate, dtype, target_dtype, tolerance):
    targets, sources = variables(0, target_dtype), variables(1, dtype)
    before = [numpy(source) for source in sources]
    rate = rate if isinstance(rate, float) else ops.convert_to_tensor(rate)
    updates.move_towards(targets, sources, rate)
    for target, source, start in zip(targets, before, arrays(0), strict=True):
        expected = start + 0.25 * (source - start)
        np.testing.assert_allclose(numpy(target), expected, rtol=0, atol=tolerance)
    for source, unchanged in zip(sources, before, strict=True):
        np.testing.assert_array_equal(numpy(source), unchanged)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_norm_is_of_all_and_in_float32(dtype):
    # In bfloat16 a sum of 4,000 ones would stop at 256.
    tensors = [ops.ones((1000, 4), dtype), ops.full((3,), 2.0, dtype)]
    norm = updates.norm(tensors)
    assert keras.backend.standardize_dtype(norm.dtype) == "float32"
    assert float(norm) == pytest.approx(4012**0.5, rel=1e-6)


def test_scaled_keeps_types_and_arguments():
    given = [ops.convert_to_tensor(array) for array in arrays(0)]
    half = [ops.cast(array, "bfloat16") for array in arrays(1)]
    factor = ops.convert_to_tensor(np.float32(0.5))
    for tensors in (given, half):
        before = [numpy(tensor) for tensor in tensors]
        for result, tensor, value in zip(
            updates.scaled(tensors, factor), tensors, before, strict=True
        ):
            assert result.dtype == tensor.dtype
            np.testing.assert_array_equal(numpy(result), value * 0.5)
            np.testing.assert_array_equal(numpy(tensor), value)


@pytest.mark.parametrize("bad", [None, np.nan, np.inf, -np.inf])
def test_all_finite_sees_one_number(bad):
    values = arrays(0)
    if bad is not None:
        values[0][1, 2] = bad
    tensors = [ops.convert_to_tensor(value) for value in values]
    assert float(updates.all_finite(tensors)) == (bad is None)
