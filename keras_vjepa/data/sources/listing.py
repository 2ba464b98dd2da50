"""Whatever people keep videos and images in, as lists of samples (§3.4, App. D).

In a list of rows `path label`, paths may contain spaces and be quoted; `path::label`, `path,label`,
`path;label`, tabs and `label,path` are understood too. The label may be missing. A relative path is
taken from the working directory if it exists there, otherwise from the folder of the list.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from keras_vjepa.arguments import check_number
from keras_vjepa.data.reading.errors import printable
from keras_vjepa.data.reading.frame_folder import DEFAULT_FPS
from keras_vjepa.data.sources.folders import EXTENSIONS, IN_WORDS, Kind, check_kind, search_folder
from keras_vjepa.data.sources.rows import Row, looks_like_a_file, path_from_list, read_rows
from keras_vjepa.data.sources.samples import Sample, with_fps


def samples_if_there(source: str | Path) -> list[Sample]:
    """List the videos of a folder or a manifest; none if it is gone or cannot be read."""
    with suppress(OSError, ValueError):
        return list_samples(source)
    return []


def list_samples(
    source: str | Path,
    kind: Kind = "video",
    class_names: Sequence[str] | None = None,
    fps: float = DEFAULT_FPS,
) -> list[Sample]:
    """List the videos or images of a folder or of a manifest.

    Args:
        source: one of
            a folder, searched recursively for files with a fitting extension, in sorted order;
            the log says in one line what else is in it (see `search_folder`);
            a `.csv` or `.txt` list without a header, one row `path label` for each file or folder
            of frames, in the order of the list;
            a `.npy` array of paths.
        kind: what to look for in a folder: `"video"`, `"image"`, `"any"` of both, or `"frames"`:
            folders whose pictures are the frames of a video, in the order of their numbers.
        class_names: names of the classes in the order of their numbers, where the labels of a list
            are names: `listed_class_names` of the training list, for every other list. `None` is
            those of `source` itself.
        fps: frames per second of folders of frames.

    Returns:
        The samples, never an empty list. That their files exist is not checked: in large sets
        some always miss, and reading tells.

    Raises:
        FileNotFoundError: if `source` does not exist.
        ValueError: if `kind` is unknown, or `source` is of another type, cannot be read, holds
            nothing or no row of a file, a row that can mean several things, or a label that is
            neither a whole number nor one of `class_names`; the message begins with the file and
            the line.

    Example:

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     manifest = Path(folder, "train.csv")
    ...     _ = manifest.write_text("/videos/a cat.mp4 3\\n/videos/b.mp4 0\\n")
    ...     list_samples(manifest)
    [Sample(path='/videos/a cat.mp4', label=3), Sample(path='/videos/b.mp4', label=0)]
    """
    check_kind(kind)
    check_number("(0, inf)", fps=fps)
    source = _existing(source)
    if source.is_dir():
        samples = [Sample(path) for path in search_folder(source, kind).paths]
        remedy = f"Its files must end with one of {' '.join(sorted(EXTENSIONS[kind]))}"
    else:
        samples = _samples_of_file(source, class_names)
        remedy = "Write one row `path label` for each video or image"
    if not samples:
        raise ValueError(f"No {IN_WORDS[kind]} in {source}. {remedy}.")
    if fps == DEFAULT_FPS:
        return samples
    is_folder = [kind == "frames" or os.path.isdir(sample.path) for sample in samples]
    return [
        with_fps([sample], fps)[0] if of_frames else sample
        for sample, of_frames in zip(samples, is_folder, strict=True)
    ]


def listed_class_names(source: str | Path) -> list[str]:
    """Names of the classes in a list whose labels are names, sorted.

    Args:
        source: a `.csv` or `.txt` list, as `list_samples` takes it.

    Returns:
        The names; the place in the list is the class number. Empty if the labels are numbers, if
        there are none, or if `source` is not a list.

    Raises:
        FileNotFoundError: if `source` does not exist.
        ValueError: as `list_samples` does.

    Example:

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     manifest = Path(folder, "train.csv")
    ...     _ = manifest.write_text("/v/a.mp4 juggling\\n/v/b.mp4,playing guitar\\n")
    ...     listed_class_names(manifest)
    ['juggling', 'playing guitar']
    """
    source = _existing(source)
    if source.is_dir() or source.suffix.lower() not in (".csv", ".txt"):
        return []
    return _class_names_of_rows(_rows_of_list(source))


def _samples_of_file(source: Path, class_names: Sequence[str] | None) -> list[Sample]:
    """Samples of a list."""
    if source.suffix.lower() in (".csv", ".txt"):
        return _samples_of_list(source, class_names)
    if source.suffix.lower() == ".npy":
        return [Sample(path_from_list(path, source.parent)) for path in _paths_of_array(source)]
    raise ValueError(f"`source` must be a folder, .csv, .txt or .npy. Received: {source}")


def _existing(source: str | Path) -> Path:
    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(f"`source` must be an existing folder or list. Received: {source}")
    return source


def _samples_of_list(source: Path, class_names: Sequence[str] | None) -> list[Sample]:
    rows = _rows_of_list(source)
    names = _class_names_of_rows(rows) if class_names is None else class_names
    numbers: dict[str | int, int] = {name: number for number, name in enumerate(names)}
    samples = []
    for row in rows:
        label = row.label
        if label is not None and (numbers or isinstance(label, str)):
            if label not in numbers:
                raise ValueError(
                    f"{row.where}: The label must be one of `class_names`, which are those of the "
                    f"training list. Received: {label!r}"
                )
            label = numbers[label]
        samples.append(Sample(row.path, label))
    return samples


def _rows_of_list(source: Path) -> list[Row]:
    """Rows whose labels are all numbers or all names."""
    rows = list(read_rows(source))
    if rows and not any(looks_like_a_file(row, source.parent) for row in rows):
        first = os.path.relpath(rows[0].path, source.parent)
        raise ValueError(
            f"{rows[0].where}: A list must have rows `path label`, and no row of this one has a "
            f"label, an extension or a folder, or is a file. Received: '{printable(first)}'"
        )
    names = [row for row in rows if isinstance(row.label, str)]
    if names and any(isinstance(row.label, int) for row in rows):
        raise ValueError(
            f"{names[0].where}: The labels of a list must all be whole numbers, at least 0, or all "
            f"names of classes. Received: {names[0].label!r} beside numbers"
        )
    return rows


def _class_names_of_rows(rows: Sequence[Row]) -> list[str]:
    return sorted({row.label for row in rows if isinstance(row.label, str)})


def _paths_of_array(source: Path) -> list[str]:
    remedy = "Save it with np.save(name, np.array(paths, dtype=str))"
    try:
        # Without pickles: loading one runs the code in it.
        paths = np.load(source, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{source} is not a readable array of paths. {remedy}.") from error
    if paths.ndim != 1 or paths.dtype.kind not in "US":
        raise ValueError(
            f"{source} must hold a 1-D array of strings. {remedy}. "
            f"Received: shape {paths.shape}, dtype {paths.dtype}"
        )
    return [os.fsdecode(path) for path in paths.tolist()]
