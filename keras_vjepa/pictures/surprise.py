"""Measure where a video is not as the predictor expects it (§3.1, §3.3)."""

from collections.abc import Callable
from typing import Literal

import numpy as np
from keras import ops
from numpy.typing import NDArray

from keras_vjepa.arguments import check_choice
from keras_vjepa.backend.device import compiled_alone
from keras_vjepa.data.transforms.crops import PIXEL_MEAN, PIXEL_STD, Colour
from keras_vjepa.models.dimensions import height_and_width
from keras_vjepa.pictures.videos import WatchedVideo
from keras_vjepa.tasks.pretrainer import VJEPAPretrainer
from keras_vjepa.types import Tensor

Known = Literal["past", "around"]
Grid = tuple[int, int, int]
# A third of each side, since the paper's short-range blocks cover 15 % of a frame, which is a
# little more than a third of each side.
_BLOCKS_PER_SIDE = 3


def hidden_boxes(grid: Grid, known: Known) -> list[tuple[NDArray[np.int32], NDArray[np.int32]]]:
    """Tile a grid with boxes, each of which is predicted from tokens outside of it.

    Args:
        grid: numbers of tokens by time, row and column.
        known: with "past", each box is a time step, predicted from the steps before it; the first
            step is predicted from those after it. With "around", each box is a block through all
            time, predicted from everything around it.

    Returns:
        For each box, the known tokens and the hidden ones; every token is hidden once.

    Raises:
        ValueError: if a box would have nothing outside of it.

    Example:

    >>> from keras_vjepa.pictures.surprise import hidden_boxes
    >>> [(k.tolist(), h.tolist()) for k, h in hidden_boxes((3, 1, 2), "past")]
    [([2, 3, 4, 5], [0, 1]), ([0, 1], [2, 3]), ([0, 1, 2, 3], [4, 5])]
    """
    check_choice(("past", "around"), known=known)
    times, rows, columns = np.indices(grid)
    if known == "past":
        boxes = [(times == t, times < t if t else times > t) for t in range(grid[0])]
    else:
        row_of, column_of = (
            place * min(_BLOCKS_PER_SIDE, most) // most
            for place, most in ((rows, grid[1]), (columns, grid[2]))
        )
        blocks = row_of * _BLOCKS_PER_SIDE + column_of
        boxes = [(blocks == b, blocks != b) for b in np.unique(blocks)]
    if not all(outside.any() for _, outside in boxes):
        raise ValueError(
            f"`known` must leave something of the grid {grid} to predict from. Received: {known!r}"
        )
    flat = [(np.flatnonzero(o), np.flatnonzero(b)) for b, o in boxes]
    return [(outside.astype("int32"), box.astype("int32")) for outside, box in flat]


def compiled_parts(
    pretrainer: VJEPAPretrainer, kind: int
) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """Compile what gives the targets of videos, and the predictions for one kind of mask.

    Args:
        pretrainer: holds encoder, predictor and the targets.
        kind: number of the kind of mask that the predictor is told.

    Returns:
        Functions of videos; and of videos, known tokens and hidden ones.
    """
    names = ("videos", f"context_indices_{kind}", f"target_indices_{kind}")
    return compiled_alone(pretrainer.targets), compiled_alone(
        lambda *arrays: pretrainer.predictions(dict(zip(names, arrays, strict=True)), kind)
    )


def prediction_errors(
    pretrainer: VJEPAPretrainer,
    video: WatchedVideo,
    known: Known = "past",
    mean: Colour = PIXEL_MEAN,
    std: Colour = PIXEL_STD,
) -> NDArray[np.float32]:
    """Compute how far the prediction of each patch is from the true features.

    Frames are stretched to the size of the model, because the predictor works with no other size.

    Args:
        pretrainer: holds encoder, predictor and the targets.
        video: the video, cut into clips of as many frames as the encoder has.
        known: what a patch is predicted from, as in `hidden_boxes`.
        mean: mean of red, green and blue with which the encoder was trained.
        std: deviation of red, green and blue with which the encoder was trained.

    Returns:
        float32 `(clips, time, rows, columns)`: the mean absolute difference between predictions and
        targets, which are normalised as in training.

    Raises:
        ValueError: for a grid that has nothing to predict from.
    """
    grid = pretrainer.encoder.grid_shape
    clips = video.clips(height_and_width(pretrainer.encoder.image_size), mean, std)
    errors = np.zeros((len(clips), int(np.prod(grid))), "float32")
    # The predictor gets the index of the most similar kind of mask: for "past" the last kind, which
    # hides the most.
    kind = pretrainer.predictor.num_mask_tokens - 1 if known == "past" else 0
    boxes = hidden_boxes(grid, known)
    targets_of, predict = compiled_parts(pretrainer, kind)
    for clip, row in zip(clips, errors, strict=True):
        videos = ops.convert_to_tensor(clip[np.newaxis])
        targets = ops.convert_to_numpy(targets_of(videos))[0]
        for box in boxes:
            outside, hidden = (ops.convert_to_tensor(one[np.newaxis]) for one in box)
            predicted = ops.convert_to_numpy(predict(videos, outside, hidden))[0]
            row[box[1]] = np.abs(predicted - targets[box[1]]).mean(axis=-1)
    return errors.reshape(len(clips), *grid)


def surprise(errors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Measure by one number for each clip how little the predictor expected it.

    Args:
        errors: errors as `prediction_errors` returns them.

    Returns:
        `(clips,)`: the mean over the patches.
    """
    return np.asarray(errors.mean(axis=(1, 2, 3)), "float32")
