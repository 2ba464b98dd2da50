"""Hostile and damaged checkpoints: nothing in them runs, and the error says what to do."""

import copyreg
import os
import pickle
import struct
import tracemalloc
import zipfile

import pytest

from keras_vjepa.conversion import CheckpointError, convert
from keras_vjepa.conversion.torch_archive import read_checkpoint
from tests.support import GOLDEN

# Nothing here depends on the backend.
pytestmark = pytest.mark.data


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def text(value):
    """A string, as an instruction."""
    return b"X" + struct.pack("<I", len(value)) + value.encode()


SYSTEM = b"cos\nsystem\n"
EXTENSION = 201
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"


def payloads(command):
    """Pickles that run a command when Python loads them, each by another instruction."""
    run, argument = Call(os.system, command), text(command)
    python = f"__import__('os').system({command!r})"
    call = SYSTEM + argument + b"\x85R"
    return {
        "reduce": pickle.dumps({"encoder": run}, protocol=2),
        "stack_global": pickle.dumps({"encoder": {"x": run}}, protocol=4),
        "eval": pickle.dumps({"encoder": Call(eval, python)}, protocol=2),
        "exec": pickle.dumps([Call(exec, python)], protocol=5),
        "import": pickle.dumps(Call(os.popen, command), protocol=2),
        "in_a_key": pickle.dumps({(run,): 1}, protocol=2),
        "inst": b"(" + argument + b"ios\nsystem\n.",
        "obj": b"(" + SYSTEM + argument + b"o.",
        "build": b"ccollections\nOrderedDict\n)R}"
        + text("__setstate__")
        + SYSTEM
        + b"sb"
        # The dictionary now has a `__setstate__` of its own.
        + argument
        + b"b.",
        "extension": b"\x80\x02\x82" + bytes([EXTENSION]) + argument + b"\x85R.",
        "in_a_tensor": REBUILD + b"(" + call + b"K\x00(K\x04t(K\x01t\x89}tR.",
        "in_its_hooks": REBUILD + b"(NK\x00(K\x04t(K\x01t\x89" + call + b"tR.",
        "in_a_storage": b"(" + text("storage") + SYSTEM + text("0") + call + b"K\x04tQ.",
    }


@pytest.fixture
def extension():
    copyreg.add_extension("os", "system", EXTENSION)
    yield
    copyreg.remove_extension("os", "system", EXTENSION)


class Loads(pickle.Unpickler):
    """Python's own, to show that a payload does what it says."""

    def find_class(self, module, name):
        if module == "torch._utils":
            return lambda *_: None
        return super().find_class(module, name)

    def persistent_load(self, pid):
        return None


@pytest.mark.parametrize("name", payloads(""))
def test_code_in_a_checkpoint_is_not_run(name, tmp_path, extension):
    trap, path = tmp_path / "trap", tmp_path / "hostile.pth.tar"
    payload = payloads(f"touch {trap}")[name]
    (tmp_path / "raw").write_bytes(payload)
    with open(tmp_path / "raw", "rb") as file:
        result = Loads(file).load()
    if name == "import":
        result.close()
    assert trap.exists(), "no payload at all"
    trap.unlink()

    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", payload)
    for read in (read_checkpoint, convert):
        with pytest.raises(CheckpointError) as caught:
            read(path)
        message = str(caught.value)
        assert "nothing was run" in message and "\n" not in message
        assert "save only the state dictionaries again: `torch.save(" in message
    assert not trap.exists()

    # Before PyTorch 1.6, a file was the pickle itself.
    for old in (payload, pickle.dumps(0x1950A86A20F9469CFC6C) + payload):
        path.write_bytes(old)
        with pytest.raises(CheckpointError, match="nothing was run; load it with PyTorch's"):
            read_checkpoint(path)
    assert not trap.exists()


