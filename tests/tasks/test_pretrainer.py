"""The training step: target encoder, padding, one compilation, saving."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_vjepa import (
    AdamW,
    CosineSchedule,
    LinearSchedule,
    VJEPABackbone,
    VJEPAPredictor,
    VJEPAPretrainer,
    WarmupCosine,
)
from keras_vjepa.backend import device
from keras_vjepa.data.batches.mask_kinds import LONG_RANGE, SHORT_RANGE
from keras_vjepa.data.batches.mask_sampler import MaskSampler
from keras_vjepa.layers import transformer
from tests.support import compiled, random_batch, slow_but_on, waits_of_a_step


def numpy(x):
    return ops.convert_to_numpy(x)


def small_pretrainer(image_size=32, num_frames=4, dtype=None, num_masks=2, **arguments):
    keras.utils.set_random_seed(0)
    encoder = VJEPABackbone(
        image_size, num_frames, hidden_dim=24, num_layers=2, num_heads=2, dtype=dtype
    )
    predictor = VJEPAPredictor(24, encoder.position_axes, 12, 1, 2, num_masks, dtype=dtype)
    return VJEPAPretrainer(encoder, predictor, dtype=dtype, **arguments)


def fit(pretrainer, batch, epochs=1):
    size = len(batch["videos"])
    return pretrainer.fit(batch, batch_size=size, epochs=epochs, verbose=0).history["loss"]


def test_target_encoder_is_the_moving_average():
    pretrainer = small_pretrainer(momentum=LinearSchedule(0.5, 1.0, 4.0))
    pretrainer.compile(AdamW(1e-2))
    expected = pretrainer.encoder.get_weights()
    for step in range(3):
        fit(pretrainer, random_batch(step, pretrainer))
        momentum = 0.5 + step * 0.125
        online = pretrainer.encoder.get_weights()
        expected = [
            momentum * e + (1 - momentum) * o for e, o in zip(expected, online, strict=True)
        ]
    for actual, wanted in zip(pretrainer.target_encoder.get_weights(), expected, strict=True):
        np.testing.assert_allclose(actual, wanted, atol=1e-6)
    kernels = [
        numpy(model.blocks[0].mlp_hidden.kernel)
        for model in (pretrainer.encoder, pretrainer.target_encoder)
    ]
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-4


def test_target_encoder_gets_no_gradient_and_no_step():
    pretrainer = small_pretrainer(momentum=1.0)
    pretrainer.compile(AdamW(1e-2))
    before = pretrainer.target_encoder.get_weights()
    fit(pretrainer, random_batch(0, pretrainer))
    for actual, expected in zip(pretrainer.target_encoder.get_weights(), before, strict=True):
        np.testing.assert_array_equal(actual, expected)
    trained = {id(v) for v in pretrainer.trainable_variables}
    assert not trained & {id(v) for v in pretrainer.target_encoder.variables}


def test_padding_does_not_change_the_loss():
    """Budgets give the loss of the same tokens without padding, sample by sample."""
    pretrainer = small_pretrainer(48, 8)
    batch = random_batch(0, pretrainer, batch_size=2, context=7, target=9)
    padded = dict(batch)
    for name in batch:
        if name != "videos":
            padded[name] = np.pad(batch[name], ((0, 0), (0, 3)), constant_values=-1)
    expected, padded_loss = numpy(compiled(pretrainer)(batch)), numpy(compiled(pretrainer)(padded))
    np.testing.assert_allclose(padded_loss, expected, atol=1e-6)
    pretrainer.padding = False
    np.testing.assert_allclose(numpy(compiled(pretrainer)(batch)), expected, atol=1e-6)


def test_samples_of_unequal_length_count_by_themselves():
    pretrainer = small_pretrainer(48, 8)
    batch = random_batch(1, pretrainer, batch_size=2, context=7, target=9)
    for role, keep in (("context", 4), ("target", 5)):
        for i in range(2):
            batch[f"{role}_indices_{i}"][1, keep:] = -1
    together = numpy(compiled(pretrainer)(batch))
    alone = {"videos": batch["videos"][1:]}
    for role, keep in (("context", 4), ("target", 5)):
        for i in range(2):
            alone[f"{role}_indices_{i}"] = batch[f"{role}_indices_{i}"][1:, :keep]
    np.testing.assert_allclose(together[1:], numpy(compiled(pretrainer)(alone)), atol=1e-6)


def test_no_clips_have_no_errors():
    pretrainer = small_pretrainer(num_masks=1)
    batch = {name: array[:0] for name, array in random_batch(0, pretrainer).items()}
    assert tuple(pretrainer(batch).shape) == (0,)


@pytest.mark.parametrize("num_masks", [pytest.param(1, marks=slow_but_on("torch")), 3])
def test_any_number_of_mask_kinds(num_masks):
    pretrainer = small_pretrainer(num_masks=num_masks, variance_weight=0.5)
    pretrainer.compile(AdamW(1e-2))
    losses = fit(pretrainer, random_batch(0, pretrainer), epochs=8)
    assert losses[-1] < 0.8 * losses[0]


def test_mixed_precision_learns():
    pretrainer = small_pretrainer(dtype="mixed_bfloat16")
    pretrainer.compile(AdamW(1e-2))
    losses = fit(pretrainer, random_batch(0, pretrainer), epochs=8)
    assert np.isfinite(losses).all() and losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16", "bfloat16"])
def test_target_variables_are_float32(dtype):
    """Half-precision variables would stand still in the moving average."""
    pretrainer = small_pretrainer(dtype=dtype)
    assert all(v.dtype == "float32" for v in pretrainer.target_encoder.variables)


class Stream(keras.utils.PyDataset):
    """Random clips with the paper's masks, every batch new."""

    def __init__(self, sampler, steps, seed=0):
        super().__init__()
        self.sampler, self.steps = sampler, steps
        shape = (2, 4, 8, 8, 3)
        self.videos = np.random.default_rng(seed).normal(size=shape).astype("float32")

    def __len__(self):
        return self.steps

    def __getitem__(self, index):
        return ({"videos": self.videos, **self.sampler(index, 2)},)


