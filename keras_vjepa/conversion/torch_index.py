"""Interpret the index of a PyTorch archive, which is a pickle, without running it (App. D.1).

The pickle is interpreted instruction by instruction, by a reader that knows tensors, dictionaries,
lists and numbers. The reader has no way to call, import or build anything else, so that no code in
the file can run. Everything that the index claims is compared with the contents of the archive, and
its size, its depth and the kinds of its keys are limited. An index that passes these checks is
harmless, whoever wrote it.
"""

import dataclasses
import math
import pickletools
from collections.abc import Callable
from typing import Any
from zipfile import BadZipFile

import ml_dtypes
import numpy as np

from keras_vjepa.arguments import MOST, shown
from keras_vjepa.conversion.errors import CheckpointError
from keras_vjepa.conversion.lazy_tensors import LazyTensor

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
# The largest number of instructions allowed in an index. The authors' largest file, which includes
# the state of an optimizer, has a fifth of that.
_MOST_INSTRUCTIONS = 2**20
# The deepest nesting of containers allowed. The authors' files have four levels.
_DEEPEST = 32
_MOST_AXES = 8
# Python spreads smaller numbers evenly over a dictionary. Among larger ones, a file could choose
# many that collide, which would make the dictionary very slow.
_LARGEST_KEY = 2**32


@dataclasses.dataclass(frozen=True)
class _Storage:
    dtype: np.dtype
    key: str
    size: int


class _Name(str):
    """Holds a name that the file mentions; it is only ever compared with others."""


@dataclasses.dataclass(frozen=True)
class Placeholder:
    """Stands for an object that only its own code could make, which is not run.

    Attributes:
        name: what the file calls to make it, such as `argparse.Namespace`.
    """

    name: str


def asks_to_run(name: str) -> str:
    """Say what is wrong with a file that holds an object which only its own code could make."""
    return (
        f"the file asks to run {shown(name)}, which a file of tensors never does; nothing was run. "
        f"{_SAFE_WAY}"
    )


def _unknown(instruction: str) -> str:
    return (
        f"its index uses the instruction {instruction}, which a file of tensors never does; "
        f"nothing was run. {_SAFE_WAY}"
    )


