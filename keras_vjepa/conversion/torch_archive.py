"""Read the tensors of a PyTorch archive and nothing else, and write one (App. C, App. D.1).

The archive is a zip file. It holds a pickle that lists the tensors, and the bytes of the tensors
beside it. `torch_index.py` interprets the pickle; a pickle written here uses nothing but the
instructions that it knows. PyTorch is not needed.
"""

import math
import struct
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

from keras_vjepa import files
from keras_vjepa.conversion.errors import CheckpointError, check_file, named
from keras_vjepa.conversion.lazy_tensors import LazyTensor
from keras_vjepa.conversion.torch_index import IndexReader, Placeholder, asks_to_run
from keras_vjepa.named_errors import one_line
from keras_vjepa.zip_archives import CompressedError, open_archive

_MOST_INDEX_BYTES = 2**25


def read_checkpoint(path: str | Path, placeholders: bool = False) -> dict[str, Any]:
    """Read a PyTorch zip archive; its tensors become `LazyTensor`s.

    Args:
        path: the file.
        placeholders: have objects that are neither tensors nor plain data become `Placeholder`s,
            and look at what is wanted of the content; else only options of a command line do, which
            trainers write beside the weights. Nothing in the file is run either way.

    Raises:
        CheckpointError: if the file is no such archive, or holds anything but plain data.
    """
    path = Path(path)
    with named(path):
        check_file(path)
        archive, sizes = _open(path)
        [index] = [name for name in sizes if name.endswith("/data.pkl")]
        folder = index.removesuffix("data.pkl")
        if sizes[index] > _MOST_INDEX_BYTES:
            raise CheckpointError(f"its index must have at most {_MOST_INDEX_BYTES:,} bytes")
        order = f"{folder}byteorder"
        if order in sizes and archive.read(order) != b"little":
            raise CheckpointError("its numbers must be in the byte order `little`")
        reader = IndexReader(
            lambda key: sizes.get(f"{folder}data/{key}", 0),
            lambda key: archive.read(f"{folder}data/{key}"),
            placeholders,
        )
        try:
            content = reader.load(archive.read(index))
        except CheckpointError:
            raise
        except Exception as error:  # a damaged index can raise anything
            raise CheckpointError(f"its index cannot be read ({one_line(error)})") from error
        if isinstance(content, Placeholder):
            raise CheckpointError(asks_to_run(content.name))
        if not isinstance(content, dict):
            raise CheckpointError(f"expected a dictionary, found {type(content).__name__}")
    return content


def _open(path: Path) -> tuple[zipfile.ZipFile, dict[str, int]]:
    """Open a zip file, and check that it has an index."""
    try:
        archive, sizes = open_archive(path)
        is_one = sum(name.endswith("/data.pkl") for name in sizes) == 1
    except (BadZipFile, NotImplementedError):
        is_one = False
    except CompressedError as error:
        if "/code/" not in str(error):
            raise
        raise CheckpointError(
            "it is a program of TorchScript, as OpenAI's CLIP is: save its weights alone with "
            "`torch.save(torch.jit.load(path).state_dict(), new_path)`, and convert that file"
        ) from error
    if path.suffix == ".safetensors":
        raise CheckpointError(
            f"{path} must be a file of PyTorch: safetensors are read in folders of transformers "
            "alone; write its tensors to a file with `torch.save`"
        )
    if not is_one:
        raise CheckpointError(
            f"{path} is not a PyTorch zip archive (damaged, or written before PyTorch 1.6: nothing "
            "was run; load it with PyTorch's `weights_only=True` and save it again)"
        )
    return archive, sizes


# --- Writing -------------------------------------------------------------------------------------


def write_checkpoint(path: str | Path, content: dict[str, Any]) -> None:
    """Write a file that `torch.load(..., weights_only=True)` and `read_checkpoint` read.

    The file appears complete or not at all. Only one tensor at a time is in memory.

    Args:
        path: the file to write.
        content: nested dictionaries and lists of numbers and float32 `LazyTensor`s; a tensor that
            occurs in two places is written once.
    """
    index = _Index(content)
    with files.unfinished_file(path) as unfinished, zipfile.ZipFile(unfinished, "w") as archive:
        archive.writestr("archive/data.pkl", index.data)
        archive.writestr("archive/byteorder", "little")
        for key, tensor in enumerate(index.tensors):
            archive.writestr(f"archive/data/{key}", tensor.read().astype("<f4").tobytes())
        archive.writestr("archive/version", "3\n")


class _Index:
    """Makes the pickle of nested dictionaries and lists, and lists the tensors in it."""

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
        # The storage is described by its type, name, device and size.
        storage = (
            (b"(" + self._pickled("storage") + b"ctorch\nFloatStorage\n")
            + self._all((str(key), "cpu", math.prod(tensor.shape)))
            + b"tQ"
        )
        # The tensor is described by its storage, offset, shape and strides, by whether it has a
        # gradient (it does not), and by its hooks (there are none).
        return (
            b"ctorch._utils\n_rebuild_tensor_v2\n("
            + storage
            + self._all((0, tuple(map(int, tensor.shape)), strides))
            + b"\x89ccollections\nOrderedDict\n)RtR"
        )
