"""The converter: strict, tensors only, any architecture."""

import numpy as np
import pytest
from keras import ops

from keras_vjepa import (
    VJEPABackbone,
    VJEPAPredictor,
    VJEPAPretrainer,
    VJEPAProbe,
    VJEPAVideoClassifier,
)
from keras_vjepa.conversion import (
    CheckpointError,
    convert,
    convert_backbone,
    convert_classifier,
    convert_probe,
    torch_archive,
)
from keras_vjepa.conversion.authors import encoder_entries, predictor_entries, probe_entries
from keras_vjepa.conversion.lazy_tensors import LazyTensor
from keras_vjepa.layers.positions import position_table
from keras_vjepa.tools import convert_checkpoint
from tests.support import GOLDEN

# Weights pass through NumPy, which is the same on each backend; tests/tasks/test_parity.py compares
# features.
pytestmark = pytest.mark.data


def write_checkpoint(path, content):
    """Write nested dictionaries of arrays."""

    def lazy(item):
        if isinstance(item, dict):
            return {key: lazy(value) for key, value in item.items()}
        if isinstance(item, list):
            return [lazy(value) for value in item]
        return LazyTensor(item.shape, lambda: item) if isinstance(item, np.ndarray) else item

    torch_archive.write_checkpoint(path, lazy(content))


def authors_layout(pretrainer):
    """The pretrainer's weights under the authors' names, in their layout."""

    def written(entries):
        return {
            f"module.backbone.{name}": rearrange.inverse(ops.convert_to_numpy(variable))
            for (name,), variable, rearrange in entries
        }

    return {
        "encoder": written(encoder_entries(pretrainer.encoder)),
        "predictor": written(predictor_entries(pretrainer.predictor)),
        "target_encoder": written(encoder_entries(pretrainer.target_encoder)),
        "epoch": 3,
    }


def random_pretrainer(seed, encoder_arguments, predictor_arguments):
    encoder = VJEPABackbone(**encoder_arguments)
    predictor = VJEPAPredictor(encoder.hidden_dim, encoder.position_axes, **predictor_arguments)
    pretrainer, rng = VJEPAPretrainer(encoder, predictor), np.random.default_rng(seed)
    for variable in pretrainer.variables:
        if "position_table" not in variable.path:
            variable.assign(rng.normal(size=variable.shape))
    return pretrainer


