"""List key frames of AVA v2.2 with boxes and actions, true or detected (App. D.2).

A key frame is a second of a video. Several rows with the same box are one person with several
actions. Boxes that reach beyond the frame are cut; boxes outside of it and videos that are missing
are left out. The log names and counts all of these, and too many of them are an error.
"""

import logging
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from keras_vjepa.arguments import check_number, counted
from keras_vjepa.data.reading.errors import printable
from keras_vjepa.data.reading.frame_folder import FrameFolder
from keras_vjepa.data.reading.media import Media
from keras_vjepa.data.sources.ava_boxes import DetectedBoxes
from keras_vjepa.data.sources.ava_files import ActionRows, KeyFrame
from keras_vjepa.data.sources.official_lists import files_by_name
from keras_vjepa.data.sources.samples import Sample

_LOG = logging.getLogger(__name__)
_MOST_NAMED = 3


@dataclass(frozen=True)
class ActionSample(Sample):
    """Describes a key frame: a video, a second of it, and boxes.

    Attributes:
        path: a unique name of the key frame, made of the video's name and the second.
        file: the path of the video, or of its folder of frames.
        key: video and second, as files of AVA write them.
        boxes: `(boxes, 4)` with left, top, right and bottom, as shares of the frame.
        in_pixels: whether the boxes are in pixels of the frame instead.
        actions: for each box, the positions of its actions among those that are evaluated.
        scores: `(boxes,)`, the detector's scores; 1 for true boxes.
    """

    file: str = ""
    key: KeyFrame = ("", "0")
    boxes: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 4)), compare=False)
    in_pixels: bool = False
    actions: tuple[tuple[int, ...], ...] = ()
    scores: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0), compare=False)

    @property
    def source(self) -> str | Media:
        """Return the video to read: a path, or the object that represents it."""
        return self.file if self.media is None else self.media

    @property
    def second(self) -> float:
        """Return the second as a number."""
        return float(self.key[1])

    def shares(self, height: int, width: int) -> NDArray[np.float64]:
        """Return the boxes as shares of a frame of this size, cut at its borders."""
        boxes = self.boxes / [width, height, width, height] if self.in_pixels else self.boxes
        return boxes.clip(0.0, 1.0)


