"""What a preset describes is compared with its files before a model is made of it."""

import json
import os
import shutil

import h5py
import keras
import numpy as np
import pytest

from keras_vjepa import (
    VJEPABackbone,
    VJEPAPredictor,
    VJEPAPretrainer,
    VJEPAVideoClassifier,
    VJEPAVideoPreprocessor,
)
from keras_vjepa.presets import claims
from keras_vjepa.presets.integrity import damage
from keras_vjepa.presets.preset import load_backbone

# All of this is refused before any backend is used.
pytestmark = pytest.mark.data


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A preset of each kind."""
    parent = tmp_path_factory.mktemp("presets")
    backbone = VJEPABackbone(32, 4, hidden_dim=24, num_layers=1, num_heads=2)
    predictor = VJEPAPredictor(24, backbone.position_axes, 24, num_layers=1, num_heads=2)
    teacher = VJEPABackbone(32, 4, hidden_dim=24, num_layers=1, num_heads=2)
    backbone.save_to_preset(parent / "backbone")
    VJEPAVideoPreprocessor(32, 4).save_to_preset(parent / "backbone")
    VJEPAPretrainer(backbone, predictor, teacher=teacher).save_to_preset(parent / "pretrainer")
    classifier = VJEPAVideoClassifier(backbone, 3, num_clips=2)
    classifier.save_to_preset(parent / "classifier")
    return parent


@pytest.fixture
def folder(written, tmp_path):
    shutil.copytree(written, tmp_path / "presets")
    return tmp_path / "presets"


@pytest.fixture
def nothing_is_built(monkeypatch):
    def build(*_, **__):
        raise AssertionError("a model was begun")

    monkeypatch.setattr(keras.saving, "deserialize_keras_object", build)


def refused(load, folder, name, **options):
    with pytest.raises((ValueError, OSError)) as caught:
        load(folder, **options)
    message = str(caught.value)
    assert "\n" not in message and str(folder / name) in message and len(message) < 700
    return message


def change(path, *places, **values):
    """Change a config; `places` lead to the part that has the arguments."""
    content = json.loads(path.read_text())
    part = content
    for place in places:
        part = part[place]
    part.update(values)
    path.write_text(json.dumps(content))


# --- F10: configs of more than there is -----------------------------------------------------------

LARGE = [
    ({"hidden_dim": 10**6}, "`hidden_dim` must be at most"),
    ({"num_layers": 10**7}, "`num_layers` must be at most"),
    ({"num_frames": 10**9}, "`num_frames` must be at most"),
    ({"hidden_dim": 4096}, "weights, and "),
    ({"num_layers": 900}, "weights, and "),
    ({"num_frames": 2**16}, "weights, and "),
    ({"hidden_dim": "24"}, "`hidden_dim` must be a whole number"),
    ({"num_heads": 0}, "`num_heads` must be at least 1"),
    ({"mlp_ratio": float("1e30")}, "`mlp_ratio` must be in (0, 64]"),
    ({"further": 1}, "`'further'` is no argument of VJEPABackbone"),
]


@pytest.mark.usefixtures("nothing_is_built")
@pytest.mark.parametrize("values,message", LARGE, ids=range(len(LARGE)))
def test_a_backbone_larger_than_its_file(values, message, folder):
    change(folder / "backbone" / "config.json", "config", **values)
    for load in (load_backbone, VJEPABackbone.from_preset):
        assert message in refused(load, folder / "backbone", "config.json")
    # A classifier's preset has a file of its own for the backbone.
    change(folder / "classifier" / "config.json", "config", **values)
    load = VJEPAVideoClassifier.from_preset
    assert message in refused(load, folder / "classifier", "config.json")


@pytest.mark.usefixtures("nothing_is_built")
@pytest.mark.parametrize("part", ["encoder", "teacher"])
@pytest.mark.parametrize("values,message", LARGE[:6], ids=range(6))
def test_parts_of_a_pretrainer_larger_than_their_files(part, values, message, folder):
    path = folder / "pretrainer" / "pretrainer.json"
    change(path, "config", part, "config", **values)
    assert message in refused(VJEPAPretrainer.from_preset, folder / "pretrainer", path.name)


@pytest.mark.usefixtures("nothing_is_built")
@pytest.mark.parametrize(
    "values", [{"hidden_dim": 4096}, {"num_layers": 900}, {"num_mask_tokens": 10**9}], ids=range(3)
)
def test_a_predictor_larger_than_its_file(values, folder):
    change(folder / "pretrainer" / "pretrainer.json", "config", "predictor", "config", **values)
    load = VJEPAPretrainer.from_preset
    refused(load, folder / "pretrainer", "pretrainer.json")
    change(folder / "pretrainer" / "predictor.json", "config", **values)
    refused(VJEPAPredictor.from_preset, folder / "pretrainer", "predictor.json")


@pytest.mark.parametrize(
    "values,message",
    [
        ({"num_classes": 10**6}, "weights, and "),
        ({"num_layers": 1000}, "weights, and "),
        ({"max_frames": 10**9}, "`max_frames` must be at most"),
        ({"max_frames": 2**22, "head_dim": None}, None),
        ({"num_heads": 10**6}, "`num_heads` must be at most"),
        ({"pooling": ["x"]}, "`pooling` must be"),
    ],
    ids=range(6),
)
def test_a_probe_larger_than_its_file(values, message, folder, monkeypatch):
    if message is None:
        # The limit stands for a table of a few GB at real widths.
        monkeypatch.setattr("keras_vjepa.tasks.classifier._MOST_TABLE", 2**26)
        message = "`max_frames` must give a table of at most 67,108,864 numbers"
    change(folder / "classifier" / "task.json", "config", **values)
    load = VJEPAVideoClassifier.from_preset
    assert message in refused(load, folder / "classifier", "task.json")


def test_overrides_count(folder):
    load = VJEPABackbone.from_preset
    refused(load, folder / "backbone", "config.json", num_layers=900)
    assert load(folder / "backbone", load_weights=False, num_layers=2).num_layers == 2


def test_the_message_says_what_is_described_and_what_is_held(folder):
    change(folder / "backbone" / "config.json", "config", num_layers=900)
    size = (folder / "backbone" / "model.weights.h5").stat().st_size
    number = VJEPABackbone.number_of_weights(
        image_size=32, num_frames=4, hidden_dim=24, num_layers=900, num_heads=2
    )
    message = refused(load_backbone, folder / "backbone", "config.json")
    assert f"describes {number:,} weights, and " in message
    assert message.endswith(f"model.weights.h5 holds {size:,} bytes")


# --- Classes --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("nothing_is_built")
@pytest.mark.parametrize(
    "described",
    [
        {"registered_name": "keras_vjepa>VJEPAProbe", "class_name": "VJEPAProbe"},
        {"registered_name": "keras_vjepa>TokenDense", "class_name": "VJEPABackbone"},
        {"registered_name": "nobody>Backbone", "class_name": "Backbone", "module": "nobody"},
        {"registered_name": None, "class_name": "Functional", "module": "keras"},
        {"registered_name": ["x"], "class_name": 3},
    ],
    ids=range(5),
)
def test_another_class_is_refused(described, folder):
    change(folder / "backbone" / "config.json", **described)
    message = refused(VJEPABackbone.from_preset, folder / "backbone", "config.json")
    assert "must describe a VJEPABackbone" in message
    change(folder / "pretrainer" / "pretrainer.json", "config", "encoder", **described)
    message = refused(VJEPAPretrainer.from_preset, folder / "pretrainer", "pretrainer.json")
    assert "must describe a VJEPABackbone" in message


def test_parts_that_are_no_parts(folder):
    path = folder / "pretrainer" / "pretrainer.json"
    sound = path.read_text()
    dense = {"class_name": "Dense", "module": "keras.layers", "config": {"units": 10**9}}
    for name, value in (
        ("momentum", {**dense, "registered_name": None}),
        ("teacher", {**dense, "registered_name": None}),
        ("encoder", None),
        ("predictor", [1]),
        ("predictor", {"class_name": "VJEPAPredictor"}),
    ):
        change(path, "config", **{name: value})
        message = refused(VJEPAPretrainer.from_preset, folder / "pretrainer", path.name)
        assert "must describe a " in message
        path.write_text(sound)


@keras.saving.register_keras_serializable("test_claims")
class Narrow(VJEPABackbone):
    """A user's own, whose arguments are others."""

    def __init__(self, width: int = 24, **kwargs):
        kwargs = {"image_size": 32, "num_frames": 4, "num_layers": 1, "num_heads": 2, **kwargs}
        super().__init__(**{**kwargs, "hidden_dim": width})
        self.width = width

    def get_config(self):
        return {"width": self.width, "name": self.name}


