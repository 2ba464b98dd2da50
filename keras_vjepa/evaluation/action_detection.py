"""Test a detector: probabilities of all boxes as rows of AVA, and their precision (App. D.2)."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from keras_vjepa.backend.distribution import ALONE, DataParallel
from keras_vjepa.backend.inference import DistributedInference
from keras_vjepa.data.batches.actions import ActionTestClips, predicted
from keras_vjepa.data.sources.ava_files import ActionRows, KeyFrame
from keras_vjepa.data.sources.detection_sets import DetectionSet
from keras_vjepa.evaluation.detection import mean_average_precision
from keras_vjepa.types import Batch

# Number of decimals of coordinates and scores, in rows and in files.
_DECIMALS = 6


def detected_actions(
    predict: Callable[[Batch], NDArray[np.float32]],
    clips: ActionTestClips,
    actions: Sequence[int] | Mapping[int, str],
    with_box_scores: bool = False,
) -> ActionRows:
    """Predict the actions of all boxes by a detector, as rows of AVA.

    Args:
        predict: a function as in `predicted`, such as the `probabilities` of a
            `VJEPAActionDetector` that has an output for each action.
        clips: the clips to test with.
        actions: numbers of the actions, in the order of the outputs.
        with_box_scores: whether scores are multiplied by those of the detector of boxes, as in
            VideoMAE's detection; SlowFast does not multiply them.

    Returns:
        A row for each box and action, rounded as in files.
    """
    key_frames: dict[KeyFrame, int] = {}
    places, boxes, scores = [], [], []
    for clip, probabilities in predicted(clips, predict):
        place = key_frames.setdefault(clip.sample.key, len(key_frames))
        places += [place] * len(clip.shares)
        boxes.append(clip.shares)
        weights = clip.sample.scores[:, np.newaxis] if with_box_scores else 1.0
        scores.append(probabilities * weights)
    count = len(actions)
    return ActionRows(
        [*key_frames],
        np.repeat(np.array(places, np.int64), count),
        np.repeat(np.round(np.concatenate([np.zeros((0, 4)), *boxes]), _DECIMALS), count, axis=0),
        np.tile(np.array([*actions], np.int64), len(places)),
        np.round(np.concatenate([np.zeros((0, count)), *scores]).ravel(), _DECIMALS),
        source="the detector",
    )


class DetectionTest:
    """Measures the mean average precision of a detector, on all devices and processes.

    Every process reads all clips, and computes its share of each batch.

    Args:
        found: the key frames and the ground truth.
        clips: the clips to test with, by the kind of boxes. The devices must divide their batches.
        rule: as in `mean_average_precision`.
        with_box_scores: as in `detected_actions`.
        parallel: the devices and processes.

    Call arguments:
        detector: has an output for each action. All processes call it together.

    Returns:
        By the kind of boxes, the rows of `detected_actions`, and a dictionary for a file of results
        with `mean_average_precision` (None if there is nothing to be found), that of each action
        (`by_action`), the number of `key_frames`, and the key frames that are `unreadable`.
    """

    def __init__(
        self,
        found: DetectionSet,
        clips: Mapping[str, ActionTestClips],
        rule: str,
        with_box_scores: bool = False,
        parallel: DataParallel = ALONE,
    ) -> None:
        self.found = found
        self.clips = clips
        self.rule = rule
        self.with_box_scores = with_box_scores
        self.parallel = parallel
        self._inference: DistributedInference | None = None

    def __call__(self, detector: keras.Model) -> dict[str, tuple[ActionRows, dict[str, Any]]]:
        # The object is kept between calls, so that it is compiled only once.
        if self._inference is None or self._inference.model is not detector:
            self._inference = DistributedInference(detector)
        return {kind: self._tested(clips) for kind, clips in self.clips.items()}

    def _tested(self, clips: ActionTestClips) -> tuple[ActionRows, dict[str, Any]]:
        found = self.found
        rows = detected_actions(self._predict, clips, found.actions, self.with_box_scores)
        result = mean_average_precision(
            found.truth, rows, found.evaluated, found.excluded, self.rule
        )
        return rows, {
            "mean_average_precision": None if math.isnan(result.mean) else result.mean,
            "by_action": {found.actions[n]: value for n, value in result.by_action.items()},
            "key_frames": len({sample.key for sample in clips.samples}),
            "unreadable": [*clips.bad_files],
        }

    def _predict(self, batch: Batch) -> NDArray[np.float32]:
        assert self._inference is not None
        count = len(batch["videos"]) // self.parallel.process_count
        own = slice(count * self.parallel.process_index, count * (self.parallel.process_index + 1))
        rows = {name: array[own] for name, array in batch.items()}
        logits = self._inference(rows, np.ones(count, np.float32))
        return ops.convert_to_numpy(ops.sigmoid(np.asarray(logits, np.float32)))
