"""Noise schedules, samplers and the 3-D U-Net against guided-diffusion and arithmetic."""

import json

import keras
import numpy as np
import pytest
from keras import ops

from keras_vjepa.layers.space_time import SpaceTimeConvolution, group_norm
from keras_vjepa.models.diffusion import NoiseSchedule, denoise, timestep_embedding
from keras_vjepa.models.diffusion_network import DiffusionNetwork, stages
from keras_vjepa.models.diffusion_outputs import NetworkOutput
from tests.support import GOLDEN, golden, slow_but_on

KINDS = ("linear", "cosine")
SMALL = {
    "clip_shape": (2, 8, 4), "feature_dim": 6, "grid_shape": (2, 2, 1), "width": 8,
    "multipliers": (1, 2), "num_blocks": 1, "attention_at": (), "groups": 4, "head_dim": 8,
}  # fmt: skip


def numpy(x):
    return ops.convert_to_numpy(ops.cast(x, "float32"))


def toy(x, timestep):
    return 0.9 * ops.tanh(x) + 0.02 * float(np.sin(timestep / 100))


@pytest.mark.parametrize("kind", KINDS)
def test_a_schedule_equals_the_reference(kind):
    arrays, schedule = golden("diffusion/diffusion.npz"), NoiseSchedule(kind)
    np.testing.assert_allclose(schedule.betas, arrays[f"{kind}_betas"], atol=1e-12)
    expected = arrays[f"{kind}_alphas_cumprod"]
    np.testing.assert_allclose(schedule.signal_shares, expected, atol=1e-12)
    clean, noise = (arrays[f"{kind}_{name}"].astype("float32") for name in ("x0", "noise"))
    noised = numpy(schedule.noised(clean, noise, np.array([0, 400, 999])))
    assert np.abs(noised - arrays[f"{kind}_noised_at_0_400_999"]).max() <= 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_run_of_ddim_equals_the_reference(kind):
    arrays, schedule = golden("diffusion/diffusion.npz"), NoiseSchedule(kind)
    kept = json.loads((GOLDEN / "diffusion/diffusion.json").read_text())
    assert schedule.kept(20).tolist() == kept[f"{kind}_kept_timesteps"]
    found = numpy(denoise(toy, arrays[f"{kind}_start"].astype("float32"), schedule, 20))
    assert np.abs(found - arrays[f"{kind}_ddim_result"]).max() <= 1e-5


def test_the_timestep_embedding_equals_the_reference():
    found = numpy(timestep_embedding(np.array([0, 1, 400, 999]), 32))
    expected = golden("diffusion/diffusion.npz")["timestep_embedding_0_1_400_999_width_32"]
    assert np.abs(found - expected).max() <= 1e-5
    odd = numpy(timestep_embedding(np.array([5]), 33))
    np.testing.assert_allclose(odd[0, :-1], numpy(timestep_embedding(np.array([5]), 32))[0])
    assert odd[0, -1] == 0


def test_a_linear_schedule_of_other_lengths_ends_in_as_much_noise():
    ends = [NoiseSchedule("linear", count).signal_shares[-1] for count in (100, 1000, 4000)]
    np.testing.assert_allclose(np.log(ends), np.log(ends[1]), rtol=0.1)


@pytest.mark.parametrize(
    ("count", "regular", "expected"),
    [(1, True, [0]), (3, True, [0, 334, 668]), (3, False, [0, 500, 999]), (700, True, None)],
)
def test_kept_timesteps(count, regular, expected):
    kept = NoiseSchedule().kept(count, regular)
    assert len(set(kept.tolist())) == count and kept.min() == 0 and kept.max() <= 999
    assert expected is None or kept.tolist() == expected


def perfect(clean, schedule):
    """The noise that a network would find that knows the clean clip."""

    def model(x, timestep):
        share = float(schedule.signal_shares[timestep])
        return (numpy(x) - share**0.5 * clean) / (1 - share) ** 0.5

    return model


@pytest.mark.parametrize(("sampler", "eta"), [("ddim", 0.0), ("ddim", 1.0), ("ddpm", 0.0)])
def test_samplers_end_at_the_clip_that_the_network_knows(sampler, eta):
    rng, schedule = np.random.default_rng(0), NoiseSchedule()
    clean = rng.uniform(-1, 1, (2, 3, 4)).astype("float32")
    found = denoise(
        perfect(clean, schedule), rng.normal(size=clean.shape), schedule, 10, sampler, eta,
        draw=lambda: rng.normal(size=clean.shape).astype("float32"),
    )  # fmt: skip
    assert np.abs(numpy(found) - clean).max() <= 1e-3


