"""Test a detector: write the probabilities of all boxes as rows of AVA (App. D.2)."""

from collections.abc import Mapping, Sequence

import numpy as np

from keras_vjepa.data.batches.actions import ActionTestClips, predicted
from keras_vjepa.data.sources.ava_files import ActionRows, KeyFrame
from keras_vjepa.tasks.detector import VJEPAActionDetector

# Number of decimals of coordinates and scores, in rows and in files.
_DECIMALS = 6


def detected_actions(
    detector: VJEPAActionDetector,
    clips: ActionTestClips,
    actions: Sequence[int] | Mapping[int, str],
    with_box_scores: bool = False,
) -> ActionRows:
    """Predict the actions of all boxes by a detector, as rows of AVA.

    Args:
        detector: the detector, with an output for each action.
        clips: the clips to test with.
        actions: numbers of the actions, in the order of the outputs.
        with_box_scores: whether scores are multiplied by those of the detector of boxes, as in
            VideoMAE's detection; SlowFast does not multiply them.

    Returns:
        A row for each box and action, rounded as in files.
    """
    key_frames: dict[KeyFrame, int] = {}
    places, boxes, scores = [], [], []
    for clip, probabilities in predicted(clips, detector.probabilities):
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