class IndexReader:
    """Interprets the few pickle instructions that a file of tensors is made of.

    Args:
        size_of: a function that returns the number of bytes of a storage; 0 if the archive does not
            have the storage.
        read_bytes: a function that reads the bytes of a storage.
        placeholders: whether any object that is no tensor becomes a `Placeholder`, for a caller
            that checks the content itself; else those of `HARMLESS` alone.
    """

    def __init__(
        self,
        size_of: Callable[[str], int],
        read_bytes: Callable[[str], bytes],
        placeholders: bool = False,
    ) -> None:
        self._size_of = size_of
        self._read_bytes = read_bytes
        self._placeholders = placeholders
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def load(self, data: bytes) -> Any:
        """Return the content that the pickle describes.

        Raises:
            CheckpointError: for any content that a file of tensors does not have.
        """
        for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if count >= _MOST_INSTRUCTIONS:
                raise CheckpointError(
                    f"its index must have at most {_MOST_INSTRUCTIONS:,} instructions"
                )
            if opcode.name == "STOP":
                content = self._stack.pop()
                _check_depth(content, 0, {})
                return content
            if opcode.name in _CONSTANTS:
                self._stack.append(_CONSTANTS[opcode.name]())
            elif opcode.name in _LITERALS:
                self._stack.append(argument)
            elif (step := getattr(self, f"_do_{opcode.name.lower()}", None)) is not None:
                step(argument)
            else:
                raise CheckpointError(_unknown(opcode.name))
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
        if not self._is_placeholder():
            self._plain(list).append(item)

    def _do_appends(self, _: Any) -> None:
        items = self._pop_to_mark()
        if not self._is_placeholder():
            self._plain(list).extend(items)

    def _is_placeholder(self) -> bool:
        """Tell whether an object that is filled is not one of ours: what goes in is dropped."""
        return type(self._stack[-1]) is Placeholder

    def _do_setitem(self, _: Any) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._fill([key, value])

    def _do_setitems(self, _: Any) -> None:
        self._fill(self._pop_to_mark())

    def _fill(self, items: list[Any]) -> None:
        if self._is_placeholder():
            return
        filled = self._plain(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Other keys are refused, because hashing a very deeply nested key would crash Python.
            if type(key) is not str and not (type(key) is int and abs(key) < _LARGEST_KEY):
                raise CheckpointError(
                    f"its index must have text or small numbers as keys. Received: {shown(key)}"
                )
            filled[key] = value

    def _plain(self, kind: type) -> Any:
        if type(self._stack[-1]) is not kind:
            raise CheckpointError(f"its index fills a {type(self._stack[-1]).__name__}")
        return self._stack[-1]

    def _do_build(self, _: Any) -> None:
        # PyTorch stores versions in a state dictionary in this way. They are not needed.
        self._stack.pop()
        if not self._is_placeholder():
            self._plain(dict)

    def _do_newobj(self, _: Any) -> None:
        self._stack.pop()
        if not self._is_placeholder():
            raise CheckpointError(_unknown("NEWOBJ"))

    def _do_newobj_ex(self, _: Any) -> None:
        del self._stack[-2:]
        if not self._is_placeholder():
            raise CheckpointError(_unknown("NEWOBJ_EX"))

    def _do_global(self, argument: str) -> None:
        self._push_name(*argument.split(" ", 1))

    def _do_stack_global(self, _: Any) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if type(name) is not str or type(module) is not str:
            raise CheckpointError("its index asks for what has no name; nothing was run")
        self._push_name(module, name)

    def _push_name(self, module: str, name: str) -> None:
        full_name = f"{module}.{name}"
        if full_name in _DTYPES or full_name in _KNOWN_CALLS:
            self._stack.append(_Name(full_name))
        elif self._placeholders or full_name in HARMLESS:
            self._stack.append(Placeholder(full_name))
        else:
            raise CheckpointError(asks_to_run(full_name))

    def _do_reduce(self, _: Any) -> None:
        arguments, name = self._stack.pop(), self._stack.pop()
        if type(name) is Placeholder:
            self._stack.append(name)
            return
        if type(name) is not _Name or type(arguments) is not tuple:
            raise CheckpointError(f"its index calls a {type(name).__name__}; nothing was run")
        if name == "collections.OrderedDict" and not arguments:
            self._stack.append({})
        elif name == "torch._utils._rebuild_parameter":
            self._stack.append(arguments[0])
        elif name == "torch._utils._rebuild_tensor_v2":
            self._stack.append(self._tensor(*arguments[:4]))
        else:
            raise CheckpointError(f"its index calls {name}; nothing was run")

    def _do_binpersid(self, _: Any) -> None:
        kind, name, key, _, size = self._stack.pop()
        dtype = _DTYPES.get(name) if type(name) is _Name else None
        if kind != "storage" or type(key) is not str or type(size) is not int or dtype is None:
            raise CheckpointError(f"the file holds an object that is not a tensor: {shown(kind)}")
        storage = _Storage(np.dtype(dtype), key, size)
        if self._size_of(key) < size * storage.dtype.itemsize:
            raise CheckpointError(
                f"storage {shown(key)} is damaged: {size:,} numbers of {storage.dtype} must be in "
                f"it. It has {self._size_of(key):,} bytes"
            )
        self._stack.append(storage)

    def _tensor(self, storage: Any, offset: Any, shape: Any, stride: Any) -> LazyTensor:
        _check_tensor(storage, offset, shape, stride)

        def read() -> np.ndarray:
            try:
                data = np.frombuffer(self._read_bytes(storage.key), dtype=storage.dtype)
            except (KeyError, ValueError, OSError, EOFError, RuntimeError, BadZipFile) as error:
                raise CheckpointError(f"storage {storage.key} is damaged ({error})") from None
            # For an axis of length 1, the stride that PyTorch stores has no meaning.
            axes = zip(shape, stride, strict=True)
            steps = [s * storage.dtype.itemsize if n > 1 else 0 for n, s in axes]
            return np.lib.stride_tricks.as_strided(data[offset:], shape, steps, writeable=False)

        return LazyTensor(shape, read)


def _check_tensor(storage: Any, offset: Any, shape: Any, stride: Any) -> None:
    if type(shape) is not tuple or type(stride) is not tuple or len(shape) != len(stride):
        raise CheckpointError("a tensor must have a shape and as many strides")
    if len(shape) > _MOST_AXES:
        raise CheckpointError(
            f"a tensor must have at most {_MOST_AXES} axes. Received: {len(shape):,}"
        )
    numbers = (offset, *shape, *stride)
    if type(storage) is not _Storage or any(type(number) is not int for number in numbers):
        raise CheckpointError("a tensor must be a storage and whole numbers")
    size = math.prod(shape)
    last = offset + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
    # The size is compared too, because a tensor that repeats its storage (by a stride of 0) could
    # otherwise ask for any amount of memory.
    if (
        min(numbers) < 0
        or max(shape, default=0) > MOST
        or (0 not in shape and max(size, last + 1) > storage.size)
    ):
        raise CheckpointError(f"a tensor of shape {shown(shape)} reaches outside its storage")


def _check_depth(item: Any, level: int, depths: dict[int, int | None]) -> int:
    """Count the levels of containers within a container, and look into each container once.

    Raises:
        CheckpointError: if there are too many levels, or a container holds itself.
    """
    if type(item) not in (dict, list, tuple):
        return 0
    if id(item) not in depths:
        if level > _DEEPEST:
            raise CheckpointError(f"its index must be nested at most {_DEEPEST} deep")
        depths[id(item)] = None
        inner = item.values() if type(item) is dict else item
        depths[id(item)] = 1 + max((_check_depth(i, level + 1, depths) for i in inner), default=0)
    depth = depths[id(item)]
    if depth is None or level + depth > _DEEPEST:
        raise CheckpointError(f"its index must be nested at most {_DEEPEST} deep")
    return depth


# Trainers store the options of their command line beside the tensors; nothing reads them.
HARMLESS = {"argparse.Namespace"}
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
