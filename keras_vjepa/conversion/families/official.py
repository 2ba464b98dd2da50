"""Official files of V-JEPA's rivals as backbones, and back (Tables 5 and 6; App. D.1).

Strict both ways: names that are not known, missing ones and wrong shapes are errors that name them.
A fine-tuned file becomes a classifier: its backbone, and a head for fine-tuning.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_vjepa.arguments import check_choice
from keras_vjepa.conversion import hugging_face
from keras_vjepa.conversion.entries import (
    Entry,
    foreign_tensors,
    linear_entries,
    load_entries,
    norm_entries,
)
from keras_vjepa.conversion.errors import CheckpointError, check_weights, listed, named
from keras_vjepa.conversion.families import hiera
from keras_vjepa.conversion.families.finding import Tensors, family_of, network_of
from keras_vjepa.conversion.families.layouts import LAYOUTS, Layout
from keras_vjepa.conversion.families.names import Names
from keras_vjepa.conversion.families.shapes import architecture
from keras_vjepa.conversion.lazy_tensors import LazyTensor
from keras_vjepa.conversion.torch_archive import read_checkpoint, write_checkpoint
from keras_vjepa.models.backbone_preset import resized
from keras_vjepa.models.families import HieraBackbone, RivalBackbone
from keras_vjepa.preprocessor import VJEPAVideoPreprocessor
from keras_vjepa.presets.recognition import is_version_21
from keras_vjepa.tasks.classifier import VJEPAVideoClassifier

_SIZES = ("image_size", "num_frames")
_INDEX = ".index.json"


def read_file(path: str | Path) -> dict[str, Any]:
    """Read a PyTorch archive or a safetensors file, whatever it contains besides tensors.

    Args:
        path: the file, or the index of several (`*.index.json`), whose contents are joined.

    Raises:
        CheckpointError: if it is neither, or damaged.
    """
    if str(path).endswith(_INDEX):
        return _read_parts(hugging_face.files_of_index(Path(path)))
    if str(path).endswith(".safetensors"):
        return dict(hugging_face.read_safetensors(Path(path)))
    return read_checkpoint(path, placeholders=True)


def _read_parts(paths: Sequence[Path]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for part in paths:
        found = read_file(part)
        if twice := content.keys() & found.keys():
            raise CheckpointError(f"{part} must have none of another file: {listed(sorted(twice))}")
        content.update(found)
    return content


def _num_bytes(path: Path) -> int:
    """Count the bytes of a file, or of those that an index names."""
    parts = hugging_face.files_of_index(path) if str(path).endswith(_INDEX) else [path]
    return sum(part.stat().st_size for part in parts)


def find_family(path: str | Path) -> str | None:
    """Name the family of an official file; None for V-JEPA's, others, and damaged archives.

    Raises:
        CheckpointError: if two families could have written it; for an index or a safetensors file,
            which V-JEPA's reader does not take, also if it is damaged and not V-JEPA 2.1's.
    """
    is_archive = not str(path).endswith((_INDEX, ".safetensors"))
    try:
        content = read_file(path)
    except CheckpointError:
        if is_archive or is_version_21(Path(path)):  # V-JEPA's reader gives a better message
            return None
        raise
    with named(path):
        family = family_of(content)
        if family is None and str(path).endswith(_INDEX):
            raise CheckpointError(
                "it names tensors of none of V-JEPA's rivals; of a model in the layout of "
                "transformers, pass the folder"
            )
    return family


def convert(
    path: str | Path, family: str, network: str | None = None, **arguments: Any
) -> RivalBackbone | VJEPAVideoClassifier:
    """Make a backbone, or a fine-tuned classifier, from an official file.

    Args:
        path: the file, or the index of several.
        family: one of `LAYOUTS`.
        network: of I-JEPA, `"target_encoder"`, which is evaluated, or `"encoder"`.
        arguments: further ones of the backbone, which count more than what the file says. No file
            of VideoMAE tells `image_size` and `num_frames`: 224 and 16 if not given. No file tells
            `num_heads` of unusual widths, and the `activation` of CLIP.

    Raises:
        CheckpointError: if anything in the file does not fit.
    """
    with named(path):
        check_choice(LAYOUTS, family=family)
        layout = LAYOUTS[family]
        if network is not None:
            check_choice(layout.networks, network=network)
        content = read_file(path)
        try:
            tensors = network_of(content, layout, network)
            return assemble(layout, layout.names, tensors, _num_bytes(Path(path)), arguments)
        except ValueError as error:
            other = _other_family(content, family)
            if other is None:
                raise
            raise CheckpointError(f"{error} (a file of `family` {other!r})") from error


def _other_family(content: dict[str, Any], family: str) -> str | None:
    """Name the family that a file is of by its names, if it is another than was said."""
    try:
        told = family_of(content)
    except CheckpointError:  # it may be of two
        return None
    # VideoMAEv2's files have the names of VideoMAE's.
    return None if told in (family, family.removesuffix("v2")) else told


def assemble(
    layout: Layout, names: Names, tensors: Tensors, num_bytes: int, arguments: dict[str, Any]
) -> RivalBackbone | VJEPAVideoClassifier:
    """Make the model whose tensors these are.

    Args:
        layout: the family's.
        names: of the tensors.
        tensors: by the encoder's own names, and those of a head.
        num_bytes: that hold them.
        arguments: as in `convert`.

    Raises:
        CheckpointError: if anything does not fit.
    """
    head = _head(layout, tensors)
    is_hiera = layout.backbone is HieraBackbone
    if is_hiera:
        own = hiera.architecture(tensors, arguments)
        tensors = hiera.without_fusion(tensors, own)
    else:
        own = architecture(layout, names, tensors, arguments)
    check_weights(
        f"a {layout.backbone.__name__}", layout.backbone.number_of_weights(**own), num_bytes
    )
    backbone = layout.backbone(**own)
    encoder = {name: tensor for name, tensor in tensors.items() if name not in head}
    load_entries("encoder", encoder, entries_of(names, backbone))
    wanted = {} if is_hiera else {n: arguments[n] for n in _SIZES if arguments.get(n) is not None}
    backbone = resized(backbone, wanted, "Positions of the file") if wanted else backbone
    return _with_head(layout, backbone, head) if head else backbone


def entries_of(names: Names, backbone: RivalBackbone) -> list[Entry]:
    """List the tensors that a backbone has in a layout.

    Fine-tuned models of MVD compute their table, as those without a final norm are.
    """
    if isinstance(backbone, HieraBackbone):
        return [*hiera.entries(backbone)]
    has_no_table = backbone.facts.may_lack_norm and not backbone.final_norm
    entries = names.entries(backbone)
    return [e for e in entries if not (has_no_table and e.names == (names.table,))]


def _head(layout: Layout, tensors: Tensors) -> Tensors:
    """Collect the tensors of a classifier that the file has beside the encoder."""
    if layout.head is None:
        return {}
    norm, linear = layout.head
    found = {name: t for name, t in tensors.items() if name.startswith((f"{linear}.",))}
    if found and norm != layout.names.norm:
        found.update({name: t for name, t in tensors.items() if name.startswith(f"{norm}.")})
    return found


def _with_head(layout: Layout, backbone: RivalBackbone, head: Tensors) -> VJEPAVideoClassifier:
    assert layout.head is not None
    norm, linear = layout.head
    if f"{linear}.bias" not in head or len(head[f"{linear}.bias"].shape) != 1:
        raise CheckpointError(f"the classifier misses keys: {linear}.bias")
    classifier = VJEPAVideoClassifier(
        backbone,
        head[f"{linear}.bias"].shape[0],
        head="fine_tuning",
        trainable_backbone=False,
        preprocessor=preprocessor_of(backbone),
    )
    entries = [*linear_entries([linear], classifier.probe.linear)]
    if norm == layout.names.norm:
        assert backbone.norm is not None
        classifier.probe.norm.set_weights(backbone.norm.get_weights())
    else:
        entries += norm_entries(norm, classifier.probe.norm)
    load_entries("classifier", head, entries)
    return classifier


def preprocessor_of(backbone: RivalBackbone) -> VJEPAVideoPreprocessor:
    """Make the preprocessor of a family: its pixel normalisation, the backbone's sizes."""
    return VJEPAVideoPreprocessor(
        backbone.input_size,
        backbone.num_frames,
        mean=backbone.facts.mean,
        std=backbone.facts.std,
    )


