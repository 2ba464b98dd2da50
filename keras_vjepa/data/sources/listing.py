"""List the samples in whatever people keep videos and images in (§3.4, App. D).

Sources:

* A folder, searched recursively for files with a fitting extension, in sorted order; the log says
  in one line what else is in it (see `search_folder`). Or one such file.
* A `.csv` or `.txt` list without a header, one row `path label` for each file or folder of frames,
  in the order of the list. Paths may contain spaces and be quoted; `path::label`, `path,label`,
  `path;label`, tabs and `label,path` are understood too. The label may be missing. For folders of
  frames, VideoMAE's `folder frames label` and `folder start frames` are read too.
* A table with named columns, `.csv`, `.tsv`, `.jsonl` or `.parquet` (see `tables.py`).
* A `.npy` array of paths.
* Shards: a `.tar`, several as `train-{000000..000099}.tar`, a folder of them, or an index of wids
  (see `shards.py`).
* The published lists of Kinetics, Something-Something v2 and AVA, with `videos`, the folder where
  the files are (see `manifests.py`).

* Any of these, except published lists, at an address such as `gs://bucket/folder` (see
  `remote.py`); at https addresses, only lists and shards.

* In Python, a data set of another library, or a list (see `datasets.py`).

A relative path in a list is taken from the working directory if it exists there, otherwise from the
folder of the list. A path may lead into a tar file, `shards/000.tar/clip.mp4`, and be an address.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from keras_vjepa import files
from keras_vjepa.arguments import counted
from keras_vjepa.data.reading.errors import MissingPackageError, printable
from keras_vjepa.data.reading.frame_folder import DEFAULT_FPS, check_fps
from keras_vjepa.data.reading.kinds import extension
from keras_vjepa.data.reading.locating import media_is_there
from keras_vjepa.data.reading.remote import ADDRESS, RemoteFile, store_of, without_query
from keras_vjepa.data.sources.datasets import dataset_class_names, dataset_rows, is_dataset
from keras_vjepa.data.sources.folders import (
    EXTENSIONS,
    IN_WORDS,
    Kind,
    check_kind,
    search_folder,
    visible_files,
)
from keras_vjepa.data.sources.manifests import (
    ava_samples,
    is_ava,
    is_something_something,
    kinetics_class_names,
    kinetics_samples,
    something_something_samples,
)
from keras_vjepa.data.sources.rows import Row, looks_like_a_file, path_from_list, read_rows
from keras_vjepa.data.sources.samples import Sample, with_fps
from keras_vjepa.data.sources.shards import (
    expand_braces,
    is_folder_of_shards,
    is_shards,
    shard_rows,
)
from keras_vjepa.data.sources.tables import ENDINGS, is_kinetics, is_table, table_rows

# Extensions of lists.
LISTS = {".csv", ".txt", ".npy", *ENDINGS}
# Many threads help, because looking for files waits for the disk or the network, not for Python.
_THREADS, _AT_ONCE = 16, 256

_LOG = logging.getLogger(__name__)


def list_samples(
    source: str | Path | Any,
    kind: Kind = "video",
    class_names: Sequence[str] | None = None,
    fps: float = DEFAULT_FPS,
    videos: str | Path = "",
    label_names: str | Path = "",
    path_column: str = "",
    label_column: str = "label",
) -> list[Sample]:
    """List the videos or images of a folder, of shards, of a list or of a published data set.

    Args:
        source: a path or a data set; see above, "Sources".
        kind: what to look for in a folder or in shards: `"video"`, `"image"`, `"any"` for both, or
            `"frames"`: folders whose pictures are the frames of a video, in the order of their
            numbers.
        class_names: names of the classes in the order of their numbers, where labels are names.
            Give `listed_class_names` of the training list for every other list. `None` uses the
            names in `source` itself.
        fps: frames per second of folders of frames; in a table, a column of this name counts first.
        videos: folder of the videos, for published lists.
        label_names: `labels.json` of Something-Something v2.
        path_column: column of the paths in a table; by default the first that is called path, file,
            video or the like.
        label_column: column of the labels in a table, or their field in the `json` of shards. Empty
            for no labels.

    Returns:
        The samples, never an empty list. The log says how many files of a list are missing.

    Raises:
        FileNotFoundError: if `source`, or a shard of it, does not exist.
        ValueError: if an argument does not fit, or `source` is of another type, cannot be read,
            holds nothing or no row of a file, a row that can mean several things, or a label that
            is neither a whole number nor in `class_names`; the message names the file and line.

    Example:

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     manifest = Path(folder, "train.csv")
    ...     _ = manifest.write_text("/videos/a cat.mp4 3\\n/videos/b.mp4 0\\n")
    ...     list_samples(manifest)
    [Sample(path='/videos/a cat.mp4', label=3), Sample(path='/videos/b.mp4', label=0)]
    """
    check_kind(kind)
    check_fps(fps)
    _check_source(source)
    if is_dataset(source):
        rows = dataset_rows(source, path_column, label_column, fps)
        return _labelled(rows, class_names)
    samples = _published(source, class_names, videos, label_names)
    if samples is None:
        samples = _labelled(_rows_of(source, kind, path_column, label_column), class_names)
    if not samples:
        raise ValueError(f"No {IN_WORDS[kind]} in {source}. {_remedy(source, kind)}.")
    if not os.path.isdir(source) and not is_shards(source):
        _say_what_is_missing(source, samples)
    return _with_fps(samples, kind, fps)


def source_exists(source: str | Path) -> bool:
    """Tell whether there is anything of a source; `list_samples` says what of it is missing."""
    if ADDRESS.match(os.fspath(source)):
        store_of(os.fspath(source))  # raises if nothing can be read at such an address
        return True
    return os.path.exists(source) or (
        is_shards(source) and any(map(os.path.exists, expand_braces(os.fspath(source))))
    )


def listed_class_names(
    source: str | Path | Any, path_column: str = "", label_column: str = "label"
) -> list[str]:
    """List the names of the classes in a list, table or shards whose labels are names.

    Args:
        source: as in `list_samples`.
        path_column: as in `list_samples`.
        label_column: as in `list_samples`.

    Returns:
        The sorted names; the place in the list is the class number. Empty if the labels are
        numbers, if there are none, or if `source` is a folder of videos.

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
    _check_source(source)
    if is_dataset(source):
        names = dataset_class_names(source, label_column)
        rows = [] if names else dataset_rows(source, path_column, label_column, DEFAULT_FPS)
        return names or _class_names_of_rows(rows)
    if os.path.isfile(source) and is_kinetics(source):
        return kinetics_class_names(source)
    return _class_names_of_rows(_rows_of(source, "any", path_column, label_column))


