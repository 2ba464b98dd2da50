"""List key frames for a detector, of a folder laid out as AVA or the built-in set (App. D.2).

ava/annotations/ava_train_v2.2.csv, ava_val_v2.2.csv
ava/annotations/ava_{train,val}_excluded_timestamps_v2.2.csv    may be missing
ava/annotations/ava_action_list_v2.2_for_activitynet_2019.pbtxt    60 actions; or
ava/annotations/ava_action_list_v2.2.pbtxt                         all 80
ava/videos/                              videos, or folders of frames in ava/frames/
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from keras_vjepa.arguments import check_choice, check_number, check_text, counted
from keras_vjepa.data.reading.frame_folder import DEFAULT_FPS, check_fps
from keras_vjepa.data.reading.media import Media
from keras_vjepa.data.sources.ava import (
    ActionSample,
    annotated_key_frames,
    detected_key_frames,
    video_files,
)
from keras_vjepa.data.sources.ava_boxes import read_detected_boxes
from keras_vjepa.data.sources.ava_files import (
    ActionRows,
    KeyFrame,
    read_actions,
    read_key_frames,
    read_label_map,
)
from keras_vjepa.data.sources.digit_scene import SCENES, prepare_digit_scenes

EVALUATED, ALL = "60", "80"
# Names of the lists of actions, the most recent first.
_LISTS = {
    EVALUATED: "ava_action_list_*for_activitynet*.pbtxt",
    ALL: "ava_action_list_v[0-9].[0-9].pbtxt",
}
_KINDS = {"video": ("videos", 0.0), "frames": ("frames", 900.0)}


@dataclass(frozen=True)
class DetectionSet:
    """Holds the key frames that a detector is trained and tested on.

    Attributes:
        train: key frames with true boxes.
        test: by the kind of boxes, `"true"` and perhaps `"detected"`, key frames to be tested.
        truth: rows of the ground truth of the test.
        excluded: key frames that do not count in the test.
        actions: names by the numbers that files have; outputs of a model are in this order.
        evaluated: numbers of the actions whose mean average precision counts.
        first_second: with which files begin.
    """

    train: list[ActionSample]
    test: dict[str, list[ActionSample]]
    truth: ActionRows
    excluded: list[KeyFrame]
    actions: dict[int, str]
    evaluated: list[int]
    first_second: float

    def described(self) -> dict[str, Any]:
        """Describe the actions and the training boxes, which define a run."""
        labels = hashlib.sha256()
        for sample in self.train:
            labels.update(repr((sample.key, sample.boxes.tolist(), sample.actions)).encode())
        return {
            "class_names": [*self.actions.values()],
            "num_classes": len(self.actions),
            "labels": labels.hexdigest()[:16],
        }

    def in_words(self) -> str:
        """Say how many key frames and actions there are."""
        tested = ", ".join(f"{len(found):,} with {kind} boxes" for kind, found in self.test.items())
        return (
            f"{counted(len(self.train), 'key frame')} of {counted(len(self.actions), 'action')}, "
            f"to test on {tested}"
        )


def detection_set(
    data: str,
    boxes: str = "",
    videos: str = "",
    kind: Literal["video", "frames"] = "video",
    fps: float = DEFAULT_FPS,
    first_second: float | None = None,
    actions: Literal["60", "80"] = "60",
    least_score: float = 0.8,
    max_bad_share: float = 0.05,
) -> DetectionSet:
    """List the key frames of training and test.

    Args:
        data: a folder in the layout of AVA, or the name of a built-in set.
        boxes: csv or json of detected boxes for the test; the built-in set has its own.
        videos: folder of the videos, or of the folders of frames; by default `videos` or `frames`
            in `data`.
        kind: what is there: videos, or folders of frames.
        fps: frames per second of folders of frames.
        first_second: second of the original with which each file begins; 0 for videos and 900 for
            folders of frames by default.
        actions: outputs of the model: the 60 that are evaluated, or all 80 that are annotated.
        least_score: detected boxes of a lower score are left out.
        max_bad_share: raise if more than this share of the videos is missing, or of the boxes is
            outside of the frame.

    Raises:
        FileNotFoundError: if something does not exist.
        ValueError: if a file is not as it must be, or too much is missing.
    """
    check_detection_set(data, boxes, videos, kind, fps, first_second, actions, least_score)
    if data in SCENES:
        found = prepare_digit_scenes(config=SCENES[data])
        data, boxes = str(found.folder), boxes or str(found.detected)
    folder, first = _KINDS[kind]
    files = video_files(videos or Path(data, folder), fps if kind == "frames" else None)
    first = first if first_second is None else first_second
    return _listed(data, boxes, files, actions == ALL, first, least_score, max_bad_share)


def _listed(
    data: str,
    boxes: str,
    files: Mapping[str, Media | str],
    with_all: bool,
    first_second: float,
    least_score: float,
    max_bad_share: float,
) -> DetectionSet:
    """Read the files of a folder whose videos have been found already."""
    evaluated = read_label_map(_file(data, _LISTS[EVALUATED]))
    names = read_label_map(_file(data, _LISTS[ALL])) if with_all else evaluated
    lists = {split: read_actions(_file(data, f"ava_{split}_v*.csv")) for split in ("train", "val")}
    excluded = {split: _excluded(data, split) for split in lists}
    train, test = (
        annotated_key_frames(lists[s], files, [*names], excluded[s], max_bad_share) for s in lists
    )
    tested = {"true": test}
    if boxes:
        of_videos = {video for video, _ in lists["val"].key_frames}
        detected = read_detected_boxes(boxes)
        tested["detected"] = detected_key_frames(
            detected, files, of_videos, excluded["val"], least_score, max_bad_share
        )
    return DetectionSet(
        train, tested, lists["val"], excluded["val"], names, [*evaluated], first_second
    )


def check_detection_set(
    data: str,
    boxes: str = "",
    videos: str = "",
    kind: str = "video",
    fps: float = DEFAULT_FPS,
    first_second: float | None = None,
    actions: str = "60",
    least_score: float = 0.8,
    max_bad_share: float = 0.05,
) -> None:
    """Check arguments of `detection_set`, and that the files that they name exist.

    Raises:
        FileNotFoundError: for the first that is not.
        ValueError: for the first that is out of range.
    """
    check_text(data=data)
    check_choice(tuple(_KINDS), kind=kind)
    check_choice(tuple(_LISTS), actions=actions)
    check_fps(fps)
    check_number("[0, 1000000]", optional=True, first_second=first_second)
    check_number("[0, 1]", least_score=least_score, max_bad_share=max_bad_share)
    if data in SCENES:
        if actions == ALL:
            raise ValueError(f"`actions` must be 60 with `data`={data}. Received: {actions}")
    elif not Path(data).is_dir():
        raise FileNotFoundError(
            f"`data` must be a folder in the layout of AVA, or {', '.join(SCENES)}. "
            f"Received: {data}"
        )
    named: Mapping[str, str] = {"boxes": boxes, "videos": videos}
    for name, path in named.items():
        if path and not Path(path).exists():
            raise FileNotFoundError(f"`{name}` must exist. Received: {path}")


def _file(data: str, pattern: str) -> Path:
    """Find a file by its name in a folder, or in the folder `annotations` in it."""
    for folder in (Path(data, "annotations"), Path(data)):
        if found := sorted(folder.glob(pattern)):
            return found[-1]
    raise FileNotFoundError(
        f"`data` must hold {pattern}, or annotations/{pattern}. Received: {data}"
    )


def _excluded(data: str, split: str) -> list[KeyFrame]:
    try:
        return read_key_frames(_file(data, f"ava_{split}_excluded_timestamps_v*.csv"))
    except FileNotFoundError:
        return []
