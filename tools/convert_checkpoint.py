"""Convert checkpoints in the authors' layout into a preset folder (App. C, App. D.1).

    python tools/convert_checkpoint.py vitl16.pth.tar presets/vitl16
    python tools/convert_checkpoint.py vitl16.pth.tar presets/vitl16_k400 --probe k400-probe.pth.tar

The first writes the pretrainer of a pretraining checkpoint; the second a classifier: the target
encoder of that checkpoint, with the probe of a probe checkpoint.

Strict both ways: an unknown key, a missing key or a wrong shape is an error that names it. Only
tensors are read: the file's pickle is interpreted by a reader that knows tensors, dictionaries,
lists and numbers, and refuses everything else, so no code in the file is ever executed. PyTorch is
not needed. This is the only place that knows the authors' names (official-behaviour §10).
"""

import argparse
import dataclasses
import io
import math
import pickle
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from keras_vjepa import (
    VJEPABackbone,
    VJEPAPredictor,
    VJEPAPretrainer,
    VJEPAProbe,
    VJEPAVideoClassifier,
)
from keras_vjepa.backbone import SIZES
from keras_vjepa.layers import position_table

# A table that went through the moving average is up to 6.5e-5 off (official-behaviour §2).
_TABLE_TOLERANCE = 1e-3
_PREFIXES = ("module.", "backbone.")
# In every probe file of the authors, used by none of their probes (official-behaviour §1).
_CROSS_ATTENTION = "pooler.cross_attention_block"
_DEAD_KEYS = (f"{_CROSS_ATTENTION}.xattn.proj.weight", f"{_CROSS_ATTENTION}.xattn.proj.bias")


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or does not fit; one line."""


# --- Reading tensors, and nothing else -----------------------------------------------------------

_DTYPES: dict[str, Any] = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


@dataclasses.dataclass(frozen=True)
class LazyTensor:
    """A tensor in the archive, read when asked for."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True)
class _Storage:
    dtype: Any
    key: str
    size: int


class _TensorUnpickler(pickle.Unpickler):
    """Knows the few names that a file of tensors needs; any other name is an error."""

    def __init__(self, data: bytes, read_bytes: Callable[[str], bytes]) -> None:
        super().__init__(io.BytesIO(data))
        self._read_bytes = read_bytes

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._rebuild_tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda tensor, *_: tensor
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        raise CheckpointError(
            f"the file asks to run {module}.{name}, which a file of tensors never does; nothing "
            "was run. If you trust its source, load it with PyTorch, and save again only the "
            "state dictionaries `encoder`, `predictor` and `target_encoder`."
        )

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, size = pid
        if kind != "storage" or not isinstance(key, str):
            raise CheckpointError(f"the file holds an object that is not a tensor: {kind!r}")
        return _Storage(np.dtype(dtype), key, int(size))

    def _rebuild_tensor(
        self, storage: _Storage, offset: int, shape: Any, stride: Any, *_: Any
    ) -> LazyTensor:
        shape, stride = tuple(shape), tuple(stride)
        last = offset + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
        if min((offset, *shape, *stride)) < 0 or (math.prod(shape) and last >= storage.size):
            raise CheckpointError(f"a tensor of shape {shape} reaches outside its storage")

        def read() -> np.ndarray:
            data = np.frombuffer(self._read_bytes(storage.key), dtype=storage.dtype)
            if len(data) < storage.size:
                raise CheckpointError(f"storage {storage.key} is cut short")
            strides = [s * storage.dtype.itemsize for s in stride]
            return np.lib.stride_tricks.as_strided(data[offset:], shape, strides)

        return LazyTensor(shape, read)


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
        [pickle_name] = [n for n in archive.namelist() if n.endswith("/data.pkl")]
    except (zipfile.BadZipFile, ValueError):
        raise CheckpointError(
            f"{path} is not a PyTorch zip archive (damaged, or written before PyTorch 1.6: load "
            "it with PyTorch's `weights_only=True` and save it again)"
        ) from None
    folder = pickle_name.removesuffix("data.pkl")
    unpickler = _TensorUnpickler(
        archive.read(pickle_name), lambda key: archive.read(f"{folder}data/{key}")
    )
    try:
        content = unpickler.load()
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except Exception as error:  # A damaged pickle can raise anything.
        raise CheckpointError(f"{path}: its index cannot be read ({error})") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a dictionary, found {type(content).__name__}")
    return content


