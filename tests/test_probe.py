"""The attentive pooler."""

import numpy as np
import pytest
from keras import ops

from keras_vjepa import AttentivePooler
from keras_vjepa.monitoring import feature_statistics
from keras_vjepa.probe import classifier_layer


def numpy(x):
    return ops.convert_to_numpy(x)


def test_pooling_ignores_the_order_of_tokens():
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(2, 6, 8)).astype("float32")
    pooler = AttentivePooler(num_heads=2, num_layers=2)
    pooled = numpy(pooler(tokens))
    np.testing.assert_allclose(numpy(pooler(tokens[:, ::-1].copy())), pooled, atol=1e-6)
    assert np.abs(numpy(pooler(2 * tokens + tokens**2)) - pooled).max() > 1e-4


def test_one_head_is_the_formula():
    """q0 + softmax(q k) v, then the MLP, in NumPy (App. D.1)."""
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(1, 5, 4)).astype("float32")
    pooler = AttentivePooler(num_heads=1)
    pooler(tokens)
    for variable in pooler.variables:
        variable.assign(rng.normal(size=variable.shape))
    normed = numpy(pooler.tokens_norm(tokens))[0]
    query = numpy(pooler.query(pooler.query_token.value))[0, 0]
    key_value = numpy(pooler.key_value(normed[None]))[0]
    logits = key_value[:, :4] @ query / 2.0
    weights = np.exp(logits - logits.max())
    x = numpy(pooler.query_token)[0, 0] + weights / weights.sum() @ key_value[:, 4:]
    hidden = ops.gelu(pooler.mlp_hidden(pooler.mlp_norm(x[None, None])), approximate=False)
    expected = x + numpy(pooler.mlp_output(hidden))[0, 0]
    np.testing.assert_allclose(numpy(pooler(tokens))[0], expected, atol=1e-4)


def test_heads_that_do_not_divide_are_named():
    with pytest.raises(ValueError, match="must be a multiple of `num_heads`=3"):
        AttentivePooler(num_heads=3).build((None, None, 8))


def test_classifier_starts_within_its_bounds():
    layer = classifier_layer(50, 16)
    layer.build((None, 16))
    for variable in layer.variables:
        values = numpy(variable)
        assert 0.2 < np.abs(values).max() <= 0.25


def test_feature_statistics():
    rng = np.random.default_rng(0)
    one_direction = rng.normal(size=(500, 1)) * np.ones(8)
    assert feature_statistics(one_direction).effective_rank == pytest.approx(1.0, abs=1e-6)
    spread = feature_statistics(3.0 * rng.normal(size=(10, 400, 8)))
    assert spread.effective_rank == pytest.approx(8.0, abs=0.1)
    assert spread.std == pytest.approx(3.0, rel=0.05)
    collapsed = feature_statistics(np.ones((5, 8)))
    assert collapsed.std == 0.0 and collapsed.effective_rank == pytest.approx(1.0)
    with pytest.raises(ValueError, match="`features` must hold at least 2 vectors"):
        feature_statistics(np.ones((1, 8)))
