"""Small sound checkpoints, presets and states of runs, and hostile or damaged ones made of them.

The damage: that of `tests.data.reading.mutants` to the bytes of a file; parts of its JSON replaced
by what is out of range, huge, of another type or nested deep; instructions of a pickle changed,
with the archive around it whole; arrays of HDF5 files that claim other sizes, lie elsewhere or are
links. The same seed makes the same.
"""

import copy
import hashlib
import io
import json
import random
import struct
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np

from keras_vjepa import VJEPABackbone, VJEPAPredictor, VJEPAPretrainer, VJEPAVideoClassifier
from keras_vjepa.conversion import export_checkpoint, export_hugging_face, export_probe
from keras_vjepa.training.run_state import Checkpoints
from tests.data.reading import mutants

# The files of a folder by their names.
Artefact = dict[str, bytes]

# ------------------------------------------------------------------------------------- sound files


def _content(folder: Path) -> Artefact:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def _pretrainer(position_embedding: str) -> VJEPAPretrainer:
    encoder = VJEPABackbone(
        32, 4, hidden_dim=24, num_layers=1, num_heads=2, position_embedding=position_embedding
    )
    predictor = VJEPAPredictor(
        24,
        encoder.position_axes,
        hidden_dim=24,
        num_layers=1,
        num_heads=2,
        num_mask_tokens=2,
        position_embedding=position_embedding,
    )
    return VJEPAPretrainer(encoder, predictor)


def _in_two_files(folder: Artefact) -> Artefact:
    """A folder whose tensors lie in two files with an index."""
    from safetensors.numpy import load, save

    tensors = load(folder["model.safetensors"])
    names, made = sorted(tensors), {"config.json": folder["config.json"]}
    halves = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for file, half in halves.items():
        made[file] = save({name: tensors[name] for name in half})
    placed = {name: file for file, half in halves.items() for name in half}
    index = json.dumps({"weight_map": placed}).encode()
    return {**made, "model.safetensors.index.json": index}


def sound_artefacts() -> dict[str, Artefact]:
    """A small sound artefact of each kind, by the name of how `fuzz.LOADERS` reads it."""
    made: dict[str, Artefact] = {}
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent)
        pretrainer, rotary = _pretrainer("sincos"), _pretrainer("rotary")
        backbone = pretrainer.target_encoder
        classifier = VJEPAVideoClassifier(backbone, 3, num_clips=2)
        export_checkpoint(pretrainer, folder / "a" / "a.pth.tar")
        export_probe(classifier.probe, folder / "b" / "a.pth.tar")
        made["authors"], made["probe"] = _content(folder / "a"), _content(folder / "b")
        export_hugging_face(rotary, folder / "c")
        made["hugging_face"] = _content(folder / "c")
        made["hugging_face_index"] = _in_two_files(made["hugging_face"])
        export_hugging_face(
            VJEPAVideoClassifier(
                rotary.target_encoder, 3, layer_norm_epsilon=1e-6, self_attention="tokens"
            ),
            folder / "d",
        )
        made["hugging_face_classifier"] = _content(folder / "d")
        for name, model in (
            ("preset", backbone),
            ("preset_pretrainer", pretrainer),
            ("preset_classifier", classifier),
        ):
            model.save_to_preset(folder / name)
            made[name] = _content(folder / name)
        checkpoints = Checkpoints(folder / "states")
        checkpoints.save(3, {"weights": np.arange(200, dtype="float32")}, {"seed": 0})
        checkpoints.wait()
        made["state"] = _content(folder / "states")
    keras.utils.clear_session()
    return made


# ------------------------------------------------------------------------------------------ damage

EXTREMES: tuple[Any, ...] = (
    0,
    1,
    2,
    3,
    7,
    -1,
    23,
    64,
    4096,
    10**5,
    10**6,
    10**7,
    10**9,
    2**31,
    2**63,
    10**400,
    0.5,
    1e-30,
    1e30,
    1e308,
    -2.5,
    None,
    True,
    False,
    "",
    "x",
    "int4",
    "rotary",
    "average",
    "keras_vjepa>VJEPAProbe",
    "os.system",
    "x" * 10**5,
    "a\nb",
    [],
    [3],
    [8, 8],
    [1] * 1000,
    {},
    {"a": {"a": {}}},
    {"class_name": "Dense", "module": "keras.layers", "config": {"units": 10**9}},
)


