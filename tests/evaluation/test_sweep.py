"""Probes trained side by side, each as if it were alone."""

import keras
import numpy as np
import pytest

from keras_vjepa import AdamW, CosineSchedule, VJEPAProbe
from keras_vjepa.evaluation.sweep import ProbeSweep
from keras_vjepa.evaluation.sweep_optimizer import SweepAdamW
from keras_vjepa.training.loss_log import NotFiniteError
from tests.evaluation.support import assert_close, weights_of
from tests.support import slow_but_on

CANDIDATES = ((1e-3, 0.01), (1e-2, 0.3), (3e-3, 0.0))


def built_probe(**arguments):
    probe = VJEPAProbe(1, 2, **arguments)
    probe.build((None, None, 8))
    return probe


def make_sweep(tasks, candidates=CANDIDATES, probe=None, **optimizer):
    def make_optimizer(networks, candidates):
        return SweepAdamW(networks, candidates, **optimizer)

    return ProbeSweep(built_probe(**probe or {}), tasks, candidates, None, make_optimizer)


def toy(seed=0, count=24, predictions=1):
    rng = np.random.default_rng(seed)
    tokens = rng.normal(size=(count, predictions, 5, 8)).astype("float32")
    return tokens, rng.integers(12, size=count).astype("int32")


def steps_of(tokens, labels, steps, batch_size=8):
    for step in range(steps):
        rows = np.arange(step * batch_size, (step + 1) * batch_size) % len(labels)
        yield tokens[rows], labels[rows]


def train(sweep, steps=6, seed=3, predictions=1):
    sweep.restart(seed, steps)
    stream = steps_of(*toy(predictions=predictions), steps)
    sweep.fit(stream, steps_per_epoch=steps, shuffle=False, verbose=0)
    return sweep


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, marks=slow_but_on("torch")),
        {"probe": {"num_layers": 2}, "constant_decay": True},
    ],
)
def test_each_probe_gets_what_it_would_get_alone(options):
    together = train(make_sweep({"a": 12, "b": 1}, CANDIDATES[:2], **options))
    # The reference is one task and one candidate alone.
    alone = train(make_sweep({"a": 12}, CANDIDATES[1:2], **options))
    assert_close(
        together.probes_of("a")[1].get_weights(), alone.probes_of("a")[0].get_weights(), 1e-5
    )
    first, second = (together.probes_of("a")[i].get_weights() for i in (0, 1))
    assert max(np.abs(x - y).max() for x, y in zip(first, second, strict=True)) > 1e-3


