"""The annotation files that Kinetics, Something-Something v2 and AVA come with (App. D, Table 10).

A video that is annotated but not there stays in the list, with the path where it should be: the
reader names it, and an evaluation counts it.
"""

import csv
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from keras_vjepa.arguments import shown
from keras_vjepa.data.sources.folders import search_folder
from keras_vjepa.data.sources.official_lists import kinetics_file_names
from keras_vjepa.data.sources.samples import Sample

# Of each row, beside the columns: where it ends in the file.
_LINE = "line of the file"
_LONGEST = 4096


def kinetics_class_names(annotations: str | Path) -> list[str]:
    """Names of the classes in a Kinetics annotation file, sorted; the place is the class number.

    Args:
        annotations: `train.csv` as published.

    Returns:
        The names: 400 for Kinetics-400.

    Raises:
        ValueError: if the file has no column `label`.
    """
    rows = _kinetics_rows(annotations)
    if "label" not in rows[0]:
        raise ValueError(f"{annotations} must have a column `label`. Use the training list's.")
    return sorted({row["label"] for row in rows})


def kinetics_samples(
    annotations: str | Path, folder: str | Path, class_names: Sequence[str] | None = None
) -> list[Sample]:
    """List a Kinetics set (400, 600 or 700) as published.

    Args:
        annotations: csv with a header: `label` (not in the test set's), `youtube_id`,
            `time_start`, `time_end` and others.
        folder: where the videos are, at any depth, named `<youtube_id>_<start>_<end>.<extension>`
            with six digits each, or `<youtube_id>.<extension>`.
        class_names: in the order of the class numbers; `None` is `kinetics_class_names`. Give
            the training set's for every other split.

    Returns:
        A sample for each row, in order; without a label where the file has none.

    Raises:
        ValueError: if a column is missing, or a label is not in `class_names`.

    Example:

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     annotations = Path(folder, "val.csv")
    ...     _ = annotations.write_text(
    ...         "label,youtube_id,time_start,time_end,split\\n"
    ...         '"playing ukulele",-6l2Y,3,13,validate\\n'
    ...     )
    ...     sample = kinetics_samples(annotations, "/videos", ["archery", "playing ukulele"])[0]
    >>> sample
    Sample(path='/videos/-6l2Y_000003_000013.mp4', label=1)
    """
    rows = _kinetics_rows(annotations)
    if class_names is None and "label" in rows[0]:
        class_names = kinetics_class_names(annotations)
    numbers = {name: number for number, name in enumerate(class_names or ())}
    files = _files_by_name(folder)
    samples = []
    for row in rows:
        where = f"{annotations}:{row[_LINE]}"
        with_times, alone = kinetics_file_names(row["youtube_id"], row, where)
        missing = os.path.join(folder, f"{with_times}.mp4")
        path = files.get(with_times) or files.get(alone) or missing
        label = row.get("label")
        if label is not None and label not in numbers:
            raise ValueError(f"`class_names` must hold {label!r}, a label in {annotations}.")
        samples.append(Sample(path, None if label is None else numbers[label]))
    return samples


def _files_by_name(folder: str | Path) -> dict[str, str]:
    """Videos at any depth in a folder, by their names without the extension."""
    found = search_folder(folder).paths
    return {os.path.splitext(os.path.basename(path))[0]: path for path in found}