def state_dict(checkpoint: dict[str, Any], name: str) -> dict[str, LazyTensor]:
    """One network's tensors, without the wrappers' prefixes.

    Raises:
        CheckpointError: if the network is missing or holds something else than tensors.
    """
    if not isinstance(checkpoint.get(name), dict):
        raise CheckpointError(
            f"the checkpoint has no `{name}`. Received keys: {sorted(map(str, checkpoint))}"
        )
    tensors = {}
    for key, tensor in checkpoint[name].items():
        if not isinstance(tensor, LazyTensor):
            raise CheckpointError(f"`{name}.{key}` must be a tensor. Received: {type(tensor)}")
        for prefix in _PREFIXES:
            key = key.replace(prefix, "")
        tensors[key] = tensor
    return tensors


# --- The authors' names --------------------------------------------------------------------------

Entry = tuple[str, Any, Callable[[np.ndarray], np.ndarray]]


def _same(x: np.ndarray) -> np.ndarray:
    return x


def _transposed(x: np.ndarray) -> np.ndarray:
    return x.T


def _without_batch(x: np.ndarray) -> np.ndarray:
    return x[0]


def _patch_kernel(x: np.ndarray) -> np.ndarray:
    # [out, channel, (time,) row, column] to (time, row, column, channel, out)
    x = x[:, :, None] if x.ndim == 4 else x
    return x.transpose(2, 3, 4, 1, 0)


def _linear(name: str, layer: Any) -> Iterator[Entry]:
    yield f"{name}.weight", layer.kernel, _transposed
    yield f"{name}.bias", layer.bias, _same


def _norm(name: str, layer: Any) -> Iterator[Entry]:
    yield f"{name}.weight", layer.gamma, _same
    yield f"{name}.bias", layer.beta, _same


def _block(name: str, block: Any) -> Iterator[Entry]:
    yield from _norm(f"{name}.norm1", block.attention_norm)
    yield from _linear(f"{name}.attn.qkv", block.attention.query_key_value)
    yield from _linear(f"{name}.attn.proj", block.attention.output_projection)
    yield from _norm(f"{name}.norm2", block.mlp_norm)
    yield from _linear(f"{name}.mlp.fc1", block.mlp_hidden)
    yield from _linear(f"{name}.mlp.fc2", block.mlp_output)


def encoder_entries(encoder: VJEPABackbone) -> Iterator[Entry]:
    """(the authors' name, our variable, how its values are rearranged) of every tensor."""
    yield "pos_embed", encoder.position_table, _without_batch
    yield "patch_embed.proj.weight", encoder.tubelet_embedding.kernel, _patch_kernel
    yield "patch_embed.proj.bias", encoder.tubelet_embedding.bias, _same
    for i, block in enumerate(encoder.blocks):
        yield from _block(f"blocks.{i}", block)
    yield from _norm("norm", encoder.norm)


def predictor_entries(predictor: VJEPAPredictor) -> Iterator[Entry]:
    """As `encoder_entries`, for the predictor."""
    yield "predictor_pos_embed", predictor.position_table, _without_batch
    yield from _linear("predictor_embed", predictor.input_projection)
    for i, mask_token in enumerate(predictor.mask_tokens):
        yield f"mask_tokens.{i}", mask_token, _same
    for i, block in enumerate(predictor.blocks):
        yield from _block(f"predictor_blocks.{i}", block)
    yield from _norm("predictor_norm", predictor.norm)
    yield from _linear("predictor_proj", predictor.output_projection)


