"""Manifests people already have, as lists of samples (§3.4, App. D)."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

VIDEO_EXTENSIONS = frozenset(
    ".3gp .avi .flv .m4v .mkv .mov .mp4 .mpeg .mpg .ogv .ts .webm .wmv".split()
)


@dataclass(frozen=True)
class Sample:
    """One video and what is known about it.

    Attributes:
        path: the video file; it need not exist yet.
        label: class number, at least 0, or `None` where there is none (pretraining).
    """

    path: str
    label: int | None = None


def list_samples(source: str | Path) -> list[Sample]:
    """List the videos of a folder or of a manifest.

    Args:
        source: one of
            a folder, searched recursively for files with a video's extension, in sorted order;
            a `.csv` or `.txt` list without a header, one row `path label` for each video, in
            the order of the list;
            a `.npy` array of paths.

    A row is split at its last space, so paths may contain spaces; `path::label` and `path,label`
    are understood too. The label may be missing: a row that ends with a video's extension, or
    has nothing to split at, is a path alone. A relative path is taken from the working directory
    if it exists there, otherwise from the folder of the list.

    Returns:
        The samples, never an empty list. That their files exist is not checked: in large sets
        some always miss, and reading tells.

    Raises:
        FileNotFoundError: if `source` does not exist.
        ValueError: if it is of another kind, cannot be read, holds nothing, or holds a label
            that is not a whole number; the message names the file and the row.

    Example:

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     manifest = Path(folder, "train.csv")
    ...     _ = manifest.write_text("/videos/a cat.mp4 3\\n/videos/b.mp4 0\\n")
    ...     list_samples(manifest)
    [Sample(path='/videos/a cat.mp4', label=3), Sample(path='/videos/b.mp4', label=0)]
    """
    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(f"`source` must be an existing folder or list. Received: {source}")
    if source.is_dir():
        samples = [Sample(path) for path in sorted(_videos_below(source))]
        remedy = f"Its files must end with one of {' '.join(sorted(VIDEO_EXTENSIONS))}"
    elif source.suffix.lower() in (".csv", ".txt"):
        samples = list(_samples_of_list(source))
        remedy = "Write one row `path label` for each video"
    elif source.suffix.lower() == ".npy":
        samples = [Sample(_resolve(path, source)) for path in _paths_of_array(source)]
        remedy = "Save an array of paths"
    else:
        raise ValueError(f"`source` must be a folder, .csv, .txt or .npy. Received: {source}")
    if not samples:
        raise ValueError(f"No videos in {source}. {remedy}.")
    return samples


def _videos_below(folder: Path) -> Iterator[str]:
    for parent, _, names in os.walk(folder):
        for name in names:
            # Hidden files are left out: macOS puts a "._clip.mp4" that is no video next to each.
            if not name.startswith(".") and _has_video_extension(name):
                yield os.path.join(parent, name)


def _has_video_extension(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in VIDEO_EXTENSIONS


def _samples_of_list(source: Path) -> Iterator[Sample]:
    try:
        text = source.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{source} is not a text file. Save the list as UTF-8 text.") from error
    except OSError as error:
        raise ValueError(f"{source} cannot be read: {error.strerror}.") from error
    if "\0" in text:
        raise ValueError(f"{source} is not a text file. Save the list as UTF-8 text.")
    # Not splitlines(): that would also cut a path at rarer separators, such as U+2028.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            path, label = _parse_row(line.strip(), f"{source}, row {number}")
            yield Sample(_resolve(path, source), label)


def _parse_row(row: str, where: str) -> tuple[str, int | None]:
    splits = [row.rsplit(separator, maxsplit=1) for separator in (None, "::", ",")]
    candidates = [parts for parts in splits if len(parts) == 2]
    for path, label in candidates:
        if label.strip().isdecimal():
            # A comma followed by a space was split at the space.
            return path.rstrip(", ").strip('"'), int(label)
    if not candidates or _has_video_extension(row.strip('"')):
        return row.strip('"'), None
    raise ValueError(
        "The label of a row must be a whole number, at least 0 (and a list has no header). "
        f"Received: {candidates[-1][1].strip()!r} in {where}"
    )


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


def _resolve(path: str, source: Path) -> str:
    if os.path.isabs(path) or os.path.exists(path):
        return path
    return str(source.parent / path)