def test_ddpm_of_every_step_has_the_posterior_of_the_betas():
    """From timestep 1 to 0, the mean weighs both clips as the formula with betas has it."""
    schedule = NoiseSchedule("linear")
    start, noise = np.ones((1, 2), "float32"), np.full((1, 2), 0.5, "float32")
    seen = []

    def model(x, timestep):
        seen.append(numpy(x))
        return noise

    rest = np.zeros((1, 2), "float32")
    denoise(model, start, schedule, 1000, "ddpm", draw=lambda: rest, clip=False)
    betas, shares = schedule.betas, schedule.signal_shares
    mean = (seen[0] - betas[999] / np.sqrt(1 - shares[999]) * noise) / np.sqrt(1 - betas[999])
    np.testing.assert_allclose(seen[1], mean, rtol=1e-4)


def test_wrong_arguments_are_named():
    start = np.zeros((1, 2), "float32")
    for given, name in (({"sampler": "euler"}, "sampler"), ({"eta": 2.0}, "eta"),
                        ({"steps": 1001}, "steps"), ({"eta": 0.5}, "draw")):  # fmt: skip
        with pytest.raises(ValueError, match=f"`{name}`"):
            denoise(toy, start, NoiseSchedule(), **{"steps": 5, **given})
    with pytest.raises(ValueError, match="`steps` must be at least 21"):
        NoiseSchedule("linear", 20)


# --- The network ---------------------------------------------------------------------------------


def inputs(network, kinds=(0, 1), seed=0):
    rng, count = np.random.default_rng(seed), len(kinds)
    return {
        "clips": rng.normal(size=(count, *network.clip_shape, 3)).astype("float32"),
        "timesteps": np.arange(count, dtype="int32") * 100,
        "features": rng.normal(size=(count, network.num_tokens, network.feature_dim)).astype(
            "float32"
        ),
        "kinds": np.array(kinds, "int32"),
    }


def awake(network):
    """Let layers that begin as zero do something."""
    rng = np.random.default_rng(0)
    for weight in network.weights:
        weight.assign(0.3 * rng.normal(size=weight.shape))
    return network


@slow_but_on("torch")
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"factorized": True, "condition": "grid", "multipliers": (2, 1)},
        {"condition": "tokens", "attention_at": (8,)},
        {"condition": "attended", "feature_dim": 6, "head_dim": 3},
    ],
)
def test_a_network_counts_its_weights_and_returns(given):
    arguments = {**SMALL, **given}
    network = DiffusionNetwork(**arguments)
    assert network.count_params() == DiffusionNetwork.number_of_weights(**arguments)
    again = DiffusionNetwork.from_config(network.get_config())
    assert again.get_config() == network.get_config()
    found = numpy(network(inputs(network)))
    assert found.shape == (2, 2, 8, 4, 3) and found.dtype == np.float32
    assert not found.any(), "the last layer begins as zero"


@slow_but_on("torch")
@pytest.mark.parametrize("condition", ["pooled", "tokens", "grid", "attended"])
def test_features_count_unless_their_kind_is_none(condition):
    network = awake(DiffusionNetwork(**SMALL, condition=condition))
    given = inputs(network, (0, 1))
    other = {**given, "features": given["features"] + 1}
    before, after = (numpy(network(one)) for one in (given, other))
    np.testing.assert_allclose(before[0], after[0], atol=1e-5)
    assert np.abs(before[1] - after[1]).max() > 1e-3
    # The order of tokens matters, except if only their mean is used.
    moved = {**given, "features": given["features"][:, ::-1].copy()}
    assert (np.abs(numpy(network(moved))[1] - before[1]).max() > 1e-4) == (condition != "pooled")


