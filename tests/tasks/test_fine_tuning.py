"""Fine-tuning: stochastic depth, the head, layer-wise decay, and a step in plain torch."""

import contextlib
import functools
import json

import keras
import numpy as np
import pytest
import torch
from keras import ops

from keras_vjepa import AdamW, VJEPABackbone, VJEPAPredictor, VJEPAPretrainer, VJEPAVideoClassifier
from keras_vjepa.data.batches.mixing import Mix, mixed_clips, mixed_targets
from keras_vjepa.layers.stochastic_depth import draw_branch_scales, drop_path_rates
from keras_vjepa.tasks.detection_head import DetectionHead
from keras_vjepa.tasks.fine_tuning_head import FineTuningHead
from keras_vjepa.training.schedules import FineTuningSchedule
from tests.support import GOLDEN, slow_but_on

SMALL = {"hidden_dim": 12, "num_heads": 2, "mlp_ratio": 2.0}
RNG = np.random.default_rng(0)
VIDEOS = RNG.normal(size=(4, 2, 16, 16, 3)).astype("float32")


def golden(name):
    return json.loads((GOLDEN / "finetune" / f"{name}.json").read_text())


def small_backbone(num_layers=2, **arguments):
    keras.utils.set_random_seed(0)
    return VJEPABackbone(16, 2, patch_size=8, num_layers=num_layers, **{**SMALL, **arguments})


def fine_tuned(backbone=None, **arguments):
    arguments = {"num_classes": 3, "head": "fine_tuning", "trainable_backbone": True, **arguments}
    return VJEPAVideoClassifier(small_backbone() if backbone is None else backbone, **arguments)


def numpy(tensor):
    return ops.convert_to_numpy(tensor)


# --- Golden: schedule, rates, layer ids ----------------------------------------------------------


@pytest.mark.parametrize("case", golden("schedule"), ids=str)
def test_schedule(case):
    given = case["arguments"]
    warmup = given.get("warmup_epochs", 0) * given["niter_per_ep"]
    schedule = FineTuningSchedule(
        given.get("start_warmup_value", 0.0),
        given["base_value"],
        given["final_value"],
        given.get("warmup_steps", warmup),
        case["length"],
    )
    values = [float(schedule(int(step))) for step in case["values"]]
    np.testing.assert_allclose(values, list(case["values"].values()), rtol=2e-6, atol=1e-9)
    again = FineTuningSchedule.from_config(schedule.get_config())
    assert float(again(3)) == float(schedule(3))


def test_drop_path_rates():
    for case in golden("drop_path_rates"):
        found = drop_path_rates(case["rate"], case["depth"])
        np.testing.assert_allclose(found, case["per_block"], atol=1e-7)


def test_soft_cross_entropy():
    case = golden("soft_target_cross_entropy")
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    found = loss(np.array(case["targets"], "float32"), np.array(case["logits"], "float32"))
    assert abs(float(found) - case["loss"]) < 1e-6


@pytest.mark.parametrize("name", ["vit_large", "tiny"])
def test_layer_decay(name):
    case = golden("layer_decay")[name]
    depth = case["depth"]
    model = fine_tuned(small_backbone(depth, hidden_dim=2, num_heads=1, mlp_ratio=1.0))
    optimizer = AdamW(0.1, case["base_weight_decay"], layer_decay=case["layer_decay"])
    model.compile(optimizer, "categorical_crossentropy")
    optimizer.build(model.trainable_variables)
    theirs = {
        "tubelet_embedding": "patch_embed.proj",
        "probe/norm": "fc_norm",
        "probe/linear": "head",
        **{f"block_{i}/": f"blocks.{i}.attn.qkv" for i in range(depth)},
    }
    seen = set()
    for variable, scale in zip(
        model.trainable_variables, optimizer.scales(model.trainable_variables), strict=True
    ):
        [found] = [own for own in theirs if own in variable.path]
        expected = case["parameters"][f"{theirs[found]}.weight"]
        assert abs(scale - expected["lr_scale"]) < 1e-9 * max(scale, 1e-3), variable.path
        seen.add(found)
    assert seen == set(theirs)


