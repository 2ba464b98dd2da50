"""Write models of this package in the layouts that other packages read (App. C, App. D.1).

Weights are written bit by bit as they are. A model that the other layout cannot express is an
error.
"""

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from keras_vjepa import files
from keras_vjepa.conversion import authors, authors_21, hugging_face
from keras_vjepa.conversion.entries import Entry, foreign_tensors
from keras_vjepa.conversion.errors import CheckpointError
from keras_vjepa.conversion.families import official, transformers_folders
from keras_vjepa.conversion.hugging_face_processor import (
    PROCESSOR_FILE,
    differences,
    like_that_package,
    processor_config,
)
from keras_vjepa.conversion.lazy_tensors import LazyTensor
from keras_vjepa.conversion.torch_archive import write_checkpoint
from keras_vjepa.models.backbone import VJEPABackbone
from keras_vjepa.models.families import RivalBackbone
from keras_vjepa.models.predictor import VJEPAPredictor
from keras_vjepa.preprocessor import VJEPAVideoPreprocessor
from keras_vjepa.tasks.classifier import VJEPAVideoClassifier
from keras_vjepa.tasks.pretrainer import VJEPAPretrainer
from keras_vjepa.tasks.probe import VJEPAProbe

Tensors = dict[str, LazyTensor]
_ENCODER_EPSILON, _PROBE_EPSILON = 1e-6, 1e-5
_LOG = logging.getLogger(__name__)


# --- The authors' layout -------------------------------------------------------------------------


def export_checkpoint(model: Any, path: str | Path) -> None:
    """Write a pretrainer or an encoder as a checkpoint in the authors' layout.

    Args:
        model: a `VJEPAPretrainer`; a `VJEPABackbone`, which is written both as `encoder` and as
            `target_encoder`; or a backbone of another family, or a fine-tuned classifier of such,
            which is written as that family's official files are.
        path: the file to write; read it with `convert`, or with PyTorch.

    Raises:
        CheckpointError: for a model that the authors' code cannot make.
    """
    if isinstance(getattr(model, "backbone", model), RivalBackbone):
        official.export(model, path)
        return
    if isinstance(model, VJEPAPretrainer):
        encoder, predictor = model.encoder, model.predictor
        average = "target_encoder"
        if not authors_21.check_expressible(encoder, predictor):
            _expect("output_dim", predictor.output_dim, encoder.hidden_dim)
        elif model.target == "given" or model.teacher is not None:
            average = authors_21.DISTILLED_AVERAGE
        _expect("layer_norm_epsilon", predictor.layer_norm_epsilon, _ENCODER_EPSILON)
        networks = {
            "encoder": _wrapped(authors.encoder_entries(encoder)),
            "predictor": _wrapped(authors.predictor_entries(predictor)),
            average: _wrapped(authors.encoder_entries(model.target_encoder)),
        }
    else:
        encoder = model
        authors_21.check_expressible(encoder, None)
        networks = dict.fromkeys(
            ("encoder", "target_encoder"), _wrapped(authors.encoder_entries(encoder))
        )
    _expect("layer_norm_epsilon", encoder.layer_norm_epsilon, _ENCODER_EPSILON)
    _expect_square(encoder)
    write_checkpoint(path, {**networks, "epoch": 0})


def export_probe(probe: VJEPAProbe, path: str | Path) -> None:
    """Write a built probe as a probe checkpoint in the authors' layout.

    Raises:
        CheckpointError: for a probe that the authors' code cannot make.
    """
    _expect_probe(probe)
    _expect("head_dim", probe.head_dim, None)
    _expect("layer_norm_epsilon", probe.layer_norm_epsilon, _PROBE_EPSILON)
    tensors = foreign_tensors(authors.probe_entries(probe))
    if probe.self_attention == "tokens":
        content: dict[str, Any] = {"classifiers": [_prefixed("module.", tensors)]}
    else:
        dim = probe.linear.kernel.shape[0]
        weight, bias = authors.DEAD_KEYS
        tensors.update({weight: _zeros(dim, dim), bias: _zeros(dim)})
        content = {"classifier": _prefixed("module.", tensors)}
    write_checkpoint(path, {**content, "epoch": 0})


