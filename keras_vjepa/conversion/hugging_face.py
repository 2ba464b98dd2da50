"""Read V-JEPA 2 folders of the transformers package (App. D.1; official-behaviour §12).

A folder holds `config.json` and `model.safetensors`, in one file or in several with an index. It is
a `VJEPA2Model` (encoder and predictor) or a `VJEPA2ForVideoClassification`. Reading is strict: an
unknown key, a missing key or a wrong shape is an error that names it. Reading and writing
(`tools/export_checkpoint.py`) need the package safetensors, but neither PyTorch nor transformers.

For clips of another size, that package counts positions in the grid of `crop_size`, while V-JEPA
2's own code counts them in the clip's grid. Models converted here do as the package does; for the
other way, pass `position_mode="fresh"`. The package's predictor uses the second mask token unless
told otherwise; here, that is `predictor(..., mask_index=1)`.
"""

import logging
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from keras_vjepa.arguments import check_whole, shown
from keras_vjepa.conversion.entries import (
    SAME,
    TUBELET_KERNEL,
    Entry,
    linear_entries,
    load_entries,
    norm_entries,
)
from keras_vjepa.conversion.errors import (
    CheckpointError,
    check_file,
    check_weights,
    listed,
    named,
)
from keras_vjepa.conversion.hugging_face_processor import read_preprocessor
from keras_vjepa.conversion.lazy_tensors import LazyTensor
from keras_vjepa.files import kind_of
from keras_vjepa.json_files import read_json_object
from keras_vjepa.models.backbone import VJEPABackbone
from keras_vjepa.models.dimensions import MOST_LAYERS
from keras_vjepa.models.predictor import VJEPAPredictor
from keras_vjepa.preprocessor import VJEPAVideoPreprocessor
from keras_vjepa.tasks.classifier import VJEPAVideoClassifier
from keras_vjepa.tasks.pretrainer import VJEPAPretrainer
from keras_vjepa.tasks.probe import VJEPAProbe

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
MODEL_TYPE = "vjepa2"
_LOG = logging.getLogger(__name__)
# Values of settings that config.json leaves out.
DEFAULTS = {
    "patch_size": 16,
    "crop_size": 256,
    "frames_per_clip": 64,
    "tubelet_size": 2,
    "hidden_size": 1024,
    "in_chans": 3,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "mlp_ratio": 4.0,
    "layer_norm_eps": 1e-6,
    "hidden_act": "gelu",
    "qkv_bias": True,
    "num_pooler_layers": 3,
    "pred_hidden_size": 384,
    "pred_num_attention_heads": 12,
    "pred_num_hidden_layers": 12,
    "pred_num_mask_tokens": 10,
    "pred_mlp_ratio": 4.0,
}
# A classifier holds the whole model under this name.
MODEL_PREFIX = "vjepa2."
MASK_TOKENS = "predictor.embeddings.mask_tokens"

# The largest size allowed for the list of tensors. That of the largest model is a hundredth of
# this.
_MOST_HEADER_BYTES = 2**24

Tensors = dict[str, LazyTensor]


def safetensors() -> Any:
    """Import and return the package safetensors.

    Raises:
        CheckpointError: if it is not installed.
    """
    try:
        import safetensors.numpy
    except ImportError:
        raise CheckpointError(
            "this layout needs the package safetensors: pip install 'keras-vjepa[safetensors]'"
        ) from None
    return safetensors


def read_folder(folder: str | Path) -> tuple[dict[str, Any], Tensors]:
    """Read the configuration of a folder, completed by defaults, and all tensors.

    Raises:
        CheckpointError: if a file is missing or damaged, or the folder holds no V-JEPA 2 model.
    """
    folder = Path(folder)
    return _read_config(folder), read_tensors(folder)


def read_tensors(folder: Path) -> Tensors:
    """Read all tensors of a folder, from one file or from several with an index.

    Raises:
        CheckpointError: if a file is missing or damaged.
    """
    tensors: Tensors = {}
    for path in weight_files(folder):
        found = read_safetensors(path)
        if twice := tensors.keys() & found.keys():
            raise CheckpointError(f"{path} must have none of another file: {listed(sorted(twice))}")
        tensors.update(found)
    return tensors