def test_one_compilation_in_200_batches():
    encoder = VJEPABackbone(
        8, 4, patch_size=1, tubelet_size=1, hidden_dim=6, num_layers=1, num_heads=1
    )
    predictor = VJEPAPredictor(6, encoder.position_axes, 6, 1, 1)
    traces = []

    class Counted(VJEPAPretrainer):
        def compute_loss(self, *args, **kwargs):
            traces.append(1)
            return super().compute_loss(*args, **kwargs)

    pretrainer = Counted(encoder, predictor)
    pretrainer.compile(AdamW(1e-3))
    budgets = {"context_budgets": (60, 30), "target_budgets": (120, 150)}
    sampler = MaskSampler([SHORT_RANGE, LONG_RANGE], encoder.grid_shape, **budgets)
    lengths = {tuple((sampler(s, 2)["context_indices_0"] >= 0).sum(axis=1)) for s in range(200)}
    assert len(lengths) > 5
    pretrainer.fit(Stream(sampler, 200), epochs=1, verbose=0)
    # Torch runs the code in every step. Compiled backends run it once for the program and once for
    # the shapes. Torch on a GPU runs it twice, and once more to record it.
    if keras.config.backend() == "torch":
        assert len(traces) == (3 if device.has_accelerator() else 200)
    else:
        assert len(traces) <= 2
    if hasattr(pretrainer.train_function, "experimental_get_tracing_count"):
        assert pretrainer.train_function.experimental_get_tracing_count() == 1
    if hasattr(pretrainer.train_function, "_cache_size"):
        assert pretrainer.train_function._cache_size() == 1


@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_regularisers_of_layers_count(accumulation_steps):
    """A user's own on a layer's kernel: it shrinks, with nothing else that moves it."""
    pretrainer = small_pretrainer(48, 8)
    layer = pretrainer.encoder.blocks[0].mlp_hidden
    layer.kernel.regularizer = keras.regularizers.L2(100.0)
    pretrainer.compile(keras.optimizers.SGD(1e-3), accumulation_steps)
    before = numpy(layer.kernel)
    fit(pretrainer, random_batch(0, pretrainer, batch_size=2))
    np.testing.assert_allclose(numpy(layer.kernel), 0.8 * before, atol=1e-3)


def weights_after_a_step(num_samples, num_parts, **arguments):
    pretrainer = small_pretrainer(num_masks=1, **arguments)
    pretrainer.compile(keras.optimizers.SGD(1.0), num_parts)
    pretrainer.encoder.blocks[0].mlp_hidden.kernel.regularizer = keras.regularizers.L2(0.1)
    logs = pretrainer.train_on_batch(random_batch(0, pretrainer, num_samples), return_dict=True)
    return [logs["loss"], *pretrainer.get_weights()]


