"""Make datasets for training and validation out of a folder of classes (App. D.1).

The names of the arguments are those of `keras.utils.image_dataset_from_directory`.
"""

import functools
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from keras_vjepa.arguments import check_flag, check_number, check_whole, counted, shown
from keras_vjepa.data.batches.indexed import check_reading
from keras_vjepa.data.reading.frame_folder import DEFAULT_FPS
from keras_vjepa.data.reading.locating import is_image
from keras_vjepa.data.sources.folders import IN_WORDS, Kind, search_folder
from keras_vjepa.data.sources.labels import low_shot
from keras_vjepa.data.sources.samples import Sample, class_folders, label_by_folder, with_fps

_LOG = logging.getLogger(__name__)


class DatasetMaker(Protocol):
    """Describes what `from_directory` needs of a preprocessor, as `VJEPAVideoPreprocessor` has it.

    Attributes:
        num_frames: frames of a clip, 1 for single images.
    """

    num_frames: int

    def dataset(self, samples: Sequence[Sample], **options: Any) -> Any:
        """Make a dataset, which `fit` takes, out of labelled samples."""


@dataclass(frozen=True)
class DirectoryData:
    """Holds the datasets and class names that a folder of classes gives.

    Attributes:
        train: a `keras.utils.PyDataset` of `(inputs, labels)` for `fit`.
        validation: one for `validation_data` and `evaluate`; None without a split.
        class_names: names of the classes in the order of their numbers.
    """

    train: Any
    validation: Any
    class_names: list[str]


def from_directory(
    directory: str | Path,
    preprocessor: DatasetMaker,
    labels: str | Sequence[int] = "inferred",
    class_names: Sequence[str] | None = None,
    batch_size: int = 8,
    shuffle: bool = True,
    seed: int = 0,
    validation_split: float | None = None,
    num_workers: int = 2,
    max_bad_share: float = 0.05,
    augment: bool | Callable[..., Any] = False,
    kind: Kind | None = None,
    fps: float = DEFAULT_FPS,
) -> DirectoryData:
    """Read a folder with one folder of videos or images for each class.

    Threads read the files when they are needed. Unless `kind` says otherwise, videos are taken, or
    images if there are no videos or the preprocessor makes single images. The log says in one line
    what is left out, and names each file that cannot be read: in training another file takes its
    place, in validation it is left out.

    Args:
        directory: the folder.
        preprocessor: a `VJEPAVideoPreprocessor`.
        labels: `"inferred"` from the folders, or a class number for each file below `directory`,
            in the order of their paths.
        class_names: names in the order of the classes' numbers; if None, those of the folders,
            sorted.
        batch_size: videos in a batch.
        shuffle: whether each epoch has an order of its own, which follows from the seed.
        seed: seed of the order and of the split.
        validation_split: share of each class, in (0, 1), that is kept for validation, or None.
        num_workers, max_bad_share, augment: as in `VJEPAVideoPreprocessor.dataset`.
        kind: what to look for, as in `list_samples`, for example `"frames"`.
        fps: frames per second of folders of frames.

    Returns:
        The datasets and the names.

    Raises:
        FileNotFoundError: if the folder does not exist.
        ValueError: for classes without a file to train with, and arguments out of range.

    Example: the README's "From a folder of classes".
    """
    _check_preprocessor(preprocessor)
    check_flag(shuffle=shuffle)
    check_reading(batch_size, seed, num_workers, num_workers, max_bad_share)
    of_images = preprocessor.num_frames == 1
    samples, names = _labelled(Path(directory), labels, class_names, of_images, kind)
    samples = with_fps(samples, fps) if kind == "frames" else samples
    training, validation = _split(samples, validation_split, seed, names)
    print(_summary(training, validation, names))
    reading = {"num_workers": num_workers, "max_bad_share": max_bad_share}
    make = functools.partial(preprocessor.dataset, num_classes=len(names), batch_size=batch_size)
    make = functools.partial(make, **reading)
    train = make(training, training=True, shuffle=shuffle, seed=seed, augment=augment)
    return DirectoryData(train, make(validation) if validation else None, names)


def _check_preprocessor(preprocessor: DatasetMaker) -> None:
    if not hasattr(preprocessor, "dataset"):
        received = shown(preprocessor)
        raise ValueError(f"`preprocessor` must be a VJEPAVideoPreprocessor. Received: {received}")


def _summary(training: list[Sample], validation: list[Sample], names: list[str]) -> str:
    if len(names) == 1:
        _LOG.warning("All files are of one class, %r: there is nothing to tell apart", names[0])
    count = len(training) + len(validation)
    parts = f": {len(training):,} for training, {len(validation):,} for validation"
    classes = counted(len(names), "class", "classes")
    return f"{counted(count, 'file')} of {classes}{parts if validation else ''}"


