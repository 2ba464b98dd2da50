"""AdamW against the formula, written out in NumPy."""

import keras
import numpy as np
import pytest

from keras_vjepa.training.optimizer import AdamW
from keras_vjepa.training.schedules import CosineSchedule, LinearSchedule, WarmupCosine


def numpy_adamw(variables, gradients, rates, decays, clip=None, clip_after=0, epsilon=1e-8):
    """Torch's AdamW; `variables` are two networks of arrays."""
    variables = [[v.astype("float64") for v in network] for network in variables]
    m = [[np.zeros_like(v) for v in network] for network in variables]
    v2 = [[np.zeros_like(v) for v in network] for network in variables]
    for step, (rate, decay) in enumerate(zip(rates, decays, strict=True), start=1):
        for n, network in enumerate(variables):
            grads = [g.astype("float64") for g in gradients[step - 1][n]]
            norm = np.sqrt(sum((g**2).sum() for g in grads))
            if clip is not None and step > clip_after:
                grads = [g * min(1.0, clip / (norm + 1e-6)) for g in grads]
            for i, (p, g) in enumerate(zip(network, grads, strict=True)):
                if p.ndim > 1:
                    p *= 1 - rate * decay
                m[n][i] = 0.9 * m[n][i] + 0.1 * g
                v2[n][i] = 0.999 * v2[n][i] + 0.001 * g**2
                root = np.sqrt(v2[n][i] / (1 - 0.999**step)) + epsilon
                p -= rate * m[n][i] / (1 - 0.9**step) / root
    return variables


@pytest.mark.parametrize("clip,epsilon", [(None, 1e-8), (0.5, 1e-8), (None, 1e-2)])
def test_equals_the_formula(clip, epsilon):
    rng = np.random.default_rng(0)
    shapes = [[(3, 4), (4,)], [(2, 3, 4), (5,)]]
    initial = [[rng.normal(size=s).astype("float32") for s in network] for network in shapes]
    gradients = [
        [[rng.normal(size=s).astype("float32") for s in network] for network in shapes]
        for _ in range(6)
    ]
    learning_rate, weight_decay = WarmupCosine(1e-3, 1e-2, 1e-4, 2, 8), CosineSchedule(0.1, 0.5, 8)
    optimizer = AdamW(learning_rate, weight_decay, clip_norm=clip, clip_after=2, epsilon=epsilon)
    variables = [[keras.Variable(v) for v in network] for network in initial]
    optimizer.clip_separately(variables)
    flat = [v for network in variables for v in network]
    optimizer.build(flat)
    for step in gradients:
        grads = [keras.ops.convert_to_tensor(g) for network in step for g in network]
        optimizer.apply(grads, flat)
    expected = numpy_adamw(
        initial,
        gradients,
        [float(learning_rate(i)) for i in range(6)],
        [float(weight_decay(i)) for i in range(6)],
        clip,
        2,
        epsilon,
    )
    for network, wanted in zip(variables, expected, strict=True):
        for variable, value in zip(network, wanted, strict=True):
            actual = keras.ops.convert_to_numpy(variable)
            np.testing.assert_allclose(actual, value, atol=2e-6)


@pytest.mark.parametrize("beta_1,beta_2", [(0.9, 0.999), (0.9, 0.95), (0.0, 0.9999)])
def test_the_bias_correction_is_not_rounded(beta_1, beta_2):
    """A first step is the learning rate, whatever the betas; Keras' own misses it by 6e-6."""
    optimizer = AdamW(1.0, weight_decay=0.5, beta_1=beta_1, beta_2=beta_2, epsilon=0.0)
    variable = keras.Variable(np.full((2, 3), 8.0, "float32"))
    optimizer.build([variable])
    optimizer.apply([keras.ops.full((2, 3), 0.25)], [variable])
    expected = np.full((2, 3), 8.0 * (1 - 0.5) - 1.0)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(variable), expected, atol=1e-6)


def test_config_round_trip():
    optimizer = AdamW(
        WarmupCosine(1e-3, 1e-2, 1e-4, 2, 8),
        CosineSchedule(0.1, 0.5, 8),
        clip_norm=3.0,
        clip_after=7,
        epsilon=1e-6,
        name="mine",
    )
    config = keras.saving.serialize_keras_object(optimizer)
    restored = keras.saving.deserialize_keras_object(config)
    assert restored.get_config() == optimizer.get_config()
    assert float(restored.weight_decay) == pytest.approx(float(optimizer.weight_decay))
    assert (restored.clip_norm, restored.clip_after) == (3.0, 7)


def test_amsgrad_is_keras_own():
    """The largest second moment so far: a small gradient after a large one moves less."""

    def moved(amsgrad):
        optimizer = AdamW(0.1, 0.0, beta_1=0.0, beta_2=0.5, amsgrad=amsgrad)
        variable = keras.Variable(np.zeros((1, 1), "float32"))
        optimizer.build([variable])
        for gradient in (4.0, 0.1, 0.1, 0.1):
            optimizer.apply([keras.ops.full((1, 1), gradient)], [variable])
        # The first step is the same for both: the learning rate.
        return -0.1 - float(keras.ops.convert_to_numpy(variable)[0, 0])

    assert 0.0 < moved(True) < 0.6 * moved(False)


def test_the_backend_keeps_its_fused_update():
    """On torch a subclass of `keras.optimizers.AdamW` itself would update one by one."""
    assert isinstance(AdamW(), type(keras.optimizers.AdamW()))


@pytest.mark.parametrize("schedule", [LinearSchedule(0.9, 1.0, 6.25), CosineSchedule(0.4, 0.1, 5)])
def test_schedules_round_trip(schedule):
    copy = type(schedule).from_config(schedule.get_config())
    assert [float(copy(i)) for i in range(9)] == [float(schedule(i)) for i in range(9)]


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="`clip_norm` must be positive or None. Received: 0"):
        AdamW(clip_norm=0)
    with pytest.raises(ValueError, match=r"`warmup_steps` must be in \[0, total_steps=8\)"):
        WarmupCosine(0.0, 1.0, 0.0, 8, 8)
