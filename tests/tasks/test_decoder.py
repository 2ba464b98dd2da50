"""The decoder: what it learns from, its moving average, its samples and its presets."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_vjepa import FeatureDecoder, VJEPABackbone, VJEPAPredictor, VJEPAPretrainer
from keras_vjepa.models.diffusion_network import KINDS, DiffusionNetwork
from keras_vjepa.tasks.decoder import check_decoder
from keras_vjepa.tasks.region_features import RegionFeatures, check_made_for
from tests.support import programs_made, slow_but_on


def make_decoder(feature_dim=6, grid_shape=(2, 1, 2), dropout=0.0, **arguments):
    keras.utils.set_random_seed(0)
    network = DiffusionNetwork(
        (2, 4, 8), feature_dim, grid_shape, 8, (1,), 1, (), condition="grid", factorized=True,
        groups=4, dropout=dropout,
    )  # fmt: skip
    return FeatureDecoder(network, **arguments)


def make_batch(decoder, count=3, seed=0):
    rng, shape = np.random.default_rng(seed), (count, *decoder.network.clip_shape, 3)
    tokens = (count, decoder.network.num_tokens, decoder.network.feature_dim)
    return {
        "clips": rng.uniform(-1, 1, shape).astype("float32"),
        "noise": rng.normal(size=shape).astype("float32"),
        "timesteps": rng.integers(0, 1000, count).astype("int32"),
        "features": rng.normal(size=tokens).astype("float32"),
        "kinds": (np.arange(count) % 3).astype("int32"),
    }


@pytest.fixture(scope="module")
def trained():
    decoder = make_decoder(average=0.9, made_for="somebody")
    decoder.compile(keras.optimizers.Adam(1e-2))
    first = [np.array(w) for w in decoder.averaged.get_weights()]
    batch = make_batch(decoder)
    losses = [float(decoder.train_on_batch(batch))]
    with programs_made() as made:
        losses += [float(decoder.train_on_batch(batch)) for _ in range(4)]
    return decoder, batch, first, losses, made


def test_training_lowers_the_loss_and_moves_the_average(trained):
    decoder, batch, first, losses, made = trained
    assert made == [], "all steps are one program"
    # The last layer starts at zero, so the first error is that of predicting no noise.
    np.testing.assert_allclose(losses[0], np.square(batch["noise"]).mean(), rtol=1e-5)
    assert losses[-1] < losses[0]
    now, averaged = decoder.network.get_weights(), decoder.averaged.get_weights()
    moved = [np.abs(a - b).max() for a, b in zip(averaged, first, strict=True)]
    behind = [np.abs(a - b).max() for a, b in zip(now, averaged, strict=True)]
    assert max(moved) > 1e-3 and max(behind) > 1e-4
    assert not decoder.averaged.trainable_variables


def test_the_average_of_a_network_with_dropout_leaves_its_seeds_alone():
    """The paper's network has dropout, whose seeds are variables of integers."""
    decoder = make_decoder(dropout=0.1)
    decoder.compile()
    seeds = [one for one in decoder.averaged.variables if "seed" in one.path]
    before = [ops.convert_to_numpy(one) for one in seeds]
    decoder.network.last.weights[0].assign_add(np.ones(decoder.network.last.weights[0].shape))
    for one in (v for v in decoder.network.variables if "seed" in v.path):
        one.assign(ops.convert_to_numpy(one) + 7)
    decoder.after_step()
    assert len(seeds) and ops.convert_to_numpy(decoder.averaged.last.weights[0]).max() > 0.5
    for one, expected in zip(seeds, before, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(one), expected)


def test_samples_follow_from_seed_and_features(trained):
    decoder, batch, *_ = trained
    features = batch["features"][:2]
    both = decoder.sample(features, seeds=(3, 4), steps=3)
    assert both.shape == (2, 2, 2, 4, 8, 3) and both.dtype == np.uint8
    with programs_made() as made:
        decoder.sample(features + 1, seeds=(5, 6), kind="target", steps=4)
    assert made == [], "all samples of a size are one program"
    alone = decoder.sample(features[1:], seeds=(4,), steps=3)
    assert np.abs(alone[0, 0].astype(int) - both[1, 1]).max() <= 1, "no clip knows of the others"
    assert np.abs(both[0, 0].astype(int) - both[0, 1]).max() > 5, "each seed has noise of its own"
    without = decoder.sample(features, seeds=(3,), kind="none", steps=3)
    np.testing.assert_array_equal(without[0], without[1])
    guided = decoder.sample(features, seeds=(3,), steps=3, guidance=0)
    np.testing.assert_array_equal(guided, without)


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_features_that_are_not_looked_at_may_be_anything(trained, number):
    decoder, batch, *_ = trained
    features = batch["features"][:2]
    expected = decoder.sample(features, seeds=(3,), kind="none", steps=3)
    damaged = features.copy()
    damaged[0, 1, 2] = number
    found = decoder.sample(damaged, seeds=(3,), kind="none", steps=3)
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(ValueError, match="`features` and the decoder's weights must be finite"):
        decoder.sample(damaged, seeds=(3,), steps=3)