# --- Writing official files -----------------------------------------------------------------------


def family_of_backbone(backbone: RivalBackbone) -> str:
    """Name the family of a backbone."""
    return next(name for name, one in LAYOUTS.items() if one.backbone is type(backbone))


def export(model: RivalBackbone | VJEPAVideoClassifier, path: str | Path) -> None:
    """Write a backbone, or a classifier of `convert`, as an official file.

    Args:
        model: what to write; weights are float32, bit by bit as they are.
        path: the file to write.

    Raises:
        CheckpointError: for a classifier that the layout has no place for.
    """
    backbone = model.backbone if isinstance(model, VJEPAVideoClassifier) else model
    layout = LAYOUTS[family_of_backbone(backbone)]
    is_classifier = isinstance(model, VJEPAVideoClassifier)
    tensors = foreign_tensors(entries_of(layout.names, backbone))
    if layout.networks[:1] == ("target_encoder",):
        wrapped = {f"module.{name}": tensor for name, tensor in tensors.items()}
        write_checkpoint(path, {"encoder": wrapped, "target_encoder": wrapped, "epoch": 0})
        return
    has_prefix = layout.prefix and not (layout.head == ("fc_norm", "head") and is_classifier)
    prefix = layout.prefix if has_prefix else ""
    tensors = {f"{prefix}{name}": tensor for name, tensor in tensors.items()}
    if isinstance(model, VJEPAVideoClassifier):
        tensors.update(_head_tensors(layout, model))
    key = layout.written[is_classifier]
    write_checkpoint(path, {key: tensors} if key else tensors)


def _head_tensors(layout: Layout, model: VJEPAVideoClassifier) -> dict[str, LazyTensor]:
    if layout.head is None or model.head != "fine_tuning":
        raise CheckpointError(
            "that layout has no place for an attentive probe: export its `backbone`, or a "
            "classifier with head='fine_tuning' of a family that has one"
        )
    norm, linear = layout.head
    entries = [*linear_entries([linear], model.probe.linear)]
    if norm != layout.names.norm:
        entries += norm_entries(norm, model.probe.norm)
    elif not all(
        map(np.array_equal, model.probe.norm.get_weights(), model.backbone.norm.get_weights())
    ):
        raise CheckpointError("that layout has one norm for encoder and head, and theirs differ")
    return foreign_tensors(entries)