def test_layer_decay_counts_from_the_model():
    """Also with frozen parts and LoRA, whose ids are those of their layers."""
    backbone = small_backbone(3)
    backbone.blocks[0].trainable = False
    backbone.enable_lora(2)
    model = fine_tuned(backbone)
    model.compile(AdamW(0.1, layer_decay=0.5), "categorical_crossentropy")
    model.optimizer.build(model.trainable_variables)
    scales = {
        v.path: s
        for v, s in zip(
            model.trainable_variables,
            model.optimizer.scales(model.trainable_variables),
            strict=True,
        )
    }
    assert any("lora" in path for path in scales)
    for path, scale in scales.items():
        number = next((i for i in range(3) if f"block_{i}/" in path), 3)
        assert scale == 0.5 ** (3 - number), path
    with pytest.raises(ValueError, match="`layer_decay` must be None for a model that does not"):
        AdamW(0.1, layer_decay=0.5).build(model.trainable_variables)
    with pytest.raises(ValueError, match=r"`layer_decay` must be .*\(0, 1\]"):
        AdamW(0.1, layer_decay=1.5)
    assert AdamW.from_config(AdamW(0.1, layer_decay=0.5).get_config()).layer_decay == 0.5


@pytest.mark.parametrize(
    ("depth", "arguments"),
    [(1, {}), (3, {"head": "probe", "pooling": "average"}), (2, {"encoder_norm": True})],
)
def test_layer_decay_with_other_heads(depth, arguments):
    """What is above the blocks, the encoder's final norm included, has the full rate."""
    model = fine_tuned(small_backbone(depth), **arguments)
    model.compile(AdamW(0.1, layer_decay=0.5), "categorical_crossentropy")
    model.optimizer.build(model.trainable_variables)
    found = dict(
        zip(
            [variable.path for variable in model.trainable_variables],
            model.optimizer.scales(model.trainable_variables),
            strict=True,
        )
    )
    for path, scale in found.items():
        above = [number for number in range(depth) if f"block_{number}/" in path]
        layer = 0 if "tubelet_embedding" in path else above[0] + 1 if above else depth + 1
        assert scale == 0.5 ** (depth + 1 - layer), path
    assert {0.5**number for number in range(depth + 2)} == set(found.values())


# --- Stochastic depth ----------------------------------------------------------------------------


def test_branches_are_left_out_per_sample():
    scales = numpy(draw_branch_scales(0.5, 3, 2000, keras.random.SeedGenerator(1)))
    assert scales.shape == (3, 2000, 2)
    assert (scales[0] == 1).all()
    assert sorted(set(scales[2].ravel().tolist())) == [0.0, 2.0]
    np.testing.assert_allclose(scales.mean(axis=1), 1.0, atol=0.1)
    # Attention and MLP are dropped independently.
    assert abs(np.corrcoef(scales[2, :, 0], scales[2, :, 1])[0, 1]) < 0.1


def test_drop_path_is_off_at_inference_and_has_no_weights():
    plain, dropped = small_backbone(), small_backbone(drop_path_rate=0.9)
    dropped.set_weights(plain.get_weights())
    np.testing.assert_array_equal(numpy(dropped(VIDEOS)), numpy(plain(VIDEOS)))
    np.testing.assert_array_equal(numpy(plain(VIDEOS, training=True)), numpy(plain(VIDEOS)))
    first, second = (numpy(dropped(VIDEOS, training=True)) for _ in range(2))
    assert not np.array_equal(first, second)
    assert dropped.get_config()["drop_path_rate"] == 0.9
    assert VJEPABackbone.from_config(dropped.get_config()).drop_path_rate == 0.9
    with pytest.raises(ValueError, match=r"`drop_path_rate` must be .*\[0, 1\)"):
        small_backbone(drop_path_rate=1.0)


