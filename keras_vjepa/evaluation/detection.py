"""Compute the mean average precision of actions, by AVA's rule and its variants (App. D.2).

For each key frame and action, detections are taken in descending order of their scores. Each is
compared only with the box of the ground truth that it overlaps most. It is right if the overlap
(area of the intersection divided by that of the union) is at least one half, and no detection
before it was right with the same box. Average precision is the exact area under the curve of
precision, made non-increasing, over recall. An action without a box in the ground truth is left out
of the mean.

This is not COCO's rule, which lets a detection take another box and samples 101 recalls.

Equal scores are ordered as follows. Within a key frame, the row that is first in the file comes
first. Over all key frames, it comes last: rows are listed by key frame, in the order in which key
frames first occur in the file, then sorted by rising score with a stable sort, and read from the
end. The authors' scripts use an unstable sort here; for 16 rows or less it is stable, and the
results agree.
"""

import heapq
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from keras_vjepa.arguments import check_choice
from keras_vjepa.data.sources.ava_files import ActionRows, KeyFrame

_LOG = logging.getLogger(__name__)

# The least overlap of a right detection.
_OVERLAP = 0.5


@dataclass(frozen=True)
class _Rule:
    """Describes one of the revisions of the evaluation that are in use.

    Attributes:
        lists_key_frames: whether a row of two columns names a key frame without a box. Detections
            at key frames that the ground truth does not name are then ignored, nothing is excluded,
            and seconds may have fractions.
        most_rows: number of rows of a key frame that count, those with the best scores; None for
            all.
        in_file_order: whether the rows of a key frame are compared in the order of the file, and
            not by score.
    """

    lists_key_frames: bool = False
    most_rows: int | None = None
    in_file_order: bool = False


RULES = {
    "exclusions_2018": _Rule(),
    "exclusions_top50_2019": _Rule(most_rows=50),
    "listed_keyframes_2020": _Rule(lists_key_frames=True, most_rows=50),
    "slowfast": _Rule(in_file_order=True),
}


@dataclass(frozen=True)
class DetectionScores:
    """Holds the results of an evaluation of detections.

    Attributes:
        mean: mean over the actions that the ground truth has; NaN if it has none.
        by_action: average precision of each action by its number; None without ground truth.
    """

    mean: float
    by_action: dict[int, float | None]


def mean_average_precision(
    truth: ActionRows,
    detections: ActionRows,
    actions: Sequence[int] | Mapping[int, str],
    excluded: Sequence[KeyFrame] = (),
    rule: str = "exclusions_2018",
) -> DetectionScores:
    """Compute the mean average precision of detected actions.

    Args:
        truth: boxes of the ground truth, a row for each action of a box.
        detections: detected boxes, a row for each action of a box, with its score. Boxes without
            width or height do not count.
        actions: numbers of the actions that are evaluated; rows of other actions are left out.
        excluded: key frames that do not count.
        rule: `"exclusions_2018"`, with which the papers' numbers were made;
            `"exclusions_top50_2019"`, where the best 50 rows of each key frame count, of all
            actions together; `"listed_keyframes_2020"`, which also ignores `excluded`, and
            detections at key frames that the ground truth does not name; or `"slowfast"`, which
            compares the rows of a key frame in the order of the file.

    Returns:
        Average precisions and their mean.

    Raises:
        ValueError: for another rule, for a box of the ground truth whose ends are exchanged, and
            for seconds with fractions or rows of two columns if the rule does not allow them.

    Example:

    >>> import numpy as np
    >>> def rows(*boxes):
    ...     n = len(boxes)
    ...     found = np.zeros(n, int), np.array(boxes), np.full(n, 12), np.linspace(0.9, 0.8, n)
    ...     return ActionRows([("abc", "0902")], *found)
    >>> truth = rows([0.1, 0.1, 0.5, 0.9])
    >>> detections = rows([0.6, 0.1, 0.9, 0.9], [0.1, 0.2, 0.5, 0.9])
    >>> mean_average_precision(truth, detections, [12]).mean
    0.5
    """
    check_choice(tuple(RULES), rule=rule)
    chosen = RULES[rule]
    if excluded and chosen.lists_key_frames:
        _LOG.warning("%s has no excluded key frames: all count.", rule)
        excluded = ()
    left_out = {_key(key, rule) for key in excluded}
    keys: dict[KeyFrame, int] = {}
    known = _Counted.of(truth, actions, left_out, keys, rule, most_rows=None)
    _check_truth(known, truth)
    if chosen.lists_key_frames:
        named = {_key(key, rule) for key in truth.key_frames}
        left_out = {_key(key, rule) for key in detections.key_frames} - named
    found = _Counted.of(detections, actions, left_out, keys, rule, chosen.most_rows)
    found = found.where(np.asarray((found.boxes[:, :2] < found.boxes[:, 2:]).all(axis=1)))
    by_action = {int(number): _average_precision(known, found, number) for number in actions}
    counted = [value for value in by_action.values() if value is not None]
    return DetectionScores(sum(counted) / len(counted) if counted else math.nan, by_action)