def probe_entries(probe: VJEPAProbe) -> Iterator[Entry]:
    """As `encoder_entries`, for a built probe; without the dead projection."""
    pooler = probe.pooler
    yield "pooler.query_tokens", pooler.query_token, _same
    yield from _norm(f"{_CROSS_ATTENTION}.norm1", pooler.tokens_norm)
    yield from _linear(f"{_CROSS_ATTENTION}.xattn.q", pooler.query)
    yield from _linear(f"{_CROSS_ATTENTION}.xattn.kv", pooler.key_value)
    yield from _norm(f"{_CROSS_ATTENTION}.norm2", pooler.mlp_norm)
    yield from _linear(f"{_CROSS_ATTENTION}.mlp.fc1", pooler.mlp_hidden)
    yield from _linear(f"{_CROSS_ATTENTION}.mlp.fc2", pooler.mlp_output)
    for i, block in enumerate(pooler.blocks):
        yield from _block(f"pooler.blocks.{i}", block)
    yield from _linear("linear", probe.linear)


def load_entries(network: str, tensors: dict[str, LazyTensor], entries: Iterator[Entry]) -> None:
    """Assign every tensor to its variable, after checking that all fit.

    Raises:
        CheckpointError: naming keys that are missing, unknown, or of a wrong shape.
    """
    expected = {name: (variable, rearrange) for name, variable, rearrange in entries}
    for problem, names in (
        ("misses", sorted(set(expected) - set(tensors))),
        ("has unknown", sorted(set(tensors) - set(expected))),
    ):
        if names:
            raise CheckpointError(f"`{network}` {problem} keys: {', '.join(names)}")
    for name, (variable, rearrange) in expected.items():
        shape = rearrange(np.empty(tensors[name].shape, "bool")).shape
        if shape != tuple(variable.shape):
            raise CheckpointError(
                f"`{network}.{name}` must rearrange to shape {tuple(variable.shape)}. "
                f"Received: {tensors[name].shape}"
            )
    for name, (variable, rearrange) in expected.items():
        variable.assign(np.ascontiguousarray(rearrange(tensors[name].read()).astype("float32")))


# --- The architecture, from shapes ---------------------------------------------------------------


def _count(tensors: dict[str, LazyTensor], prefix: str) -> int:
    return len({key.split(".")[1] for key in tensors if key.startswith(prefix + ".")})


def _required(network: str, tensors: dict[str, LazyTensor], key: str, rank: int) -> tuple[int, ...]:
    if key not in tensors:
        raise CheckpointError(f"`{network}` misses keys: {key}")
    if len(tensors[key].shape) != rank and not (key == "patch_embed.proj.weight" and rank == 5):
        raise CheckpointError(
            f"`{network}.{key}` must have {rank} axes. Received shape: {tensors[key].shape}"
        )
    return tensors[key].shape


