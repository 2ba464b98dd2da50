"""Offer the authors' released weights as presets, the model zoo (Table 6, App. C, App. D.1).

An entry says where the authors keep a file and what it must hold. The first `from_preset` of a name
downloads that file, checks it, converts it and writes a preset into the cache; later calls need the
cache alone. The weights are under the authors' licence, and none of them are in this package.

The files could not be downloaded where this package was made. So it knows the SHA-256 only of files
for which others have stated it, and says who they are. Any other file must be trusted once by the
user; see `presets/downloads.py`.
"""

import hashlib
import inspect
import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import keras

from keras_vjepa import files, locks
from keras_vjepa.conversion import (
    CheckpointError,
    authors_21,
    convert,
    convert_classifier,
    convert_preprocessor,
)
from keras_vjepa.conversion.hugging_face import MODEL_TYPE
from keras_vjepa.models.backbone import SIZES, VJEPABackbone
from keras_vjepa.models.predictor import VJEPAPredictor
from keras_vjepa.preprocessor import VJEPAVideoPreprocessor
from keras_vjepa.presets.downloads import RemoteFile, downloaded
from keras_vjepa.presets.integrity import METADATA_FILE, damage
from keras_vjepa.presets.preset import BUILT_IN, CONFIG_FILE, CONVERTERS, PREPROCESSOR_FILE
from keras_vjepa.tasks.classifier import VJEPAVideoClassifier
from keras_vjepa.tasks.pretrainer import VJEPAPretrainer

Arguments = Mapping[str, Any]
Configs = dict[str, dict[str, Any]]

_LOG = logging.getLogger(__name__)

# Version of what `convert_folder` makes of a folder. Version 2 added a preprocessor, names of
# classes, and positions that are counted as in the transformers package.
_CONVERSION = 2


class Entry:
    """Describes a released model; subclasses say what it consists of."""

    def preprocessor(self) -> VJEPAVideoPreprocessor:
        """Make the preprocessor of the model."""
        raise NotImplementedError

    def configs(self) -> Configs:
        """Return the content of the preset's files that describe models, by their names."""
        raise NotImplementedError

    def write_models(self, folder: Path, trust_on_first_use: bool) -> None:
        """Download and convert the authors' files, and write the models of the preset."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """Return what the preset's metadata say of the model, such as its licence and source."""
        raise NotImplementedError

    def folder(self, name: str, load_weights: bool, trust_on_first_use: bool) -> Path:
        """Return the folder of the preset in the cache; without weights, one of configs alone."""
        cache = files.cache_folder()
        folder = cache / "presets" / name
        if folder.exists() and damage(folder, thorough=False) is None:
            return folder
        if not load_weights:
            return self._write_descriptions(cache / "descriptions" / name)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locks.locked(folder.parent, files.CACHE_VARIABLE, wait=True, name=f".lock-{name}"):
            # Another process may have made the preset while this one waited for the lock.
            if not _is_whole(folder):
                facts = self.describe()
                if facts["files"]:
                    licence = f"{facts['licence']}, see {facts['source']}"
                    print(f"{name}: licence of the weights: {licence}", file=sys.stderr, flush=True)
                self._make(folder, trust_on_first_use)
        return folder

    def _make(self, folder: Path, trust_on_first_use: bool) -> None:
        with files.unfinished_folder(folder, existing=_unless_damaged(folder)) as unfinished:
            with _float32():
                self.write_models(unfinished, trust_on_first_use)
            self.preprocessor().save_to_preset(unfinished)
            metadata = json.loads((unfinished / METADATA_FILE).read_text())
            metadata = {**metadata, **self.describe()}
            (unfinished / METADATA_FILE).write_text(json.dumps(metadata, indent=2))

    def _write_descriptions(self, folder: Path) -> Path:
        preprocessor = keras.saving.serialize_keras_object(self.preprocessor())
        for name, config in {**self.configs(), PREPROCESSOR_FILE: preprocessor}.items():
            files.write_text(folder / name, json.dumps(config, indent=2))
        return folder


