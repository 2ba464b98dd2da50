"""Official files of V-JEPA's rivals: families found, strict reading, and the way back."""

import dataclasses
import json

import numpy as np
import pytest
from keras import ops

from keras_vjepa import VJEPABackbone, VJEPAVideoClassifier
from keras_vjepa.conversion import CheckpointError, convert, convert_backbone, export_checkpoint
from keras_vjepa.conversion.families.official import find_family, preprocessor_of
from keras_vjepa.conversion.lazy_tensors import LazyTensor
from keras_vjepa.conversion.torch_archive import read_checkpoint, write_checkpoint
from keras_vjepa.conversion.torch_index import Placeholder
from keras_vjepa.models import (
    DINOv2Backbone,
    IJEPABackbone,
    MVDBackbone,
    OmniMAEBackbone,
    OpenCLIPBackbone,
    VideoMAEBackbone,
)
from keras_vjepa.presets.preset import load_backbone
from keras_vjepa.tools import convert_checkpoint
from keras_vjepa.tools import export_checkpoint as export_command
from tests.conversion.families.golden_cases import OWN

# Weights pass through NumPy, which is the same on each backend; test_golden.py compares features.
pytestmark = pytest.mark.data

SMALL = {"hidden_dim": 16, "num_layers": 1, "num_heads": 2, "patch_size": 4}
CLIP, IMAGE = {"image_size": 8, "num_frames": 4}, {"image_size": 8}
MADE = {
    "videomae": lambda: VideoMAEBackbone(**CLIP, **SMALL),
    "mvd": lambda: MVDBackbone(**CLIP, **SMALL),
    "omnimae": lambda: OmniMAEBackbone(**CLIP, **SMALL),
    "dinov2": lambda: DINOv2Backbone(
        **IMAGE, **SMALL, activation="swiglu", mlp_dim=24, num_register_tokens=2
    ),
    "ijepa": lambda: IJEPABackbone(**IMAGE, **SMALL, mlp_dim=23),
    "openclip": lambda: OpenCLIPBackbone(**IMAGE, **SMALL, projection_dim=6),
}


def randomized(model, seed=0):
    """Give every weight numbers of its own, but for tables that are not learned."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        if weight.name != "position_table":
            weight.assign(rng.normal(size=weight.shape).astype("float32"))
    return model


def same(one, other):
    pairs = zip(one.get_weights(), other.get_weights(), strict=True)
    return all(np.array_equal(*pair) for pair in pairs)


@pytest.mark.parametrize("family", MADE)
def test_what_is_written_is_found_and_read(family, tmp_path):
    backbone = randomized(MADE[family]())
    path = tmp_path / "official.pth"
    export_checkpoint(backbone, path)
    assert find_family(path) == family
    sizes = CLIP if family in ("videomae", "omnimae") else {}
    again = convert(path, num_heads=2, **sizes)
    assert type(again) is type(backbone) and same(again, backbone)
    config = {k: v for k, v in backbone.get_config().items() if k != "name"}
    assert {k: v for k, v in again.get_config().items() if k != "name"} == config


@pytest.mark.parametrize("family", ["videomae", "mvd", "omnimae"])
def test_a_fine_tuned_model_is_a_classifier(family, tmp_path):
    """And may be two families' where names do not tell."""
    given = {} if family == "omnimae" else {"final_norm": False}
    cls = type(MADE[family]())
    backbone = randomized(cls(**CLIP, **SMALL, **given))
    classifier = VJEPAVideoClassifier(backbone, 3, head="fine_tuning")
    randomized(classifier.probe, 1)
    if family == "omnimae":
        classifier.probe.norm.set_weights(backbone.norm.get_weights())
    path = tmp_path / "tuned.pth"
    export_checkpoint(classifier, path)
    again = convert(path, family=family, num_heads=2, **CLIP)
    clip = np.random.default_rng(0).normal(size=(1, 4, 8, 8, 3)).astype("float32")
    expected, actual = (ops.convert_to_numpy(one(clip)) for one in (classifier, again))
    np.testing.assert_array_equal(actual, expected)
    assert type(convert_backbone(path, family=family, num_heads=2, **CLIP)) is cls
    if family != "omnimae":
        with pytest.raises(CheckpointError, match="VideoMAE and MVD have the same names: pass"):
            convert(path)