def test_a_scale_of_zero_leaves_a_branch_out():
    block = small_backbone().blocks[0]
    tokens = RNG.normal(size=(2, 4, 12)).astype("float32")
    scales = np.array([[0.0, 0.0], [1.0, 1.0]], "float32")
    found = numpy(block(tokens, None, None, scales))
    np.testing.assert_array_equal(found[0], tokens[0])
    np.testing.assert_allclose(found[1], numpy(block(tokens))[1], atol=1e-6)


def test_remat_has_the_gradients_of_the_same_draw():
    moved = [after_a_step(remat=remat) for remat in (False, True)]
    for one, other in zip(*moved, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def after_a_step(computed_again=(), **arguments):
    """Weights after a step with drop path; layers of the given names are computed again."""
    names = {"mode": "list_of_layers", "layer_names": computed_again}
    keras.utils.set_random_seed(3)
    with keras.RematScope(**names) if computed_again else contextlib.nullcontext():
        model = fine_tuned(small_backbone(drop_path_rate=0.6, **arguments))
    model.compile(keras.optimizers.SGD(1.0), "sparse_categorical_crossentropy")
    keras.utils.set_random_seed(3)
    model.fit(VIDEOS, np.array([0, 1, 2, 0]), batch_size=4, epochs=1, verbose=0)
    return model.get_weights()


@slow_but_on("torch")
@pytest.mark.parametrize("names", [["mlp"], ["block_1"]], ids=str)
def test_a_choice_of_layers_has_the_gradients_of_the_same_draw(names):
    for one, other in zip(after_a_step(), after_a_step(names), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_where_drop_path_is_refused():
    backbone = small_backbone(drop_path_rate=0.1)
    predictor = VJEPAPredictor(
        12, hidden_dim=12, num_layers=1, num_heads=2, grid_shape=backbone.grid_shape
    )
    with pytest.raises(ValueError, match="`encoder` must have a `drop_path_rate` of 0"):
        VJEPAPretrainer(backbone, predictor)
    with pytest.raises(AttributeError, match="give it to the constructor or to `from_preset`"):
        backbone.drop_path_rate = 0.2
    assert backbone.drop_path_rate == 0.1
    with keras.RematScope("full"):
        within = small_backbone(drop_path_rate=0.1)
    with pytest.raises(ValueError, match="take its own `remat=True`"):
        within(VIDEOS)
    with keras.RematScope("list_of_layers", layer_names=["vjepa_backbone"]):
        within = small_backbone(drop_path_rate=0.1, name="vjepa_backbone")
    with pytest.raises(ValueError, match="take its own `remat=True`"):
        within(VIDEOS)
    with keras.RematScope(None):
        within = small_backbone(drop_path_rate=0.1)
    assert within(VIDEOS).shape == backbone(VIDEOS).shape


@pytest.mark.parametrize(
    "scope",
    [{"mode": "full"}, {"mode": "list_of_layers", "layer_names": ["head"]}],
    ids=["full", "name"],
)
@pytest.mark.parametrize("made", [FineTuningHead, DetectionHead])
def test_where_dropout_is_refused(made, scope):
    """The backward pass would leave out other channels than the forward pass."""
    inputs = {
        FineTuningHead: (np.ones((2, 3, 4), "float32"),),
        DetectionHead: (np.ones((2, 4, 4, 6), "float32"), np.ones((2, 1, 4), "float32")),
    }[made]
    [name] = scope.get("layer_names", ["probe"])
    with keras.RematScope(**scope):
        within, without = (made(3, dropout=rate, name=name) for rate in (0.5, 0.0))
    with pytest.raises(ValueError, match=f"`{name}` leaves out at random .* name its blocks in"):
        within(*inputs)
    assert without(*inputs).shape[-1] == 3


# --- Head ----------------------------------------------------------------------------------------


def test_head_is_norm_of_the_mean_of_unnormed_tokens():
    model = fine_tuned()
    dim = model.backbone.hidden_dim
    logits = numpy(model(VIDEOS))
    assert 0 < np.abs(logits).max() < 1e-2
    [tokens] = model.backbone.intermediate_features(VIDEOS, [-1], norm=False)
    mean = numpy(tokens).mean(axis=1)
    normed = (mean - mean.mean(-1, keepdims=True)) / np.sqrt(mean.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(logits, normed @ numpy(model.probe.linear.kernel), atol=1e-6)
    assert VJEPAVideoClassifier.weights_asked_for(model.get_config())["task.weights.h5"] == (
        2 * dim + 3 * dim + 3
    )
    assert model.probe.count_params() == 2 * dim + 3 * dim + 3
    other = fine_tuned(encoder_norm=True)
    other.set_weights(model.get_weights())
    assert not np.allclose(numpy(other(VIDEOS)), logits, atol=1e-7)


def test_a_preset_takes_a_drop_path_rate_and_gives_the_head_back(tmp_path):
    small_backbone().save_to_preset(tmp_path / "encoder")
    model = VJEPAVideoClassifier.from_preset(
        tmp_path / "encoder",
        class_names=["a", "b"],
        head="fine_tuning",
        head_dropout=0.5,
        trainable_backbone=True,
        drop_path_rate=0.1,
    )
    assert model.backbone.drop_path_rate == 0.1
    model.save_to_preset(tmp_path / "tuned")
    again = VJEPAVideoClassifier.from_preset(tmp_path / "tuned")
    assert again.get_config() | {"name": ""} == model.get_config() | {"name": ""}
    np.testing.assert_array_equal(numpy(again(VIDEOS)), numpy(model(VIDEOS)))
    calmer = VJEPAVideoClassifier.from_preset(tmp_path / "tuned", drop_path_rate=0.0)
    assert calmer.backbone.drop_path_rate == 0.0
    assert VJEPABackbone.from_preset(tmp_path / "encoder", drop_path_rate=0.2).drop_path_rate == 0.2
    with pytest.raises(ValueError, match="`head` must be 'fine_tuning'"):
        VJEPAVideoClassifier.from_preset(tmp_path / "tuned", head="probe", head_dropout=0.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"head": "linear"}, "`head` must be"),
        ({"head_dropout": 1.0}, "`head_dropout` must be"),
        ({"pooling": "average"}, "`pooling` must be left out with `head`='fine_tuning'"),
        ({"head": "probe", "head_dropout": 0.5}, "`head_dropout` must be 0 for a probe"),
        ({"head": "probe", "encoder_norm": False}, "`encoder_norm` must be None or True"),
    ],
)
def test_refused_heads(arguments, message):
    with pytest.raises(ValueError, match=message):
        fine_tuned(**arguments)


