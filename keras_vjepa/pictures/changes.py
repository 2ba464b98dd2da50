"""Find where a video changes into something that its past does not tell (§3.1, §3.3).

A predictor that was trained to fill in hidden patches does not know the future: where a thing will
be is uncertain, and that alone makes a large error wherever something moves. So here each patch is
predicted from half of its own time step, which tells where things are, and from the steps on one
side, which tell what they are. What counts is the difference between the two sides: a step that
fits worse with what was before than with what follows begins something new.
"""

from collections.abc import Iterator

import numpy as np
from keras import ops
from numpy.typing import NDArray

from keras_vjepa.arguments import MOST_SEED, check_whole
from keras_vjepa.data.transforms.crops import PIXEL_MEAN, PIXEL_STD, Colour
from keras_vjepa.models.dimensions import height_and_width
from keras_vjepa.pictures.surprise import Grid, compiled_parts
from keras_vjepa.pictures.videos import WatchedVideo
from keras_vjepa.tasks.pretrainer import VJEPAPretrainer

# Chosen on 40 of the built-in test videos, and confirmed on others; see docs/pictures.md. With
# more steps, a step after the change knows the new digit less surely; with fewer, the old one.
_REACH = 2
_DRAWS = 6


def half_hidden(
    grid: Grid, time: int, steps: range, draws: int, random: np.random.Generator
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Hide each half of a time step, and list what is known beside it.

    Args:
        grid: numbers of tokens by time, row and column.
        time: the time step.
        steps: the other time steps that are known.
        draws: how often a step is divided at random into two halves.
        random: source of random numbers.

    Returns:
        The known tokens and the hidden ones, each int32 `(2 * draws, tokens)`, sorted. Of an odd
        number of patches, one is hidden in neither half.

    Example:

    >>> import numpy as np
    >>> from keras_vjepa.pictures.changes import half_hidden
    >>> known, hidden = half_hidden((3, 1, 2), 1, range(0, 1), 1, np.random.default_rng(0))
    >>> sorted(known.tolist()), sorted(hidden.tolist())
    ([[0, 1, 2], [0, 1, 3]], [[2], [3]])
    """
    patches = grid[1] * grid[2]
    half = patches // 2
    orders = random.permuted(np.tile(np.arange(patches), (draws, 1)), axis=1)
    hidden = np.concatenate([orders[:, :half], orders[:, patches - half :]])
    own = np.concatenate([orders[:, half:], orders[:, : patches - half]])
    beside = np.arange(steps.start * patches, steps.stop * patches)
    known = np.concatenate([np.tile(beside, (2 * draws, 1)), own + time * patches], axis=1)
    return np.sort(known).astype("int32"), np.sort(hidden + time * patches).astype("int32")


def prediction_changes(
    pretrainer: VJEPAPretrainer,
    video: WatchedVideo,
    mean: Colour = PIXEL_MEAN,
    std: Colour = PIXEL_STD,
    seed: int = 0,
) -> NDArray[np.float32]:
    """Measure for each patch how much a video changes there, by errors of a predictor.

    Of each time step, halves that are drawn at random are predicted from the other half and up to
    two steps before it, then from the other half and up to two steps after it. The first error less
    the second is large in the first step of something new, and small (negative) in the last step
    of what was there before. The change is the difference between a step and the one before it,
    averaged over the patches beside each, because things move.

    Frames are stretched to the size of the model, because the predictor works with no other size.

    Args:
        pretrainer: holds encoder, predictor and the targets.
        video: the video, cut into clips of as many frames as the encoder has.
        mean: mean of red, green and blue with which the encoder was trained.
        std: deviation of red, green and blue with which the encoder was trained.
        seed: seed of the halves.

    Returns:
        float32 `(clips, time, rows, columns)`: 0 in the first step, which nothing is before. Errors
        have the exponent of the pretrainer's loss. Where nothing changes, values lie around 0.

    Raises:
        ValueError: for a grid of one time step, or of one patch a step.
    """
    check_whole(0, MOST_SEED, seed=seed)
    grid = pretrainer.encoder.grid_shape
    if grid[0] < 2 or grid[1] * grid[2] < 2:
        raise ValueError(
            "`pretrainer` must have at least two time steps of at least two patches, as changes "
            f"are found between halves of steps. Received: a grid of {grid} tokens"
        )
    clips = video.clips(height_and_width(pretrainer.encoder.image_size), mean, std)
    errors = _SidedErrors(pretrainer, grid)
    found = np.stack([errors.of_clip(clip, np.random.default_rng(seed)) for clip in clips])
    change = np.diff(found, axis=1, prepend=found[:, :1])
    return _mean_of_neighbors(change).astype("float32")


class _SidedErrors:
    """Computes errors of predictions from before less those of predictions from after."""

    def __init__(self, pretrainer: VJEPAPretrainer, grid: Grid) -> None:
        # The predictor is told the kind of mask that hides the most, which is the last.
        kind = pretrainer.predictor.num_mask_tokens - 1
        self._grid = grid
        self._exponent = pretrainer.loss_exponent
        self._targets_of, self._predict = compiled_parts(pretrainer, kind)

    def of_clip(
        self, clip: NDArray[np.float32], random: np.random.Generator
    ) -> NDArray[np.float64]:
        """Return the differences, shape `(time, rows, columns)`."""
        one = clip[np.newaxis]
        targets = ops.convert_to_numpy(self._targets_of(ops.convert_to_tensor(one)))[0]
        videos = ops.convert_to_tensor(np.repeat(one, 2 * _DRAWS, axis=0))
        sums = np.zeros((2, len(targets)))
        counts = np.zeros((2, len(targets)))
        for side, known, hidden in self._halves(random):
            arrays = (ops.convert_to_tensor(tokens) for tokens in (known, hidden))
            predicted = ops.convert_to_numpy(self._predict(videos, *arrays))
            distance = np.abs(predicted - targets[hidden]) ** self._exponent
            np.add.at(sums[side], hidden, distance.mean(axis=-1))
            np.add.at(counts[side], hidden, 1)
        before, after = sums / np.maximum(counts, 1)
        return (before - after).reshape(self._grid)

    def _halves(
        self, random: np.random.Generator
    ) -> Iterator[tuple[int, NDArray[np.int32], NDArray[np.int32]]]:
        last = self._grid[0]
        for time in range(last):
            sides = (
                range(max(0, time - _REACH), time),
                range(time + 1, min(last, time + 1 + _REACH)),
            )
            for side, steps in enumerate(sides):
                yield side, *half_hidden(self._grid, time, steps, _DRAWS, random)


def _mean_of_neighbors(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Average each patch with the eight around it; at the border, with those that there are."""
    rows, columns = values.shape[2:]
    around = [(slice(y, y + rows), slice(x, x + columns)) for y in range(3) for x in range(3)]
    padded = np.pad(values, ((0, 0), (0, 0), (1, 1), (1, 1)))
    number = np.pad(np.ones((rows, columns)), 1)
    sums = sum(padded[:, :, y, x] for y, x in around)
    return np.asarray(sums / sum(number[y, x] for y, x in around))