def rewritten(path, change):
    """Write a file again with another dictionary of tensors."""
    content = read_checkpoint(path)
    key = next((k for k in ("model", "target_encoder") if k in content), None)
    inner = change(dict(content[key] if key else content))
    write_checkpoint(path, {**content, key: inner} if key else inner)


CHANGES = {
    "missing": (lambda d: {k: t for k, t in d.items() if "norm1.bias" not in k}, "misses keys"),
    "unknown": (lambda d: {**d, "extra.weight": next(iter(d.values()))}, "unknown keys: extra"),
    "shape": (
        lambda d: {
            k: LazyTensor((3,), lambda: np.zeros(3)) if k.endswith("norm1.bias") else t
            for k, t in d.items()
        },
        "must have shape",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("family", ["videomae", "dinov2"])
def test_reading_is_strict(family, change, tmp_path):
    path = tmp_path / "official.pth"
    export_checkpoint(MADE[family](), path)
    how, message = CHANGES[change]
    rewritten(path, how)
    sizes = CLIP if family == "videomae" else {}
    with pytest.raises(CheckpointError, match=message) as caught:
        convert(path, family=family, num_heads=2, **sizes)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_wrappers_decoders_and_text_towers_are_left_out(tmp_path):
    path, zeros = tmp_path / "official.pth", LazyTensor((2, 2), lambda: np.zeros((2, 2)))
    backbone = randomized(MADE["videomae"]())
    export_checkpoint(backbone, path)
    others = ("decoder.blocks.0.norm1.bias", "encoder_to_decoder.weight", "mask_token")
    rewritten(
        path,
        lambda d: {
            **{f"_orig_mod.module.{k}": t for k, t in d.items()},
            **dict.fromkeys(others, zeros),
        },
    )
    assert same(convert(path, num_heads=2, **CLIP), backbone)
    tower = randomized(MADE["openclip"]())
    export_checkpoint(tower, path)
    others = ("positional_embedding", "transformer.resblocks.0.ln_1.bias", "logit_scale")
    rewritten(path, lambda d: {**d, **dict.fromkeys(others, zeros)})
    assert same(convert(path, num_heads=2), tower)


def test_what_a_trainer_writes_beside_the_tensors_is_a_placeholder():
    path = OWN / "videomae" / "with_namespace.pth"
    content = read_checkpoint(path)
    assert content["args"] == Placeholder("argparse.Namespace")
    assert all(isinstance(tensor, LazyTensor) for tensor in content["model"].values())
    with pytest.raises(CheckpointError, match="misses keys: blocks.0.mlp.fc2.weight"):
        convert(path, family="videomae")


@pytest.mark.parametrize("family", ["hiera", "ijepa", "openclip", "omnimae", "videomae", "mvd"])
def test_a_file_of_another_family_is_named(family):
    message = r"swiglu_reg4\.pth: .*\(a file of `family` 'dinov2'\)$"
    with pytest.raises(CheckpointError, match=message) as caught:
        convert(OWN / "dinov2" / "swiglu_reg4.pth", family=family, num_heads=2)
    assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match="must be a multiple") as caught:
        convert(OWN / "dinov2" / "swiglu_reg4.pth", family="dinov2", num_heads=5)
    assert "a file of" not in str(caught.value)


def test_v_jepa_of_single_images_is_no_i_jepa(tmp_path):
    backbone = VJEPABackbone(8, 1, **SMALL)
    path = tmp_path / "vjepa.pth.tar"
    export_checkpoint(backbone, path)
    assert find_family(path) is None
    assert type(convert_backbone(path, num_heads=2)) is VJEPABackbone


def test_commands_convert_and_write_back(tmp_path, capsys):
    """With the family's own normalisation; a table may be stretched on the way."""
    tower = randomized(MADE["openclip"]())
    path, preset = tmp_path / "clip.bin", tmp_path / "preset"
    export_checkpoint(tower, path)
    arguments = [str(path), str(preset), "--num-heads", "2", "--activation", "quick_gelu"]
    convert_checkpoint.main([*arguments, "--family", "openclip"])
    loaded = load_backbone(preset)
    assert same(loaded, tower) and loaded.activation == "quick_gelu"
    assert preprocessor_of(loaded).mean == OpenCLIPBackbone.facts.mean
    stretched = load_backbone(preset, image_size=(8, 12), load_weights=False)
    assert stretched.grid_shape == (1, 2, 3)
    assert OpenCLIPBackbone.from_preset(preset, image_size=(8, 12)).grid_shape == (1, 2, 3)
    export_command.main([str(preset), str(tmp_path / "back.bin")])
    assert same(convert(tmp_path / "back.bin", num_heads=2), tower)
    with pytest.raises(SystemExit):
        convert_checkpoint.main([str(path), str(tmp_path / "other"), "--network", "encoder"])
    assert "`network` must be left out" in capsys.readouterr().err.replace("--network", "`network`")


def test_half_precision_is_read(tmp_path):
    backbone = MADE["ijepa"]()
    export_checkpoint(backbone, tmp_path / "full.pth")
    content = read_checkpoint(tmp_path / "full.pth")
    torch = pytest.importorskip("torch")
    halves = {
        network: {k: torch.tensor(np.array(t.read())).half() for k, t in content[network].items()}
        for network in ("encoder", "target_encoder")
    }
    torch.save(halves, tmp_path / "half.pth")
    again = convert(tmp_path / "half.pth", num_heads=2)
    for one, other in zip(again.get_weights(), backbone.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-3)


def parts_of(tensors, folder, ending):
    """Write tensors to two files and an index, and return its path."""
    names, torch = list(tensors), pytest.importorskip("torch")
    halves = [names[: len(names) // 2], names[len(names) // 2 :]]
    placed = {}
    for number, half in enumerate(halves):
        file = f"model-{number}.{ending}"
        arrays = {name: np.ascontiguousarray(tensors[name].read()) for name in half}
        if ending == "safetensors":
            save = pytest.importorskip("safetensors.numpy").save_file
            save(arrays, folder / file)
        else:
            torch.save({name: torch.tensor(a) for name, a in arrays.items()}, folder / file)
        placed.update(dict.fromkeys(half, file))
    index = folder / f"model.{ending}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    return index


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_several_files_and_their_index(ending, tmp_path):
    tower = randomized(MADE["openclip"]())
    export_checkpoint(tower, tmp_path / "whole.bin")
    index = parts_of(read_checkpoint(tmp_path / "whole.bin"), tmp_path, ending)
    assert find_family(index) == "openclip"
    assert same(convert(index, num_heads=2), tower)
    (tmp_path / f"model-1.{ending}").unlink()
    for family in ("openclip", None):
        with pytest.raises(CheckpointError, match=r"no such file: .*model-1"):
            convert(index, num_heads=2, family=family)


def test_damaged_parts_are_named_without_a_family(tmp_path):
    """V-JEPA's reader, which files of no family go to, takes them for damaged archives."""
    save = pytest.importorskip("safetensors.numpy").save_file
    one, index = tmp_path / "one.safetensors", tmp_path / "model.safetensors.index.json"
    save({"norm.weight": np.ones(8, "float32")}, one)
    index.write_text(json.dumps({"weight_map": {"norm.weight": one.name}}))
    with pytest.raises(CheckpointError, match=r"index\.json: it names .* pass the folder"):
        convert(index)
    one.write_bytes(one.read_bytes()[:-4])
    for path in (one, index):
        with pytest.raises(CheckpointError, match=r"one\.safetensors is damaged"):
            convert(path)


def test_checkpoints_of_dinov2s_trainer(tmp_path):
    """With the teacher's heads, and blocks in chunks."""
    backbone, path = randomized(MADE["dinov2"]()), tmp_path / "teacher.pth"
    export_checkpoint(backbone, path)
    own = read_checkpoint(path)
    teacher = {f"backbone.{k.replace('blocks.', 'blocks.0.')}": t for k, t in own.items()}
    write_checkpoint(path, {"teacher": {**teacher, "dino_head.mlp.0.bias": own["norm.bias"]}})
    assert find_family(path) == "dinov2" and same(convert(path, num_heads=2), backbone)


def test_whole_numbers_and_programs_are_no_weights(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "official.pth"
    export_checkpoint(MADE["dinov2"](), path)
    tensors = {k: torch.tensor(np.array(t.read())) for k, t in read_checkpoint(path).items()}
    torch.save({**tensors, "norm.bias": torch.ones(16, dtype=torch.int8)}, path)
    with pytest.raises(CheckpointError, match="`encoder.norm.bias` must hold floats"):
        convert(path, num_heads=2)
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    with pytest.raises(CheckpointError, match="a program of TorchScript"):
        convert(path, family="openclip")


def test_facts_are_of_one_kind():
    for make in MADE.values():
        facts = dataclasses.asdict(type(make()).facts)
        assert len(facts["mean"]) == len(facts["std"]) == 3