def test_a_preset_samples_the_same(trained, tmp_path):
    decoder, batch, *_ = trained
    decoder.save_to_preset(tmp_path / "decoder")
    again = FeatureDecoder.from_preset(tmp_path / "decoder")
    assert again.get_config() == decoder.get_config()
    found, expected = (one.sample(batch["features"], steps=2) for one in (again, decoder))
    np.testing.assert_array_equal(found, expected)
    assert again.network.get_weights()[0] is not None
    for one, other in zip(again.network.weights, again.averaged.weights, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(one), ops.convert_to_numpy(other))
    path = tmp_path / "decoder" / "decoder.json"
    path.write_text(path.read_text().replace('"width": 8', '"width": 512'))
    with pytest.raises(ValueError, match=r"decoder.json describes .* weights"):
        FeatureDecoder.from_preset(tmp_path / "decoder")


@slow_but_on("torch")
def test_a_saved_decoder_goes_on_as_it_was(trained, tmp_path):
    decoder, batch, *_ = trained
    decoder.save(tmp_path / "decoder.keras")
    again = keras.saving.load_model(tmp_path / "decoder.keras")
    assert int(again.optimizer.iterations) == int(decoder.optimizer.iterations) == 5
    for one, other in zip(decoder.optimizer.variables, again.optimizer.variables, strict=True):
        np.testing.assert_array_equal(*(ops.convert_to_numpy(value) for value in (one, other)))
    found, expected = (one.test_on_batch(batch) for one in (again, decoder))
    assert float(found) == float(expected)


@slow_but_on("torch")
def test_a_network_that_its_average_no_longer_fits_is_refused():
    decoder = make_decoder()
    decoder.network.of_features.enable_lora(2)
    with pytest.raises(ValueError, match="`network` has changed since the decoder copied it"):
        decoder.compile()
    # A decoder that is made of such a network learns, and its average has the same parts.
    again = FeatureDecoder(decoder.network)
    again.compile()
    assert len(again.averaged.variables) == len(again.network.variables)


@slow_but_on("torch")
def test_a_residual_is_learnt_and_sampled():
    decoder = make_decoder(prediction_type="residual", pixel_statistics=[-0.5, 0.25])
    assert decoder.get_config()["pixel_statistics"] == (-0.5, 0.25)
    batch = make_batch(decoder) | {"timesteps": np.full(3, 999, "int32")}
    # At first the network outputs 0. Where all is noise, its error is then that of the mean.
    expected = np.square((batch["clips"] + 0.5) / 0.25).mean(axis=(1, 2, 3, 4))
    np.testing.assert_allclose(ops.convert_to_numpy(decoder(batch)), expected, rtol=1e-3)
    decoder.compile(keras.optimizers.Adam(1e-2))
    losses = [float(decoder.train_on_batch(batch)) for _ in range(5)]
    assert losses[-1] < losses[0]
    # A network that says nothing draws the mean, 64 of 255, whatever the noise.
    silent = make_decoder(prediction_type="residual", pixel_statistics=(-0.5, 0.01))
    drawn = silent.sample(batch["features"], steps=20)
    assert np.abs(drawn.astype(int) - 64).max() <= 6


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"prediction_type": "velocity"}, "prediction_type"),
        ({"pixel_statistics": (2.0, 0.5)}, "pixel_statistics"),
        ({"pixel_statistics": (0.0, 0)}, "pixel_statistics"),
        ({"pixel_statistics": [0.0, float("nan")]}, "pixel_statistics"),
        ({"pixel_statistics": 0.5}, "pixel_statistics"),
    ],
)
def test_wrong_descriptions_of_the_output_are_named(given, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        check_decoder("cosine", 1000, 0.9, **given)


@slow_but_on("torch")
@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "bfloat16"])
def test_half_precision(dtype):
    keras.config.set_dtype_policy(dtype)
    try:
        decoder = make_decoder()
    finally:
        keras.config.set_dtype_policy("float32")
    decoder.compile()
    batch = make_batch(decoder)
    assert np.isfinite(float(decoder.train_on_batch(batch)))
    assert decoder.sample(batch["features"], steps=2).shape[0] == 3