def _wrapped(entries: Iterable[Entry]) -> Tensors:
    return _prefixed("module.backbone.", foreign_tensors(entries))


def _prefixed(prefix: str, tensors: Tensors) -> Tensors:
    return {f"{prefix}{key}": tensor for key, tensor in tensors.items()}


def _zeros(*shape: int) -> LazyTensor:
    return LazyTensor(shape, lambda: np.zeros(shape, "float32"))


def _expect(name: str, value: Any, wanted: Any) -> None:
    if value != wanted:
        raise CheckpointError(f"`{name}` must be {wanted!r} in that layout. Received: {value!r}")


def _expect_square(encoder: VJEPABackbone) -> None:
    if encoder.grid_shape[1] != encoder.grid_shape[2]:
        raise CheckpointError(
            f"`image_size` must be a square in that layout. Received: {encoder.image_size}"
        )


# --- The layout of the transformers package ------------------------------------------------------


def export_hugging_face(
    model: VJEPAPretrainer | VJEPABackbone | RivalBackbone | VJEPAVideoClassifier,
    folder: str | Path,
    preprocessor: VJEPAVideoPreprocessor | None = None,
) -> None:
    """Write a V-JEPA 2 model and its processor as a folder that the transformers package reads.

    A pretrainer becomes a `VJEPA2Model` of its target encoder and its predictor, and a classifier
    becomes a `VJEPA2ForVideoClassification`. That package always needs a predictor: an encoder or a
    classifier is given one without blocks and with weights of zero.

    Args:
        model: a model with `position_embedding` "rotary"; or a backbone of another family that the
            package has (VideoMAE, DINOv2, I-JEPA, CLIP), which is written without a processor.
        folder: the folder to write; it must not exist.
        preprocessor: makes the model's input. If None, it is a classifier's own, or else one like
            the package's for the model's size. The log says if the package's processor gives other
            pixels.

    Raises:
        CheckpointError: for a model or a preprocessor that the package cannot express.
        FileExistsError: if the folder exists.
    """
    folder, library = Path(folder), hugging_face.safetensors()
    if folder.exists():
        raise FileExistsError(f"`folder` must not exist. Received: {folder}")
    if isinstance(model, RivalBackbone):
        transformers_folders.export(model, folder)
        return
    config, tensors = _hugging_face_model(model)
    if preprocessor is None:
        preprocessor = getattr(model, "preprocessor", None)
    if preprocessor is None:
        preprocessor = like_that_package(config["crop_size"], config["frames_per_clip"])
    processor = processor_config(preprocessor)
    if found := differences(preprocessor):
        _LOG.warning(
            "The processor of transformers gives other pixels than one with %s: it has "
            "antialias=True, crop_rounding='down'",
            ", ".join(found),
        )
    arrays = {key: np.ascontiguousarray(tensor.read()) for key, tensor in tensors.items()}
    with files.unfinished_folder(folder) as unfinished:
        (unfinished / hugging_face.CONFIG_FILE).write_text(json.dumps(config, indent=2))
        (unfinished / PROCESSOR_FILE).write_text(json.dumps(processor, indent=2))
        library.numpy.save_file(
            arrays, unfinished / hugging_face.WEIGHTS_FILE, metadata={"format": "pt"}
        )


def _hugging_face_model(model: Any) -> tuple[dict[str, Any], Tensors]:
    """Return the content of config.json, and all tensors."""
    encoder, predictor = model, None
    if isinstance(model, VJEPAPretrainer):
        encoder, predictor = model.target_encoder, model.predictor
    elif isinstance(model, VJEPAVideoClassifier):
        encoder = model.backbone
        if not isinstance(encoder, VJEPABackbone):
            raise CheckpointError(
                "a classifier must have a VJEPABackbone in that layout: write its `backbone` "
                "alone, or another family's official file, by `export_checkpoint` or without "
                f"--layout. Received: one with a {type(encoder).__name__}"
            )
    config = _encoder_config(encoder)
    tensors = foreign_tensors(hugging_face.encoder_entries(encoder))
    if predictor is None:
        dim = encoder.hidden_dim
        predictor = VJEPAPredictor(
            dim, encoder.position_axes, 12, 0, 1, 1, position_embedding="rotary"
        )
        predictor.set_weights([np.zeros_like(weight) for weight in predictor.get_weights()])
        predictor.layer_norm_epsilon = encoder.layer_norm_epsilon
    config.update(_predictor_config(encoder, predictor))
    tensors.update(_stacked_mask_tokens(foreign_tensors(hugging_face.predictor_entries(predictor))))
    config["architectures"] = ["VJEPA2Model"]
    if isinstance(model, VJEPAVideoClassifier):
        for name, wanted in (("num_clips", 1), ("num_views", 1), ("max_frames", None)):
            _expect(name, getattr(model, name), wanted)
        config.update(_probe_config(encoder, model.probe, model.class_names))
        tensors = _prefixed(hugging_face.MODEL_PREFIX, tensors)
        tensors.update(foreign_tensors(hugging_face.probe_entries(model.probe)))
    return config, tensors