def _read_config(folder: Path) -> dict[str, Any]:
    """Read config.json, complete it by defaults, and check that its model can be made."""
    try:
        config = read_json_object(folder / CONFIG_FILE)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} has no readable {CONFIG_FILE} ({error})") from None
    if config.get("model_type") != MODEL_TYPE:
        raise CheckpointError(
            f"{folder}/{CONFIG_FILE} must be of `model_type` {MODEL_TYPE}: of another model, make "
            "a Keras model and pass it to VJEPAVideoClassifier. Received: "
            f"{shown(config.get('model_type'))}"
        )
    config = {**DEFAULTS, **config}
    if config["hidden_act"] != "gelu":
        raise CheckpointError(f"`hidden_act` must be 'gelu'. Received: {config['hidden_act']!r}")
    if config["qkv_bias"] is not True:
        raise CheckpointError(f"`qkv_bias` must be true. Received: {shown(config['qkv_bias'])}")
    return config


def weight_files(folder: Path) -> list[Path]:
    """List the files of a folder that hold tensors: a single one, or those that its index names.

    Raises:
        CheckpointError: if the index is damaged, or names something outside the folder.
    """
    index = folder / f"{WEIGHTS_FILE}.index.json"
    if kind_of(index) is None:
        if kind_of(folder / WEIGHTS_FILE) is None:
            found = listed(sorted(path.name for path in folder.iterdir()))
            raise CheckpointError(
                f"{folder} must hold {WEIGHTS_FILE}, or several and their index. Received: {found}"
            )
        return [folder / WEIGHTS_FILE]
    return files_of_index(index)


def files_of_index(index: Path) -> list[Path]:
    """List the files that an index names.

    Raises:
        CheckpointError: if the index is damaged, or names something outside its folder.
    """
    with named(index):
        names = set(read_json_object(index)["weight_map"].values())
        for name in names:
            if not isinstance(name, str) or Path(name).name != name:
                raise CheckpointError(f"it must name files beside it. Received: {shown(name)}")
    return [index.parent / name for name in sorted(names)]


def read_safetensors(path: Path) -> Tensors:
    """Read a file of that format.

    Raises:
        CheckpointError: if it is damaged.
    """
    check_file(path)
    library = safetensors()
    with open(path, "rb") as opened:
        start = opened.read(8)
    if len(start) == 8 and struct.unpack("<Q", start)[0] > _MOST_HEADER_BYTES:
        raise CheckpointError(f"{path} must have a header of at most {_MOST_HEADER_BYTES:,} bytes")
    try:
        file = library.safe_open(path, "numpy")
        keys = list(file.keys())
    except library.SafetensorError as error:
        raise CheckpointError(f"{path} is damaged ({error})") from None

    def lazy(key: str) -> LazyTensor:
        def read() -> np.ndarray:
            with named(path):
                return file.get_tensor(key)

        return LazyTensor(tuple(file.get_slice(key).get_shape()), read)

    return {key: lazy(key) for key in keys}


# --- The names of that package -------------------------------------------------------------------


def _block(name: str, block: Any) -> Iterator[Entry]:
    parts = [f"{name}.attention.{part}" for part in ("query", "key", "value")]
    yield from norm_entries(f"{name}.norm1", block.attention_norm)
    yield from linear_entries(parts, block.attention.query_key_value)
    yield from linear_entries([f"{name}.attention.proj"], block.attention.output_projection)
    yield from norm_entries(f"{name}.norm2", block.mlp_norm)
    yield from _mlp(name, block)


def _mlp(name: str, block: Any) -> Iterator[Entry]:
    yield from linear_entries([f"{name}.mlp.fc1"], block.mlp_hidden)
    yield from linear_entries([f"{name}.mlp.fc2"], block.mlp_output)


def encoder_entries(encoder: VJEPABackbone) -> Iterator[Entry]:
    """Yield every variable of an encoder with that package's names for it."""
    patches = "encoder.embeddings.patch_embeddings.proj"
    yield Entry((f"{patches}.weight",), encoder.tubelet_embedding.kernel, TUBELET_KERNEL)
    yield Entry((f"{patches}.bias",), encoder.tubelet_embedding.bias, SAME)
    for i, block in enumerate(encoder.blocks):
        yield from _block(f"encoder.layer.{i}", block)
    yield from norm_entries("encoder.layernorm", encoder.norm)


def predictor_entries(predictor: VJEPAPredictor) -> Iterator[Entry]:
    """Yield every variable of a predictor with that package's names; mask tokens one by one."""
    projection = "predictor.embeddings.predictor_embeddings"
    yield from linear_entries([projection], predictor.input_projection)
    for i, mask_token in enumerate(predictor.mask_tokens):
        yield Entry((f"{MASK_TOKENS}.{i}",), mask_token, SAME)
    for i, block in enumerate(predictor.blocks):
        yield from _block(f"predictor.layer.{i}", block)
    yield from norm_entries("predictor.layernorm", predictor.norm)
    yield from linear_entries(["predictor.proj"], predictor.output_projection)