def test_a_class_with_other_arguments_is_not_counted(tmp_path):
    model = Narrow()
    model.save_to_preset(tmp_path / "preset")
    loaded = Narrow.from_preset(tmp_path / "preset")
    for found, wanted in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(found, wanted)


# --- Files of weights -----------------------------------------------------------------------------


def kernel(file):
    """The group of the largest array, and its name there."""
    arrays = []
    file.visititems(lambda name, item: arrays.append((getattr(item, "size", 0), name)))
    parent, _, name = max(arrays)[1].rpartition("/")
    return file[parent], name


def external_link(group, name):
    group[name] = h5py.ExternalLink("other.h5", "/x")


def soft_link(group, name):
    group[name] = h5py.SoftLink("/layers")


def external_array(group, name):
    group.create_dataset(name, (100,), "float32", external=[("/etc/passwd", 0, 400)])


def virtual_array(group, name):
    layout = h5py.VirtualLayout((100,), "float32")
    layout[:] = h5py.VirtualSource("other.h5", "x", (100,))
    group.create_virtual_dataset(name, layout)


def compressed_bomb(group, name):
    group.create_dataset(name, (10**12,), "float32", compression="gzip", chunks=(10**6,))


def circle(group, name):
    group[name] = group.file["/"]


def deep(group, name):
    for _ in range(100):
        group = group.create_group(name)


