"""List the labelled samples of an evaluation, from lists, folders or published sets (App. D).

`data` and `test_data` of a config are one of

    a list of rows `path label`, with the number or the name of a class as label, a table with named
    columns, or shards (see `listing.py`);
    a folder with one folder for each class;
    the published csv of Kinetics, with `videos`, the folder where they are;
    the published json of Something-Something v2, with `videos` and `label_names`, its labels.json.

`data` without `test_data` may be a folder that has `train` and `val` (or `test`) in it. With any
other `data` and no `test_data`, a part of each class is held out for testing.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from keras_vjepa.arguments import check_text
from keras_vjepa.data.reading.frame_folder import DEFAULT_FPS, check_fps
from keras_vjepa.data.reading.kinds import has_image_extension
from keras_vjepa.data.sources.digit_motion import prepare_digit_motion, smallest_prepared
from keras_vjepa.data.sources.digit_motion_rendering import MOTIONS, SETS
from keras_vjepa.data.sources.folders import Kind, search_folder
from keras_vjepa.data.sources.labels import check_labels, without_test_data
from keras_vjepa.data.sources.listing import (
    is_published,
    list_samples,
    listed_class_names,
    source_exists,
)
from keras_vjepa.data.sources.manifests import something_something_class_names
from keras_vjepa.data.sources.samples import Sample, class_folders, list_class_folders
from keras_vjepa.data.sources.shards import is_folder_of_shards

BUILT_IN = "digit_motion"

_LOG = logging.getLogger(__name__)


def train_and_test(
    data: str,
    test_data: str = "",
    videos: str = "",
    label_names: str = "",
    kind: Kind = "video",
    fps: float = DEFAULT_FPS,
    path_column: str = "",
    label_column: str = "label",
) -> tuple[list[Sample], list[Sample]]:
    """List the training and test samples of an evaluation.

    Args:
        data: training data, or the name of a built-in set.
        test_data: test data; without it, a fifth of each class of `data` is held out.
        videos: folder of the videos, for published annotations.
        label_names: labels.json of Something-Something v2.
        kind: what to look for in folders and shards: video, image, any for both, or frames: folders
            of numbered pictures.
        fps: frames per second of folders of frames.
        path_column: column of the paths in a table; by default the first that is called path, file,
            video or the like.
        label_column: column of the labels in a table, or their field in the json of shards.

    Raises:
        FileNotFoundError: if something does not exist.
        ValueError: if `test_data` or `videos` is missing, or something is not as it must be.
    """
    if data in SETS:
        files = prepare_digit_motion(config=SETS[data])
        return list_samples(files.train), list_samples(files.test)
    if not test_data and Path(data, "train").is_dir():
        splits = [split for split in ("val", "test") if Path(data, split).is_dir()]
        if splits:
            data, test_data = str(Path(data, "train")), str(Path(data, splits[0]))
    _check_alike(data, test_data, videos, label_names)
    if Path(data).is_dir() and not is_folder_of_shards(data, kind):
        classes = class_folders(data, "data")
        samples = list_class_folders(data, classes, kind, fps)
        if not test_data:
            return _held_out(samples, data)
        return samples, list_class_folders(test_data, classes, kind, fps)
    if is_published(data) == "AVA":
        raise ValueError(f"`data` must have a class for each video. Received: {data}, of AVA")
    if is_published(data):
        _check_given("videos", videos, data)
    if is_published(data) == "Something-Something v2":
        _check_given("label_names", label_names, data)
    names: list[str] | None = None
    if is_published(data) != "Something-Something v2":
        names = listed_class_names(data, path_column, label_column)
    options = (kind, names, fps, videos, label_names, path_column, label_column)
    samples = list_samples(data, *options)
    return (samples, list_samples(test_data, *options)) if test_data else _held_out(samples, data)


def first_of_built_in(
    data: str, num_train: int, num_test: int
) -> tuple[list[Sample], list[Sample]]:
    """List the first training and test videos of a built-in set; only these are rendered.

    Args:
        data: name of the set.
        num_train: number of training videos, at most.
        num_test: number of test videos, at most.
    """
    files = prepare_digit_motion(config=smallest_prepared(SETS[data], num_train, num_test))
    return list_samples(files.train)[:num_train], list_samples(files.test)[:num_test]


def class_names(
    data: str,
    test_data: str = "",
    label_names: str = "",
    kind: Kind = "video",
    path_column: str = "",
    label_column: str = "label",
) -> list[str] | None:
    """Name the classes of an evaluation in the order of their numbers.

    Args:
        data, test_data, label_names, kind, path_column, label_column: as in `train_and_test`.

    Returns:
        The names; None where labels are numbers.

    Raises:
        FileNotFoundError: if something does not exist.
        ValueError: if what is read is not as it must be.

    Example:

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "list.csv").write_text("/v/a.mp4 juggling\\n/v/b.mp4 diving\\n")
    ...     class_names(str(Path(folder, "list.csv")))
    ['diving', 'juggling']
    """
    if data in SETS:
        return [f"{digit} {motion}" for digit in range(10) for motion in MOTIONS]
    if not test_data and Path(data, "train").is_dir():
        if any(Path(data, split).is_dir() for split in ("val", "test")):
            data = str(Path(data, "train"))
    if Path(data).is_dir() and not is_folder_of_shards(data, kind):
        return class_folders(data, "data")
    if is_published(data) == "Something-Something v2":
        return something_something_class_names(label_names)
    return listed_class_names(data, path_column, label_column) or None


def _held_out(samples: Sequence[Sample], data: str) -> tuple[list[Sample], list[Sample]]:
    """Hold out a share of each class that has two samples or more, and say so in the log."""
    check_labels(samples, 1 + max(sample.label or 0 for sample in samples))
    num_classes = len({sample.label for sample in samples})
    train, test = without_test_data(samples)
    if not test:
        raise ValueError(
            "`test_data` must be given where no class has two samples. "
            f"Received: none for {data}, with {len(samples)} of {num_classes} classes"
        )
    _LOG.warning(
        "No test data is given: of %s, %d samples of %d classes train, and %d are held out to test",
        *(data, len(train), num_classes, len(test)),
    )
    return train, test


def holds_only_images(data: str) -> bool:
    """Tell whether a folder holds images and no video; False for anything else.

    Args:
        data: as in `train_and_test`.
    """
    if not data or not Path(data).is_dir() or is_folder_of_shards(data, "video"):
        return False
    found = search_folder(data, "any").paths
    return bool(found) and all(map(has_image_extension, found))


def check_sources(
    data: str, test_data: str, videos: str, label_names: str, fps: float = DEFAULT_FPS
) -> None:
    """Check that all given files and folders exist, before anything is read.

    Args:
        data: as in `train_and_test`, like the other arguments.

    Raises:
        FileNotFoundError: for the first that does not exist.
        ValueError: if `data` is empty or has no use for one of the others, or `fps` is out of
            range.
    """
    check_text(data=data)
    check_fps(fps)
    others = {"test_data": test_data, "videos": videos, "label_names": label_names}
    for name, path in others.items():
        if path and data in SETS:
            raise ValueError(f"`{name}` must be left out with `data`={data}. Received: {path}")
    for name, path in {"data": data, **others}.items():
        if path and data not in SETS and not source_exists(path):
            raise FileNotFoundError(
                f"`{name}` must be a file or folder that exists. Received: {path}"
            )


def _check_alike(data: str, test_data: str, videos: str, label_names: str) -> None:
    """Check that both data are folders or neither, and that nothing is given that is not used."""
    is_folder, published = Path(data).is_dir(), is_published(data)
    if test_data and is_folder != Path(test_data).is_dir():
        raise ValueError(
            f"`test_data` must be a {'folder' if is_folder else 'file'}, as {data} is. "
            f"Received: {test_data}"
        )
    is_json = published == "Something-Something v2"
    used = {"videos": bool(published), "label_names": is_json}
    for name, value in (("videos", videos), ("label_names", label_names)):
        if value and not used[name]:
            raise ValueError(f"`{name}` must be left out with {data}. Received: {value}")


def _check_given(name: str, value: str, data: str) -> None:
    if not value:
        raise ValueError(f"`{name}` must be given for the annotations {data}. Received: none")