def _encoder_config(encoder: VJEPABackbone) -> dict[str, Any]:
    _expect("position_embedding", encoder.position_embedding, "rotary")
    for name, usual in (("position_reach", None), ("level_layers", None), ("modalities", False)):
        _expect(name, getattr(encoder, name), usual)
    _expect_square(encoder)
    return {
        "model_type": hugging_face.MODEL_TYPE,
        "dtype": "float32",
        "hidden_act": "gelu",
        "crop_size": encoder.grid_shape[1] * encoder.patch_size,
        "frames_per_clip": encoder.num_frames,
        "patch_size": encoder.patch_size,
        "tubelet_size": encoder.tubelet_size,
        "hidden_size": encoder.hidden_dim,
        "num_hidden_layers": encoder.num_layers,
        "num_attention_heads": encoder.num_heads,
        "mlp_ratio": encoder.mlp_ratio,
        "in_chans": encoder.num_channels,
        "layer_norm_eps": encoder.layer_norm_epsilon,
    }


def _predictor_config(encoder: VJEPABackbone, predictor: VJEPAPredictor) -> dict[str, Any]:
    _expect("position_embedding", predictor.position_embedding, "rotary")
    _expect("layer_norm_epsilon", predictor.layer_norm_epsilon, encoder.layer_norm_epsilon)
    _expect("output_dim", predictor.output_dim, encoder.hidden_dim)
    for name, usual in (("num_levels", 1), ("predicts_context", False), ("modalities", False)):
        _expect(name, getattr(predictor, name), usual)
    return {
        "pred_hidden_size": predictor.hidden_dim,
        "pred_num_hidden_layers": predictor.num_layers,
        "pred_num_attention_heads": predictor.num_heads,
        "pred_num_mask_tokens": predictor.num_mask_tokens,
        "pred_mlp_ratio": predictor.mlp_ratio,
    }


def _probe_config(
    encoder: VJEPABackbone, probe: VJEPAProbe, class_names: list[str] | None
) -> dict[str, Any]:
    _expect_probe(probe)
    _expect("head_dim", probe.head_dim, None)
    _expect("mlp_ratio", probe.mlp_ratio, 4.0)
    _expect("num_heads", probe.num_heads, encoder.num_heads)
    _expect("layer_norm_epsilon", probe.layer_norm_epsilon, encoder.layer_norm_epsilon)
    if probe.num_layers > 1:
        _expect("self_attention", probe.self_attention, "tokens")
    names = class_names or hugging_face.made_up_names(probe.num_classes)
    return {
        "architectures": ["VJEPA2ForVideoClassification"],
        "num_pooler_layers": probe.num_layers - 1,
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
    }


def _expect_probe(probe: Any) -> None:
    """Refuse a classifier whose head is no attentive probe, since these layouts have no other."""
    _expect("head", "probe" if isinstance(probe, VJEPAProbe) else "fine_tuning", "probe")
    _expect("pooling", probe.pooling, "attentive")


def _stacked_mask_tokens(tensors: Tensors) -> Tensors:
    name = hugging_face.MASK_TOKENS
    singles = [tensor for key, tensor in tensors.items() if key.startswith(f"{name}.")]
    rest = {key: tensor for key, tensor in tensors.items() if not key.startswith(f"{name}.")}
    shape = (len(singles), *singles[0].shape)
    stacked = LazyTensor(shape, lambda: np.stack([tensor.read() for tensor in singles]))
    return {**rest, name: stacked}
