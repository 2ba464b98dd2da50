"""Read the annotation files of Kinetics, Something-Something v2 and AVA (App. D, Table 10).

A video that is annotated but not there stays in the list, with the path where it should be. So the
reader names it, and an evaluation counts it.
"""

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from keras_vjepa.data.sources.official_lists import (
    files_by_name,
    kinetics_videos,
    load_json,
    something_something_videos,
)
from keras_vjepa.data.sources.samples import Sample

_LONGEST = 4096


def kinetics_class_names(annotations: str | Path) -> list[str]:
    """List the names of the classes in a Kinetics annotation file; the place is the class number.

    Args:
        annotations: `train.csv` as published.

    Returns:
        The sorted names: 400 for Kinetics-400.

    Raises:
        ValueError: if the file has no column `label`.
    """
    names = {video.label for video in kinetics_videos(Path(annotations))}
    if None in names:
        raise ValueError(f"{annotations} must have a column `label`. Use the training list's.")
    return sorted(map(str, names))


def kinetics_samples(
    annotations: str | Path, folder: str | Path, class_names: Sequence[str] | None = None
) -> list[Sample]:
    """List a Kinetics set (400, 600 or 700) as published.

    Args:
        annotations: csv with a header: `label` (not in that of the test set), `youtube_id`,
            `time_start`, `time_end` and others.
        folder: where the videos are, at any depth, named `<youtube_id>_<start>_<end>.<extension>`
            with six digits each, or `<youtube_id>.<extension>`.
        class_names: names in the order of the class numbers; `None` is `kinetics_class_names`.
            Give those of the training set for every other split.

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
    videos = [*kinetics_videos(Path(annotations))]
    if class_names is None:
        class_names = sorted({video.label for video in videos if video.label is not None})
    numbers: dict[str | None, int | None] = {name: n for n, name in enumerate(class_names)}
    numbers[None] = None
    files, samples = files_by_name(folder), []
    for video in videos:
        if video.label not in numbers:
            raise ValueError(f"`class_names` must hold {video.label!r}, a label in {annotations}.")
        missing = os.path.join(folder, f"{video.names[0]}.mp4")
        path = next((files[name] for name in video.names if name in files), missing)
        samples.append(Sample(path, numbers[video.label]))
    return samples


def something_something_samples(
    annotations: str | Path, labels: str | Path | None, folder: str | Path
) -> list[Sample]:
    """List a split of Something-Something v2 as published.

    Args:
        annotations: json list of objects with `id` and `template` (the test set has no `template`).
        labels: json object that maps a template without its brackets to the class number; None for
            no labels.
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
    videos = [*something_something_videos(Path(annotations))]
    numbers = {} if labels is None else load_json(labels, dict)
    files, samples = files_by_name(folder), []
    for video in videos:
        label = None
        if video.label is not None and labels is not None:
            plain = video.label.replace("[", "").replace("]", "")
            if plain not in numbers:
                raise ValueError(f"{labels} must hold {plain!r}, a template in {annotations}.")
            label = _class_number(numbers[plain], labels)
        missing = os.path.join(folder, f"{video.id}.webm")
        samples.append(Sample(files.get(video.id, missing), label))
    return samples


def something_something_class_names(labels: str | Path) -> list[str] | None:
    """Name the classes of Something-Something v2 in the order of their numbers.

    Args:
        labels: as in `something_something_samples`.

    Returns:
        The templates without brackets; None if two share a number, or a number has none.

    Raises:
        ValueError: if the file holds no class numbers.

    Example:

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "labels.json").write_text('{"Holding something": "1", "Rest": "0"}')
    ...     something_something_class_names(Path(folder, "labels.json"))
    ['Rest', 'Holding something']
    """
    named = {_class_number(n, labels): name for name, n in load_json(labels, dict).items()}
    names = [named[number] for number in sorted(named)]
    return names if sorted(named) == list(range(len(load_json(labels, dict)))) else None


def ava_samples(annotations: str | Path, folder: str | Path) -> list[Sample]:
    """List the videos of a split of AVA, each once, without labels.

    Args:
        annotations: csv without a header, of rows `video,second,x1,y1,x2,y2,action,person` or
            others that begin with a video.
        folder: where the videos are, at any depth, named `<video>.mkv` or with another extension.

    Returns:
        A sample for each video, in the order of their first rows.
    """
    with open(annotations, newline="", encoding="utf-8-sig") as file:
        names = dict.fromkeys(row[0] for row in csv.reader(file) if row)
    files = files_by_name(folder)
    return [Sample(files.get(name, os.path.join(folder, f"{name}.mkv"))) for name in names]


def is_ava(source: str | Path) -> bool:
    """Tell whether a file is a list of AVA, by its first row: a video, a second and a box."""
    if Path(source).suffix.lower() != ".csv":
        return False
    try:
        with open(source, newline="", encoding="utf-8-sig", errors="replace") as file:
            first = next(csv.reader([file.readline(_LONGEST)]), [])
        return len(first) in (7, 8) and all(0 <= float(edge) <= 1 for edge in first[2:6])
    except (OSError, ValueError, csv.Error):
        return False


def is_something_something(source: str | Path) -> bool:
    """Tell whether a file is a list of Something-Something v2, which is a JSON list of entries."""
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
