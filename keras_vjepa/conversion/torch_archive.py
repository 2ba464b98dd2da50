"""Read the tensors of a PyTorch archive, and nothing else of it; write such (App. C, App. D.1).

The archive is a zip file: one pickle that says which tensors there are, and their bytes beside it.
The pickle is interpreted here, instruction by instruction, by a reader that knows tensors,
dictionaries, lists and numbers. It has no way to call, import or build anything else, so no code
in the file can run. What is written is of the same instructions. PyTorch is not needed.
"""

import dataclasses
import math
import pickletools
import struct
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import ml_dtypes
import numpy as np

from keras_vjepa import files

_DTYPES: dict[str, Any] = {
    "torch.DoubleStorage": np.float64,
    "torch.FloatStorage": np.float32,
    "torch.HalfStorage": np.float16,
    "torch.BFloat16Storage": ml_dtypes.bfloat16,
    "torch.LongStorage": np.int64,
    "torch.IntStorage": np.int32,
    "torch.ShortStorage": np.int16,
    "torch.CharStorage": np.int8,
    "torch.ByteStorage": np.uint8,
    "torch.BoolStorage": np.bool_,
}
_SAFE_WAY = (
    "If you trust its source, load it with PyTorch where nothing can be lost, and save only the "
    "state dictionaries again: `torch.save({name: checkpoint[name] for name in ('encoder', "
    "'predictor', 'target_encoder')}, path)`."
)


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or does not fit; one line."""


@dataclasses.dataclass(frozen=True)
class LazyTensor:
    """A tensor in a file, read when asked for."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True)
class _Storage:
    dtype: np.dtype
    key: str
    size: int


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a PyTorch zip archive; its tensors become `LazyTensor`s.

    Raises:
        CheckpointError: if it is no such archive, or holds anything but plain data.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no such file: {path}")
    try:
        archive = zipfile.ZipFile(path)
        [index] = [n for n in archive.namelist() if n.endswith("/data.pkl")]
    except (BadZipFile, ValueError):
        raise CheckpointError(
            f"{path} is not a PyTorch zip archive (damaged, or written before PyTorch 1.6: nothing "
            "was run; load it with PyTorch's `weights_only=True` and save it again)"
        ) from None
    # PyTorch never compresses; a small file could otherwise fill the memory.
    if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
        raise CheckpointError(f"{path} is compressed, which PyTorch's archives never are")
    folder = index.removesuffix("data.pkl")
    try:
        reader = _IndexReader(lambda key: archive.read(f"{folder}data/{key}"))
        content = reader.load(archive.read(index))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except Exception as error:  # A damaged index can raise anything.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(f"{path}: its index cannot be read ({reason})") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a dictionary, found {type(content).__name__}")
    return content


class _Name(str):
    """A name that the file mentions; only ever compared."""


class _IndexReader:
    """Interprets the few pickle instructions that a file of tensors is made of."""

    def __init__(self, read_bytes: Callable[[str], bytes]) -> None:
        self._read_bytes = read_bytes
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def load(self, data: bytes) -> Any:
        """What the pickle describes."""
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name == "STOP":
                return self._stack.pop()
            if opcode.name in _CONSTANTS:
                self._stack.append(_CONSTANTS[opcode.name]())
            elif opcode.name in _LITERALS:
                self._stack.append(argument)
            elif (step := getattr(self, f"_do_{opcode.name.lower()}", None)) is not None:
                step(argument)
            else:
                raise CheckpointError(
                    f"its index uses the instruction {opcode.name}, which a file of tensors never "
                    f"does; nothing was run. {_SAFE_WAY}"
                )
        raise CheckpointError("its index has no end")

    def _pop_to_mark(self) -> list[Any]:
        mark = self._marks.pop()
        items = self._stack[mark:]
        del self._stack[mark:]
        return items

    def _do_proto(self, _: Any) -> None:
        pass

    _do_frame = _do_proto

    def _do_mark(self, _: Any) -> None:
        self._marks.append(len(self._stack))

    def _do_binput(self, key: int) -> None:
        self._memo[key] = self._stack[-1]

    _do_long_binput = _do_binput

    def _do_memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _do_binget(self, key: int) -> None:
        self._stack.append(self._memo[key])

    _do_long_binget = _do_binget

    def _do_tuple(self, _: Any) -> None:
        self._stack.append(tuple(self._pop_to_mark()))

    def _do_tuple1(self, _: Any) -> None:
        self._stack[-1:] = [(self._stack[-1],)]

    def _do_tuple2(self, _: Any) -> None:
        self._stack[-2:] = [tuple(self._stack[-2:])]

    def _do_tuple3(self, _: Any) -> None:
        self._stack[-3:] = [tuple(self._stack[-3:])]

    def _do_append(self, _: Any) -> None:
        item = self._stack.pop()
        self._plain(list).append(item)

    def _do_appends(self, _: Any) -> None:
        items = self._pop_to_mark()
        self._plain(list).extend(items)

    def _do_setitem(self, _: Any) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._plain(dict)[key] = value

    def _do_setitems(self, _: Any) -> None:
        items = self._pop_to_mark()
        self._plain(dict).update(zip(items[::2], items[1::2], strict=True))

    def _plain(self, kind: type) -> Any:
        if type(self._stack[-1]) is not kind:
            raise CheckpointError(f"its index fills a {type(self._stack[-1]).__name__}")
        return self._stack[-1]

    def _do_build(self, _: Any) -> None:
        # The versions that PyTorch notes in a state dictionary: not data.
        self._stack.pop()
        self._plain(dict)

    def _do_global(self, argument: str) -> None:
        self._push_name(*argument.split(" ", 1))

    def _do_stack_global(self, _: Any) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._push_name(str(module), str(name))

    def _push_name(self, module: str, name: str) -> None:
        full_name = f"{module}.{name}"
        if full_name not in _DTYPES and full_name not in _KNOWN_CALLS:
            raise CheckpointError(
                f"the file asks to run {full_name}, which a file of tensors never does; nothing "
                f"was run. {_SAFE_WAY}"
            )
        self._stack.append(_Name(full_name))

    def _do_reduce(self, _: Any) -> None:
        arguments, name = self._stack.pop(), self._stack.pop()
        if type(name) is not _Name or type(arguments) is not tuple:
            raise CheckpointError(f"its index calls a {type(name).__name__}; nothing was run")
        if name == "collections.OrderedDict":
            self._stack.append(dict(*arguments))
        elif name == "torch._utils._rebuild_parameter":
            self._stack.append(arguments[0])
        elif name == "torch._utils._rebuild_tensor_v2":
            self._stack.append(self._tensor(*arguments[:4]))
        else:
            raise CheckpointError(f"its index calls {name}; nothing was run")

    def _do_binpersid(self, _: Any) -> None:
        kind, storage, key, _, size = self._stack.pop()
        dtype = _DTYPES.get(storage) if type(storage) is _Name else None
        if kind != "storage" or type(key) is not str or dtype is None:
            raise CheckpointError(f"the file holds an object that is not a tensor: {kind!r}")
        self._stack.append(_Storage(np.dtype(dtype), key, int(size)))

    def _tensor(self, storage: _Storage, offset: int, shape: Any, stride: Any) -> LazyTensor:
        shape, stride = tuple(shape), tuple(stride)
        last = offset + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
        size = math.prod(shape)
        # A tensor that repeats its storage could ask for any amount of memory.
        if min((offset, *shape, *stride)) < 0 or (size and max(size, last + 1) > storage.size):
            raise CheckpointError(f"a tensor of shape {shape} reaches outside its storage")

        def read() -> np.ndarray:
            try:
                data = np.frombuffer(self._read_bytes(storage.key), dtype=storage.dtype)
            except (KeyError, ValueError, OSError, EOFError, RuntimeError, BadZipFile) as error:
                raise CheckpointError(f"storage {storage.key} is damaged ({error})") from None
            if len(data) < storage.size:
                raise CheckpointError(f"storage {storage.key} is cut short")
            strides = [s * storage.dtype.itemsize for s in stride]
            return np.lib.stride_tricks.as_strided(data[offset:], shape, strides, writeable=False)

        return LazyTensor(shape, read)