def _grid_of_table(table: np.ndarray, is_image_model: bool) -> tuple[tuple[int, int, int], bool]:
    """The token grid and `uniform_power` whose fresh position table this is."""
    num_tokens, hidden_dim = table.shape
    for time in range(1, num_tokens + 1):
        side = math.isqrt(num_tokens // time)
        if time * side * side != num_tokens or (is_image_model and time > 1):
            continue
        axes = (side, side) if is_image_model else (time, side, side)
        for uniform_power in (True, False):
            if not uniform_power and hidden_dim % 8:
                continue
            fresh = position_table(hidden_dim, axes, uniform_power)
            if np.abs(fresh - table).max() < _TABLE_TOLERANCE:
                return (time, side, side), uniform_power
    raise CheckpointError(
        f"`encoder.pos_embed` with {num_tokens} tokens is no sine-cosine table of a square clip"
    )


def _num_heads(hidden_dim: int, num_heads: int | None) -> int:
    known = {size.hidden_dim: size.num_heads for size in SIZES.values()}
    if num_heads is None and hidden_dim not in known:
        raise CheckpointError(
            f"the number of heads cannot be read from shapes, and a width of {hidden_dim} is no "
            "usual size: pass --num-heads"
        )
    return num_heads if num_heads is not None else known[hidden_dim]


def encoder_config(tensors: dict[str, LazyTensor], num_heads: int | None) -> dict[str, Any]:
    """Arguments of `VJEPABackbone`, from the shapes of `encoder`."""
    patch = _required("encoder", tensors, "patch_embed.proj.weight", 5)
    _required("encoder", tensors, "pos_embed", 3)
    mlp_dim = _required("encoder", tensors, "blocks.0.mlp.fc1.weight", 2)[0]
    hidden_dim, is_image_model = patch[0], len(patch) == 4
    tubelet_size = 1 if is_image_model else patch[2]
    grid, uniform_power = _grid_of_table(tensors["pos_embed"].read()[0], is_image_model)
    return {
        "image_size": grid[1] * patch[-1],
        "num_frames": grid[0] * tubelet_size,
        "patch_size": patch[-1],
        "tubelet_size": tubelet_size,
        "hidden_dim": hidden_dim,
        "num_layers": _count(tensors, "blocks"),
        "num_heads": _num_heads(hidden_dim, num_heads),
        "mlp_ratio": _ratio(mlp_dim, hidden_dim),
        "uniform_power": uniform_power,
        "num_channels": patch[1],
    }


def _ratio(mlp_dim: int, hidden_dim: int) -> float:
    """A ratio that gives `mlp_dim` back: `int(hidden_dim * ratio)`."""
    ratio = mlp_dim / hidden_dim
    return ratio if int(hidden_dim * ratio) == mlp_dim else math.nextafter(ratio, math.inf)


def predictor_config(
    tensors: dict[str, LazyTensor], encoder: VJEPABackbone, num_heads: int | None
) -> dict[str, Any]:
    """Arguments of `VJEPAPredictor`, from the shapes of `predictor`."""
    hidden_dim = _required("predictor", tensors, "predictor_embed.weight", 2)[0]
    mlp_dim = _required("predictor", tensors, "predictor_blocks.0.mlp.fc1.weight", 2)[0]
    return {
        "encoder_dim": encoder.hidden_dim,
        "grid_shape": encoder.position_axes,
        "hidden_dim": hidden_dim,
        "num_layers": _count(tensors, "predictor_blocks"),
        "num_heads": encoder.num_heads if num_heads is None else num_heads,
        "num_mask_tokens": _count(tensors, "mask_tokens"),
        "mlp_ratio": _ratio(mlp_dim, hidden_dim),
        "uniform_power": encoder.uniform_power,
    }


def convert(
    path: str | Path, num_heads: int | None = None, predictor_num_heads: int | None = None
) -> VJEPAPretrainer:
    """The pretrainer that a checkpoint holds, all three networks loaded.

    Args:
        path: a checkpoint in the authors' layout.
        num_heads: heads of the encoder; needed only where its width is no usual size.
        predictor_num_heads: heads of the predictor; the encoder's if None, as in the paper.

    Raises:
        CheckpointError: if anything in the file does not fit.
    """
    checkpoint = read_checkpoint(path)
    tensors = {n: state_dict(checkpoint, n) for n in ("encoder", "predictor", "target_encoder")}
    try:
        encoder = VJEPABackbone(**encoder_config(tensors["encoder"], num_heads))
        predictor = VJEPAPredictor(
            **predictor_config(tensors["predictor"], encoder, predictor_num_heads)
        )
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    pretrainer = VJEPAPretrainer(encoder, predictor)
    load_entries("encoder", tensors["encoder"], encoder_entries(encoder))
    load_entries("predictor", tensors["predictor"], predictor_entries(predictor))
    target = pretrainer.target_encoder
    load_entries("target_encoder", tensors["target_encoder"], encoder_entries(target))
    return pretrainer


def probe_config(tensors: dict[str, LazyTensor], num_heads: int) -> dict[str, Any]:
    """Arguments of `VJEPAProbe`, from the shapes of `classifier`."""
    num_classes, dim = _required("classifier", tensors, "linear.weight", 2)
    mlp_dim = _required("classifier", tensors, f"{_CROSS_ATTENTION}.mlp.fc1.weight", 2)[0]
    blocks = {key.split(".")[2] for key in tensors if key.startswith("pooler.blocks.")}
    return {
        "num_classes": num_classes,
        "num_heads": num_heads,
        "num_layers": 1 + len(blocks),
        "mlp_ratio": _ratio(mlp_dim, dim),
    }


def convert_probe(path: str | Path, num_heads: int | None = None) -> VJEPAProbe:
    """The probe that a probe checkpoint holds; it takes tokens `(batch, tokens, dim)`.

    Args:
        path: a probe checkpoint in the authors' layout.
        num_heads: heads of the probe, in the reference its encoder's; needed only where its width
            is no usual size.

    Raises:
        CheckpointError: if anything in the file does not fit.
    """
    tensors = state_dict(read_checkpoint(path), "classifier")
    dim = _required("classifier", tensors, "linear.weight", 2)[1]
    try:
        probe = VJEPAProbe(**probe_config(tensors, _num_heads(dim, num_heads)))
        probe.build((None, None, dim))
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    alive = {key: tensor for key, tensor in tensors.items() if key not in _DEAD_KEYS}
    load_entries("classifier", alive, probe_entries(probe))
    return probe


def convert_classifier(
    backbone: VJEPABackbone, path: str | Path, num_heads: int | None = None, **arguments: Any
) -> VJEPAVideoClassifier:
    """A classifier of a backbone and the probe of a probe checkpoint.

    Args:
        backbone: what the probe was trained on, e.g. `convert(...).target_encoder`.
        path: a probe checkpoint in the authors' layout.
        num_heads: heads of the probe; the backbone's if None, as in the reference.
        arguments: further ones of `VJEPAVideoClassifier`, e.g. `num_clips`.

    Raises:
        CheckpointError: if anything in the file does not fit, or not with the backbone.
    """
    probe = convert_probe(path, backbone.num_heads if num_heads is None else num_heads)
    width = probe.linear.kernel.shape[0]
    if width != backbone.hidden_dim:
        raise CheckpointError(
            f"the probe must be {backbone.hidden_dim} wide, as the encoder. Received: {width}"
        )
    classifier = VJEPAVideoClassifier(
        backbone,
        probe.num_classes,
        num_heads=num_heads,
        num_layers=probe.num_layers,
        mlp_ratio=probe.mlp_ratio,
        **arguments,
    )
    classifier.probe.set_weights(probe.get_weights())
    return classifier


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="file in the authors' layout, e.g. vitl16.pth.tar")
    parser.add_argument("preset", help="folder to write")
    parser.add_argument("--num-heads", type=int, help="if the encoder's width is no usual size")
    parser.add_argument("--predictor-num-heads", type=int, help="default: the encoder's")
    parser.add_argument("--probe", help="probe checkpoint; the preset is then a classifier")
    parser.add_argument("--probe-num-heads", type=int, help="default: the encoder's")
    arguments = parser.parse_args()
    try:
        model: Any = convert(
            arguments.checkpoint, arguments.num_heads, arguments.predictor_num_heads
        )
        if arguments.probe is not None:
            model = convert_classifier(
                model.target_encoder, arguments.probe, arguments.probe_num_heads
            )
        model.save_to_preset(arguments.preset)
    except (CheckpointError, OSError) as error:
        sys.exit(f"convert_checkpoint: {error}")
    print(f"Wrote {arguments.preset}: {model.count_params():,} parameters.")


if __name__ == "__main__":
    main()