@slow_but_on("torch")
@pytest.mark.parametrize("num_samples,num_parts", [(3, 2), (2, 4)])
def test_parts_that_do_not_divide_a_batch_give_the_same_numbers(num_samples, num_parts):
    """A part counts as much as it has samples, and there may be more parts than samples."""
    expected = weights_after_a_step(num_samples, 1)
    for value, wanted in zip(weights_after_a_step(num_samples, num_parts), expected, strict=True):
        np.testing.assert_allclose(value, wanted, atol=1e-6)


@slow_but_on("torch")
def test_the_target_encoder_follows_updates():
    """Of an optimizer that makes one every second batch."""
    pretrainer = small_pretrainer(num_masks=1, momentum=LinearSchedule(0.5, 0.9, 4.0))
    pretrainer.compile(AdamW(1e-2, gradient_accumulation_steps=2))
    batch = random_batch(0, pretrainer)
    expected = pretrainer.target_encoder.get_weights()
    for momentum in (None, 0.6, None, 0.8):
        pretrainer.train_on_batch(batch)
        if momentum is not None:
            weights = zip(expected, pretrainer.encoder.get_weights(), strict=True)
            expected = [momentum * e + (1 - momentum) * w for e, w in weights]
        for value, wanted in zip(pretrainer.target_encoder.get_weights(), expected, strict=True):
            np.testing.assert_allclose(value, wanted, atol=1e-6)


@slow_but_on("torch")
def test_a_step_that_overflows_changes_nothing_and_does_not_count():
    inner = AdamW(1e-2, clip_norm=0.01)
    pretrainer = small_pretrainer(num_masks=1, dtype="mixed_float16", momentum=0.5)
    pretrainer.compile(keras.optimizers.LossScaleOptimizer(inner, initial_scale=2.0**40))
    batch = random_batch(0, pretrainer)
    networks = (pretrainer.encoder, pretrainer.predictor, pretrainer.target_encoder)
    before = pretrainer.get_weights()
    assert pretrainer.train_on_batch(batch, return_dict=True)["finite"] == 1.0
    assert int(pretrainer.optimizer.iterations) == 0
    for value, wanted in zip(pretrainer.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, wanted)
    pretrainer.optimizer.dynamic_scale.assign(2.0**10)
    starts = [network.get_weights() for network in networks]
    pretrainer.train_on_batch(batch)
    assert int(pretrainer.optimizer.iterations) == 1
    for network, start in zip(networks, starts, strict=True):
        changes = zip(network.get_weights(), start, strict=True)
        assert max(np.abs(value - other).max() for value, other in changes) > 1e-3


@slow_but_on("torch")
@pytest.mark.parametrize("scaled", [False, True])
def test_a_wrapped_optimizer_clips_each_network(scaled):
    """And by the norm of gradients that are scaled back: a step is as long as without a wrapper."""

    def moved(wrapped):
        # With a large epsilon, a step is proportional to the gradient.
        optimizer = AdamW(1.0, 0.0, epsilon=1.0, clip_norm=1e-3)
        if wrapped and scaled:
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=2.0**10)
        elif wrapped:
            only = keras.optimizers.OptimizerMap(optimizer)
            optimizer = keras.optimizers.MultiOptimizer(only)
        pretrainer = small_pretrainer(num_masks=1)
        pretrainer.compile(optimizer, auto_scale_loss=False)
        before = pretrainer.get_weights()
        pretrainer.train_on_batch(random_batch(0, pretrainer))
        return [a - b for a, b in zip(pretrainer.get_weights(), before, strict=True)]

    for change, expected in zip(moved(True), moved(False), strict=True):
        np.testing.assert_allclose(change, expected, atol=1e-6)


@slow_but_on("torch", "tensorflow")
def test_float16_steps_are_as_long_as_those_of_float32():
    """Keras scales the loss for float16, and the gradients back; a part must do so too."""

    def change(dtype, accumulation_steps=1):
        # It is not the mean of sizes: then a prediction close to its target would be pulled the
        # other way.
        pretrainer = small_pretrainer(dtype=dtype, loss_exponent=2.0)
        pretrainer.compile(keras.optimizers.SGD(1.0), accumulation_steps)
        before = pretrainer.encoder.get_weights()
        fit(pretrainer, random_batch(0, pretrainer, batch_size=2))
        after = pretrainer.encoder.get_weights()
        return np.concatenate([(b - a).ravel() for a, b in zip(before, after, strict=True)])

    expected = change("float32")
    # Where a step is compiled, the harder of the two.
    for accumulation_steps in (1, 2) if keras.config.backend() == "torch" else (2,):
        actual = change("mixed_float16", accumulation_steps)
        assert np.linalg.norm(actual - expected) < 0.05 * np.linalg.norm(expected)


