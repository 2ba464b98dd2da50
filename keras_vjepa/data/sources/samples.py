"""Folders and lists of videos or images, as lists of samples (§3.4, App. D)."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

VIDEO_EXTENSIONS = frozenset(
    ".3gp .avi .flv .m4v .mkv .mov .mp4 .mpeg .mpg .ogv .ts .webm .wmv".split()
)
IMAGE_EXTENSIONS = frozenset(".bmp .jpeg .jpg .png .tif .tiff .webp".split())

Kind = Literal["video", "image"]
_EXTENSIONS: dict[str, frozenset[str]] = {"video": VIDEO_EXTENSIONS, "image": IMAGE_EXTENSIONS}


@dataclass(frozen=True)
class Sample:
    """One video or image and what is known about it.

    Attributes:
        path: the file, an image if its extension says so; it need not exist yet.
        label: class number, at least 0, or `None` where there is none (pretraining).
    """

    path: str
    label: int | None = None


def list_samples(source: str | Path, kind: Kind = "video") -> list[Sample]:
    """List the videos or images of a folder or of a manifest.

    Args:
        source: one of
            a folder, searched recursively for files with a fitting extension, in sorted order;
            a `.csv` or `.txt` list without a header, one row `path label` for each file, in
            the order of the list;
            a `.npy` array of paths.
        kind: `"video"` or `"image"`, what to look for in a folder.

    A row is split at its last space, so paths may contain spaces; `path::label` and `path,label`
    are understood too. The label may be missing: a row that ends with an extension of either kind,
    or has nothing to split at, is a path alone. A relative path is taken from the working directory
    if it exists there, otherwise from the folder of the list.

    Returns:
        The samples, never an empty list. That their files exist is not checked: in large sets
        some always miss, and reading tells.

    Raises:
        FileNotFoundError: if `source` does not exist.
        ValueError: if `kind` is unknown, or `source` is of another type, cannot be read, holds
            nothing, or a label that is not a whole number; the message names the file and the row.

    Example:

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     manifest = Path(folder, "train.csv")
    ...     _ = manifest.write_text("/videos/a cat.mp4 3\\n/videos/b.mp4 0\\n")
    ...     list_samples(manifest)
    [Sample(path='/videos/a cat.mp4', label=3), Sample(path='/videos/b.mp4', label=0)]
    """
    _check_kind(kind)
    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(f"`source` must be an existing folder or list. Received: {source}")
    if source.is_dir():
        samples = [Sample(path) for path in sorted(files_below(source, kind))]
        remedy = f"Its files must end with one of {' '.join(sorted(_EXTENSIONS[kind]))}"
    elif source.suffix.lower() in (".csv", ".txt"):
        samples = list(_samples_of_list(source))
        remedy = f"Write one row `path label` for each {kind}"
    elif source.suffix.lower() == ".npy":
        samples = [Sample(_resolve(path, source)) for path in _paths_of_array(source)]
        remedy = "Save an array of paths"
    else:
        raise ValueError(f"`source` must be a folder, .csv, .txt or .npy. Received: {source}")
    if not samples:
        raise ValueError(f"No {kind}s in {source}. {remedy}.")
    return samples


def class_folders(root: str | Path) -> list[str]:
    """Names of the classes of a folder that has one folder for each class, sorted.

    Args:
        root: such a folder, as ImageNet and many copies of Kinetics are kept.

    Returns:
        The names; the place in the list is the class number.

    Raises:
        ValueError: if there are no folders in `root`.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"`root` must be an existing folder. Received: {root}")
    names = sorted(path.name for path in root.iterdir() if path.is_dir() and path.name[0] != ".")
    if not names:
        raise ValueError(f"`root` must hold one folder for each class. Received: none in {root}")
    return names


def list_class_folders(
    root: str | Path, class_names: Sequence[str] | None = None, kind: Kind = "video"
) -> list[Sample]:
    """List `root/class name/.../file`, labelled by the class's place in `class_names`.

    Args:
        root: folder with one folder for each class.
        class_names: names of the classes in the order of their numbers, for example
            `class_folders` of the training set; `None` is `class_folders(root)`.
        kind: `"video"` or `"image"`.

    Returns:
        The samples, sorted by path.

    Raises:
        FileNotFoundError: if `root` does not exist.
        ValueError: if a folder is not in `class_names`, or there are no files.

    Example:

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as root:
    ...     for name in ("cat/1.jpg", "cow/1.jpg"):
    ...         Path(root, name).parent.mkdir()
    ...         Path(root, name).touch()
    ...     [sample.label for sample in list_class_folders(root, kind="image")]
    [0, 1]
    """
    _check_kind(kind)
    found = class_folders(root)
    numbers = {name: number for number, name in enumerate(class_names or found)}
    unknown = [name for name in found if name not in numbers]
    if unknown:
        raise ValueError(
            f"`class_names` must hold the name of every folder in {root}. Received: none of "
            f"{', '.join(map(repr, unknown[:3]))}{' ...' if len(unknown) > 3 else ''}"
        )
    samples = [
        Sample(path, numbers[name])
        for name in found
        for path in sorted(files_below(Path(root) / name, kind))
    ]
    if not samples:
        raise ValueError(f"No {kind}s below the class folders of {root}.")
    return samples


def is_image(path: str) -> bool:
    """Whether a file is an image by its extension."""
    return _extension(path) in IMAGE_EXTENSIONS


def files_below(folder: str | Path, kind: Kind = "video") -> Iterator[str]:
    """Paths of all videos or images in a folder and in the folders in it, in any order."""
    for parent, _, names in os.walk(folder):
        for name in names:
            # Hidden files are left out: macOS puts a "._clip.mp4" that is no video next to each.
            if not name.startswith(".") and _extension(name) in _EXTENSIONS[kind]:
                yield os.path.join(parent, name)


def _extension(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _check_kind(kind: str) -> None:
    if kind not in _EXTENSIONS:
        raise ValueError(f'`kind` must be "video" or "image". Received: {kind!r}')


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
    if not candidates or _extension(row.strip('"')) in VIDEO_EXTENSIONS | IMAGE_EXTENSIONS:
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