def _places(item: Any) -> Iterator[tuple[Any, Any]]:
    """Each container in JSON with each of its keys."""
    for key in list(item if isinstance(item, dict) else range(len(item))):
        yield item, key
        if isinstance(item[key], dict | list):
            yield from _places(item[key])


def change_json(item: Any, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 1, 2, 3))):
        container, key = rng.choice(list(_places(item)) or [({}, "x")])
        kind = rng.random()
        if kind < 0.75:
            container[key] = copy.deepcopy(rng.choice(EXTREMES))
        elif kind < 0.85:
            del container[key]
        elif kind < 0.95 and isinstance(container, dict):
            place = rng.choice(("units", "name", "config", "dtype", "x"))
            container[place] = copy.deepcopy(rng.choice(EXTREMES))
        else:
            nested: Any = copy.deepcopy(rng.choice(EXTREMES))
            for _ in range(rng.choice((10, 90, 2000))):
                nested = [nested] if rng.random() < 0.5 else {"a": nested}
            container[key] = nested
            return  # it is too deep to look for another place


def _json_text(item: Any, rng: random.Random) -> bytes:
    try:
        text = json.dumps(item)
    except RecursionError:
        text = "[" * 10**5 + "]" * 10**5
    if rng.random() < 0.1:
        name = rng.choice(("hidden_dim", "hidden_size", "x"))
        text = text.replace("{", f'{{"{name}": 7, "{name}": 1000000000, ', 1)
    return text.encode()


def damage_json(content: bytes, rng: random.Random) -> bytes:
    item = json.loads(content)
    change_json(item, rng)
    return _json_text(item, rng)


def damage_safetensors(content: bytes, rng: random.Random) -> bytes:
    (length,) = struct.unpack_from("<Q", content)
    header, rest = json.loads(content[8 : 8 + length]), content[8 + length :]
    change_json(header, rng)
    text = _json_text(header, rng)
    length = rng.choice((len(text), len(text), len(text), 0, 2**24 + 1, 2**63, 10**10))
    return struct.pack("<Q", length) + text + rest


# Complete pieces of a pickle, which nest, repeat, name or call something, or are huge.
PIECES = (
    b"}",
    b"]",
    b")",
    b"(",
    b"t",
    b"\x85",
    b"\x86",
    b"s",
    b"u",
    b"a",
    b"e",
    b"0",
    b"2",
    b"R",
    b"b",
    b"Q",
    b"N",
    b"\x88",
    b"\x8f",
    b"\x94",
    b"h\x00",
    b"q\x00",
    b"q\x01h\x01",
    b"K\x00",
    b"M\xff\xff",
    b"J\xff\xff\xff\x7f",
    b"J\xff\xff\xff\xff",
    b"\x8a\x08" + b"\xff" * 7 + b"\x7f",
    b"\x8a\xff" + b"\x7f" * 255,
    b"G" + struct.pack(">d", float("nan")),
    b"X\xff\xff\xff\x7f",
    b"\x85" * 50_000,
    b"K\x01" + b"\x85" * 100_000 + b"K\x00s",
    b"]q\x05h\x05a",
    b"(" + b"K\x01" * 20_000 + b"t",
    b"ccollections\nOrderedDict\n)R",
    b"cos\nsystem\nX\x02\x00\x00\x00id\x85R",
    b"cbuiltins\nfrozenset\n",
    b"I9999999999\n",
    b"L" + b"9" * 20_000 + b"L\n",
)


def damage_index(index: bytes, rng: random.Random) -> bytes:
    """A pickle with pieces put in, or damaged as any file."""
    changed = bytearray(index)
    if rng.random() < 0.5:
        rng.choice(mutants.DAMAGES)(changed, rng)
        return bytes(changed)
    for _ in range(rng.choice((1, 1, 2, 5))):
        place = rng.randrange(len(changed))
        piece = rng.choice(PIECES)
        changed[place : place + rng.choice((0, len(piece)))] = piece
    return bytes(changed)