@dataclass(frozen=True)
class _Counted:
    """Holds the rows that count, grouped by key frame and in the rule's order within it."""

    keys: NDArray[np.int64]
    boxes: NDArray[np.float64]
    actions: NDArray[np.int64]
    scores: NDArray[np.float64]

    @classmethod
    def of(
        cls,
        rows: ActionRows,
        actions: Sequence[int] | Mapping[int, str],
        left_out: set[KeyFrame],
        keys: dict[KeyFrame, int],
        rule: str,
        most_rows: int | None,
    ) -> "_Counted":
        """Choose and order rows; `keys` numbers the key frames of truth and detections alike."""
        if rows.listed and not RULES[rule].lists_key_frames:
            raise ValueError(
                f"{rows.source} has rows of two columns, which {rule} does not know: take "
                "`rule`='listed_keyframes_2020'."
            )
        names = [_key(key, rule) for key in rows.key_frames]
        numbers = np.array([keys.setdefault(name, len(keys)) for name in names], np.int64)
        kept = np.array([name not in left_out for name in names], bool)
        counts = np.isin(rows.actions, list(actions)) & kept[rows.places]
        chosen = np.flatnonzero(counts)
        # Two key frames are the same if they only write their second in different ways.
        own = numbers[rows.places[chosen]]
        _, first, places = np.unique(own, return_index=True, return_inverse=True)
        rank = first[places]
        if RULES[rule].in_file_order:
            order = np.argsort(rank, kind="stable")
        elif RULES[rule].most_rows is None:
            order = np.lexsort((-rows.scores[chosen], rank))
        else:
            order = _best_rows(rows, chosen, rank, most_rows)
        chosen = chosen[order]
        return cls(own[order], rows.boxes[chosen], rows.actions[chosen], rows.scores[chosen])

    def where(self, which: NDArray[np.bool_]) -> "_Counted":
        """Take some of the rows."""
        return _Counted(
            self.keys[which], self.boxes[which], self.actions[which], self.scores[which]
        )


def _best_rows(
    rows: ActionRows, chosen: NDArray[np.int64], rank: NDArray[np.int64], most_rows: int | None
) -> NDArray[np.int64]:
    """Order rows as the revisions with a limit do, which keep the rows of a key frame in a heap.

    Of equal scores, the heap drops the smallest action, then the smallest top, left, bottom, right.
    """
    heaps: dict[int, list[tuple[float, ...]]] = {}
    for number, place in enumerate(chosen.tolist()):
        left, top, right, bottom = rows.boxes[place].tolist()
        score = float(rows.scores[place])
        entry = (score, float(rows.actions[place]), top, left, bottom, right, float(number))
        heap = heaps.setdefault(int(rank[number]), [])
        if most_rows is None or len(heap) < most_rows:
            heapq.heappush(heap, entry)
        elif score > heap[0][0]:
            heapq.heapreplace(heap, entry)
    ordered = [
        int(entry[-1])
        for _, heap in sorted(heaps.items())
        for entry in sorted(heap, key=lambda entry: -entry[0])
    ]
    return np.array(ordered, np.int64)


def _key(key: KeyFrame, rule: str) -> KeyFrame:
    """Write a key frame as the rule compares it: 902 and 0902 are one."""
    video, second = key
    if RULES[rule].lists_key_frames:
        return video, f"{float(second):.6f}"
    if not second.isdecimal():
        raise ValueError(
            f"Seconds must be whole numbers for {rule}. Received: {second} of the video {video}"
        )
    return video, f"{int(second):04d}"


def _check_truth(known: _Counted, truth: ActionRows) -> None:
    exchanged = (known.boxes[:, :2] > known.boxes[:, 2:]).any(axis=1)
    if exchanged.any():
        raise ValueError(
            f"{truth.source}: A box must have its left end before its right one, and its top above "
            f"its bottom. Received: {known.boxes[exchanged][0].tolist()}"
        )


def _average_precision(known: _Counted, found: _Counted, action: int) -> float | None:
    """Compute the average precision of one action; None if the ground truth does not have it."""
    known, found = (rows.where(rows.actions == action) for rows in (known, found))
    if not len(known.keys):
        return None
    if not len(found.keys):
        return 0.0
    order = np.argsort(found.scores, kind="stable")[::-1]
    right = np.cumsum(_are_right(known, found)[order])
    precision = right / np.arange(1, len(right) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    steps = np.diff(right / len(known.keys), prepend=0.0)
    return float(np.sum(steps * envelope))


def _are_right(known: _Counted, found: _Counted) -> NDArray[np.bool_]:
    """Tell which detections of one action are right."""
    best, overlap = _best_overlaps(known, found)
    enough = np.flatnonzero(overlap >= _OVERLAP)
    # Only the first detection with enough overlap is right, for each box of the ground truth.
    _, first = np.unique(best[enough], return_index=True)
    right = np.zeros(len(found.keys), bool)
    right[enough[first]] = True
    return right


def _best_overlaps(
    known: _Counted, found: _Counted
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Find the box of the ground truth that each detection overlaps most, and by how much."""
    by_key = np.argsort(known.keys, kind="stable")
    keys, boxes = known.keys[by_key], known.boxes[by_key]
    first = np.searchsorted(keys, found.keys, side="left")
    counts = np.searchsorted(keys, found.keys, side="right") - first
    best, overlap = np.full(len(first), -1), np.full(len(first), -1.0)
    for i in range(int(counts.max(initial=0))):
        rows = np.flatnonzero(i < counts)
        other = _overlaps(found.boxes[rows], boxes[first[rows] + i])
        better = other > overlap[rows]
        best[rows[better]] = (first[rows] + i)[better]
        overlap[rows[better]] = other[better]
    return best, overlap


def _overlaps(boxes: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute the area of the intersection over that of the union, of each box and its other."""
    ends = np.minimum(boxes[:, 2:], others[:, 2:]) - np.maximum(boxes[:, :2], others[:, :2])
    shared = np.maximum(ends, 0.0).prod(axis=1)
    areas = [(both[:, 2:] - both[:, :2]).prod(axis=1) for both in (boxes, others)]
    return np.asarray(shared / (areas[0] + areas[1] - shared))