def video_files(folder: str | Path, fps: float | None = None) -> dict[str, Media | str]:
    """Find the videos of AVA by their names.

    Args:
        folder: a folder that holds the videos at any depth, or a folder of frames for each.
        fps: frames per second of folders of frames; None if there are videos.

    Raises:
        FileNotFoundError: if there is no such folder.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"`videos` must be a folder that exists. Received: {folder}")
    if fps is None:
        return dict(files_by_name(folder))
    found = sorted(entry.path for entry in os.scandir(folder) if entry.is_dir())
    return {os.path.basename(path): FrameFolder(path, fps) for path in found}


def annotated_key_frames(
    rows: ActionRows,
    videos: Mapping[str, Media | str],
    actions: Sequence[int],
    excluded: Iterable[KeyFrame] = (),
    max_bad_share: float = 0.05,
) -> list[ActionSample]:
    """List the key frames of the ground truth.

    Args:
        rows: rows of the ground truth.
        videos: videos by their names, as `video_files` finds them.
        actions: numbers of the actions that count; rows of other actions are left out, and boxes
            that have no row left.
        excluded: key frames that do not count.
        max_bad_share: the largest share of videos that may be missing, and of boxes that may lie
            outside of the frame.

    Returns:
        A sample for each key frame with a box, in the order of the rows.

    Raises:
        ValueError: if more than that share is missing or outside.
    """
    check_number("[0, 1]", max_bad_share=max_bad_share)
    left_out = {_whole(key) for key in excluded}
    kept = _inside(
        rows.boxes, [rows.key_frames[n] for n in rows.places], rows.source, max_bad_share
    )
    number_of = {action: place for place, action in enumerate(actions)}
    people: dict[KeyFrame, dict[tuple[float, ...], list[int]]] = defaultdict(dict)
    for row in np.flatnonzero(kept).tolist():
        key, action = rows.key_frames[rows.places[row]], int(rows.actions[row])
        if action in number_of and _whole(key) not in left_out:
            box = tuple(rows.boxes[row].clip(0.0, 1.0).tolist())
            people[key].setdefault(box, []).append(number_of[action])
    samples = [
        _sample(
            videos,
            key,
            boxes=np.array([*boxes], np.float64),
            actions=tuple(tuple(sorted({*found})) for found in boxes.values()),
            scores=np.ones(len(boxes)),
        )
        for key, boxes in people.items()
    ]
    return _there(samples, max_bad_share, rows.source)


def detected_key_frames(
    detected: DetectedBoxes,
    videos: Mapping[str, Media | str],
    of_videos: Iterable[str],
    excluded: Iterable[KeyFrame] = (),
    least_score: float = 0.8,
    max_bad_share: float = 0.05,
) -> list[ActionSample]:
    """List the key frames at which a detector found somebody.

    Args:
        detected: the boxes that the detector found.
        videos: videos by their names.
        of_videos: names of the videos that count.
        excluded: key frames that do not count.
        least_score: boxes of a lower score are left out.
        max_bad_share: as in `annotated_key_frames`.

    Raises:
        ValueError: if no box is left, or more videos are missing, or boxes outside of the frame,
            than `max_bad_share` allows.
    """
    check_number("[0, 1]", least_score=least_score, max_bad_share=max_bad_share)
    left_out, wanted = {_whole(key) for key in excluded}, {*of_videos}
    counting = {
        key: (boxes[scores >= least_score], scores[scores >= least_score])
        for key, (boxes, scores) in detected.by_key_frame.items()
        if key[0] in wanted and _whole(key) not in left_out
    }
    keys = [key for key, (boxes, _) in counting.items() for _ in boxes]
    every = np.concatenate([np.zeros((0, 4)), *(boxes for boxes, _ in counting.values())])
    # The size of a frame is only known once it has been read.
    farthest = np.inf if detected.in_pixels else 1.0
    inside = _inside(every, keys, detected.source, max_bad_share, farthest)
    samples, first = [], 0
    for key, (boxes, scores) in counting.items():
        kept = inside[first : first + len(boxes)]
        first += len(boxes)
        if kept.any():
            samples.append(
                _sample(
                    videos,
                    key,
                    boxes=boxes[kept],
                    in_pixels=detected.in_pixels,
                    actions=((),) * int(kept.sum()),
                    scores=scores[kept],
                )
            )
    if not samples:
        raise ValueError(
            f"`boxes` must hold boxes of the videos that are tested, of a score of at least "
            f"{least_score:g}. Received: none in {detected.source}"
        )
    return _there(samples, max_bad_share, detected.source)


def _sample(videos: Mapping[str, Media | str], key: KeyFrame, **known: object) -> ActionSample:
    found = videos.get(key[0], "")
    media = None if isinstance(found, str) else found
    file = found if isinstance(found, str) else found.name
    return ActionSample(
        f"{file or key[0]} at second {key[1]}",
        media=media,
        file=file,
        key=key,
        **known,  # type: ignore[arg-type]
    )


def _whole(key: KeyFrame) -> tuple[str, float]:
    """Convert a key frame so that it can be compared: 902 and 0902 are the same second."""
    return key[0], float(key[1])


def _inside(
    boxes: NDArray[np.float64],
    keys: Sequence[KeyFrame],
    source: str,
    max_bad_share: float,
    farthest: float = 1.0,
) -> NDArray[np.bool_]:
    """Tell which boxes lie at least partly in the frame; log those cut and those left out.

    Args:
        boxes: `(boxes, 4)`.
        keys: the key frame of each.
        source: the file, for messages.
        max_bad_share: the largest share that may lie outside.
        farthest: the frame's right and lower edge; infinity if they are not known yet.
    """
    cut = boxes.clip(0.0, farthest)
    inside = np.asarray((cut[:, 2:] > cut[:, :2]).all(axis=1))
    beyond = inside & (cut != boxes).any(axis=1)
    for which, said in (
        (beyond, "reaching beyond the frame, cut at its borders"),
        (~inside, "outside of the frame, left out"),
    ):
        if which.any():
            first = [keys[row] for row in np.flatnonzero(which).tolist()]
            _LOG.warning(
                "%s: %s %s: %s",
                *(source, counted(int(which.sum()), "box", "boxes"), said),
                _named(f"{video},{second}" for video, second in first),
            )
    outside = int(np.sum(~inside))
    if outside > max_bad_share * len(inside):
        raise ValueError(
            f"{source}: Boxes must be shares of the frame, from 0 to 1. Received: {outside:,} "
            f"of {len(inside):,} with nothing inside of it, more than `max_bad_share`="
            f"{max_bad_share:g} allows"
        )
    return inside


def _there(samples: list[ActionSample], max_bad_share: float, source: str) -> list[ActionSample]:
    """Leave out key frames of missing videos, and log which videos are missing."""
    if not samples:
        raise ValueError(f"{source} must hold key frames that count. Received: none")
    names = dict.fromkeys(sample.key[0] for sample in samples)
    missing = dict.fromkeys(sample.key[0] for sample in samples if not sample.file)
    if not missing:
        return samples
    if len(missing) > max_bad_share * len(names):
        raise ValueError(
            f"The videos of {source} must be there. Received: none for {len(missing):,} of "
            f"{len(names):,}, more than `max_bad_share`={max_bad_share:g} allows: "
            f"{_named(missing)}"
        )
    left = [sample for sample in samples if sample.file]
    _LOG.warning(
        "%s: %s missing, with %s, which are left out: %s",
        *(source, counted(len(missing), "video is", "videos are")),
        *(counted(len(samples) - len(left), "key frame"), _named(missing)),
    )
    return left


def _named(names: Iterable[str]) -> str:
    found = list(dict.fromkeys(names))
    shown = ", ".join(map(printable, found[:_MOST_NAMED]))
    return f"{shown}, ..." if len(found) > _MOST_NAMED else shown


def split_boxes(samples: Sequence[ActionSample], max_boxes: int) -> list[ActionSample]:
    """Split samples with too many boxes into several samples of the same key frame.

    Args:
        samples: key frames.
        max_boxes: the most boxes of a sample.
    """
    parts = []
    for sample in samples:
        count = max(1, math.ceil(len(sample.boxes) / max_boxes))
        for number in range(count):
            which = slice(number * max_boxes, (number + 1) * max_boxes)
            parts.append(
                ActionSample(
                    sample.path,
                    media=sample.media,
                    file=sample.file,
                    key=sample.key,
                    boxes=sample.boxes[which],
                    in_pixels=sample.in_pixels,
                    actions=sample.actions[which],
                    scores=sample.scores[which],
                )
            )
    return parts
