"""A preset that is damaged is seen before it is called whole, and named where it is loaded."""

import json
import os
import shutil

import pytest

from keras_vjepa import VJEPABackbone
from keras_vjepa.presets.fingerprints import fingerprint, fingerprint_of_weights
from keras_vjepa.presets.integrity import damage
from keras_vjepa.presets.preset import load_backbone
from tests.support import BEFORE_THE_HOUSE


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("preset") / "preset"
    VJEPABackbone(32, 4, hidden_dim=24, num_layers=1, num_heads=2).save_to_preset(folder)
    return folder


@pytest.fixture
def preset(written, tmp_path):
    shutil.copytree(written, tmp_path / "preset")
    return tmp_path / "preset"


def flip_in_the_middle(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def empty(path):
    os.truncate(path, 0)


def replace_by_a_list(path):
    path.write_text("[1, 2]")


def remove(path):
    path.unlink()


DAMAGES = [
    *((name, do) for do in (cut, empty, remove) for name in ("model.weights.h5", "config.json")),
    ("model.weights.h5", flip_in_the_middle),
    ("config.json", replace_by_a_list),
    *(("metadata.json", do) for do in (cut, empty, replace_by_a_list, remove)),
]


@pytest.mark.data
@pytest.mark.parametrize(("name", "do"), DAMAGES)
def test_damage_is_named(name, do, preset):
    assert damage(preset) is None
    do(preset / name)
    assert damage(preset).startswith(f"{preset / name} is ")


@pytest.mark.data
def test_a_config_may_be_edited_and_sizes_may_do(preset):
    config = json.loads((preset / "config.json").read_text())
    (preset / "config.json").write_text(json.dumps(config))
    assert damage(preset) is None
    flip_in_the_middle(preset / "model.weights.h5")
    assert damage(preset, thorough=False) is None
    cut(preset / "model.weights.h5")
    assert "is not as it was written" in damage(preset, thorough=False)


@pytest.mark.data
def test_what_is_left_of_a_preset_is_replaced_and_something_else_is_not(preset):
    model = load_backbone(preset)
    (preset / "metadata.json").unlink()
    model.save_to_preset(preset)
    assert damage(preset) is None
    (preset / "metadata.json").unlink()
    (preset / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="must not exist, be empty or be a preset"):
        model.save_to_preset(preset)
    assert (preset / "notes.txt").read_text() == "mine"


@pytest.mark.data
@pytest.mark.parametrize("name", ["model.weights.h5", "config.json"])
def test_presets_of_before_are_looked_at_as_far_as_they_can_be(name, tmp_path):
    shutil.copytree(BEFORE_THE_HOUSE / "presets" / "backbone_sincos", tmp_path / "preset")
    assert damage(tmp_path / "preset") is None
    cut(tmp_path / "preset" / name)
    assert damage(tmp_path / "preset").startswith(f"{tmp_path / 'preset' / name} is no ")


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "do"), [d for d in DAMAGES if d[0] != "metadata.json" and d[1] != flip_in_the_middle]
)
def test_loading_a_damaged_one_names_the_file(name, do, preset):
    do(preset / name)
    for load in (load_backbone, VJEPABackbone.from_preset):
        with pytest.raises((OSError, ValueError)) as error:
            load(preset)
        [line] = str(error.value).splitlines()
        assert str(preset) in line and name in line


def test_a_fingerprint_is_of_what_is_in_it(preset, tmp_path):
    one = load_backbone(preset)
    shutil.move(preset, tmp_path / "moved")
    two = load_backbone(tmp_path / "moved", name="other")
    assert fingerprint(one) == fingerprint(two)
    assert fingerprint_of_weights(one) == fingerprint_of_weights(two)
    two.trainable_variables[0].assign(two.trainable_variables[0] + 1e-6)
    assert fingerprint(one) != fingerprint(two)
    assert fingerprint_of_weights(one) != fingerprint_of_weights(two)
