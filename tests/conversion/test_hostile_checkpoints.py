"""What a checkpoint claims is compared with its bytes; what could end the process is refused."""

import io
import json
import os
import socket
import struct
import time
import zipfile

import numpy as np
import pytest

from keras_vjepa import VJEPABackbone, VJEPAVideoClassifier
from keras_vjepa.conversion import (
    CheckpointError,
    authors,
    convert,
    convert_backbone,
    convert_probe,
    export_checkpoint,
    export_hugging_face,
    export_probe,
    hugging_face,
)
from keras_vjepa.conversion.lazy_tensors import LazyTensor
from keras_vjepa.conversion.torch_archive import read_checkpoint, write_checkpoint
from keras_vjepa.models import VideoMAEBackbone
from tests.conversion.test_torch_archive import REBUILD, tensor, text, write

pytestmark = pytest.mark.data

# The storage "0" has sixteen bytes.
SIXTEEN = [("0", bytes(16))]
STORAGE = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x04tQ"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "checkpoint.pth.tar"


def refused(read, path, *arguments, seconds=2.0, **options):
    """The one line that a file is refused with, in little time."""
    start = time.process_time()
    with pytest.raises(CheckpointError) as caught:
        read(path, *arguments, **options)
    assert time.process_time() - start < seconds
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600 and str(path) in message
    return message


@pytest.fixture
def nothing_is_built(monkeypatch):
    """Models are not begun: what is refused is refused before."""

    def begin(*_, **__):
        raise AssertionError("a model was begun")

    for module in (authors, hugging_face):
        for name in ("VJEPABackbone", "VJEPAPredictor", "VJEPAProbe"):
            known = getattr(module, name)
            counting = type(name, (), {"number_of_weights": known.number_of_weights})
            monkeypatch.setattr(counting, "__init__", begin)
            monkeypatch.setattr(module, name, counting)


# --- F9: what is nested or repeats itself ---------------------------------------------------------

DEEP = 200_000


@pytest.mark.parametrize(
    "index,message",
    [
        (
            b"\x80\x02}K\x01" + b"\x85" * DEEP + b"K\x00s.",
            "must have text or small numbers as keys",
        ),
        (b"\x80\x02}" + text("x") + b"K\x01" + b"\x85" * 20_000 + b"s.", "nested at most 32 deep"),
        (b"\x80\x02}" + text("x") + b"]" * 20_000 + b"a" * 19_999 + b"s.", "at most 32 deep"),
        (b"\x80\x02}q\x00" + text("x") + b"h\x00s.", "nested at most 32 deep"),
        (b"\x80\x02}" + text("x") + b"]q\x00h\x00as.", "nested at most 32 deep"),
        (b"\x80\x02}(K\x01K\x02tK\x00s.", "as keys"),
        (b"\x80\x02}NK\x00s.", "as keys"),
        (b"\x80\x02}\x88K\x00s.", "as keys"),
        (b"\x80\x02}G" + bytes(8) + b"K\x00s.", "as keys"),
        # These numbers all have the same place in a Python dictionary.
        (b"\x80\x02}\x8a\x09" + (2**61 - 1 << 4).to_bytes(9, "little") + b"K\x00s.", "as keys"),
        (b"\x80\x02}ctorch\nFloatStorage\nK\x00s.", "as keys"),
        (b"\x80\x04}(\x8f\x90K\x00s.", "the instruction EMPTY_SET"),
        (b"\x80\x04}(\x91K\x00s.", "the instruction FROZENSET"),
        (b"\x80\x02" + b"N" * 2**20 + b".", "at most 1,048,576 instructions"),
        # The same list is turned into a dictionary again and again.
        (b"\x80\x02}" + text("x") + b"ccollections\nOrderedDict\n]\x85Rs.", "nothing was run"),
        (b"\x80\x04}(K\x01" + b"\x85" * 20_000 + text("x") + b"\x93.", "what has no name"),
        (b"\x80\x02}(" + text("x" * 10**6) + b"NNNNtQ.", "that is not a tensor"),
        (b"\x80\x02}c" + b"x" * 10**5 + b"\ny\n.", "which a file of tensors never does"),
        (b"\x80\x02}I" + b"9" * 10**5 + b"\n.", "cannot be read"),
    ],
    ids=range(19),
)
def test_an_index_that_would_end_the_process_or_last_for_ever(index, message, path):
    write(path, index)
    found = refused(read_checkpoint, path, seconds=10)
    assert message in found