def write(path, index, storages=(), folder="archive/", **options):
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr(f"{folder}data.pkl", index)
        for key, data in storages:
            archive.writestr(f"{folder}data/{key}", data)


def tensor(key="0", size=4, offset=0, shape=4, stride=1):
    """The pickle of {"x": a tensor}."""
    number = lambda n: b"\x8a\x08" + struct.pack("<q", n)  # noqa: E731
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu")
    storage += number(size) + b"tQ"
    return (
        b"\x80\x02}"
        + text("x")
        + REBUILD
        + b"("
        + storage
        + number(offset)
        + number(shape)
        + b"\x85"
        + number(stride)
        + b"\x85\x89}tRs."
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "checkpoint.pth.tar"


def test_a_tensor_by_hand(path):
    write(path, tensor(offset=1, shape=3), [("0", struct.pack("<4f", 1, 2, 3, 4))])
    assert read_checkpoint(path)["x"].read().tolist() == [2, 3, 4]


@pytest.mark.parametrize(
    "arguments",
    [
        {"offset": 2},
        {"offset": -1},
        {"shape": -4},
        {"stride": -1},
        {"stride": 2},
        # One number is repeated to 4 TB.
        {"shape": 10**12, "stride": 0},
    ],
)
def test_tensors_that_reach_outside_their_storage_are_refused(arguments, path):
    write(path, tensor(**arguments), [("0", bytes(16))])
    with pytest.raises(CheckpointError, match="reaches outside its storage"):
        read_checkpoint(path)


@pytest.mark.parametrize("key", ["../../../../etc/passwd", "/etc/passwd", "1"])
def test_storages_are_looked_for_in_the_archive_only(key, path):
    write(path, tensor(key), [("0", bytes(16))])
    with pytest.raises(CheckpointError, match="is damaged"):
        read_checkpoint(path)["x"].read()


def test_nothing_is_unpacked(path, tmp_path):
    write(path, tensor(), [("0", bytes(16))], folder="../../archive/")
    before = set(tmp_path.parent.iterdir()) | set(tmp_path.iterdir())
    assert not read_checkpoint(path)["x"].read().any()
    assert set(tmp_path.parent.iterdir()) | set(tmp_path.iterdir()) == before


def test_a_small_file_does_not_fill_the_memory(path):
    write(path, b"\x80\x02}" + b"0" * 10**8, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 10**6
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="it is compressed, which such archives never are"):
        read_checkpoint(path)
    # Python's unpickler would fill its table of objects up to this distant entry.
    write(path, b"\x80\x02}r\xff\xff\xff\x7f.")
    assert read_checkpoint(path) == {}
    assert tracemalloc.get_traced_memory()[1] < 10**7
    tracemalloc.stop()


@pytest.mark.parametrize(
    "index,message",
    [
        (b"\x80\x02}", "its index cannot be read"),
        (b"\x80\x02t.", "its index cannot be read"),
        (b"\xff", "its index cannot be read"),
        (b"", "its index cannot be read"),
        (b"\x80\x02].", "expected a dictionary, found list"),
        (b"\x80\x02}" + text("x") + b"\x8a\x01\x01s)\x81.", "instruction NEWOBJ"),
        (b"\x80\x02K\x01)R.", "its index calls a int; nothing was run"),
        (REBUILD + b"}b.", "its index fills a _Name"),
    ],
)
def test_a_damaged_index_is_named(index, message, path):
    write(path, index)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_damaged_files_are_named(path, tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        read_checkpoint(tmp_path / "none.pth.tar")
    whole = (GOLDEN / "tiny.pth.tar").read_bytes()
    for content in (b"hello", b"", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="is not a PyTorch zip archive"):
            read_checkpoint(path)
    path.write_bytes(whole.replace(whole[5000:5004], b"\xff\xff\xff\xff", 1))
    with pytest.raises(CheckpointError, match="is damaged|cannot be read|not a PyTorch"):
        convert(path, num_heads=4)