ARCHITECTURES = {
    "wide": (
        dict(
            image_size=48,
            num_frames=6,
            patch_size=8,
            tubelet_size=3,
            hidden_dim=48,
            num_layers=2,
            num_heads=3,
            mlp_ratio=48 / 11,
        ),
        dict(hidden_dim=24, num_layers=1, num_heads=3, num_mask_tokens=3),
    ),
    "nonuniform": (
        dict(
            image_size=32,
            num_frames=8,
            hidden_dim=40,
            num_layers=1,
            num_heads=4,
            uniform_power=False,
        ),
        dict(hidden_dim=16, num_layers=3, num_heads=4, num_mask_tokens=1, uniform_power=False),
    ),
    "rotary": (
        dict(
            image_size=32,
            num_frames=8,
            hidden_dim=24,
            num_layers=2,
            num_heads=2,
            position_embedding="rotary",
        ),
        dict(
            hidden_dim=24,
            num_layers=1,
            num_heads=12,
            num_mask_tokens=10,
            position_embedding="rotary",
        ),
    ),
    "image": (
        dict(image_size=64, num_frames=1, hidden_dim=24, num_layers=2, num_heads=2, tubelet_size=1),
        dict(hidden_dim=12, num_layers=1, num_heads=2, num_mask_tokens=2),
    ),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_other_architectures_are_detected_and_loaded(name, tmp_path):
    encoder_arguments, predictor_arguments = ARCHITECTURES[name]
    expected = random_pretrainer(1, encoder_arguments, predictor_arguments)
    write_checkpoint(tmp_path / "checkpoint.pth.tar", authors_layout(expected))
    # Arguments that a V-JEPA 2 file does not contain.
    told = {"image_size": 32, "num_frames": 8} if name == "rotary" else {}
    actual = convert(
        tmp_path / "checkpoint.pth.tar", num_heads=encoder_arguments["num_heads"], **told
    )
    for part in ("encoder", "predictor"):
        found, wanted = getattr(actual, part).get_config(), getattr(expected, part).get_config()
        for key in set(wanted) - {"name", "mlp_ratio"}:
            assert found[key] == wanted[key], key
    for found, wanted in zip(actual.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_a_vjepa2_file_with_tables_that_its_model_does_not_use(tmp_path):
    path = tmp_path / "checkpoint.pt"
    layout = authors_layout(random_pretrainer(1, *ARCHITECTURES["rotary"]))
    for network, name in (("encoder", "pos_embed"), ("predictor", "predictor_pos_embed")):
        layout[network][f"module.backbone.{name}"] = position_table(24, (4, 2, 2))[None]
    layout["target_encoder"]["module.backbone.pos_embed"] = position_table(24, (4, 2, 2))[None]
    write_checkpoint(path, layout)
    for model in (convert(path, num_heads=2).encoder, convert_backbone(path, num_heads=2)):
        assert (model.position_embedding, model.image_size, model.num_frames) == (
            "rotary",
            256,
            64,
        )
    # Conversely, a V-JEPA file that has lost a table is not a V-JEPA 2 file.
    tables = convert_backbone(path, num_heads=2, position_embedding="sincos")
    assert (tables.position_embedding, tables.image_size, tables.num_frames) == ("sincos", 32, 8)
    for name in [key for key in layout["predictor"] if "mask_tokens" in key][2:]:
        del layout["predictor"][name]
    del layout["target_encoder"]["module.backbone.pos_embed"]
    write_checkpoint(path, layout)
    with pytest.raises(CheckpointError, match="misses keys: pos_embed"):
        convert_backbone(path, num_heads=2)


@pytest.mark.parametrize("network", ["encoder", "target_encoder"])
def test_one_encoder_alone(tiny_pretrainer, network):
    path = GOLDEN / "tiny.pth.tar"
    backbone = convert_backbone(path, network, num_heads=4, position_mode="fresh")
    assert backbone.position_mode == "fresh"
    expected = getattr(tiny_pretrainer, network).get_weights()
    for found, wanted in zip(backbone.get_weights(), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.fixture
def layout(tiny_pretrainer):
    return authors_layout(tiny_pretrainer)


@pytest.mark.parametrize("network", ["encoder", "predictor", "target_encoder"])
def test_unknown_and_missing_keys_are_named(layout, network, tmp_path):
    path = tmp_path / "checkpoint.pth.tar"
    bias = "norm.bias" if network != "predictor" else "predictor_norm.bias"
    removed = layout[network].pop(f"module.backbone.{bias}")
    write_checkpoint(path, layout)
    with pytest.raises(CheckpointError, match=f"`{network}` misses keys: {bias}"):
        convert(path, num_heads=4)
    layout[network][f"module.backbone.{bias}"] = removed
    layout[network]["module.backbone.cls_token"] = np.zeros((1, 1, 72))
    write_checkpoint(path, layout)
    with pytest.raises(CheckpointError, match=f"`{network}` has unknown keys: cls_token"):
        convert(path, num_heads=4)


def test_wrong_shapes_and_missing_networks_are_named(layout, tmp_path):
    path = tmp_path / "checkpoint.pth.tar"
    layout["target_encoder"]["module.backbone.norm.bias"] = np.zeros(71)
    write_checkpoint(path, layout)
    with pytest.raises(CheckpointError, match="`target_encoder.norm.bias` must have shape"):
        convert(path, num_heads=4)
    del layout["predictor"]
    write_checkpoint(path, layout)
    with pytest.raises(CheckpointError, match="the checkpoint has no `predictor`"):
        convert(path, num_heads=4)
    with pytest.raises(CheckpointError, match="pass `num_heads`"):
        convert(GOLDEN / "tiny.pth.tar")


DEAD = "module.pooler.cross_attention_block.xattn.proj"


def random_probe(seed, dim, **arguments):
    probe, rng = VJEPAProbe(**arguments), np.random.default_rng(seed)
    probe.build((None, None, dim))
    for variable in probe.variables:
        variable.assign(rng.normal(size=variable.shape))
    return probe


def authors_probe_layout(probe):
    """As `authors_layout`, with the dead projection."""
    dim = probe.linear.kernel.shape[0]
    tensors = {f"{DEAD}.weight": np.ones((dim, dim)), f"{DEAD}.bias": np.ones(dim)}
    for (name,), variable, rearrange in probe_entries(probe):
        tensors[f"module.{name}"] = rearrange.inverse(ops.convert_to_numpy(variable))
    return {"classifier": tensors, "opt": {}, "epoch": 20, "lr": 1e-3}


@pytest.mark.parametrize(
    "dim,arguments",
    [
        (24, {"num_classes": 400, "num_heads": 3}),
        (32, {"num_classes": 2, "num_heads": 8, "num_layers": 4}),
        (44, {"num_classes": 5, "num_heads": 2, "num_layers": 2, "mlp_ratio": 48 / 11}),
    ],
)
def test_other_probes_are_detected_and_loaded(dim, arguments, tmp_path):
    expected = random_probe(2, dim, **arguments)
    write_checkpoint(tmp_path / "probe.pth.tar", authors_probe_layout(expected))
    actual = convert_probe(tmp_path / "probe.pth.tar", num_heads=arguments["num_heads"])
    for name in ("num_classes", "num_heads", "num_layers", "pooling", "layer_norm_epsilon"):
        assert getattr(actual, name) == getattr(expected, name), name
    for found, wanted in zip(actual.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_array_equal(found, wanted)
    backbone = VJEPABackbone(16, 2, hidden_dim=dim, num_layers=1, num_heads=arguments["num_heads"])
    classifier = convert_classifier(backbone, tmp_path / "probe.pth.tar", num_clips=2)
    assert classifier.num_clips == 2 and classifier.num_heads is None
    for found, wanted in zip(classifier.probe.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_the_first_of_vjepa2_probes(tmp_path):
    """Sixteen heads whatever the encoder has; self-attention on all tokens."""
    path = tmp_path / "probe.pt"
    arguments = {"num_classes": 3, "num_heads": 16, "num_layers": 4, "self_attention": "tokens"}
    probes = [random_probe(seed, 48, **arguments) for seed in (0, 1)]
    files = [authors_probe_layout(probe)["classifier"] for probe in probes]
    for tensors in files:
        del tensors[f"{DEAD}.weight"], tensors[f"{DEAD}.bias"]
    write_checkpoint(path, {"classifiers": files, "opt": [], "epoch": 20})
    backbone = VJEPABackbone(
        16, 2, hidden_dim=48, num_layers=1, num_heads=4, position_embedding="rotary"
    )
    classifier = convert_classifier(backbone, path, num_views=3)
    assert classifier.probe.get_config() == {
        **probes[0].get_config(),
        "name": "probe",
        "dtype": classifier.probe.get_config()["dtype"],
    }
    tokens = np.random.default_rng(0).normal(size=(2, 5, 48)).astype("float32")
    expected = ops.convert_to_numpy(probes[0](tokens))
    np.testing.assert_array_equal(ops.convert_to_numpy(classifier.probe(tokens)), expected)
    assert np.abs(ops.convert_to_numpy(probes[1](tokens)) - expected).max() > 0.1
    del files[0]["module.linear.bias"]
    write_checkpoint(path, {"classifiers": files})
    with pytest.raises(CheckpointError, match="`classifiers` misses keys: linear.bias"):
        convert_probe(path)


def test_a_probe_of_a_usual_width_needs_no_heads(tmp_path):
    probe = random_probe(0, 192, num_classes=3, num_heads=3)
    write_checkpoint(tmp_path / "probe.pth.tar", authors_probe_layout(probe))
    assert convert_probe(tmp_path / "probe.pth.tar").num_heads == 3
    with pytest.raises(CheckpointError, match="must be a multiple of `num_heads`=5. Received: 192"):
        convert_probe(tmp_path / "probe.pth.tar", num_heads=5)


def test_probes_that_do_not_fit_are_named(tmp_path):
    path, probe = tmp_path / "probe.pth.tar", random_probe(0, 24, num_classes=3, num_heads=2)

    def error(heads=2, **changes):
        layout = authors_probe_layout(probe)
        for name, value in changes.items():
            key = "module." + name.replace("__", ".")
            if value is None:
                del layout["classifier"][key]
            else:
                layout["classifier"][key] = value
        write_checkpoint(path, layout)
        with pytest.raises(CheckpointError) as caught:
            convert_probe(path, heads)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    unknown = error(pooler__norm=np.ones(24))
    assert unknown == f"{path}: `classifier` has unknown keys: pooler.norm"
    assert error(linear__bias=None) == f"{path}: `classifier` misses keys: linear.bias"
    assert error(linear__weight=None) == f"{path}: `classifier` misses keys: linear.weight"
    query = "pooler.cross_attention_block.xattn.q.bias"
    shape = error(**{query.replace(".", "__"): np.ones(23)})
    assert f"`classifier.{query}` must have shape (24,)" in shape
    assert "pass `num_heads`" in error(heads=None)
    wider = VJEPABackbone(16, 2, hidden_dim=48, num_layers=1, num_heads=2)
    write_checkpoint(path, authors_probe_layout(probe))
    with pytest.raises(CheckpointError, match="the probe must be 48 wide, as the encoder.* 24"):
        convert_classifier(wider, path)
    with pytest.raises(CheckpointError, match="the checkpoint has no `classifier`"):
        convert_probe(GOLDEN / "tiny.pth.tar", num_heads=4)


def test_command(tmp_path, capsys):
    def run(*arguments):
        convert_checkpoint.main(list(map(str, arguments)))
        return capsys.readouterr().out

    preset, tiny = tmp_path / "preset", GOLDEN / "tiny.pth.tar"
    with pytest.raises(SystemExit, match="^convert_checkpoint.py: .*pass --num-heads$"):
        run(tiny, preset)
    with pytest.raises(SystemExit, match="multiple of --predictor-num-heads=7. Received: "):
        run(tiny, preset, "--num-heads", 4, "--predictor-num-heads", 7)
    assert not preset.exists()
    assert run(tiny, preset, "--num-heads", 4).startswith(f"Wrote {preset}: ")
    assert VJEPABackbone.from_preset(preset).hidden_dim == 72
    probe = GOLDEN / "probe_depth2.pth.tar"
    run(tiny, tmp_path / "classifier", "--num-heads", 4, "--probe", probe)
    classifier = VJEPAVideoClassifier.from_preset(tmp_path / "classifier", num_clips=8)
    assert (classifier.num_classes, classifier.num_layers) == (7, 2)
