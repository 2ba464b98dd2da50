"""The attentive pooler and the probes, against the authors' numbers (§4.3, App. D.1)."""

import json
import math

import keras
import numpy as np
import pytest
from keras import ops

from keras_vjepa import AdamW, AttentivePooler, CosineSchedule, VJEPAProbe, WarmupCosine
from keras_vjepa.conversion.authors import convert_probe, probe_entries
from keras_vjepa.monitoring.statistics import feature_statistics
from tests.support import GOLDEN, compiled, golden, slow_but_on

FORWARD_TOLERANCE = 2e-5


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


def test_heads_of_any_width():
    """The paper's 12 heads of width 12, on tokens that 12 does not divide."""
    tokens = np.random.default_rng(0).normal(size=(2, 5, 32)).astype("float32")
    pooler = AttentivePooler(num_heads=12, head_dim=12)
    pooler.build(tokens.shape)
    assert tuple(compiled(pooler)(tokens).shape) == (2, 32)
    assert tuple(pooler.query.kernel.shape) == (32, 144)
    assert tuple(pooler.output_projection.kernel.shape) == (144, 32)


@pytest.mark.parametrize("head_dim", [None, 5])
def test_pooling_before_projecting_is_pooling_after(head_dim):
    """Every token projected to keys and values, in NumPy."""
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(3, 7, 8)).astype("float32")
    pooler = AttentivePooler(num_heads=2, head_dim=head_dim)
    pooler(tokens)
    for variable in pooler.variables:
        variable.assign(rng.normal(size=variable.shape))
    key, value = np.split(numpy(pooler.key_value(pooler.tokens_norm(tokens))), 2, axis=-1)
    key, value = (x.reshape(3, 7, 2, -1) for x in (key, value))
    query = numpy(pooler.query(pooler.query_token.value)).reshape(2, -1)
    logits = np.einsum("bnhc,hc->bnh", key, query) / math.sqrt(query.shape[-1])
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    expected = np.einsum("bnh,bnhc->bhc", weights, value).reshape(3, 1, -1)
    if head_dim is not None:
        expected = numpy(pooler.output_projection(expected))
    found = numpy(pooler.cross_attention(tokens))
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_half_precision_is_near_float32():
    tokens = np.random.default_rng(0).normal(size=(3, 7, 32)).astype("float32")
    full = AttentivePooler(num_heads=4)
    full.build(tokens.shape)
    expected = numpy(compiled(full)(tokens))
    low = AttentivePooler(num_heads=4, dtype="mixed_bfloat16")
    low.build(tokens.shape)
    low.set_weights(full.get_weights())
    found = numpy(ops.cast(compiled(low)(tokens), "float32"))
    assert 0 < np.abs(found - expected).max() < 0.02 * np.abs(expected).max()


def test_identity_projection_is_no_projection():
    tokens = np.random.default_rng(0).normal(size=(2, 5, 8)).astype("float32")
    plain, projected = AttentivePooler(num_heads=2), AttentivePooler(num_heads=2, head_dim=4)
    expected = numpy(plain(tokens))
    projected(tokens)
    for name in ("query", "key_value", "mlp_hidden", "mlp_output"):
        getattr(projected, name).set_weights(getattr(plain, name).get_weights())
    projected.query_token.assign(plain.query_token)
    projected.output_projection.set_weights([np.eye(8), np.zeros(8)])
    np.testing.assert_allclose(numpy(projected(tokens)), expected, atol=1e-6)


@pytest.mark.parametrize("name,prefix", [("probe", "probe"), ("probe_depth2", "probe2")])
def test_probes_equal_the_reference(name, prefix):
    reference = golden("forward.npz")
    probe = convert_probe(GOLDEN / f"{name}.pth.tar", num_heads=4)
    tokens = reference["target_full"]
    pooled = numpy(probe.pooler(tokens))
    assert np.abs(pooled - reference[f"{prefix}_pooled"][:, 0]).max() <= FORWARD_TOLERANCE
    logits = numpy(probe(tokens))
    assert np.abs(logits - reference[f"{prefix}_logits"]).max() <= FORWARD_TOLERANCE
    if name == "probe":
        branch = numpy(probe.pooler.cross_attention(tokens))
        assert np.abs(branch - reference["probe_xattn_branch"]).max() <= FORWARD_TOLERANCE
        normed = numpy(probe.pooler.tokens_norm(reference["lnprobe_input"]))
        assert np.abs(normed - reference["lnprobe_probe_norm1"]).max() <= 1e-5


def _reference_optimizer():
    s = json.loads((GOLDEN / "probe_train3.json").read_text())["settings"]
    return AdamW(
        WarmupCosine(s["start_lr"], s["lr"], s["final_lr"], int(s["warmup"]), s["T_max"]),
        CosineSchedule(s["weight_decay"], s["final_weight_decay"], s["T_max"]),
        clip_norm=s["clip_grad_norm"],
    )