def test_what_is_shared_is_no_circle(path):
    """A list in a thousand places, each looked into once; names and small numbers as keys."""
    shared = b"(" + b"".join(text(str(i)) + b"h\x01" for i in range(1000)) + b"u"
    nested = b"".join(text("x" * i) + b"}" for i in range(1, 20)) + shared + b"s" * 19
    write(path, b"\x80\x02}" + text("y") + b"]q\x01K\x01as" + nested + b"J\x05\x00\x00\x00Ns.")
    content = read_checkpoint(path)
    assert content["y"] == [1] and content[5] is None


# --- F11 and other claims of tensors --------------------------------------------------------------


def built(shape, stride, offset=b"K\x00", storage=STORAGE):
    return (
        b"\x80\x02}" + text("x") + REBUILD + b"(" + storage + offset + shape + stride + b"\x89}tRs."
    )


@pytest.mark.parametrize(
    "index,message",
    [
        (built(b"(" + b"K\x01" * 20_000 + b"t", b"(" + b"K\x01" * 20_000 + b"t"), "at most 8 axes"),
        (built(b"(" + b"K\x01" * 9 + b"t", b"(" + b"K\x01" * 9 + b"t"), "at most 8 axes"),
        (built(b"K\x04\x85", b")"), "a shape and as many strides"),
        (built(b"]K\x04a", b"K\x01\x85"), "a shape and as many strides"),
        (built(text("ab"), text("ab")), "a shape and as many strides"),
        (built(b"N\x85", b"K\x01\x85"), "whole numbers"),
        (built(b"\x88\x85", b"K\x01\x85"), "whole numbers"),
        (built(b"K\x04\x85", b"K\x01\x85", b"G" + bytes(8)), "whole numbers"),
        (built(b"K\x04\x85", b"K\x01\x85", storage=b"K\x05"), "must be a storage"),
        (built(b")", b")", storage=STORAGE.replace(b"K\x04", b"K\x00")), "reaches outside"),
        (built(b")", b")", storage=STORAGE.replace(b"K\x04", b"J\xfb\xff\xff\xff")), "outside"),
        (built(b"K\x02K\x03\x86", b"K\x00K\x01\x86"), "reaches outside"),
        (built(b"K\x00\x8a\x05\0\0\0\0\x01\x86", b"K\x01K\x01\x86"), "reaches outside"),
        (tensor(size=5, shape=5), "'0' is damaged: 5 numbers of float32 must be in it. It has 16"),
        (tensor(size=10**12, shape=10**12), "is damaged: 1,000,000,000,000 numbers"),
        (built(b"K\x04\x85", b"K\x01\x85", storage=STORAGE.replace(b"K\x04", b"\x88")), "not a te"),
    ],
    ids=range(16),
)
def test_tensors_that_claim_what_is_not_there(index, message, path):
    write(path, index, SIXTEEN)
    assert message in refused(read_checkpoint, path)


def test_odd_tensors_that_are_sound(path):
    write(path, built(b"K\x01K\x04\x86", b"\x8a\x08" + b"\xff" * 7 + b"\x7fK\x01\x86"), SIXTEEN)
    # For an axis of length 1, PyTorch may store any stride.
    assert read_checkpoint(path)["x"].read().shape == (1, 4)
    write(path, built(b"K\x00\x85", b"K\x01\x85"), SIXTEEN)
    assert read_checkpoint(path)["x"].read().shape == (0,)
    ones = b"(" + b"K\x01" * 8 + b"t"
    write(path, built(ones, ones), SIXTEEN)
    assert read_checkpoint(path)["x"].read().shape == (1,) * 8