@pytest.mark.skipif(keras.config.backend() != "torch", reason="elsewhere a step is one program")
@pytest.mark.parametrize("leading_keys", [False, True])
@pytest.mark.parametrize("scheduled", [False, True])
@pytest.mark.parametrize("batches_an_update", [None, 2])
def test_a_step_neither_waits_nor_copies_from_the_host(
    batches_an_update, scheduled, leading_keys, monkeypatch
):
    """Not a number goes to the device, or comes from it, which would stop both."""
    monkeypatch.setattr(transformer, "wants_leading_keys", lambda *_: leading_keys)
    momentum, rates = 0.9, (1e-3, 0.1)
    if scheduled:
        momentum = LinearSchedule(0.5, 1.0, 4.0)
        rates = WarmupCosine(1e-3, 1e-2, 1e-4, 2, 8), CosineSchedule(0.1, 0.5, 8)
    pretrainer = small_pretrainer(
        momentum=momentum, variance_weight=0.1, context_variance_weight=0.1
    )
    accumulation = {"gradient_accumulation_steps": batches_an_update}
    pretrainer.compile(AdamW(*rates, clip_norm=1.0, clip_after=1, **accumulation))
    assert waits_of_a_step(pretrainer, (random_batch(0, pretrainer),), monkeypatch) == []
    assert int(pretrainer.optimizer.iterations) == 2 // (batches_an_update or 1)