def is_published(source: str | Path) -> str:
    """Name the data set whose published list a file is; empty for anything else."""
    if not os.path.isfile(source):
        return ""
    kinds = {
        "Kinetics": is_kinetics,
        "AVA": is_ava,
        "Something-Something v2": is_something_something,
    }
    return next((name for name, fits in kinds.items() if fits(source)), "")


def _published(
    source: str | Path,
    class_names: Sequence[str] | None,
    videos: str | Path,
    label_names: str | Path,
) -> list[Sample] | None:
    """List the samples of a published list; None if it is something else."""
    name = is_published(source)
    if not name:
        if videos or label_names:
            given = "videos" if videos else "label_names"
            raise ValueError(
                f"`{given}` must be left out with {source}, which is no published list. "
                f"Received: {videos or label_names}"
            )
        return None
    if not videos:
        raise ValueError(
            f"`videos` must be the folder of the videos for {source}, a list of {name}. "
            "Received: none"
        )
    if name == "Kinetics":
        return kinetics_samples(source, videos, class_names)
    if name == "AVA":
        return ava_samples(source, videos)
    return something_something_samples(source, label_names or None, videos)


def _check_source(source: str | Path | Any) -> None:
    """Check that a path may be a source, without opening it: a pipe can be read only once."""
    if is_dataset(source):
        return
    if not os.fspath(source):
        raise ValueError("`source` must be a folder, a list or shards. Received: no name")
    kind = files.kind_of(source)
    if kind not in (None, "file", "folder"):
        raise ValueError(
            f"`source` must be a folder or a file. Received: {printable(str(source))}, which is a "
            f"{kind}: write what it holds to a file"
        )


# --- Rows ----------------------------------------------------------------------------------------


def _rows_of(source: str | Path, kind: Kind, path_column: str, label_column: str) -> list[Row]:
    if is_shards(source) or is_folder_of_shards(source, kind):
        return shard_rows(source, kind, label_column)
    if ADDRESS.match(os.fspath(source)):
        return _rows_elsewhere(os.fspath(source), kind, path_column, label_column)
    path = Path(source)
    if not os.path.exists(path):
        raise FileNotFoundError(f"`source` must be an existing folder or list. Received: {source}")
    if os.path.isdir(path):
        return [Row(name, None, name) for name in search_folder(path, kind).paths]
    if kind != "frames" and extension(path.name) in EXTENSIONS[kind]:
        return [Row(str(source), None, str(source))]
    if is_table(path, path_column):
        return list(table_rows(path, path_column, label_column))
    if path.suffix.lower() in (".csv", ".txt"):
        return _rows_of_list(path)
    if path.suffix.lower() == ".npy":
        return [Row(path_from_list(one, path.parent), None, one) for one in _paths_of_array(path)]
    raise ValueError(
        "`source` must be a folder, .csv, .txt or .npy, .tsv, .jsonl or .parquet, .tar, or a "
        f"published list. Received: {source}"
    )