def test_archives_that_claim_what_is_not_there(path):
    index = tensor()
    with pytest.warns(UserWarning, match="Duplicate name"):
        write(path, index, [*SIXTEEN, ("0", bytes(16))])
    assert "two members of the name 'archive/data/0'" in refused(read_checkpoint, path)
    write(path, index, SIXTEEN)
    whole = path.read_bytes()
    # This changes the sizes of the last member in the list of members.
    place = whole.rfind(b"PK\x01\x02") + 20
    path.write_bytes(whole[:place] + struct.pack("<II", 10**9, 10**9) + whole[place + 8 :])
    assert "its members claim 1,000,000," in refused(read_checkpoint, path)
    path.write_bytes(whole[:place] + struct.pack("<II", 16, 10**9) + whole[place + 8 :])
    assert "compressed" in refused(read_checkpoint, path)
    # LZMA keeps the sizes of what is stored, but allocates gigabytes of memory.
    path.write_bytes(whole[: place - 10] + b"\x0e" + whole[place - 9 :])
    assert "compressed" in refused(read_checkpoint, path)
    end = whole.rfind(b"PK\x05\x06")
    path.write_bytes(whole[: end + 12] + struct.pack("<I", 2**24) + whole[end + 16 :])
    assert "its list of members" in refused(read_checkpoint, path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", index)
        archive.writestr("archive/byteorder", "big")
        archive.writestr("archive/data/0", bytes(16))
    assert "in the byte order `little`" in refused(read_checkpoint, path)
    write(path, b"\x80\x02}" + b"N0" * 2**24 + b".")
    assert "its index must have at most 33,554,432 bytes" in refused(read_checkpoint, path)


# --- F10: models larger than their file -----------------------------------------------------------


def lazy(*shape):
    return LazyTensor(shape, lambda: np.zeros(shape, "float32"))


def described(width, mlp, layers=1):
    """A network in the authors' layout with no more tensors than tell its architecture."""
    shared = lazy(mlp, 1)
    found = {"patch_embed.proj.weight": lazy(width, 1, 1, 1, 1)}
    return {**found, **{f"blocks.{i}.mlp.fc1.weight": shared for i in range(layers)}}


@pytest.mark.usefixtures("nothing_is_built")
@pytest.mark.parametrize(
    "network,message",
    [
        (described(10**6, 10), "`hidden_dim` must be at most 65,536"),
        (described(4096, 4096), "weights, and holds"),
        (described(64, 64, layers=1000), "weights, and holds"),
        (described(64, 64, layers=1025), "`num_layers` must be at most 1,024"),
        (described(64, 10**4), "`mlp_ratio` must be in (0, 64]"),
        ({**described(64, 64), "patch_embed.proj.weight": lazy(0, 1, 1, 1, 1)}, "numbers in it"),
        ({**described(64, 64), "patch_embed.proj.weight": lazy(64, 1, 1)}, "must have 5 axes"),
        ({}, "misses keys: patch_embed"),
    ],
    ids=range(8),
)
def test_a_model_that_is_larger_than_its_checkpoint(network, message, path):
    write_checkpoint(path, {"target_encoder": network})
    arguments = {"num_heads": 1, "position_embedding": "rotary", "num_frames": 2, "image_size": 8}
    assert message in refused(convert_backbone, path, **arguments)


@pytest.mark.usefixtures("nothing_is_built")
def test_a_probe_that_is_larger_than_its_checkpoint(path):
    block = "pooler.cross_attention_block.mlp.fc1.weight"
    network = {"linear.weight": lazy(2, 2048), block: lazy(8192, 1)}
    write_checkpoint(path, {"classifier": network})
    assert "a VJEPAProbe of" in refused(convert_probe, path, 2)
    network["linear.weight"] = lazy(2**22 + 1, 1)
    write_checkpoint(path, {"classifier": network})
    assert "`num_classes` must be at most" in refused(convert_probe, path, 1)


def test_a_table_of_positions_without_end(path):
    network = {**described(8, 8), "pos_embed": lazy(1, 2**16, 8)}
    write_checkpoint(path, {"target_encoder": network})
    assert "is no sine-cosine table" in refused(convert_backbone, path, num_heads=1, seconds=10)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of the transformers package for each kind of model."""
    parent = tmp_path_factory.mktemp("folders")
    backbone = VJEPABackbone(
        32, 4, hidden_dim=24, num_layers=1, num_heads=2, position_embedding="rotary"
    )
    export_hugging_face(backbone, parent / "model")
    options = {"layer_norm_epsilon": 1e-6, "self_attention": "tokens"}
    export_hugging_face(VJEPAVideoClassifier(backbone, 3, **options), parent / "classifier")
    return parent


@pytest.fixture
def folder(folders, tmp_path):
    (tmp_path / "model").mkdir()
    for file in (folders / "model").iterdir():
        (tmp_path / "model" / file.name).write_bytes(file.read_bytes())
    return tmp_path / "model"


def change(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.usefixtures("nothing_is_built")
@pytest.mark.parametrize(
    "values,message",
    [
        ({"hidden_size": 10**6}, "`hidden_dim` must be at most"),
        ({"num_hidden_layers": 10**7}, "`num_layers` must be at most"),
        ({"frames_per_clip": 10**9}, "`num_frames` must be at most"),
        ({"hidden_size": 4096}, "describes a VJEPABackbone of "),
        ({"num_hidden_layers": 900}, "describes a VJEPABackbone of "),
        ({"hidden_size": "24"}, "`hidden_dim` must be a whole number"),
        ({"mlp_ratio": 1e30}, "`mlp_ratio` must be in (0, 64]"),
        ({"layer_norm_eps": None}, "`layer_norm_epsilon` must be"),
        ({"model_type": ["vjepa2"]}, "must be of `model_type` vjepa2"),
    ],
    ids=range(9),
)
def test_a_config_that_describes_more_than_its_folder_holds(values, message, folder):
    change(folder / "config.json", **values)
    assert message in refused(convert, folder)


@pytest.mark.parametrize(
    "values,message",
    [
        ({"pred_hidden_size": 4092}, "describes a VJEPAPredictor of "),
        ({"pred_num_hidden_layers": 10**7}, "`num_layers` must be at most"),
        ({"pred_num_mask_tokens": 10**9}, "`num_mask_tokens` must be at most"),
    ],
    ids=range(3),
)
def test_a_predictor_larger_than_its_folder(values, message, folder):
    change(folder / "config.json", **values)
    assert message in refused(convert, folder)


@pytest.mark.parametrize("layers", [10**7, 1000, "x", -1])
def test_a_probe_larger_than_its_folder(layers, folders, tmp_path):
    for file in (folders / "classifier").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    change(tmp_path / "config.json", num_pooler_layers=layers)
    message = refused(convert, tmp_path)
    assert "num_pooler_layers" in message or "describes a VJEPAProbe of" in message


def header(path, text, rest=bytes(64), length=None):
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + rest)


@pytest.mark.parametrize(
    "make,message",
    [
        (lambda path: header(path, b"{}", length=2**63), "a header of at most 16,777,216 bytes"),
        (lambda path: header(path, b"{}", length=1000), "is damaged"),
        (lambda path: header(path, b'{"a":' * 10**5 + b"1" + b"}" * 10**5), "is damaged"),
        (
            lambda path: header(
                path, b'{"a": {"dtype": "F32", "shape": [1000000000], "data_offsets": [0, 64]}}'
            ),
            "is damaged",
        ),
        (
            lambda path: header(
                path,
                b'{"a": {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]},'
                b' "b": {"dtype": "F32", "shape": [8], "data_offsets": [32, 64]}}',
            ),
            "is damaged",
        ),
        (lambda path: path.write_bytes(b"abc"), "is damaged"),
    ],
    ids=range(6),
)
def test_damaged_safetensors(make, message, folder):
    make(folder / "model.safetensors")
    assert message in refused(convert, folder)


def test_mask_tokens_without_end(folder):
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["predictor.embeddings.mask_tokens"] = np.zeros((10**9, 0), "float32")
    save_file(tensors, folder / "model.safetensors")
    assert "`mask_tokens` must be at most 1,024" in refused(convert, folder)


@pytest.mark.parametrize(
    "index,message",
    [
        ("{}", "index.json cannot be read (KeyError"),
        ('{"weight_map": {"a": 3}}', "files beside it. Received: 3"),
        ('{"weight_map": {"a": "../model/model.safetensors"}}', "files beside it"),
        ('{"weight_map": {"a": "b", "a": "b"}}', "'a' occurs twice"),
        ('{"weight_map": {"a": "b.safetensors"}}', "no such file"),
        ('{"weight_map": {"a": "model.safetensors", "b": "copy"}}', "none of another file"),
        ("[" * 10**5, "nested too deep"),
    ],
    ids=range(7),
)
def test_an_index_of_files(index, message, folder):
    (folder / "copy").write_bytes((folder / "model.safetensors").read_bytes())
    (folder / "model.safetensors.index.json").write_text(index)
    assert message in refused(convert, folder)


# --- F12: what is no file -------------------------------------------------------------------------


def pipe(path):
    os.mkfifo(path)


def unix_socket(path):
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def device(path):
    path.symlink_to("/dev/zero")


@pytest.mark.skipif(os.name == "nt", reason="has none of them")
@pytest.mark.parametrize("make,kind", [(pipe, "pipe"), (unix_socket, "socket"), (device, "device")])
def test_what_is_no_file_is_not_opened(make, kind, path, folder, monkeypatch):
    monkeypatch.chdir(path.parent)
    make(path)
    for read in (convert, convert_backbone, convert_probe):
        assert f"must be a file. Received: a {kind}" in refused(read, path)
    for name in ("model.safetensors", "config.json"):
        (folder / name).unlink()
        (folder / name).symlink_to(path)
        assert f"{name} must be a file. Received: a {kind}" in refused(convert, folder)


def test_a_folder_in_place_of_a_checkpoint(path):
    path.mkdir()
    assert "has no readable config.json" in refused(convert, path)
    assert "must be a file. Received: a folder" in refused(convert_probe, path)
    assert "must be a file. Received: a folder" in refused(read_checkpoint, path)


@pytest.mark.parametrize("text", ["x" * 100_000, "a\nb"])
def test_what_a_header_holds_is_said_in_one_short_line(tmp_path, text):
    """The library repeats the header's own words, however many and in however many lines."""
    header = json.dumps({"w": {"dtype": text, "shape": [1], "data_offsets": [0, 4]}}).encode()
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "vjepa2"}))
    (folder / "model.safetensors").write_bytes(
        len(header).to_bytes(8, "little") + header + bytes(4)
    )
    message = refused(convert, folder)
    assert len(message) < 600 and "\n" not in message and "is damaged" in message