def test_what_needs_to_know_the_backbone_is_refused_for_others():
    videos = keras.Input((2, 16, 16, 3))
    tokens = keras.layers.Dense(6)(keras.layers.Reshape((-1, 48))(videos))
    other = functools.partial(fine_tuned, keras.Model(videos, tokens))
    with pytest.raises(ValueError, match="`encoder_norm` must be True for a backbone that is no"):
        other()
    model = other(encoder_norm=True)
    model.compile(AdamW(0.1, layer_decay=0.5), "categorical_crossentropy")
    with pytest.raises(ValueError, match="`layer_decay` must be None for a backbone that is no"):
        model.fit(VIDEOS, np.eye(4, 3), verbose=0)
    with pytest.raises(ValueError, match="`head` must be"):
        model.attention_weights(VIDEOS)


# --- A step in plain torch -----------------------------------------------------------------------


def block_in_torch(x, w, heads=2):
    norm, linear = torch.nn.functional.layer_norm, torch.nn.functional.linear
    batch, tokens, dim = x.shape

    def normed(x, name):
        return norm(x, (dim,), w[f"{name}/gamma"], w[f"{name}/beta"], 1e-6)

    def dense(x, name):
        return linear(x, w[f"{name}/kernel"].T, w[f"{name}/bias"])

    qkv = dense(normed(x, "attention_norm"), "attention/query_key_value")
    query, key, value = qkv.reshape(batch, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4)
    weights = (query @ key.transpose(-1, -2) / (dim // heads) ** 0.5).softmax(-1)
    mixed = (weights @ value).transpose(1, 2).reshape(batch, tokens, dim)
    x = x + dense(mixed, "attention/output_projection")
    hidden = torch.nn.functional.gelu(dense(normed(x, "mlp_norm"), "mlp_hidden"))
    return x + dense(hidden, "mlp_output")


def logits_in_torch(videos, w, positions, num_layers):
    kernel = w["tubelet_embedding/kernel"]
    tubelet, patch, dim = kernel.shape[0], kernel.shape[1], kernel.shape[-1]
    b, t, h, width, c = videos.shape
    x = videos.reshape(b, t // tubelet, tubelet, h // patch, patch, width // patch, patch, c)
    x = x.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(b, -1, tubelet * patch * patch * c)
    x = x @ kernel.reshape(-1, dim) + w["tubelet_embedding/bias"] + positions
    for i in range(num_layers):
        own = {n.removeprefix(f"block_{i}/"): v for n, v in w.items() if f"block_{i}/" in n}
        x = block_in_torch(x, own)
    mean = torch.nn.functional.layer_norm(
        x.mean(1), (dim,), w["probe/norm/gamma"], w["probe/norm/beta"], 1e-6
    )
    return mean @ w["probe/linear/kernel"] + w["probe/linear/bias"]


def test_steps_are_those_of_plain_torch():
    """Mixup, soft targets, layer-wise decay of rate and weight decay, schedule; two steps."""
    model = fine_tuned()
    targets = mixed_targets([0, 1, 2, 0], 3, 0.3, 0.1)
    mixed = mixed_clips(VIDEOS, Mix(0.3))
    schedule = FineTuningSchedule(1e-3, 1e-2, 1e-6, 2, 6)
    model.compile(AdamW(schedule, 0.05, layer_decay=0.5), "categorical_crossentropy")

    def name_of(variable):
        return variable.path.removeprefix(f"{model.backbone.name}/").split(f"{model.name}/")[-1]

    trained = {name_of(variable): variable for variable in model.trainable_variables}
    weights = {
        name: torch.tensor(numpy(variable), requires_grad=True)
        for name, variable in trained.items()
    }
    positions = torch.tensor(numpy(model.backbone.position_table))
    # The reference finds layer ids by name, without code of the package.
    number = {name: 3 for name in weights}
    number |= {n: 0 for n in weights if n.startswith("tubelet")}
    number |= {n: int(n[6]) + 1 for n in weights if n.startswith("block_")}
    scale = {name: 0.5 ** (3 - number[name]) for name in weights}
    optimizer = torch.optim.AdamW(
        [
            {"params": [w], "weight_decay": 0.05 if w.ndim > 1 else 0.0, "scale": scale[name]}
            for name, w in weights.items()
        ]
    )
    for rate in (1e-3, 1e-2):
        for group in optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        optimizer.zero_grad()
        logits = logits_in_torch(torch.tensor(mixed), weights, positions, 2)
        (-(torch.tensor(targets) * logits.log_softmax(-1)).sum(-1).mean()).backward()
        optimizer.step()
    traces, compute = [], model.compute_loss
    model.compute_loss = lambda *args, **kwargs: traces.append(1) or compute(*args, **kwargs)
    model.fit(mixed, targets, batch_size=4, epochs=2, shuffle=False, verbose=0)
    # On torch the code runs in each step; else once for the shapes, and once for the program.
    assert len(traces) <= (3 if keras.config.backend() == "torch" else 2)
    for name, variable in trained.items():
        expected = weights[name].detach().numpy()
        np.testing.assert_allclose(numpy(variable), expected, atol=5e-5, err_msg=name)
    assert len(trained) == 2 + 2 * 12 + 4