def _kinetics_rows(annotations: str | Path) -> list[dict[str, str]]:
    try:
        with open(annotations, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows = [{**row, _LINE: str(reader.line_num)} for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{annotations} must be a Kinetics csv in UTF-8: {error}") from error
    if not rows:
        raise ValueError(f"No videos in {annotations}. It must be a Kinetics csv with a header.")
    for name in ("youtube_id", "time_start", "time_end"):
        if name not in rows[0]:
            raise ValueError(f"{annotations} must have a column `{name}`. Use the published csv.")
    for row in rows:
        for name in ("youtube_id", "time_start", "time_end", "label"):
            if name in rows[0] and not row[name]:
                raise ValueError(f"{annotations}:{row[_LINE]}: `{name}` must not be empty.")
    return rows


def something_something_samples(
    annotations: str | Path, labels: str | Path | None, folder: str | Path
) -> list[Sample]:
    """List a split of Something-Something v2 as published.

    Args:
        annotations: json list of `id` and `template` (no `template` in the test set's).
        labels: json object from a template without its brackets to the class number; None for no
            labels.
        folder: where the videos are, at any depth, named `<id>.webm` or with another extension.

    Returns:
        A sample for each entry, in order; without a label where it has no template.

    Raises:
        ValueError: if an entry has no `id`, or its template is not in `labels`.

    Example:

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     annotations, labels = Path(folder, "val.json"), Path(folder, "labels.json")
    ...     _ = annotations.write_text('[{"id": "7", "template": "Holding [something]"}]')
    ...     _ = labels.write_text('{"Holding something": "37"}')
    ...     sample = something_something_samples(annotations, labels, "/videos")[0]
    >>> sample
    Sample(path='/videos/7.webm', label=37)
    """
    entries = _load_json(annotations, list)
    numbers = {} if labels is None else _load_json(labels, dict)
    files = _files_by_name(folder)
    samples = []
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), str | int):
            raise ValueError(
                f"Every entry of {annotations} must have an `id`. Received: {str(entry)[:80]}"
            )
        template = entry.get("template")
        if not isinstance(template, str | None):
            raise ValueError(
                f"Every `template` in {annotations} must be text. Received: {shown(template)}"
            )
        label = None
        if template is not None and labels is not None:
            plain = template.replace("[", "").replace("]", "")
            if plain not in numbers:
                raise ValueError(f"{labels} must hold {plain!r}, a template in {annotations}.")
            label = _class_number(numbers[plain], labels)
        name = str(entry["id"])
        samples.append(Sample(files.get(name, os.path.join(folder, f"{name}.webm")), label))
    if not samples:
        raise ValueError(f"No videos in {annotations}. Use the published json.")
    return samples


def ava_samples(annotations: str | Path, folder: str | Path) -> list[Sample]:
    """List the videos of a split of AVA, each once, without labels.

    Args:
        annotations: csv without a header: `video,second,x1,y1,x2,y2,action,person` and others that
            begin with a video.
        folder: where the videos are, at any depth, named `<video>.mkv` or with another extension.

    Returns:
        A sample for each video, in the order of their first rows.
    """
    with open(annotations, newline="", encoding="utf-8-sig") as file:
        names = dict.fromkeys(row[0] for row in csv.reader(file) if row)
    files = _files_by_name(folder)
    return [Sample(files.get(name, os.path.join(folder, f"{name}.mkv"))) for name in names]


def is_ava(source: str | Path) -> bool:
    """Whether a file is a list of AVA, by its first row: a video, a second and a box."""
    if Path(source).suffix.lower() != ".csv":
        return False
    try:
        with open(source, newline="", encoding="utf-8-sig", errors="replace") as file:
            first = next(csv.reader([file.readline(_LONGEST)]), [])
        return len(first) in (7, 8) and all(0 <= float(edge) <= 1 for edge in first[2:6])
    except (OSError, ValueError, csv.Error):
        return False


def is_something_something(source: str | Path) -> bool:
    """Whether a file is a list of Something-Something v2, which is a JSON list of entries."""
    if Path(source).suffix.lower() != ".json":
        return False
    try:
        with open(source, encoding="utf-8-sig") as file:
            return file.read(_LONGEST).lstrip().startswith("[")
    except (OSError, ValueError):
        return False


def _class_number(number: Any, labels: str | Path | None) -> int:
    if isinstance(number, bool) or not str(number).isdecimal():
        raise ValueError(f"{labels} must hold class numbers, at least 0. Received: {number!r}")
    return int(number)


def _load_json(path: str | Path, kind: type) -> Any:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else error
        raise ValueError(f"{path} is not a JSON file: {reason}") from error
    if not isinstance(content, kind):
        raise ValueError(f"{path} must hold a JSON {kind.__name__}. Use the published file.")
    return content