def _labelled(
    directory: Path,
    labels: str | Sequence[int],
    class_names: Sequence[str] | None,
    prefers_images: bool,
    kind: Kind | None,
) -> tuple[list[Sample], list[str]]:
    """List all samples with their labels, and the names of the classes."""
    inferred = isinstance(labels, str)
    if labels is None or inferred and labels != "inferred":
        raise ValueError(f"`labels` must be 'inferred' or class numbers. Received: {shown(labels)}")
    directory = directory.expanduser()
    if not directory.is_dir():
        raise FileNotFoundError(f"`directory` must be an existing folder. Received: {directory}")
    folders = class_folders(directory, "directory") if inferred else []
    if inferred and {"train"} < {*folders} <= {"train", "val", "validation", "test"}:
        raise ValueError(
            f"`directory` must have a folder for each class; give {directory / 'train'}, and read "
            f"{directory / (set(folders) - {'train'}).pop()} with its `class_names`. "
            f"Received: folders {', '.join(folders)}"
        )
    given_names = _distinct(class_names)
    paths = (
        search_folder(directory, kind).paths if kind else _of_one_kind(directory, prefers_images)
    )
    if not paths:
        raise ValueError(
            f"`directory` must hold {IN_WORDS[kind or 'any']}. Received: none in {directory}"
        )
    if inferred:
        names = given_names or folders
        samples = label_by_folder(directory, paths, names)
        empty = {*range(len(names))} - {sample.label for sample in samples}
        if class_names is None and empty:
            raise ValueError(
                f"Every class folder of {directory} must hold a file. "
                f"Received: none in {names[min(empty)]!r}"
            )
        return samples, names
    if len(labels) != len(paths):
        raise ValueError(
            f"`labels` must hold a class number for each of {len(paths)} files in {directory}. "
            f"Received: {len(labels)}"
        )
    as_given: dict[str, Any] = {f"labels[{place}]": label for place, label in enumerate(labels)}
    check_whole(0, **as_given)
    numbers = [int(label) for label in labels]
    names = given_names or [str(number) for number in range(max(numbers) + 1)]
    if len(names) <= max(numbers):
        raise ValueError(
            f"`class_names` must hold a name for each of the `labels` up to {max(numbers)}. "
            f"Received: {len(names)}"
        )
    return [Sample(path, number) for path, number in zip(paths, numbers, strict=True)], names


def _distinct(class_names: Sequence[str] | None) -> list[str]:
    """Return the names that a user has given, in their order, if they are all different."""
    names = [] if class_names is None else class_names
    if isinstance(names, str | set | frozenset) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"`class_names` must be a list of names. Received: {shown(class_names)}")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"`class_names` must differ. Received twice: {twice[0]!r}")
    return [str(name) for name in names]


def _of_one_kind(directory: Path, prefers_images: bool) -> list[str]:
    """List the files of the preferred kind, or of the other kind if there are none."""
    found = search_folder(directory, "any").paths
    kinds: dict[str, list[str]] = {"video": [], "image": []}
    for path in found:
        kinds["image" if is_image(path) else "video"].append(path)
    wanted, other = ("image", "video") if prefers_images else ("video", "image")
    if not kinds[wanted]:
        wanted, other = other, wanted
    if kinds[other]:
        _LOG.warning(
            "Left out of %s: %d %s(s) beside %ss", directory, len(kinds[other]), other, wanted
        )
    return kinds[wanted]


def _split(
    samples: list[Sample], share: float | None, seed: int, names: list[str]
) -> tuple[list[Sample], list[Sample]]:
    if share is None:
        return samples, []
    check_number("(0, 1)", validation_split=share)
    counts = Counter(sample.label for sample in samples)
    several = [sample for sample in samples if counts[sample.label] > 1]
    if not several:
        raise ValueError(
            "`validation_split` must be None where no class has two files. "
            f"Received: {share:g} for {len(samples)} file(s) of {len(names)} class(es)"
        )
    validation = low_shot(several, share, seed)
    held_out = {sample.path for sample in validation}
    training = [sample for sample in samples if sample.path not in held_out]
    left = {sample.label for sample in training}
    for label in counts:
        if label not in left:
            raise ValueError(
                f"`validation_split` must leave a file of each class to train with. Received: "
                f"{share:g}, which leaves none of {counts[label]} in {names[label or 0]!r}"
            )
    return training, validation