def probe_entries(probe: VJEPAProbe) -> Iterator[Entry]:
    """Yield every variable of a built probe with that package's names for it."""
    pooler, cross = probe.pooler, "pooler.cross_attention_layer"
    yield Entry(("pooler.query_tokens",), pooler.query_token, SAME)
    yield from norm_entries(f"{cross}.layer_norm1", pooler.tokens_norm)
    yield from linear_entries([f"{cross}.cross_attn.q_proj"], pooler.query)
    parts = [f"{cross}.cross_attn.{part}_proj" for part in ("k", "v")]
    yield from linear_entries(parts, pooler.key_value)
    yield from norm_entries(f"{cross}.layer_norm2", pooler.mlp_norm)
    yield from _mlp(cross, pooler)
    for i, block in enumerate(pooler.blocks):
        name = f"pooler.self_attention_layers.{i}"
        parts = [f"{name}.self_attn.{part}_proj" for part in ("q", "k", "v")]
        yield from norm_entries(f"{name}.layer_norm1", block.attention_norm)
        yield from linear_entries(parts, block.attention.query_key_value)
        yield from linear_entries([f"{name}.self_attn.out_proj"], block.attention.output_projection)
        yield from norm_entries(f"{name}.layer_norm2", block.mlp_norm)
        yield from _mlp(name, block)
    yield from linear_entries(["classifier"], probe.linear)


# --- From folder to model ------------------------------------------------------------------------


def convert(folder: str | Path, **arguments: Any) -> VJEPAPretrainer | VJEPAVideoClassifier:
    """Convert the model of a folder: a `VJEPA2Model` to a pretrainer, another to a classifier.

    Args:
        folder: a folder that `save_pretrained` of that package wrote, or a download of one.
        arguments: arguments of `VJEPABackbone`, which override those of the folder.

    Raises:
        CheckpointError: if anything in the folder does not fit.
    """
    with named(folder):
        config, tensors = read_folder(folder)
        num_bytes = _num_bytes(folder)
        encoder = _encoder(config, tensors, num_bytes, arguments)
        if any(key.startswith(MODEL_PREFIX) for key in tensors):
            preprocessor = _preprocessor(Path(folder), config)
            return _classifier(config, tensors, num_bytes, encoder, preprocessor)
        own = predictor_config(config, encoder)
        asked_for = VJEPAPredictor.number_of_weights(**own)
        check_weights("a VJEPAPredictor", asked_for, num_bytes)
        predictor = VJEPAPredictor(**own)
        rest = {key: t for key, t in tensors.items() if not key.startswith("encoder.")}
        load_entries("predictor", _with_single_mask_tokens(rest), predictor_entries(predictor))
        return VJEPAPretrainer(encoder, predictor)


def convert_backbone(folder: str | Path, **arguments: Any) -> VJEPABackbone:
    """Convert the encoder of a folder alone; the arguments are as in `convert`.

    Raises:
        CheckpointError: if anything in that part of the folder does not fit.
    """
    with named(folder):
        config, tensors = read_folder(folder)
        return _encoder(config, tensors, _num_bytes(folder), arguments)


def convert_preprocessor(folder: str | Path) -> VJEPAVideoPreprocessor:
    """Make a preprocessor that gives the pixels of a folder's processor.

    Args:
        folder: as in `convert`. If it has no file of a processor, the result is like the package's
            usual processor for the size of the model.

    Raises:
        CheckpointError: if the folder holds another model, or a processor that is not V-JEPA 2's or
            does something that our preprocessor cannot do.
    """
    with named(folder):
        return _preprocessor(Path(folder), _read_config(Path(folder)))


def _preprocessor(folder: Path, config: dict[str, Any]) -> VJEPAVideoPreprocessor:
    return read_preprocessor(folder, config["crop_size"], config["frames_per_clip"])


def class_names(config: dict[str, Any]) -> list[str] | None:
    """Read the names of the classes, in the order of their numbers, from config.json.

    Returns:
        The names; None if the package made them up (`LABEL_0`), or if two are the same, which the
        log says.

    Raises:
        CheckpointError: if the classes are not numbered from 0.
    """
    labels = config.get("id2label")
    if labels is None:
        return None
    numbers = [str(number) for number in range(len(labels))] if isinstance(labels, dict) else []
    if not numbers or labels.keys() != {*numbers}:
        raise CheckpointError(
            f"`id2label` must name the classes 0, 1, 2 and so on. Received: {shown(labels)}"
        )
    names = [labels[number] for number in numbers]
    if names == made_up_names(len(names)):
        return None
    if len({*map(str, names)}) < len(names):
        _LOG.warning("Names of classes are left out: `id2label` of %s has some twice", CONFIG_FILE)
        return None
    return names