def damage_archive(content: bytes, rng: random.Random) -> bytes:
    """An archive whose index is damaged, and that is whole around it; or has odd members."""
    written, kind = io.BytesIO(), rng.random()
    packed = zipfile.ZIP_DEFLATED if kind > 0.95 else zipfile.ZIP_STORED
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(written, "w", packed) as new:
        members = old.namelist()
        dropped = rng.choice(members) if 0.8 < kind < 0.88 else None
        for name in members:
            data = old.read(name)
            if name.endswith("data.pkl") and kind < 0.8:
                data = damage_index(data, rng)
            elif 0.88 < kind < 0.95 and rng.random() < 0.2:
                data = rng.choice((b"", data[: len(data) // 2], data + data, b"big"))
            if name != dropped:
                new.writestr(name, data)
            if kind > 0.92 and rng.random() < 0.1:
                new.writestr(f"x/{name}", data)
    return written.getvalue()


def damage_h5(content: bytes, rng: random.Random) -> bytes:
    """A file of arrays of which one is something else; sound HDF5."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.h5")
        path.write_bytes(content)
        with h5py.File(path, "a") as file:
            found: list[str] = []
            file.visititems(lambda name, item: found.append(name))
            name = rng.choice(found)
            parent, _, last = name.rpartition("/")
            del file[name]
            _put_something_else(file[parent] if parent else file, last, rng)
        return path.read_bytes()


def _put_something_else(group: h5py.Group, name: str, rng: random.Random) -> None:
    kind, shape = rng.randrange(9), rng.choice(((10**12,), (10**6, 10**6), (3,), (), (0,)))
    if kind == 0:
        group[name] = h5py.ExternalLink("/etc/passwd", "/x")
    elif kind == 1:
        group[name] = h5py.SoftLink("/layers")
    elif kind == 2:
        layout = h5py.VirtualLayout((100,), "float32")
        layout[:] = h5py.VirtualSource("/tmp/other.h5", "x", (100,))
        group.create_virtual_dataset(name, layout)
    elif kind == 3:
        group.create_dataset(name, (100,), "float32", external=[("/etc/passwd", 0, 400)])
    elif kind == 4 and len(shape) and shape != (0,):
        group.create_dataset(name, shape, "float32", compression="gzip", chunks=True)
    elif kind == 5:
        group.create_dataset(name, data="text" * 100)
    elif kind == 6:
        group[name] = group.file["/"]  # a reference to itself
    elif kind == 7:
        inner = group.create_group(name)
        for _ in range(rng.choice((3, 200))):
            inner = inner.create_group("a")
    else:
        group.create_dataset(name, shape if np.prod(shape) < 10 else (5,), "int8")


STRUCTURED: dict[str, Callable[[bytes, random.Random], bytes]] = {
    ".json": damage_json,
    ".safetensors": damage_safetensors,
    ".tar": damage_archive,
    ".npz": damage_archive,
    ".h5": damage_h5,
}


def _damaged_file(name: str, content: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.7:
        return STRUCTURED[Path(name).suffix](content, rng)
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2))):
        rng.choice(mutants.DAMAGES)(changed, rng)
        changed = changed or bytearray(b"\0")
    return bytes(changed)


def damaged(sound: dict[str, Artefact], count: int, seed: int) -> Iterator[tuple[str, Artefact]]:
    """Kinds and contents of damaged artefacts; the same for the same seed.

    Args:
        sound: sound ones by kind.
        count: how many damaged ones.
        seed: of everything random.
    """
    kinds = sorted(sound)
    for i in range(count):
        rng = random.Random(f"{seed} {i}")
        kind = kinds[i % len(kinds)]
        made = dict(sound[kind])
        # Files that describe something are chosen as often as files that contain it.
        suffix = rng.choice(sorted({Path(name).suffix for name in made}))
        name = rng.choice([name for name in sorted(made) if name.endswith(suffix)])
        made[name] = _damaged_file(name, made[name], rng)
        if kind == "state":
            # An attacker who changes a state can also give the file the matching name.
            digest = hashlib.sha256(made[name]).hexdigest()[:32]
            made = {f"step-00000003-{digest}.npz": made[name]}
        yield kind, made