@slow_but_on("torch")
@pytest.mark.parametrize("names", [["mlp"], ["block_1"]], ids=str)
def test_a_choice_of_layers_that_compute_again_changes_no_number(names):
    moved = []
    for chosen in ([], names):
        with keras.RematScope("list_of_layers", layer_names=chosen):
            pretrainer = small_pretrainer()
        pretrainer.compile(keras.optimizers.SGD(1.0))
        losses = fit(pretrainer, random_batch(0, pretrainer), epochs=2)
        moved.append([np.array(losses), *pretrainer.get_weights()])
    for one, other in zip(*moved, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.skipif(keras.config.backend() != "torch", reason="elsewhere a step is one program")
@pytest.mark.parametrize("accumulation_steps", [1, 2])
@pytest.mark.parametrize("remat", [False, True])
def test_a_step_casts_each_weight_once(remat, accumulation_steps):
    """Gradients reach the weights through one copy of each, whatever uses it how often."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    pretrainer = small_pretrainer(dtype="mixed_bfloat16")
    for network in (pretrainer.encoder, pretrainer.predictor):
        network.remat = remat
    batch = {k: ops.convert_to_tensor(v) for k, v in random_batch(0, pretrainer).items()}
    weights = [v.value for v in pretrainer.trainable_variables]
    ops.mean(pretrainer(batch)).backward()
    expected = [weight.grad for weight in weights]

    kernels = {
        layer.kernel.value.data_ptr(): 0
        for layer in pretrainer._flatten_layers()
        if isinstance(layer, keras.layers.Dense)
    }

    class Casts(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is torch.ops.aten._to_copy.default and args[0].data_ptr() in kernels:
                kernels[args[0].data_ptr()] += 1
            return function(*args, **(kwargs or {}))

    applied = []
    pretrainer.compile(keras.optimizers.SGD(1.0), accumulation_steps)
    pretrainer.optimizer.apply = lambda gradients, variables: applied.extend(gradients)
    with Casts():
        pretrainer.train_step((batch,))
    assert set(kernels.values()) == {1}
    for gradient, weight, other in zip(applied, weights, expected, strict=True):
        assert gradient.dtype == weight.dtype == torch.float32
        assert torch.linalg.norm(gradient - other) <= 0.02 * torch.linalg.norm(other)


def test_save_and_load_with_the_optimizer(tmp_path):
    pretrainer = small_pretrainer(momentum=LinearSchedule(0.9, 1.0, 10.0))
    pretrainer.compile(
        AdamW(1e-2, weight_decay=CosineSchedule(0.04, 0.4, 10), clip_norm=1.0, clip_after=1)
    )
    fit(pretrainer, random_batch(0, pretrainer), epochs=2)
    pretrainer.save(tmp_path / "model.keras")
    restored = keras.saving.load_model(tmp_path / "model.keras")
    assert restored.get_config() == pretrainer.get_config()
    assert restored.optimizer.get_config() == pretrainer.optimizer.get_config()
    batch = random_batch(1, pretrainer)
    assert fit(restored, batch, epochs=2) == fit(pretrainer, batch, epochs=2)


def test_presets(tmp_path):
    pretrainer = small_pretrainer()
    pretrainer.compile(AdamW(1e-2))
    fit(pretrainer, random_batch(0, pretrainer), epochs=2)
    pretrainer.save_to_preset(tmp_path / "preset")
    videos = random_batch(1, pretrainer)["videos"]
    backbone = VJEPABackbone.from_preset(tmp_path / "preset")
    np.testing.assert_array_equal(numpy(backbone(videos)), numpy(pretrainer.target_encoder(videos)))
    restored = VJEPAPretrainer.from_preset(tmp_path / "preset")
    for actual, expected in zip(restored.get_weights(), pretrainer.get_weights(), strict=True):
        np.testing.assert_array_equal(actual, expected)
    fresh = VJEPABackbone.from_preset(tmp_path / "preset", load_weights=False, num_layers=1)
    assert fresh.num_layers == 1


def test_bad_presets_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="`preset` must be a folder that holds config.json"):
        VJEPABackbone.from_preset(tmp_path)
    backbone = VJEPABackbone(16, 2, hidden_dim=12, num_layers=1, num_heads=2)
    backbone.save_to_preset(tmp_path / "preset")
    with pytest.raises(ValueError, match="`overrides` must be arguments of VJEPABackbone"):
        VJEPABackbone.from_preset(tmp_path / "preset", num_layer=3)
    with pytest.raises(FileNotFoundError, match="holds pretrainer.json"):
        VJEPAPretrainer.from_preset(tmp_path / "preset")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="`folder` must not exist, be empty or be a preset"):
        backbone.save_to_preset(tmp_path / "other")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other", "preset"]


def test_networks_that_do_not_fit_are_named():
    encoder = VJEPABackbone(16, 2, hidden_dim=12, num_layers=1, num_heads=2)
    with pytest.raises(ValueError, match="`encoder_dim` must be the encoder's `hidden_dim`=12"):
        VJEPAPretrainer(encoder, VJEPAPredictor(24, (1, 1, 1), 12, 1, 2))
    with pytest.raises(ValueError, match="`grid_shape` must be the encoder's"):
        VJEPAPretrainer(encoder, VJEPAPredictor(12, (2, 1, 1), 12, 1, 2))


def test_pixel_targets_are_normalised_patches():
    """Table 1's baseline: each token's own pixels, in any order that is the same for all tokens."""
    encoder = VJEPABackbone(32, 4, hidden_dim=24, num_layers=1, num_heads=2)
    predictor = VJEPAPredictor(24, encoder.position_axes, 12, 1, 2, output_dim=encoder.patch_dim)
    pretrainer = VJEPAPretrainer(encoder, predictor, target="pixels", loss_exponent=2.0)
    batch = random_batch(0, pretrainer)
    targets = numpy(compiled(pretrainer.targets)(batch["videos"]))
    # In the grid (2, 2, 2), token 7 is in the second tubelet, second row and second column.
    patch = batch["videos"][0, 2:4, 16:, 16:].reshape(-1)
    expected = (patch - patch.mean()) / np.sqrt(patch.var() + 1e-5)
    np.testing.assert_allclose(np.sort(targets[0, 7]), np.sort(expected), atol=1e-4)
    pretrainer.normalize_targets = False
    targets = numpy(compiled(pretrainer.targets)(batch["videos"]))
    np.testing.assert_allclose(np.sort(targets[0, 7]), np.sort(patch), atol=1e-6)
    pretrainer.normalize_targets = True
    pretrainer.compile(AdamW(1e-2))
    losses = fit(pretrainer, batch, epochs=8)
    assert losses[-1] < 0.9 * losses[0]
    copy = VJEPAPretrainer.from_config(pretrainer.get_config())
    assert copy.target == "pixels" and copy.predictor.output_dim == 2 * 16 * 16 * 3


def test_terms_on_the_context_keep_features_apart():
    encoder = VJEPABackbone(32, 4, hidden_dim=24, num_layers=1, num_heads=2)
    predictor = VJEPAPredictor(24, encoder.position_axes, 12, 1, 2, num_mask_tokens=1)
    weights = {"context_variance_weight": 0.3, "context_covariance_weight": 2.0}
    pretrainer = VJEPAPretrainer(encoder, predictor, **weights)
    batch = random_batch(1, pretrainer, batch_size=3)
    # Padding does not enter the statistics.
    batch["context_indices_0"][0, -1] = -1
    features = numpy(compiled(lambda batch: pretrainer.encode_context(batch, 0))(batch))
    features = features[batch["context_indices_0"] >= 0]
    covariance = np.cov(features.astype("float64"), rowvar=False)
    variances = np.diag(covariance)
    others = (covariance**2).sum() - (variances**2).sum()
    expected = 0.3 * np.maximum(1 - np.sqrt(variances + 1e-4), 0).mean() + 2.0 * others / 24
    loss = numpy(compiled(pretrainer)(batch)).mean()
    pretrainer.context_variance_weight = pretrainer.context_covariance_weight = 0.0
    without = numpy(compiled(pretrainer)(batch)).mean()
    assert expected > 0.1
    np.testing.assert_allclose(loss - without, expected, rtol=1e-4)
    assert VJEPAPretrainer(encoder, predictor, **weights).get_config().items() >= weights.items()


def test_predictor_must_fit_the_target():
    encoder = VJEPABackbone(32, 4, hidden_dim=24, num_layers=1, num_heads=2)
    predictor = VJEPAPredictor(24, encoder.position_axes, 12, 1, 2)
    with pytest.raises(ValueError, match="`output_dim` must be 1536 for `target`='pixels'"):
        VJEPAPretrainer(encoder, predictor, target="pixels")
    with pytest.raises(ValueError, match="`target` must be one of"):
        VJEPAPretrainer(encoder, predictor, target="colours")


@slow_but_on("torch")
def test_a_teacher_is_predicted_and_stays_as_it_is(tmp_path):
    """Its features are the targets, in place of the moving average's, whatever its width."""
    keras.utils.set_random_seed(0)
    encoder = VJEPABackbone(32, 4, hidden_dim=24, num_layers=1, num_heads=2)
    teacher = VJEPABackbone(32, 4, hidden_dim=12, num_layers=1, num_heads=2)
    predictor = VJEPAPredictor(24, encoder.position_axes, 12, 1, 2, output_dim=12)
    pretrainer = VJEPAPretrainer(encoder, predictor, momentum=0.5, teacher=teacher)
    batch = random_batch(0, pretrainer)
    features = numpy(compiled(teacher)(batch["videos"]))
    deviations = np.sqrt(features.var(axis=-1, keepdims=True) + 1e-5)
    expected = (features - features.mean(axis=-1, keepdims=True)) / deviations
    targets = numpy(compiled(pretrainer.targets)(batch["videos"]))
    np.testing.assert_allclose(targets, expected, atol=1e-4)
    before = teacher.get_weights(), pretrainer.target_encoder.get_weights()
    pretrainer.compile(AdamW(1e-2))
    losses = fit(pretrainer, batch, epochs=8)
    assert losses[-1] < 0.9 * losses[0]
    for one, other in zip(teacher.get_weights(), before[0], strict=True):
        np.testing.assert_array_equal(one, other)
    # The run keeps the moving average, as it does without a teacher.
    changes = zip(pretrainer.target_encoder.get_weights(), before[1], strict=True)
    assert max(np.abs(one - other).max() for one, other in changes) > 1e-3
    pretrainer.save_to_preset(tmp_path / "preset")
    copy = VJEPAPretrainer.from_preset(tmp_path / "preset")
    outputs = [numpy(compiled(model)(batch)) for model in (copy, pretrainer)]
    np.testing.assert_allclose(*outputs, atol=1e-6)
    np.testing.assert_array_equal(copy.teacher.get_weights()[0], teacher.get_weights()[0])


def test_a_teacher_must_fit():
    encoder = VJEPABackbone(32, 4, hidden_dim=24, num_layers=1, num_heads=2)
    predictor = VJEPAPredictor(24, encoder.position_axes, 12, 1, 2)
    other_grid = VJEPABackbone(16, 4, hidden_dim=24, num_layers=1, num_heads=2)
    with pytest.raises(ValueError, match="grid of tokens must be the encoder's"):
        VJEPAPretrainer(encoder, predictor, teacher=other_grid)
    with pytest.raises(ValueError, match="`target` must be 'features' with a `teacher`"):
        VJEPAPretrainer(encoder, predictor, target="pixels", teacher=encoder)