def made_up_names(num_classes: int) -> list[str]:
    """List the names that the package gives to classes without any."""
    return [f"LABEL_{number}" for number in range(num_classes)]


def _num_bytes(folder: str | Path) -> int:
    return sum(path.stat().st_size for path in weight_files(Path(folder)))


def _encoder(
    config: dict[str, Any], tensors: Tensors, num_bytes: int, arguments: dict[str, Any]
) -> VJEPABackbone:
    tensors = {key.removeprefix(MODEL_PREFIX): t for key, t in tensors.items()}
    tensors = {key: t for key, t in tensors.items() if key.startswith("encoder.")}
    own = {**encoder_config(config), **arguments}
    asked_for = VJEPABackbone.number_of_weights(**own)
    check_weights("a VJEPABackbone", asked_for, num_bytes)
    encoder = VJEPABackbone(**own)
    load_entries("encoder", tensors, encoder_entries(encoder))
    return encoder


def encoder_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of `VJEPABackbone` for the content of config.json."""
    return {
        "image_size": config["crop_size"],
        "num_frames": config["frames_per_clip"],
        "patch_size": config["patch_size"],
        "tubelet_size": config["tubelet_size"],
        "hidden_dim": config["hidden_size"],
        "num_layers": config["num_hidden_layers"],
        "num_heads": config["num_attention_heads"],
        "mlp_ratio": config["mlp_ratio"],
        "num_channels": config["in_chans"],
        "layer_norm_epsilon": config["layer_norm_eps"],
        "position_embedding": "rotary",
        "position_mode": "index",
    }


def predictor_config(config: dict[str, Any], encoder: VJEPABackbone) -> dict[str, Any]:
    """Return the arguments of `VJEPAPredictor` for the content of config.json."""
    return {
        "encoder_dim": encoder.hidden_dim,
        "grid_shape": encoder.position_axes,
        "hidden_dim": config["pred_hidden_size"],
        "num_layers": config["pred_num_hidden_layers"],
        "num_heads": config["pred_num_attention_heads"],
        "num_mask_tokens": config["pred_num_mask_tokens"],
        "mlp_ratio": config["pred_mlp_ratio"],
        "position_embedding": "rotary",
        "layer_norm_epsilon": config["layer_norm_eps"],
    }


def _classifier(
    config: dict[str, Any],
    tensors: Tensors,
    num_bytes: int,
    encoder: VJEPABackbone,
    preprocessor: VJEPAVideoPreprocessor,
) -> VJEPAVideoClassifier:
    # A classifier's folder also holds a predictor, which the classifier does not use.
    rest = {key: t for key, t in tensors.items() if not key.startswith(MODEL_PREFIX)}
    if "classifier.bias" not in rest:
        raise CheckpointError("`classifier` misses keys: classifier.bias")
    check_whole(0, MOST_LAYERS, num_pooler_layers=config["num_pooler_layers"])
    own = {
        "num_classes": rest["classifier.bias"].shape[0],
        "num_layers": 1 + config["num_pooler_layers"],
        "layer_norm_epsilon": config["layer_norm_eps"],
        "self_attention": "tokens",
    }
    asked_for = VJEPAProbe.number_of_weights(encoder.hidden_dim, num_heads=encoder.num_heads, **own)
    check_weights("a VJEPAProbe", asked_for, num_bytes)
    names = class_names(config)
    if names is not None and len(names) != own["num_classes"]:
        raise CheckpointError(
            f"`id2label` must have {own['num_classes']} names, as `classifier.bias`. "
            f"Received: {len(names)}"
        )
    classifier = VJEPAVideoClassifier(encoder, class_names=names, preprocessor=preprocessor, **own)
    load_entries("classifier", rest, probe_entries(classifier.probe))
    return classifier


def _with_single_mask_tokens(tensors: Tensors) -> Tensors:
    """Split the predictor's mask tokens, which are one tensor `[tokens, 1, 1, dim]`."""
    stacked = tensors.get(MASK_TOKENS)
    if stacked is None or not stacked.shape:
        return tensors
    check_whole(1, MOST_LAYERS, mask_tokens=stacked.shape[0])

    def single(i: int) -> LazyTensor:
        return LazyTensor(stacked.shape[1:], lambda: np.asarray(stacked.read())[i])

    singles = {f"{MASK_TOKENS}.{i}": single(i) for i in range(stacked.shape[0])}
    return {**{k: t for k, t in tensors.items() if k != MASK_TOKENS}, **singles}
