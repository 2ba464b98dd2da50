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
        # The first step of both is as long as the learning rate.
        return -0.1 - float(keras.ops.convert_to_numpy(variable)[0, 0])

    assert 0.0 < moved(True) < 0.6 * moved(False)


@pytest.mark.skipif(keras.config.backend() != "torch", reason="elsewhere a step is one program")
@pytest.mark.parametrize("amsgrad", [False, True])
def test_all_variables_are_updated_at_once(amsgrad):
    """As many calls for many variables as for a few: kernels of torch take them all together."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Calls(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            names.append(function.__name__)
            return function(*args, **(kwargs or {}))

    counts = []
    for number in (3, 30):
        names = []
        optimizer = AdamW(0.1, 0.1, clip_norm=1.0, amsgrad=amsgrad)
        variables = [keras.Variable(np.ones((2, 3), "float32")) for _ in range(number)]
        optimizer.build(variables)
        gradients = [keras.ops.ones((2, 3)) for _ in variables]
        with Calls():
            optimizer.apply(gradients, variables)
        # A norm is one call, which returns the norm of each tensor.
        counts.append(len([name for name in names if not name.startswith("detach")]))
    assert counts[0] == counts[1]


def applied(optimizer, variables, batches):
    """Hand an optimizer the gradients of each batch in turn; the values of the variables then."""
    optimizer.build(variables)
    for gradients in batches:
        optimizer.apply([keras.ops.convert_to_tensor(g) for g in gradients], variables)
    return [keras.ops.convert_to_numpy(variable) for variable in variables]


@pytest.mark.parametrize("amsgrad", [False, True])
def test_an_update_takes_the_mean_gradient_of_several_batches(amsgrad):
    """Clipping sees the mean, schedules count batches, and nothing moves in between."""
    rng = np.random.default_rng(0)
    shapes, steps = [(3, 4), (4,)], 3
    initial = [rng.normal(size=shape).astype("float32") for shape in shapes]
    batches = [[rng.normal(size=s).astype("float32") for s in shapes] for _ in range(3 * steps)]

    variables = [keras.Variable(value) for value in initial]
    schedules = WarmupCosine(1e-3, 1e-2, 1e-4, 2, 20), CosineSchedule(0.1, 0.5, 20)
    optimizer = AdamW(*schedules, clip_norm=0.5, gradient_accumulation_steps=steps, amsgrad=amsgrad)
    between = applied(optimizer, variables, batches[: steps - 1])
    for value, wanted in zip(between, initial, strict=True):
        np.testing.assert_array_equal(value, wanted)
    assert int(optimizer.iterations) == 0
    found = applied(optimizer, variables, batches[steps - 1 :])
    assert int(optimizer.iterations) == 3

    ends = [steps - 1, 2 * steps - 1, 3 * steps - 1]
    means = [
        [np.mean([batch[i] for batch in batches[end - 2 : end + 1]], axis=0) for i in range(2)]
        for end in ends
    ]
    expected = [keras.Variable(value) for value in initial]
    plain = AdamW(1.0, 0.0, clip_norm=0.5, amsgrad=amsgrad)
    for end, mean in zip(ends, means, strict=True):
        plain.learning_rate, plain.weight_decay = (float(s(end)) for s in schedules)
        wanted = applied(plain, expected, [mean])
    for value, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(value, other, atol=2e-6)


def test_variables_and_arguments_that_it_does_not_know_are_named():
    optimizer, known = AdamW(), keras.Variable(np.ones((2, 3), "float32"))
    with pytest.raises(ValueError, match="`trainable_variables` must be given before"):
        optimizer.apply([keras.ops.ones((2, 3))])
    optimizer.build([known])
    other = keras.Variable(np.ones((2, 3), "float32"), name="other")
    with pytest.raises(ValueError, match="the optimizer was built for. Received: other"):
        optimizer.apply([keras.ops.ones((2, 3))], [other])
    with pytest.raises(ValueError, match="at least one variable. Received: none"):
        optimizer.apply([None], [known])
    with pytest.raises(ValueError, match="must be called before `build`"):
        optimizer.exclude_from_weight_decay([known])
    with pytest.raises(ValueError, match="`use_ema` must be False for AdamW"):
        AdamW.from_config({**optimizer.get_config(), "use_ema": True})


def test_accumulation_is_that_of_keras():
    """And goes on from a state that was saved between two updates."""
    rng = np.random.default_rng(0)
    batches = [[rng.normal(size=(2, 3)).astype("float32")] for _ in range(10)]

    def start(kind):
        # Weight decay is the same; only Keras' place of epsilon differs.
        optimizer = kind(0.1, weight_decay=0.01, gradient_accumulation_steps=4)
        return optimizer, [keras.Variable(np.ones((2, 3), "float32"))]

    whole, other = start(AdamW), start(keras.optimizers.AdamW)
    [value], [wanted] = applied(*whole, batches), applied(*other, batches)
    assert int(whole[0].iterations) == int(other[0].iterations) == 2
    np.testing.assert_allclose(value, wanted, atol=1e-5)
    assert np.abs(value - 1.0).max() > 0.05

    stopped, restored = start(AdamW), start(AdamW)
    applied(*stopped, batches[:6])
    restored[0].build(restored[1])
    for pair in ((stopped[0].variables, restored[0].variables), (stopped[1], restored[1])):
        for source, target in zip(*pair, strict=True):
            target.assign(keras.ops.convert_to_numpy(source))
    np.testing.assert_array_equal(applied(*restored, batches[6:])[0], value)


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"clipnorm": 1.0}, "`clipnorm` must be None for AdamW: take `clip_norm`.* Received: 1.0"),
        ({"use_ema": True}, "`use_ema` must be False for AdamW: take `keras.optimizers.AdamW`"),
        ({"gradient_accumulation_steps": 1}, "`gradient_accumulation_steps` must be"),
    ],
)
def test_arguments_of_keras_that_must_be_off(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        AdamW(1e-3, **arguments)
    assert "\n" not in str(error.value)
    with pytest.raises(TypeError, match="AdamW has no argument `momentum`. Received: 0.9"):
        AdamW(1e-3, momentum=0.9)


def test_float16_weights_are_refused():
    """Their squares are 0, and so is epsilon: a step would be infinite."""
    weight = keras.Variable(np.ones((2, 2)), dtype="float16", name="half")
    with pytest.raises(ValueError, match="`dtype` must be 'mixed_float16'.* Received: .* half"):
        AdamW().build([weight])


def test_a_config_with_what_keras_adds_still_loads():
    """As files of before 0.1 hold it."""
    optimizer = AdamW(1e-3, CosineSchedule(0.1, 0.5, 8), clip_norm=2.0)
    added = {"clipnorm": None, "global_clipnorm": None, "clipvalue": None, "use_ema": False}
    added |= {"ema_momentum": 0.99, "ema_overwrite_frequency": None}
    added |= {"gradient_accumulation_steps": None}
    restored = AdamW.from_config({**optimizer.get_config(), **added})
    assert restored.get_config() == optimizer.get_config()
    assert set(added) & set(restored.get_config()) == {"gradient_accumulation_steps"}


def test_what_is_left_out_of_the_decay():
    """Biases always; others by themselves or by name."""
    names = ("kernel", "bias", "table", "mask_token")
    shapes = ((2, 3), (3,), (2, 3), (2, 3))
    variables = [
        keras.Variable(np.ones(shape, "float32"), name=name)
        for name, shape in zip(names, shapes, strict=True)
    ]
    optimizer = AdamW(0.1, weight_decay=0.5)
    optimizer.exclude_from_weight_decay([variables[2]])
    optimizer.exclude_from_weight_decay(var_names=["mask"])
    optimizer.build(variables)
    optimizer.apply([keras.ops.zeros(shape) for shape in shapes], variables)
    decayed = [float(keras.ops.convert_to_numpy(v).ravel()[0]) < 1.0 for v in variables]
    assert decayed == [True, False, False, False]


def test_gradients_of_a_scaled_loss_are_scaled_back():
    """Clipping sees them as they are, whatever the loss was multiplied by."""
    moved = []
    for scale in (None, 1024.0):
        optimizer = AdamW(0.1, 0.0, epsilon=1.0, clip_norm=0.5, loss_scale_factor=scale)
        variable = keras.Variable(np.zeros((2, 2), "float32"))
        optimizer.build([variable])
        optimizer.apply([optimizer.scale_loss(keras.ops.full((2, 2), 0.1))], [variable])
        moved.append(keras.ops.convert_to_numpy(variable))
    np.testing.assert_allclose(*moved, atol=1e-7)
    assert np.abs(moved[0]).max() > 1e-3


@pytest.mark.parametrize("schedule", [LinearSchedule(0.9, 1.0, 6.25), CosineSchedule(0.4, 0.1, 5)])
def test_schedules_round_trip(schedule):
    copy = type(schedule).from_config(schedule.get_config())
    assert [float(copy(i)) for i in range(9)] == [float(schedule(i)) for i in range(9)]


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="`clip_norm` must be positive or None. Received: 0"):
        AdamW(clip_norm=0)
    with pytest.raises(ValueError, match=r"`warmup_steps` must be in \[0, total_steps=8\)"):
        WarmupCosine(0.0, 1.0, 0.0, 8, 8)


def test_a_momentum_stays_where_its_schedule_ends():
    schedule = LinearSchedule(0.998, 1.0, 50.0)
    values = [float(schedule(step)) for step in (0, 25, 50, 51, 500)]
    assert values == pytest.approx([0.998, 0.999, 1.0, 1.0, 1.0], abs=1e-7)
    assert float(schedule.complement(500)) == 0.0
    assert float(LinearSchedule(1.0, 0.5, 10.0)(20)) == 0.5