@dataclass(frozen=True)
class PretrainedEntry(Entry):
    """Describes a pretraining checkpoint, with encoder, predictor and target encoder.

    Attributes:
        description: a line about the model.
        checkpoint: the authors' file.
        encoder: arguments of its `VJEPABackbone`; the file must agree with them.
        predictor: arguments of its `VJEPAPredictor`, without those that follow from the encoder.
        parameters: number of the encoder's trainable parameters.
        licence: licence of the weights.
        source: where the authors publish the weights.
        unwritten: names of the encoder's arguments that the file does not say.
        objective: arguments of its `VJEPAPretrainer` that are not the defaults.
    """

    description: str
    checkpoint: RemoteFile
    encoder: Arguments
    predictor: Arguments
    parameters: int
    licence: str
    source: str
    unwritten: tuple[str, ...] = ()
    objective: Arguments = field(default_factory=dict)

    def classes(self) -> tuple[str, ...]:
        """Return the names of the classes that can be loaded from the preset."""
        return "VJEPABackbone", "VJEPAPredictor", "VJEPAPretrainer", "VJEPAVideoPreprocessor"

    def describe(self) -> dict[str, Any]:
        size = self.encoder["image_size"]
        return {
            "description": self.description,
            "parameters": self.parameters,
            "input": [self.encoder["num_frames"], size, size, 3],
            "licence": self.licence,
            "source": self.source,
            "files": [asdict(self.checkpoint)],
            "scores": {},
        }

    def preprocessor(self, **arguments: Any) -> VJEPAVideoPreprocessor:
        return VJEPAVideoPreprocessor(
            self.encoder["image_size"], self.encoder["num_frames"], **arguments
        )

    def configs(self) -> Configs:
        encoder = described(VJEPABackbone, **self.encoder)
        side = self.encoder["image_size"] // self.encoder["patch_size"]
        steps = self.encoder["num_frames"] // self.encoder["tubelet_size"]
        predictor = described(
            VJEPAPredictor,
            encoder_dim=self.encoder["hidden_dim"],
            grid_shape=(steps, side, side),
            **self.predictor,
        )
        pretrainer = described(
            VJEPAPretrainer, encoder=encoder, predictor=predictor, **self.objective
        )
        return {
            CONFIG_FILE: encoder,
            VJEPAPredictor.config_file: predictor,
            VJEPAPretrainer.config_file: pretrainer,
        }

    def write_models(self, folder: Path, trust_on_first_use: bool) -> None:
        with converted(self.checkpoint, trust_on_first_use) as path:
            pretrainer = convert(
                path,
                num_heads=self.encoder["num_heads"],
                predictor_num_heads=self.predictor["num_heads"],
                **{name: self.encoder[name] for name in self.unwritten},
            )
            check(pretrainer.target_encoder, self.encoder)
            check(pretrainer.predictor, self.predictor)
            pretrainer.save_to_preset(folder)


@dataclass(frozen=True)
class ClassifierEntry(Entry):
    """Describes the target encoder of a pretraining checkpoint with one of the authors' probes.

    Attributes:
        pretrained: name of the entry with the encoder.
        probe: the authors' file of the probe.
        dataset: the data set that the probe was trained on.
        num_classes: number of classes of the data set.
        score: top-1 accuracy that the paper reports (Table 6), in per cent.
        num_clips: number of clips of a video in the evaluation.
        num_views: number of views of a clip in the evaluation.
    """

    pretrained: str
    probe: RemoteFile
    dataset: str
    num_classes: int
    score: float
    num_clips: int = 1
    num_views: int = 1

    @property
    def _encoder(self) -> PretrainedEntry:
        entry = BUILT_IN[self.pretrained]
        assert isinstance(entry, PretrainedEntry)
        return entry

    @property
    def _arguments(self) -> dict[str, Any]:
        return {"num_clips": self.num_clips, "num_views": self.num_views}

    def classes(self) -> tuple[str, ...]:
        """Return the names of the classes that can be loaded from the preset."""
        return "VJEPAVideoClassifier", "VJEPAVideoPreprocessor"

    def describe(self) -> dict[str, Any]:
        described = self._encoder.describe()
        return {
            **described,
            "description": f"{described['description']}; attentive probe on {self.dataset}",
            "files": [*described["files"], asdict(self.probe)],
            "scores": {self.dataset: self.score},
        }

    def preprocessor(self) -> VJEPAVideoPreprocessor:
        return self._encoder.preprocessor(**self._arguments)

    def configs(self) -> Configs:
        backbone = self._encoder.configs()[CONFIG_FILE]
        classifier = described(
            VJEPAVideoClassifier,
            backbone=backbone,
            num_classes=self.num_classes,
            **self._arguments,
        )
        return {CONFIG_FILE: backbone, VJEPAVideoClassifier.config_file: classifier}

    def write_models(self, folder: Path, trust_on_first_use: bool) -> None:
        backbone = VJEPABackbone.from_preset(self.pretrained, trust_on_first_use=trust_on_first_use)
        with converted(self.probe, trust_on_first_use) as path:
            classifier = convert_classifier(backbone, path, **self._arguments)
            check(classifier, {"num_classes": self.num_classes})
            classifier.save_to_preset(folder)