_KNOWN_CALLS = {
    "collections.OrderedDict",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_tensor_v2",
}
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}
_LITERALS = {
    "BININT",
    "BININT1",
    "BININT2",
    "LONG1",
    "BINFLOAT",
    "BINUNICODE",
    "SHORT_BINUNICODE",
}


# --- Writing -------------------------------------------------------------------------------------


def write_checkpoint(path: str | Path, content: dict[str, Any]) -> None:
    """Write a file that `torch.load(..., weights_only=True)` and `read_checkpoint` read.

    The file appears complete or not at all; one tensor at a time is in memory.

    Args:
        path: where to.
        content: nested dictionaries and lists of numbers and float32 `LazyTensor`s; one that stands
            in two places is written once.
    """
    index = _Index(content)
    with files.unfinished_file(path) as unfinished, zipfile.ZipFile(unfinished, "w") as archive:
        archive.writestr("archive/data.pkl", index.data)
        archive.writestr("archive/byteorder", "little")
        for key, tensor in enumerate(index.tensors):
            archive.writestr(f"archive/data/{key}", tensor.read().astype("<f4").tobytes())
        archive.writestr("archive/version", "3\n")


class _Index:
    """The pickle of nested dictionaries and lists, and the tensors that it mentions."""

    def __init__(self, content: dict[str, Any]) -> None:
        self.tensors: list[LazyTensor] = []
        self.data = b"\x80\x02" + self._pickled(content) + b"."

    def _pickled(self, item: Any) -> bytes:
        if isinstance(item, dict):
            return b"}(" + self._all(part for pair in item.items() for part in pair) + b"u"
        if isinstance(item, list):
            return b"](" + self._all(item) + b"e"
        if isinstance(item, tuple):
            return b"(" + self._all(item) + b"t"
        if isinstance(item, str):
            return b"X" + struct.pack("<I", len(item.encode())) + item.encode()
        if isinstance(item, float):
            return b"G" + struct.pack(">d", item)
        if isinstance(item, LazyTensor):
            return self._tensor(item)
        return b"\x8a\x08" + struct.pack("<q", item)

    def _all(self, items: Iterable[Any]) -> bytes:
        return b"".join(map(self._pickled, items))

    def _tensor(self, tensor: LazyTensor) -> bytes:
        if not any(known is tensor for known in self.tensors):
            self.tensors.append(tensor)
        key = next(i for i, known in enumerate(self.tensors) if known is tensor)
        strides = tuple(math.prod(tensor.shape[i + 1 :]) for i in range(len(tensor.shape)))
        # The storage: its type, name, device and size.
        storage = (
            (b"(" + self._pickled("storage") + b"ctorch\nFloatStorage\n")
            + self._all((str(key), "cpu", math.prod(tensor.shape)))
            + b"tQ"
        )
        # The tensor: its storage, offset, shape and strides; no gradient, no hooks.
        return (
            b"ctorch._utils\n_rebuild_tensor_v2\n("
            + storage
            + self._all((0, tuple(map(int, tensor.shape)), strides))
            + b"\x89ccollections\nOrderedDict\n)RtR"
        )