@slow_but_on("torch")
@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"features": np.zeros((1, 3, 6))}, "features"),
        ({"features": np.zeros((1, 4, 5))}, "features"),
        ({"seeds": ()}, "seeds"),
        ({"seeds": (-1,)}, "seeds"),
        ({"seeds": 3}, "seeds"),
        ({"seeds": iter((0, 0.5))}, "seeds"),
        ({"kind": "context"}, "kind"),
        ({"steps": 0}, "steps"),
        ({"guidance": -1}, "guidance"),
    ],
)
def test_wrong_arguments_of_samples_are_named(given, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        make_decoder().sample(**{"features": np.zeros((1, 4, 6)), "steps": 1, **given})


@slow_but_on("torch")
def test_what_is_no_batch_is_named():
    decoder = make_decoder()
    batch = make_batch(decoder)
    del batch["kinds"]
    with pytest.raises(ValueError, match="`inputs` must be a dictionary of clips, noise"):
        decoder.call(batch)


# --- Features ------------------------------------------------------------------------------------


def make_features(**arguments):
    keras.utils.set_random_seed(1)
    encoder = VJEPABackbone(32, 2, 16, 1, 8, 1, 2)
    target = arguments.get("target", "features")
    predictor = VJEPAPredictor(8, (2, 2, 2), 8, 1, 2, output_dim=768 if target == "pixels" else 8)
    return RegionFeatures(VJEPAPretrainer(encoder, predictor, **arguments))


def test_predictions_know_nothing_of_the_region():
    features = make_features()
    videos = np.random.default_rng(0).normal(size=(1, 2, 32, 32, 3)).astype("float32")
    batch = {
        "videos": videos,
        "context_indices_0": np.array([[0, 1, 2, 4, 5, 6]], "int32"),
        "target_indices_0": np.array([[3, 7]], "int32"),
    }
    inside, outside = videos.copy(), videos.copy()
    inside[:, :, 16:, 16:] += 1
    outside[:, :, :16] += 1
    found = features.of(batch)
    changed, moved = (features.of({**batch, "videos": one}) for one in (inside, outside))
    np.testing.assert_array_equal(found["predicted"], changed["predicted"])
    assert np.abs(found["target"] - changed["target"]).max() > 1e-4
    assert np.abs(found["predicted"] - moved["predicted"]).max() > 1e-7


@slow_but_on("torch")
@pytest.mark.parametrize("kinds", [[0, 1, 2, 1, 1], [2, 2, 2, 2, 2], [0, 0, 0, 0, 0], [1]])
def test_each_sample_gets_the_features_of_its_kind(kinds):
    features, count = make_features(), len(kinds)
    videos = np.random.default_rng(0).normal(size=(count, 2, 32, 32, 3)).astype("float32")
    batch = {
        "videos": videos,
        "context_indices_0": np.array([[0, 1, 2, 4, 5, 6], [0, 1, 3, 4, 5, 7]] * 3)[:count],
        "target_indices_0": np.array([[3, 7], [2, 6]] * 3)[:count],
    }
    every = {"none": np.zeros((count, 2, 8)), **features.of(batch)}
    wanted = np.stack([every[KINDS[kind]][row] for row, kind in enumerate(kinds)])
    found = features.of_kinds(batch, np.array(kinds))
    assert found.dtype == "float32"
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@slow_but_on("torch")
def test_a_decoder_of_another_preset_is_refused_in_one_line():
    features = make_features()
    fit = {"feature_dim": 8, "grid_shape": (2, 1, 2)}
    check_made_for(make_decoder(**fit, made_for=features.fingerprint), features, "here")
    for given, words in (
        ({"feature_dim": 6}, "features are 8 wide. Received: one for features of 6"),
        ({"grid_shape": (1, 1, 2)}, "tokens are 2 x 2 x 2. Received: one for regions of 1 x 1 x 2"),
        ({"grid_shape": (2, 1, 4)}, "tokens are 2 x 2 x 2"),
        ({"made_for": "others"}, "decode train --preset here`. Received: one that was trained on"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            check_made_for(make_decoder(**{**fit, **given}), features, "here")
        assert str(error.value).startswith("`decoder` must be")
    with pytest.raises(ValueError, match="Received: one that predicts pixels"):
        make_features(target="pixels")