@pytest.mark.parametrize("number", [np.nan, -np.inf])
@pytest.mark.parametrize("layout", ["checkpoint", "probe", "folder", "family"])
def test_a_number_that_is_not_finite_is_named(layout, number, tmp_path):
    kind = VideoMAEBackbone if layout == "family" else VJEPABackbone
    # transformers knows no tables of positions.
    given = {"position_embedding": "rotary"} if layout == "folder" else {}
    backbone = kind(32, 4, hidden_dim=24, num_layers=1, num_heads=2, **given)
    probe = VJEPAVideoClassifier(backbone, 3).probe
    damaged, write, read = {
        "checkpoint": (backbone, export_checkpoint, convert_backbone),
        "probe": (probe, export_probe, convert_probe),
        "folder": (backbone, export_hugging_face, convert),
        "family": (backbone, export_checkpoint, convert),
    }[layout]
    weight = damaged.weights[-1]
    values = np.array(weight)
    values.flat[-1] = number
    weight.assign(values)
    write(damaged, tmp_path / "file.pth")
    options = {"num_heads": 2} if layout != "folder" else {}
    options |= {"image_size": 32, "num_frames": 4} if layout == "family" else {}
    message = refused(read, tmp_path / "file.pth", **options)
    assert "bias` must hold finite numbers. Received: 1 of " in message