def test_the_papers_network_has_its_numbers():
    """745 million parameters in 3-D with 6 outputs and classes; here features and 3 outputs."""
    sizes = {"clip_shape": (16, 64, 64), "feature_dim": 1280, "grid_shape": (8, 6, 6)}
    assert round(DiffusionNetwork.number_of_weights(**sizes) / 1e6) == 746
    found = stages(192, (1, 2, 3, 4), 3, (32, 16, 8), 64)
    assert [one.filters for one in found if one.part == "down"][-1] == 768
    assert sum(one.attends for one in found) == 9 + 1 + 12
    assert sum(one.sampling == "down" for one in found) == 3


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"clip_shape": (2, 6, 5)}, "clip_shape"),
        ({"clip_shape": (2, 8)}, "clip_shape"),
        ({"grid_shape": (2, 3, 1), "condition": "grid"}, "clip_shape"),
        ({"grid_shape": (2, 3, 1), "condition": "attended"}, "clip_shape"),
        ({"condition": "mean"}, "condition"),
        ({"multipliers": ()}, "multipliers"),
        ({"width": 0}, "width"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_wrong_sizes_are_named(given, name):
    for make in (DiffusionNetwork, DiffusionNetwork.number_of_weights):
        with pytest.raises(ValueError, match=f"`{name}`"):
            make(**{**SMALL, **given})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_layers_of_clips_equal_their_plain_forms(dtype):
    """A norm is Keras'; taps over space and then time are one kernel of 3 x 3 x 3."""
    rng, close = np.random.default_rng(0), 1e-5 if dtype == "float32" else 0.1
    clips = ops.cast(3 + 2 * rng.normal(size=(2, 3, 4, 5, 6)), dtype)
    norm = group_norm(6, 4, "norm", dtype)
    plain = keras.layers.GroupNormalization(2, epsilon=1e-5, dtype=dtype)
    for layer in (norm, plain):
        layer.build(clips.shape)
        layer.set_weights([np.arange(1.0, 7), np.arange(6.0)])
    np.testing.assert_allclose(numpy(norm(clips)), numpy(plain(clips)), atol=close, rtol=close)
    apart = SpaceTimeConvolution(4, factorized=True, dtype=dtype)
    apart.build(clips.shape)
    weights = [rng.normal(size=weight.shape) for weight in apart.weights]
    weights[1] = np.zeros(4)
    apart.set_weights(weights)
    space, _, time, bias = weights
    kernel = np.einsum("yxcf,tfo->tyxco", space, time.reshape(3, 4, 4))
    together = keras.layers.Conv3D(4, 3, padding="same")
    together.build(clips.shape)
    together.set_weights([kernel, bias])
    expected = numpy(together(ops.cast(clips, "float32")))
    near = 1e-4 if dtype == "float32" else 0.03 * np.abs(expected).max()
    np.testing.assert_allclose(numpy(apart(clips)), expected, atol=near)


@pytest.mark.parametrize("kind", KINDS)
def test_a_residual_gives_the_noise_back_and_has_a_deviation_of_1(kind):
    rng = np.random.default_rng(0)
    output = NetworkOutput(NoiseSchedule(kind, 1000), "residual", -0.6, 0.3)
    clean = rng.normal(-0.6, 0.3, (5, 20_000)).astype("float32")
    noise = rng.normal(size=clean.shape).astype("float32")
    timesteps = np.array([0, 50, 400, 800, 999])
    noised = output.schedule.noised(clean, noise, timesteps)
    wanted = ops.convert_to_numpy(output.wanted(clean, noise, timesteps))
    np.testing.assert_allclose(wanted.std(axis=1), 1, atol=0.02)
    np.testing.assert_allclose(wanted.mean(axis=1), 0, atol=0.02)
    found = ops.convert_to_numpy(output.noise(wanted, noised, timesteps))
    # Near the clean clip a bit of it is a large part of the noise.
    np.testing.assert_allclose(found[1:], noise[1:], atol=1e-5)
    np.testing.assert_allclose(found[0], noise[0], atol=1e-4)
    # What a network that says nothing amounts to: the guess is the mean where all is noise, and the
    # noised clip where nearly nothing is.
    share = output.schedule.signal_shares[timesteps][:, None]
    silent = ops.convert_to_numpy(output.noise(np.zeros_like(clean), noised, timesteps))
    guess = (ops.convert_to_numpy(noised) - np.sqrt(1 - share) * silent) / np.sqrt(share)
    assert np.abs(guess[0] - clean[0]).max() < 0.1
    if kind == "linear":
        np.testing.assert_allclose(guess[-1], -0.6, atol=0.02)
