"""Describe videos and images by samples, and list folders of classes as such (§3.4, App. D)."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from keras_vjepa.data.reading.frame_folder import DEFAULT_FPS, FrameFolder
from keras_vjepa.data.reading.kinds import has_image_extension
from keras_vjepa.data.reading.media import Media
from keras_vjepa.data.sources.folders import IN_WORDS, Kind, check_kind, search_folder

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sample:
    """Names one video or image, and holds what is known about it.

    Attributes:
        path: path of a file or of a folder of frames, which is also the sample's name in lists. An
            extension of images makes it an image. It need not exist yet.
        label: class number, at least 0, or `None` where there is none (pretraining).
        media: where the frames come from, if not from what `path` leads to.
    """

    path: str
    label: int | None = None
    media: Media | None = field(default=None, repr=False, compare=False)

    @property
    def source(self) -> str | Media:
        """Return what is read: the media if there is one, else the path."""
        return self.path if self.media is None else self.media


def class_folders(root: str | Path, name: str = "root") -> list[str]:
    """List the names of the classes of a folder that has one folder for each class.

    Args:
        root: such a folder, as ImageNet and many copies of Kinetics are kept.
        name: name of the argument, for messages.

    Returns:
        The sorted names; the place in the list is the class number.

    Raises:
        ValueError: if there are no folders in `root`.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"`{name}` must be an existing folder. Received: {root}")
    names = sorted(path.name for path in root.iterdir() if path.is_dir() and path.name[0] != ".")
    if not names:
        raise ValueError(f"`{name}` must hold one folder for each class. Received: none in {root}")
    return names


def list_class_folders(
    root: str | Path,
    class_names: Sequence[str] | None = None,
    kind: Kind = "video",
    fps: float = DEFAULT_FPS,
) -> list[Sample]:
    """List `root/class name/.../file`, labelled by the class's place in `class_names`.

    Args:
        root: folder with one folder for each class.
        class_names: names of the classes in the order of their numbers, for example
            `class_folders` of the training set; `None` is `class_folders(root)`.
        kind: what to look for; `"frames"` are the folders of frames below the class folders.
        fps: frames per second of folders of frames.

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
    check_kind(kind)
    names = class_folders(root) if class_names is None else class_names
    samples = label_by_folder(root, search_folder(root, kind).paths, names)
    if not samples:
        raise ValueError(f"No {IN_WORDS[kind]} below the class folders of {root}.")
    return with_fps(samples, fps) if kind == "frames" else samples


def with_fps(samples: Sequence[Sample], fps: float) -> list[Sample]:
    """Return samples, all of them folders of frames, with their frames per second set."""
    return [replace(sample, media=FrameFolder(sample.path, fps)) for sample in samples]


def label_by_folder(
    root: str | Path, paths: Sequence[str], class_names: Sequence[str]
) -> list[Sample]:
    """Label files by the folder in `root` that they lie in.

    Args:
        root: folder with one folder for each class.
        paths: files of one kind in `root` and in the folders in it.
        class_names: names of the classes in the order of their numbers.

    Returns:
        The samples, in the order of `paths`. Files in no class folder are left out, and the log
        says how many.

    Raises:
        ValueError: if a folder is not in `class_names`.
    """
    numbers = {name: number for number, name in enumerate(class_names)}
    unknown = [name for name in class_folders(root) if name not in numbers]
    if unknown:
        raise ValueError(
            f"`class_names` must hold the name of every folder in {root}. Received: none of "
            f"{', '.join(map(repr, unknown[:3]))}{' ...' if len(unknown) > 3 else ''}"
        )
    samples, classless = [], []
    for path in paths:
        name, *below = Path(path).relative_to(root).parts
        if below:
            samples.append(Sample(path, numbers[name]))
        else:
            classless.append(path)
    if classless:
        kind = "image" if has_image_extension(classless[0]) else "video"
        _LOG.warning("Left out of %s: %d %s(s) in no class folder", root, len(classless), kind)
    return samples