def test_a_sum_that_overflows_is_no_such_number(path):
    backbone = VJEPABackbone(32, 4, hidden_dim=24, num_layers=1, num_heads=2)
    backbone.weights[-1].assign(np.full(24, np.finfo("float32").max))
    export_checkpoint(backbone, path)
    assert convert_backbone(path, num_heads=2).get_weights()[-1][0] == np.finfo("float32").max


# --- Sound ones -----------------------------------------------------------------------------------


def test_half_precision_and_shared_tensors_load(tmp_path):
    """What is smallest for its weights: two bytes each, encoder and target encoder the same."""
    backbone = VJEPABackbone(32, 4, hidden_dim=24, num_layers=1, num_heads=2)
    export_checkpoint(backbone, tmp_path / "a.pth.tar")
    probe = VJEPAVideoClassifier(backbone, 3).probe
    export_probe(probe, tmp_path / "b.pth.tar")
    half = io.BytesIO()
    with (
        zipfile.ZipFile(tmp_path / "a.pth.tar") as old,
        zipfile.ZipFile(half, "w") as new,
    ):
        for name in old.namelist():
            content = old.read(name)
            if "/data/" in name:
                content = np.frombuffer(content, "<f4").astype("<f2").tobytes()
            new.writestr(name, content.replace(b"FloatStorage", b"HalfStorage"))
    (tmp_path / "a.pth.tar").write_bytes(half.getvalue())
    loaded = convert_backbone(tmp_path / "a.pth.tar", num_heads=2)
    for found, wanted in zip(loaded.get_weights(), backbone.get_weights(), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-3)
    assert convert_probe(tmp_path / "b.pth.tar", 2).num_classes == 3