@contextmanager
def converted(file: RemoteFile, trust_on_first_use: bool) -> Iterator[Path]:
    """Lend a downloaded file to what converts it; name its address where that fails.

    Args:
        file: the file.
        trust_on_first_use: as in `Preset.from_preset`.

    Raises:
        ValueError: if it cannot be fetched or converted.
    """
    with downloaded(file, trust_on_first_use) as path:
        try:
            yield path
        except CheckpointError as error:
            reason = str(error).removeprefix(f"{path}: ").replace(str(path), file.name)
            raise ValueError(
                f"{file.address} was downloaded but cannot be used, and was removed: {reason}"
            ) from None


@contextmanager
def _float32() -> Iterator[None]:
    """Make models in float32 within a block, as the files are, whatever the user's precision."""
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(policy)


def _is_whole(preset: Path) -> bool:
    """Tell whether the cache has a preset that is not damaged; log it if a damaged one is there."""
    if not preset.exists():
        return False
    problem = damage(preset, thorough=False)
    if problem is not None:
        _LOG.warning("The preset in the cache is made anew: %s.", problem)
    return problem is None


def _unless_damaged(preset: Path) -> files.Existing:
    """Return what to do with a preset that is there when the new one has been written."""
    return "replace" if preset.exists() else "keep"