@pytest.mark.slow
def test_with_float16_each_training_begins_anew():
    """Keras wraps the optimizer then; its first steps overflow until the scale fits."""
    sweep = make_sweep({"a": 12}, CANDIDATES[:2], probe={"dtype": "mixed_float16"})
    before = [weights.copy() for weights in train(sweep, 12).probes[1].get_weights()]
    fresh = make_sweep({"a": 12}, CANDIDATES[:2], probe={"dtype": "mixed_float16"})
    fresh.restart(3, 12)
    assert any((a != b).any() for a, b in zip(before, fresh.probes[1].get_weights(), strict=True))
    for one, other in zip(before, train(sweep, 12).probes[1].get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("constant", [pytest.param(False, marks=slow_but_on("torch")), True])
def test_a_probe_learns_as_with_plain_adamw(constant):
    steps, (tokens, labels) = 6, toy()
    options = {"clip_norm": 0.5, "beta_1": 0.8, "beta_2": 0.95, "epsilon": 1e-5}
    sweep = make_sweep({"a": 3, "b": 4}, ((1e-2, 0.3),), constant_decay=constant, **options)
    train(sweep, steps)
    plain = VJEPAProbe(4, 2)
    plain.build((None, 5, 8))
    keras.utils.set_random_seed(3)
    fresh = VJEPAProbe(4, 2)
    fresh.build((None, 5, 8))
    plain.set_weights(fresh.get_weights())
    decay = 0.3 if constant else CosineSchedule(0.3, 1e-6, steps)
    plain.compile(
        AdamW(CosineSchedule(1e-2, 0.0, steps), decay, **options),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    batches = steps_of(tokens[:, 0], labels % 4, steps)
    plain.fit(batches, steps_per_epoch=steps, shuffle=False, verbose=0)
    assert_close(sweep.probes_of("b")[0].get_weights(), plain.get_weights(), 1e-5)


def test_probes_have_all_arguments_of_the_one_given():
    arguments = {
        "num_layers": 3,
        "mlp_ratio": 2.0,
        "layer_norm_epsilon": 1e-4,
        "head_dim": 5,
        "self_attention": "tokens",
    }
    sweep = make_sweep({"a": 3, "b": 4}, CANDIDATES[:2], arguments)
    assert [probe.num_classes for probe in sweep.probes] == [3, 3, 4, 4]
    for probe in sweep.probes:
        found = probe.get_config()
        assert {name: found[name] for name in arguments} == arguments
    # A saved training finds its variables by paths, which do not depend on models that were made
    # before.
    again = make_sweep({"a": 3, "b": 4}, CANDIDATES[:2], arguments)
    paths = [[v.path for v in one.trainable_variables] for one in (sweep, again)]
    assert paths[0] == paths[1] and len(set(paths[0])) == len(paths[0])


def test_several_predictions_are_a_mean_of_losses_and_of_softmax():
    tokens, labels = toy(predictions=3)
    sweep = make_sweep({"a": 12}, CANDIDATES[:2])
    sweep.restart(0, 4)
    sweep.probes[1].set_weights([w + 0.1 for w in sweep.probes[1].get_weights()])
    single = np.stack(
        [
            keras.ops.convert_to_numpy(
                keras.ops.log_softmax(network(tokens.reshape(-1, 5, 8)))
            ).reshape(24, 3, 12)
            for network in sweep.probes
        ]
    )
    own = np.take_along_axis(single, labels[None, :, None, None], axis=-1)
    loss = sweep.compute_loss(None, labels, sweep(tokens, training=True))
    loss = keras.ops.convert_to_numpy(loss)
    np.testing.assert_allclose(loss, -own.mean(axis=(1, 2, 3)).sum(), rtol=1e-5)
    combined = keras.ops.convert_to_numpy(sweep(tokens)["a"])
    np.testing.assert_allclose(
        np.exp(combined), np.exp(single).mean(axis=2).transpose(1, 0, 2), atol=1e-5
    )


def test_a_second_training_starts_afresh_and_compiles_nothing(monkeypatch):
    sweep = train(make_sweep({"a": 3, "b": 4}, CANDIDATES[:2]))
    first = weights_of(sweep)
    traced = []
    original = ProbeSweep.call
    monkeypatch.setattr(
        ProbeSweep, "call", lambda self, *a, **k: traced.append(1) or original(self, *a, **k)
    )
    train(sweep, steps=3, seed=4)
    assert max(np.abs(x - y).max() for x, y in zip(first, weights_of(sweep), strict=True)) > 1e-4
    train(sweep)
    assert_close(weights_of(sweep), first, 0)
    # Torch has no compiled step, so the function is called for each batch.
    assert len(traced) == (9 if keras.config.backend() == "torch" else 0)


class Rows:
    """Batches of the toy set, as a training asks for them."""

    error = None

    def stream(self, start, stop):
        return list(steps_of(*toy(), stop))[start:]


def test_a_training_stops_when_no_probe_of_a_task_is_finite_any_more(caplog):
    mixed = make_sweep({"a": 3, "b": 4}, ((1e30, 0.0), (1e-3, 0.0)))
    mixed.restart(0, 4)
    mixed.train_on(Rows(), 0, 4)
    finite = mixed.which_are_finite(4)
    assert [list(found) for found in finite.values()] == [[False, True]] * 2
    assert "The probe of b with learning rate 1e+30 and weight decay 0 is not" in caplog.text
    alone = make_sweep({"a": 3, "b": 4}, ((1e30, 0.0),))
    alone.restart(0, 40)
    with pytest.raises(NotFiniteError) as error_info:
        alone.train_on(Rows(), 2, 40)
    assert 3 <= error_info.value.step < 10
    assert str(error_info.value).endswith("; the `learning_rates` must be lower")
    with pytest.raises(NotFiniteError, match="^No probe of a is finite at step 40; the `learn"):
        alone.which_are_finite(40)