@pytest.mark.parametrize("by", ["fit", "train_on_batch"])
def test_three_training_steps(by):
    reference = golden("probe_train3.npz")
    batches = [(reference[f"features_{i}"], reference[f"labels_{i}"]) for i in range(3)]
    probe = convert_probe(GOLDEN / "probe.pth.tar", num_heads=4)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    probe.compile(_reference_optimizer(), loss=loss, metrics=["accuracy"])
    if by == "fit":
        # An epoch has one step, so that its mean loss is the loss of the step.
        history = probe.fit(
            (batch for batch in batches), steps_per_epoch=1, epochs=3, shuffle=False, verbose=0
        )
        losses = history.history["loss"]
    else:
        losses = []
        for features, labels in batches:
            probe.reset_metrics()
            losses.append(probe.train_on_batch(features, labels)[0])
    np.testing.assert_allclose(losses, reference["losses"], rtol=0, atol=3e-6)
    checksums = json.loads((GOLDEN / "probe_train3.json").read_text())["final_checksums"]
    dead = {key for key in checksums if ".xattn.proj." in key}
    found = {names[0]: entry for names, *entry in probe_entries(probe)}
    assert set(found) == set(checksums) - dead
    for name, (variable, rearrange) in found.items():
        value, compared = numpy(variable).astype("float64"), slice(None)
        if name.endswith("kv.bias"):
            # The true gradient of key biases is zero, but Adam turns its rounding noise into steps.
            compared = slice(len(value) // 2, None)
        else:
            error = abs(np.abs(value).sum() - checksums[name]["abs_sum"])
            assert error <= 5e-5 * math.sqrt(value.size), name
        if f"final/{name}" in reference:
            expected = rearrange(reference[f"final/{name}"])
            assert np.abs(value - expected)[compared].max() <= 5e-5, name


def test_average_pooling_is_a_linear_layer_on_the_mean():
    tokens = np.random.default_rng(0).normal(size=(3, 5, 8)).astype("float32")
    probe = VJEPAProbe(4, pooling="average")
    logits = numpy(probe(tokens))
    kernel, bias = probe.get_weights()
    np.testing.assert_allclose(logits, tokens.mean(axis=1) @ kernel + bias, atol=1e-6)


def test_the_linear_layer_starts_within_its_bounds():
    probe = VJEPAProbe(50, pooling="average")
    probe.build((None, None, 16))
    for variable in probe.variables:
        values = numpy(variable)
        assert 0.2 < np.abs(values).max() <= 0.25


@pytest.mark.parametrize(
    "pooling", ["attentive", pytest.param("average", marks=slow_but_on("torch"))]
)
@pytest.mark.parametrize(
    "dtype", [pytest.param("float32", marks=slow_but_on("torch")), "mixed_bfloat16"]
)
def test_probes_learn_from_cached_features(pooling, dtype):
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    labels = np.arange(32) % 4
    tokens = rng.normal(size=(32, 6, 16)).astype("float32")
    tokens[np.arange(32), :, labels] += 2.0
    probe = VJEPAProbe(4, num_heads=4, pooling=pooling, dtype=dtype)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    probe.compile(AdamW(3e-3 if pooling == "attentive" else 0.1), loss=loss, metrics=["accuracy"])
    history = probe.fit(tokens, labels, batch_size=16, epochs=12, verbose=0).history
    assert history["accuracy"][-1] > 0.9 and history["loss"][-1] < 0.6 * history["loss"][0]
    assert probe.linear.kernel.dtype == "float32" and numpy(probe(tokens)).dtype == np.float32


def test_save_and_load(tmp_path):
    tokens = np.random.default_rng(0).normal(size=(2, 5, 8)).astype("float32")
    probe = VJEPAProbe(4, num_heads=3, num_layers=1, mlp_ratio=2.0, head_dim=5)
    expected = numpy(probe(tokens))
    probe.save(tmp_path / "probe.keras")
    restored = keras.saving.load_model(tmp_path / "probe.keras")
    assert restored.get_config() == probe.get_config()
    np.testing.assert_array_equal(numpy(restored(tokens)), expected)


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"num_classes": 0}, "`num_classes` must be at least 1. Received: 0"),
        ({"num_layers": 0}, "`num_layers` must be at least 1. Received: 0"),
        ({"pooling": "max"}, "`pooling` must be 'attentive' or 'average'. Received: 'max'"),
        ({"num_heads": None}, "`num_heads` must be given for attentive pooling"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        VJEPAProbe(**{"num_classes": 3, "num_heads": 2, **arguments})


def test_bad_tokens_are_named():
    probe = VJEPAProbe(3, num_heads=2)
    with pytest.raises(ValueError, match=r"`tokens` must be \(batch, tokens, dim\)"):
        probe(np.zeros((2, 8), "float32"))
    probe(np.zeros((2, 5, 8), "float32"))
    with pytest.raises(ValueError, match="must be 8, which the probe was built for. Received: 12"):
        probe(np.zeros((2, 5, 12), "float32"))


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


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"num_layers": 2},
        {"num_layers": 2, "self_attention": "tokens"},
        {"head_dim": 3},
        {"pooling": "average"},
        {"dtype": "mixed_bfloat16"},
    ],
)
def test_probes_called_together_are_called_alone(arguments):
    tokens = np.random.default_rng(0).normal(size=(3, 7, 8)).astype("float32")
    probes = [VJEPAProbe(classes, num_heads=2, **arguments) for classes in (4, 4, 6)]
    expected = [numpy(probe(tokens)) for probe in probes]
    assert not np.allclose(expected[0], expected[1], atol=1e-2)
    together = VJEPAProbe.call_together(probes, ops.convert_to_tensor(tokens))
    for found, alone in zip(together, expected, strict=True):
        np.testing.assert_allclose(numpy(found), alone, atol=1e-6)
