"""Describe a preset on a page for people, the README.md of a repository (App. C).

Everything on the page is taken from the preset's configs and its `metadata.json`. What they do not
say is called unknown, and is not guessed.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from keras_vjepa.json_files import read_json_object
from keras_vjepa.presets.integrity import METADATA_FILE
from keras_vjepa.presets.preset import CONFIG_FILE, PREPROCESSOR_FILE

TASK_FILE, PRETRAINER_FILE, PREDICTOR_FILE = "task.json", "pretrainer.json", "predictor.json"
# Files of results that recipes write beside the folder `preset` of a run, and beside the folder
# `classifier_TASK` of an evaluation.
_RUN_FIGURES, _EVALUATION_FIGURES = "probe.json", "result.json"
_CLASSIFIER = "classifier_"
# Licences that a hub knows by these names; any other licence is called `other` there, with its name
# beside it.
_LICENCES = {"mit", "apache-2.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0"}
_UNSAID = {"name", "trainable", "dtype", "layer_states", "class_names"}
_MOST_NAMES = 20
_LONGEST = 300

Object = dict[str, Any]


def model_card(folder: Path, address: str, licence: str | None = None) -> str:
    """Write a page that describes a preset.

    Args:
        folder: folder of the preset.
        address: address that the preset will have, as `from_preset` takes it.
        licence: licence of the weights; None for the one that the preset states.

    Returns:
        The page, in Markdown with the hubs' header.
    """
    metadata, licence = _read(folder / METADATA_FILE), licence_of(folder, licence)
    config, described = _described(folder)
    title = address.partition("://")[2]
    lines = [
        *_header(folder, licence),
        f"# {title}",
        "",
        _text(metadata.get("description"), "A V-JEPA model.").rstrip(".") + ".",
        "",
        f"A `{config}` of keras_vjepa, for Keras 3 on torch, JAX and TensorFlow.",
        "",
        "## How to load it",
        "",
        "```python",
        *_code(folder, config, address),
        "```",
        "",
        "## Architecture",
        "",
        f"{_count(metadata)}",
        "",
        *described,
        "## Input",
        "",
        *_input(folder),
        "",
        "## Training data and licence",
        "",
        f"- Source of the weights: {_text(metadata.get('source'), 'not stated')}",
        f"- Licence of the weights: {_text(licence, 'not stated')}",
        *(f"- Made from: {one}" for one in _origins(metadata)),
        "- What it was trained on: as far as the description and the source above say.",
        "",
        "## Evaluation",
        "",
        *_evaluation(folder, metadata),
        "",
        f"Written with Keras {_text(metadata.get('keras_version'), '(unknown)')} on "
        f"{_text(metadata.get('backend'), '(unknown)')}.",
        "",
    ]
    return "\n".join(lines)


def licence_of(folder: Path, licence: str | None = None) -> str | None:
    """Return the given licence, or the one that a preset states for its weights."""
    stated = licence or _read(folder / METADATA_FILE).get("licence")
    return _text(stated, "") or None


def _header(folder: Path, licence: str | None) -> list[str]:
    is_classifier = (folder / TASK_FILE).is_file()
    task = "video-classification" if is_classifier else "feature-extraction"
    lines = ["---", "library_name: keras", f"pipeline_tag: {task}"]
    if licence:
        known = licence.lower().replace(" ", "-")
        lines.append(f"license: {known if known in _LICENCES else 'other'}")
        # The name is written as JSON, which is also YAML, so that nothing in it can end the line or
        # begin another entry.
        lines += [] if known in _LICENCES else [f"license_name: {json.dumps(licence)}"]
    return [*lines, "tags:", "- keras_vjepa", "- v-jepa", "- video", "---", ""]


def _described(folder: Path) -> tuple[str, list[str]]:
    """Return the class to load a preset with, and lists of the arguments in its configs."""
    names = (TASK_FILE, PRETRAINER_FILE, CONFIG_FILE, PREDICTOR_FILE)
    found = {name: _read(folder / name) for name in names if (folder / name).is_file()}
    lines: list[str] = []
    for config in found.values():
        arguments = config.get("config")
        said = dict(_said(arguments if isinstance(arguments, dict) else {}))
        if said:
            lines += [f"`{_text(config.get('class_name'), '?')}`:", ""]
            lines += [f"- {name}: {value}" for name, value in said.items()] + [""]
    first = next(iter(found.values()), {})
    return _text(first.get("class_name"), "Model"), lines + _names(found.get(TASK_FILE, {}))


def _said(arguments: Object) -> Iterator[tuple[str, str]]:
    """Select arguments that are numbers, words or lists of them; parts have lists of their own."""
    for name, value in arguments.items():
        if name in _UNSAID or value is None or isinstance(value, dict):
            continue
        yield _text(name, "?"), f"`{_text(json.dumps(value), '?')}`"


def _names(task: Object) -> list[str]:
    arguments = task.get("config")
    names = arguments.get("class_names") if isinstance(arguments, dict) else None
    if not isinstance(names, list) or not names:
        return []
    shown = ", ".join(_text(name, "?") for name in names[:_MOST_NAMES])
    more = f" and {len(names) - _MOST_NAMES:,} more" if len(names) > _MOST_NAMES else ""
    return [f"Classes: {shown}{more}.", ""]


def _code(folder: Path, config: str, address: str) -> list[str]:
    lines = ["import keras_vjepa", "", f'name = "{address}"']
    known = config.isidentifier() and config.startswith("VJEPA")
    cls = f"keras_vjepa.{config}" if known else "keras_vjepa.VJEPABackbone"
    lines.append(f"model = {cls}.from_preset(name)")
    if config == "VJEPAVideoClassifier":
        return [*lines, 'print(model.classify("clip.mp4", top=5))']
    if config == "VJEPABackbone":
        lines.append("preprocessor = keras_vjepa.VJEPAVideoPreprocessor.from_preset(name)")
        lines.append('features = model(preprocessor("clip.mp4"))')
    return lines


def _count(metadata: Object) -> str:
    count = metadata.get("parameter_count")
    return f"{count:,} parameters in the encoder." if isinstance(count, int) else "Sizes:"


def _input(folder: Path) -> list[str]:
    if (folder / PREPROCESSOR_FILE).is_file():
        preprocessor = _read(folder / PREPROCESSOR_FILE).get("config")
        lines = ["Made by its preprocessor:", ""]
        found = preprocessor if isinstance(preprocessor, dict) else {}
        return lines + [f"- {name}: {value}" for name, value in _said(found)]
    backbone = _read(folder / CONFIG_FILE).get("config")
    sizes = backbone if isinstance(backbone, dict) else {}
    said = {n: v for n, v in _said(sizes) if n in ("image_size", "num_frames", "num_channels")}
    lines = [f"- {name}: {value}" for name, value in said.items()]
    return [*lines, "- No preprocessor is in the preset: pixels as the model was trained on."]


def _origins(metadata: Object) -> Iterator[str]:
    found = metadata.get("files")
    for file in found if isinstance(found, list) else []:
        if isinstance(file, Mapping):
            sha256 = _text(file.get("sha256"), "")
            yield _text(file.get("address"), "?") + (f", SHA-256 `{sha256}`" if sha256 else "")


def _evaluation(folder: Path, metadata: Object) -> list[str]:
    rows = []
    scores = metadata.get("scores")
    for name, score in scores.items() if isinstance(scores, dict) else ():
        rows.append(f"- {_text(name, '?')}: {_text(score, '?')} % top-1, as the paper reports it")
    rows += [*_figures_of_run(folder), *_figures_of_evaluation(folder)]
    return rows or ["No figures are in the preset."]


def _figures_of_run(folder: Path) -> Iterator[str]:
    beside = folder.parent if folder.name == "preset" else folder
    path = next((f / _RUN_FIGURES for f in (folder, beside) if (f / _RUN_FIGURES).is_file()), None)
    for name, figures in (_read(path) if path else {}).items():
        for what, value in figures.items() if isinstance(figures, dict) else ():
            if isinstance(value, int | float):
                yield f"- {_text(name, '?')}, {_text(what, '?').replace('_', ' ')}: {value:.4g}"


def _figures_of_evaluation(folder: Path) -> Iterator[str]:
    """Write the figures of the first split, because its classifiers are the ones that are kept."""
    if not folder.name.startswith(_CLASSIFIER):
        return
    task = folder.name.removeprefix(_CLASSIFIER)
    splits = _read(folder.parent / _EVALUATION_FIGURES).get("splits")
    first = splits[0] if isinstance(splits, list) and splits else None
    metrics = first.get(task) if isinstance(first, dict) else None
    for what in ("top1", "top5"):
        value = metrics.get(what) if isinstance(metrics, dict) else None
        if isinstance(metrics, dict) and isinstance(value, float):
            count = _text(metrics.get("num_counted"), "?")
            yield f"- {_text(task, '?')}, {what}: {100 * value:.1f} % of {count} samples"


def _read(path: Path) -> Object:
    try:
        return read_json_object(path)
    except (OSError, ValueError):
        return {}


def _text(value: Any, otherwise: str) -> str:
    """Write a value as a line that Markdown takes for plain text."""
    if not isinstance(value, str | int | float) or value == "":
        return otherwise
    return re.sub(r"[\s`<>|]+", " ", str(value)).strip()[:_LONGEST] or otherwise
