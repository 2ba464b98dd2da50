"""Read the clips by which a run is watched: two views of each video, with their masks (§3.1)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from keras_vjepa.data.batches.pretraining import ClipBatches
from keras_vjepa.data.sources import labelled_sets
from keras_vjepa.data.sources.digit_motion_rendering import SETS
from keras_vjepa.data.sources.samples import Sample
from keras_vjepa.evaluation.task_labels import DIGIT_MOTION_TASKS, labels_of
from keras_vjepa.types import Batch

VIEWS = 2


def held_out_of(data: str, batches: ClipBatches, count: int) -> "HeldOut | None":
    """Read the clips by which a run is watched, from the test set if the data are a built-in set.

    They have labels then. For other data, they are videos of the training, with their labels if all
    have one.

    Args:
        data: what the run is trained on, or the name of a built-in set.
        batches: batches of the training.
        count: number of videos.

    Returns:
        As `held_out_clips`.
    """
    if data in SETS:
        _, test = labelled_sets.train_and_test(data)
        return held_out_clips(batches, count, test, labels_of(test, DIGIT_MOTION_TASKS))
    classes = [getattr(sample, "label", None) for sample in batches.samples]
    known = {} if None in classes else {"label": np.array(classes, "int32")}
    return held_out_clips(batches, count, (), known)


@dataclass(frozen=True)
class HeldOut:
    """Holds clips, their masks, and what is known of them.

    Attributes:
        batch: a batch as a pretrainer takes it; the clips of a video follow each other.
        videos: `(clips,)`, the video of each clip.
        labels: the class of each clip, by task; empty if the classes are not known.
        are_trained_on: whether the videos are among those of the training.
    """

    batch: Batch
    videos: NDArray[np.int64]
    labels: dict[str, NDArray[np.int32]]
    are_trained_on: bool


def held_out_clips(
    batches: ClipBatches,
    count: int,
    samples: Sequence[Sample] = (),
    labels: Mapping[str, NDArray[np.int32]] | None = None,
) -> HeldOut | None:
    """Read two views of each of some videos, with clips, crops and masks drawn as in training.

    Args:
        batches: batches of the training.
        count: number of videos, if there are so many.
        samples: videos that are not trained on; if empty, videos of the training are taken.
        labels: the class of each of `samples`, by task.

    Returns:
        The clips; None if fewer than two videos can be read twice.
    """
    known = list(samples) or list(batches.samples)
    chosen = np.unique(np.linspace(0, len(known) - 1, min(count, len(known))).astype(int))
    own = [known[i] for i in chosen]
    alone = replace(batches, samples=own, batch_size=len(own), process_index=0, process_count=1)
    parts = [alone.batch(step) for step in range(VIEWS)]
    paths = [path for step in range(VIEWS) for path in alone.paths(step)]
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    # If a file cannot be read, another one takes its place in the batch, so that a video may be
    # missing from a view or occur twice.
    places: dict[str, list[int]] = {sample.path: [] for sample in own}
    for place, path in enumerate(paths):
        places[path].append(place)
    kept = [i for i, sample in enumerate(own) if len(places[sample.path]) == VIEWS]
    if len(kept) < 2:
        return None
    order = np.concatenate([places[own[i].path] for i in kept])
    return HeldOut(
        {name: values[order] for name, values in whole.items()},
        np.repeat(np.arange(len(kept)), VIEWS),
        {
            task: np.repeat(np.asarray(values)[chosen[kept]], VIEWS)
            for task, values in (labels or {}).items()
        },
        not len(samples),
    )


def shares_and_pixels(batch: Batch, num_tokens: int) -> dict[str, float]:
    """Measure what goes into a pretrainer: the masks and the pixels of some clips.

    Args:
        batch: a batch as a pretrainer takes it.
        num_tokens: number of tokens of a whole clip.

    Returns:
        `input_mean` and `input_deviation` of the pixels, which are about 0 and 1 if mean and
        deviation of the transform are those of the videos. For each kind of mask, as
        `context_share_mask_0` and `target_share_mask_0`, the shares of a clip's tokens that the
        encoder sees and that are predicted, as means over the clips.
    """
    videos = np.asarray(batch["videos"])
    found = {
        "input_mean": float(videos.mean(dtype="float64")),
        "input_deviation": float(videos.std(dtype="float64")),
    }
    for part in ("context", "target"):
        for kind in range(len(batch)):
            indices = batch.get(f"{part}_indices_{kind}")
            if indices is not None:
                seen = (np.asarray(indices) >= 0).sum(axis=1)
                found[f"{part}_share_mask_{kind}"] = float(seen.mean()) / num_tokens
    return found