def _rows_elsewhere(source: str, kind: Kind, path_column: str, label_column: str) -> list[Row]:
    """Read the rows of a list at an address, or of a folder there."""
    folder = f"{without_query(source).rpartition('/')[0]}/"
    if extension(without_query(source)) not in LISTS:
        if kind == "frames":
            raise ValueError(f'`kind` must not be "frames" at an address. Received: {source}')
        store = store_of(source)
        with _naming(source):
            found = store.find(source)
        fitting = [name for name in sorted(found) if extension(name) in EXTENSIONS[kind]]
        return [Row(name, None, name, RemoteFile(name, found[name])) for name in fitting]
    with _naming(source):
        copy = RemoteFile(source).local_copy()
    if is_published(copy):
        raise ValueError(f"`source` must be on a disk for a list of {is_published(copy)}: {source}")
    here = f"{os.path.dirname(copy)}/"
    try:
        rows = _rows_of(copy, kind, path_column, label_column)
    except ValueError as error:
        raise ValueError(str(error).replace(copy, source)) from error
    return [
        replace(
            row,
            path=folder + row.path.removeprefix(here) if row.path.startswith(here) else row.path,
            where=row.where.replace(copy, source),
        )
        for row in rows
    ]


@contextmanager
def _naming(address: str) -> Iterator[None]:
    """Name an address in the errors that a block raises because of it."""
    try:
        yield
    except MissingPackageError:
        raise
    except (OSError, ValueError) as error:
        text, name = " ".join(str(error).split()), printable(address)
        if name in text:
            raise
        raise ValueError(f"`source` must be readable. Received: {name}: {text}") from error


def _labelled(rows: Sequence[Row], class_names: Sequence[str] | None) -> list[Sample]:
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
        samples.append(Sample(row.path, label, row.media))
    return samples


def _rows_of_list(source: Path) -> list[Row]:
    rows = list(read_rows(source))
    if rows and not any(looks_like_a_file(row, source.parent) for row in rows):
        first = os.path.relpath(rows[0].path, source.parent)
        raise ValueError(
            f"{rows[0].where}: A list must have rows `path label`, and nothing in this one looks "
            f"like a path. Received: '{printable(first)}'"
        )
    return rows


def _class_names_of_rows(rows: Sequence[Row]) -> list[str]:
    """List the names of the classes; raise `ValueError` if only some of the labels are names."""
    named = [row for row in rows if isinstance(row.label, str)]
    if named and any(isinstance(row.label, int) for row in rows):
        raise ValueError(
            f"{named[0].where}: The labels of a list must all be whole numbers, at least 0, or all "
            f"names of classes. Received: {named[0].label!r} beside numbers"
        )
    return sorted({str(row.label) for row in named})


def _paths_of_array(source: Path) -> list[str]:
    remedy = "Save it with np.save(name, np.array(paths, dtype=str))"
    try:
        # Without pickles, because loading one runs the code in it.
        paths = np.load(source, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{source} is not a readable array of paths. {remedy}.") from error
    if paths.ndim != 1 or paths.dtype.kind not in "US":
        raise ValueError(
            f"{source} must hold a 1-D array of strings. {remedy}. "
            f"Received: shape {paths.shape}, dtype {paths.dtype}"
        )
    return [os.fsdecode(path) for path in paths.tolist()]


# --- Samples -------------------------------------------------------------------------------------


def _remedy(source: str | Path, kind: Kind) -> str:
    is_list = extension(without_query(os.fspath(source))) in LISTS
    if os.path.isdir(source):
        found = {extension(entry.name) for entry in visible_files(source)}
        if kind == "video" and found & EXTENSIONS["image"]:
            return (
                'It holds images: `kind` must be "frames" if each folder of them is a video, or '
                '"image" if each of them is one'
            )
        if kind in ("image", "frames") and found & EXTENSIONS["video"]:
            return 'It holds videos: `kind` must be "video"'
    if os.path.isdir(source) or is_shards(source) or not is_list:
        endings = " ".join(sorted(EXTENSIONS[kind]))
        return f"Its files must end with one of {endings}, or `kind` must be another"
    return "Write one row `path label` for each video or image"


def _say_what_is_missing(source: str | Path, samples: Sequence[Sample]) -> None:
    """Warn how many of the files of a list are not there; reading will name each of them."""
    paths = [sample.path for sample in samples if not ADDRESS.match(sample.path)]
    parts = [paths[start : start + _AT_ONCE] for start in range(0, len(paths), _AT_ONCE)]
    with ThreadPoolExecutor(_THREADS) as pool:
        # Many are handled at once, because handing a single path to a thread takes longer than
        # looking for the file.
        found = pool.map(lambda part: [path for path in part if not media_is_there(path)], parts)
        missing = [path for part in found for path in part]
    if missing:
        _LOG.warning(
            "Missing: %d of %s in %s, %s first",
            *(len(missing), counted(len(samples), "file"), printable(str(source))),
            printable(missing[0]),
        )


def _with_fps(samples: list[Sample], kind: Kind, fps: float) -> list[Sample]:
    """Set the frames per second of those folders of frames for which no table gives them."""

    def is_silent(sample: Sample) -> bool:
        if sample.media is not None:
            return False
        return kind == "frames" or (fps != DEFAULT_FPS and os.path.isdir(sample.path))

    return [with_fps([s], fps)[0] if is_silent(s) else s for s in samples]
