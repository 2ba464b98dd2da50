"""Labelled samples of an evaluation: lists, class folders, the published annotations (App. D).

`data` and `test_data` of a config are one of

    a list of rows `path label`, with the number or the name of a class as label;
    a folder with one folder for each class;
    the published csv of Kinetics, with `videos`, the folder where they are;
    the published json of Something-Something v2, with `videos` and `label_names`, its labels.json.

`data` alone may be a folder that has `train` and `val` (or `test`) in it.
"""

import csv
from pathlib import Path

from keras_vjepa.arguments import check_text
from keras_vjepa.data.sources.digit_motion import prepare_digit_motion
from keras_vjepa.data.sources.digit_motion_rendering import SETS
from keras_vjepa.data.sources.listing import list_samples, listed_class_names
from keras_vjepa.data.sources.manifests import (
    kinetics_class_names,
    kinetics_samples,
    something_something_samples,
)
from keras_vjepa.data.sources.samples import Kind, Sample, class_folders, list_class_folders

BUILT_IN = "digit_motion"


def train_and_test(
    data: str, test_data: str = "", videos: str = "", label_names: str = "", kind: Kind = "video"
) -> tuple[list[Sample], list[Sample]]:
    """List the training and test samples of an evaluation.

    Args:
        data: of training, or the name of a built-in set.
        test_data: of testing.
        videos: folder of the videos, for published annotations.
        label_names: labels.json of Something-Something v2.
        kind: what to look for in class folders.

    Raises:
        FileNotFoundError: if something does not exist.
        ValueError: if `test_data` or `videos` is missing, or what is read is not as it must be.
    """
    if data in SETS:
        files = prepare_digit_motion(config=SETS[data])
        return list_samples(files.train), list_samples(files.test)
    if not test_data and Path(data, "train").is_dir():
        names = [name for name in ("val", "test") if Path(data, name).is_dir()]
        if names:
            data, test_data = str(Path(data, "train")), str(Path(data, names[0]))
    if not test_data:
        raise ValueError(
            "`test_data` must be given with `data`, unless `data` is a folder that holds `train` "
            f"and `val`. Received: none for {data}"
        )
    _check_alike(data, test_data, videos, label_names)
    if Path(data).is_dir():
        class_names = class_folders(data)
        test = list_class_folders(test_data, class_names, kind)
        return list_class_folders(data, class_names, kind), test
    if Path(data).suffix == ".json":
        _check_given("videos", videos, data)
        _check_given("label_names", label_names, data)
        train, test = (
            something_something_samples(path, label_names, videos) for path in (data, test_data)
        )
        return train, test
    if _is_kinetics(data):
        _check_given("videos", videos, data)
        class_names = kinetics_class_names(data)
        train, test = (kinetics_samples(path, videos, class_names) for path in (data, test_data))
        return train, test
    names = listed_class_names(data)
    return list_samples(data, kind, names), list_samples(test_data, kind, names)


def check_sources(data: str, test_data: str, videos: str, label_names: str) -> None:
    """Check that all that is given exists, before anything is read; arguments as above.

    Raises:
        FileNotFoundError: for the first that does not.
        ValueError: if `data` is empty, or has no use for another.
    """
    check_text(data=data)
    others = {"test_data": test_data, "videos": videos, "label_names": label_names}
    for name, path in others.items():
        if path and data in SETS:
            raise ValueError(f"`{name}` must be left out with `data`={data}. Received: {path}")
    for name, path in {"data": data, **others}.items():
        if path and data not in SETS and not Path(path).exists():
            raise FileNotFoundError(
                f"`{name}` must be a file or folder that exists. Received: {path}"
            )


def _check_alike(data: str, test_data: str, videos: str, label_names: str) -> None:
    """Check that both are folders or neither, and that nothing is given that is not used."""
    is_folder, is_kinetics = Path(data).is_dir(), _is_kinetics(data)
    if is_folder != Path(test_data).is_dir():
        raise ValueError(
            f"`test_data` must be a {'folder' if is_folder else 'file'}, as {data} is. "
            f"Received: {test_data}"
        )
    is_json = Path(data).suffix == ".json" and not is_folder
    used = {"videos": is_kinetics or is_json, "label_names": is_json}
    for name, value in (("videos", videos), ("label_names", label_names)):
        if value and not used[name]:
            raise ValueError(f"`{name}` must be left out with {data}. Received: {value}")


def _is_kinetics(path: str) -> bool:
    if not Path(path).is_file():
        return False
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        return "youtube_id" in next(csv.reader([file.readline()]), [])


def _check_given(name: str, value: str, data: str) -> None:
    if not value:
        raise ValueError(f"`{name}` must be given for the annotations {data}. Received: none")