@pytest.mark.usefixtures("nothing_is_built")
@pytest.mark.parametrize(
    "make,message",
    [
        (external_link, "must not be a link"),
        (soft_link, "must not be a link"),
        (external_array, "must lie in the file itself"),
        (virtual_array, "must lie in the file itself"),
        (compressed_bomb, "numbers that config.json describes. Received: 1,000,000,0"),
        (circle, "less deep in each other"),
        (deep, "less deep in each other"),
    ],
)
def test_arrays_that_are_elsewhere_or_without_end(make, message, folder):
    path = folder / "backbone" / "model.weights.h5"
    with h5py.File(path, "a") as file:
        group, name = kernel(file)
        del group[name]
        make(group, name)
    assert message in refused(load_backbone, folder / "backbone", path.name)


def test_too_many_parts(folder, monkeypatch):
    monkeypatch.setattr(claims, "_MOST_OBJECTS", 10)
    message = refused(load_backbone, folder / "backbone", "model.weights.h5")
    assert "must have fewer parts" in message


def test_an_array_of_another_shape_or_type_is_named(folder):
    path = folder / "backbone" / "model.weights.h5"
    for array in (np.zeros((3, 3), "float32"), "text", None):
        with h5py.File(path, "a") as file:
            group, name = kernel(file)
            del group[name]
            if array is not None:
                group[name] = array
        message = refused(load_backbone, folder / "backbone", path.name)
        assert "model.weights.h5" in message


@pytest.mark.skipif(os.name == "nt", reason="has none of them")
@pytest.mark.parametrize("name", ["config.json", "model.weights.h5"])
def test_what_is_no_file_is_not_opened(name, folder):
    """F12, and F19 to F21: a pipe, a folder, nothing."""
    preset = folder / "backbone"
    for make, kind in ((os.mkfifo, "pipe"), (os.mkdir, "folder")):
        os.remove(preset / name) if (preset / name).is_file() else None
        make(preset / name)
        for load in (load_backbone, VJEPABackbone.from_preset):
            assert f"must be a file. Received: a {kind}" in refused(load, preset, name)
        assert damage(preset).startswith(f"{preset / name} is ")
        # Presets of older versions do not contain sizes.
        (preset / "metadata.json").write_text("{}")
        if name.endswith(".h5"):
            assert "is no HDF5" in damage(preset)
        (preset / name).rmdir() if kind == "folder" else (preset / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        load_backbone(preset)


# --- Configs as files -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[",
        "[]",
        "{}",
        '{"config": 3}',
        '{"config": {"hidden_dim": NaN}}',
        '{"config": {}, "config": {}}',
        '{"config":' * 10**5 + "1" + "}" * 10**5,
        '{"config":' * 150 + "1" + "}" * 150,
    ],
    ids=range(9),
)
def test_damaged_configs(text, folder):
    for name, load in (
        ("backbone/config.json", load_backbone),
        ("backbone/preprocessor.json", VJEPAVideoPreprocessor.from_preset),
        ("pretrainer/pretrainer.json", VJEPAPretrainer.from_preset),
        ("classifier/task.json", VJEPAVideoClassifier.from_preset),
    ):
        (folder / name).write_text(text)
        path = folder / name
        refused(load, path.parent, path.name)


@pytest.mark.parametrize("value", [10**9, -1, 0, "x", None, [1], [3, 4, 5]], ids=str)
def test_a_preprocessor_of_impossible_sizes(value, folder):
    change(folder / "backbone" / "preprocessor.json", "config", image_size=value)
    load = VJEPAVideoPreprocessor.from_preset
    assert "image_size" in refused(load, folder / "backbone", "preprocessor.json")


@pytest.mark.parametrize("kind", [["x"], {"a": 1}, 3, None])
def test_a_model_type_that_is_no_name(kind, folder):
    change(folder / "backbone" / "config.json", model_type=kind)
    assert load_backbone(folder / "backbone").hidden_dim == 24


def test_metadata_that_are_damaged_are_said(folder):
    preset = folder / "backbone"
    for written in ({"../x": [1, 2]}, {"model.weights.h5": 3}, [1]):
        change(preset / "metadata.json", written=written)
        assert damage(preset).count("\n") == 0