def convert_folder(
    folder: Path, make_preprocessor: Callable[[Path, Any], Any] | None = None
) -> Path:
    """Make a preset in the cache from a folder of the transformers package.

    A preset that is there is returned, unless a file of the folder or the conversion has changed.

    Args:
        folder: the folder.
        make_preprocessor: makes the preprocessor from the folder and the model; None for V-JEPA's.

    Raises:
        CheckpointError: if anything in the folder does not fit.
    """
    content = sorted((p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in folder.iterdir())
    described = f"{_CONVERSION} {folder.resolve()} {content}"
    key = hashlib.sha256(described.encode()).hexdigest()[:16]
    preset = files.cache_folder() / "converted" / key
    if not _is_whole(preset):
        existing = _unless_damaged(preset)
        with files.unfinished_folder(preset, existing=existing) as unfinished, _float32():
            model = convert(folder)
            model.save_to_preset(unfinished)
            preprocessor = (
                convert_preprocessor(folder)
                if make_preprocessor is None
                else make_preprocessor(folder, model)
            )
            preprocessor.save_to_preset(unfinished)
    return preset


def check(model: Any, expected: Arguments) -> None:
    found = model.get_config()
    for name, value in expected.items():
        if found[name] != value:
            raise CheckpointError(f"its `{name}` must be {value}. Received: {found[name]}")


def described(cls: type, **arguments: Any) -> dict[str, Any]:
    """Describe a model of these arguments as Keras serializes it, without making its weights."""
    parameters = inspect.signature(cls).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    base = {"name": None, "trainable": True, "dtype": "float32"}
    return {
        "module": cls.__module__,
        "class_name": cls.__name__,
        "config": {**base, **defaults, **arguments},
        "registered_name": keras.saving.get_registered_name(cls),
    }


# --- The tables (addresses: official-behaviour §10, §12) ------------------------------------------

_JEPA = "https://dl.fbaipublicfiles.com/jepa"
_JEPA_2 = "https://dl.fbaipublicfiles.com/vjepa2"

_CONFIRMED = "two or more unrelated public projects (confirmed)"
_REPORTED = "one public project (reported; nobody has confirmed it)"

# Hashes and lengths of files, and who states them. Nobody states those of files that are not
# listed. The list that these come from contradicts itself: it says that Meta publishes no hashes,
# but also that `vitl.pt` has the hash of `original/model.pth` in Meta's own repository
# facebook/vjepa2-vitl-fpc64-256, which shows hashes of its files. It gives no exact length for
# `vitl16.pth.tar` (about 5.1 GB).
_STATED: dict[str, dict[str, Any]] = {
    f"{_JEPA}/vitl16/vitl16.pth.tar": {
        "sha256": "0cd3bfce97d04891a31eac70d573ef94f423d858a6b0dc0b3ddf5f8d00b33fe4",
        "stated_by": _REPORTED,
    },
    f"{_JEPA_2}/vitl.pt": {
        "sha256": "5346856ec9df69487fe72a25bf2632aaa8112df33fb67708e3f7374edc1f7012",
        "num_bytes": 5_127_726_842,
        "stated_by": _CONFIRMED,
    },
    f"{_JEPA_2}/vjepa2_1_vitb_dist_vitG_384.pt": {
        "sha256": "848a77c33cc9e6649ed2119c9bea1e2c569bcdab9539ff3e7c02ccc2959ddf4d",
        "num_bytes": 1_664_223_428,
        "stated_by": _CONFIRMED,
    },
    f"{_JEPA_2}/vjepa2_1_vitl_dist_vitG_384.pt": {
        "sha256": "7ea9b7cb4a75d10644a8a8d42cff9e177b10dca8f02173f0eaf2b0bed82838c6",
        "num_bytes": 5_151_198_524,
        "stated_by": _CONFIRMED,
    },
    f"{_JEPA_2}/vjepa2_1_vitg_384.pt": {
        "sha256": "b417628f1618c8bd52c0f419800b802f65794288c6ef2ff85c1341a1ae587cba",
        "num_bytes": 16_878_318_788,
        "stated_by": _CONFIRMED,
    },
    f"{_JEPA_2}/vjepa2_1_vitG_384.pt": {
        "sha256": "7aae1a3c7a31d258af9c985388b5d2f20587469380f2e11b54d7876ac8cfe58a",
        "num_bytes": 30_238_058_912,
        "stated_by": _CONFIRMED,
    },
}


def _file(address: str) -> RemoteFile:
    return RemoteFile(address, **_STATED.get(address, {}))


# Each row: folder of the files, size of the encoder, pixels, trainable parameters of the encoder.
_PRETRAINED = {
    "vjepa_large_patch16_224": ("vitl16", "large", 224, 303_885_312),
    "vjepa_huge_patch16_224": ("vith16", "huge", 224, 631_648_000),
    "vjepa_huge_patch16_384": ("vith16-384", "huge", 384, 631_648_000),
}

# Each row: name of the file, data set, classes, clips, views, and the paper's scores for the three
# models above.
_PROBES = {
    "kinetics400": ("k400-probe", "Kinetics-400", 400, 8, 3, (80.8, 82.0, 81.9)),
    "ssv2": ("ssv2-probe", "Something-Something v2", 174, 2, 3, (69.5, 71.4, 72.2)),
    "imagenet": ("in1k-probe", "ImageNet-1K", 1000, 1, 1, (74.8, 75.9, 77.4)),
    "places205": ("places-probe", "Places205", 205, 1, 1, (60.3, 61.7, 62.8)),
    "inat21": ("inat-probe", "iNaturalist 2021", 10_000, 1, 1, (67.8, 67.9, 72.6)),
}

# V-JEPA 2, each row: file, size of the encoder, pixels, trainable parameters of the encoder.
_PRETRAINED_2 = {
    "vjepa2_large_patch16_256": ("vitl.pt", "large", 256, 303_885_312),
    "vjepa2_huge_patch16_256": ("vith.pt", "huge", 256, 631_648_000),
    "vjepa2_giant_patch16_256": ("vitg.pt", "giant_xformers", 256, 1_012_173_952),
    "vjepa2_giant_patch16_384": ("vitg-384.pt", "giant_xformers", 384, 1_012_173_952),
}


# V-JEPA 2.1, each row: file, size of the encoder, layers of the predictor, whether it was distilled
# from the gigantic one, and trainable parameters of the encoder (vjepa21 §1, §6).
_PRETRAINED_21 = {
    "vjepa21_base_patch16_384": ("vjepa2_1_vitb_dist_vitG_384.pt", "base", 12, True, 86_833_152),
    "vjepa21_large_patch16_384": ("vjepa2_1_vitl_dist_vitG_384.pt", "large", 12, True, 304_680_960),
    "vjepa21_giant_patch16_384": (
        *("vjepa2_1_vitg_384.pt", "giant_xformers", 24, False),
        1_013_267_968,
    ),
    "vjepa21_gigantic_patch16_384": (
        *("vjepa2_1_vitG_384.pt", "gigantic", 24, False),
        1_845_216_768,
    ),
}


def _encoder(size: str, pixels: int, num_frames: int, **arguments: Any) -> Arguments:
    clip = {"image_size": pixels, "num_frames": num_frames, "patch_size": 16, "tubelet_size": 2}
    return {**clip, **asdict(SIZES[size]), **arguments}


for _name, (_folder, _size, _pixels, _parameters) in _PRETRAINED.items():
    BUILT_IN[_name] = PretrainedEntry(
        f"V-JEPA ViT-{_size[0].upper()}/16, pretrained on VideoMix2M at {_pixels} pixels",
        _file(f"{_JEPA}/{_folder}/{_folder}.pth.tar"),
        encoder=_encoder(_size, _pixels, 16),
        predictor={"hidden_dim": 384, "num_layers": 12, "num_heads": 16, "num_mask_tokens": 2},
        parameters=_parameters,
        licence="CC BY-NC 4.0",
        source="https://github.com/facebookresearch/jepa",
    )

for _row, (_name, (_folder, *_)) in enumerate(_PRETRAINED.items()):
    for _task, (_probe, _dataset, _classes, _clips, _views, _scores) in _PROBES.items():
        BUILT_IN[f"{_name}_{_task}"] = ClassifierEntry(
            _name,
            _file(f"{_JEPA}/{_folder}/{_probe}.pth.tar"),
            _dataset,
            _classes,
            _scores[_row],
            _clips,
            _views,
        )

for _name, (_checkpoint, _size, _pixels, _parameters) in _PRETRAINED_2.items():
    _rotary = {"position_embedding": "rotary"}
    BUILT_IN[_name] = PretrainedEntry(
        f"V-JEPA 2 ViT-{_size[0]}/16 at {_pixels} pixels",
        _file(f"{_JEPA_2}/{_checkpoint}"),
        encoder=_encoder(_size, _pixels, 64, **_rotary),
        predictor={
            **{"hidden_dim": 384, "num_layers": 12, "num_heads": 12, "num_mask_tokens": 10},
            **_rotary,
        },
        parameters=_parameters,
        licence="MIT",
        source="https://github.com/facebookresearch/vjepa2",
        unwritten=("image_size", "num_frames"),
    )

_SHARED_21 = {
    "position_embedding": authors_21.POSITIONS,
    "position_reach": 15,
    "modalities": True,
}

for _name, (_checkpoint, _size, _depth, _distilled, _parameters) in _PRETRAINED_21.items():
    _levels = authors_21.LEVELS[SIZES[_size].num_layers]
    BUILT_IN[_name] = PretrainedEntry(
        f"V-JEPA 2.1 ViT-{_size}/16 at 384 pixels",
        _file(f"{_JEPA_2}/{_checkpoint}"),
        encoder=_encoder(_size, 384, 64, level_layers=_levels, **_SHARED_21),
        predictor={
            **{"hidden_dim": 384, "num_layers": _depth, "num_heads": 12, "num_mask_tokens": 8},
            "num_levels": 1 if _distilled else len(_levels),
            "output_dim": SIZES["gigantic" if _distilled else _size].hidden_dim
            * (1 if _distilled else len(_levels)),
            "predicts_context": True,
            **_SHARED_21,
        },
        parameters=_parameters,
        licence="MIT (stated for the code)",
        source="https://github.com/facebookresearch/vjepa2",
        unwritten=("image_size", "num_frames"),
        objective=authors_21.objective(_distilled),
    )

CONVERTERS[MODEL_TYPE] = convert_folder
