"""Where a video changes into what its past does not tell."""

from types import SimpleNamespace

import numpy as np
import pytest
from keras import ops

from keras_vjepa import VJEPAPretrainer
from keras_vjepa.data.sources import digit_motion_rendering as rendering
from keras_vjepa.pictures import WatchedVideo, prediction_changes
from keras_vjepa.pictures.changes import half_hidden


class MeanOfTheKnown:
    """A pretrainer whose target is the mean of a patch, and whose guess that of the known ones."""

    predictor = SimpleNamespace(num_mask_tokens=1)
    loss_exponent = 2.0

    def __init__(self, grid):
        self.encoder = SimpleNamespace(grid_shape=grid, image_size=(8 * grid[1], 8 * grid[2]))

    def targets(self, videos):
        time, rows, columns = self.encoder.grid_shape
        patches = ops.reshape(videos, (-1, time, rows, 8, columns, 24))
        return ops.reshape(ops.mean(patches, axis=(3, 5)), (-1, time * rows * columns, 1))

    def predictions(self, batch, kind):
        known = batch[f"context_indices_{kind}"][..., None]
        guess = ops.mean(ops.take_along_axis(self.targets(batch["videos"]), known, 1), axis=1)
        hidden = batch[f"target_indices_{kind}"]
        return ops.repeat(guess[:, None], hidden.shape[1], axis=1)


@pytest.mark.parametrize("grid,steps", [((4, 3, 3), range(1, 3)), ((2, 1, 2), range(0))])
def test_halves(grid, steps):
    patches = grid[1] * grid[2]
    known, hidden = half_hidden(grid, grid[0] - 1, steps, 50, np.random.default_rng(0))
    assert known.shape == (100, len(steps) * patches + patches - patches // 2)
    own = (grid[0] - 1) * patches
    for of_known, of_hidden in zip(known.tolist(), hidden.tolist(), strict=True):
        assert not set(of_known) & set(of_hidden)
        of_step = {token for token in of_known + of_hidden if token >= own}
        assert of_step == set(range(own, own + patches))
        assert set(of_known) - of_step == set(range(steps.start * patches, steps.stop * patches))
    assert set(hidden.ravel().tolist()) == set(range(own, own + patches))


@pytest.mark.parametrize(
    "change", [pytest.param(1, marks=pytest.mark.slow), 3, pytest.param(5, marks=pytest.mark.slow)]
)
def test_the_change_is_found_when_and_where_it_is(change):
    model = MeanOfTheKnown((6, 4, 5))
    frames = np.full((6, 32, 40, 3), 100, np.uint8)
    still = prediction_changes(model, WatchedVideo(frames, 24.0, 6, 1, 1))
    np.testing.assert_allclose(still, 0, atol=1e-6)
    frames[change:, 16:, 24:] = 250
    changes = prediction_changes(model, WatchedVideo(frames, 24.0, 6, 1, 1))
    assert changes.shape == (1, 6, 4, 5)
    time, row, column = np.unravel_index(changes.argmax(), changes.shape[1:])
    assert (time, row >= 2, column >= 3) == (change, True, True)
    assert (changes[0, 0] == 0).all()


def test_a_grid_without_two_halves_is_refused():
    video = WatchedVideo(np.zeros((4, 8, 8, 3), "uint8"), 24.0)
    for grid in ((1, 4, 4), (4, 1, 1)):
        with pytest.raises(ValueError, match="at least two time steps of at least two patches"):
            prediction_changes(MeanOfTheKnown(grid), video)


def digits_of_others(images, labels):
    """Put an image of another digit, of the same split, in the place of each."""
    rng = np.random.default_rng(0)
    is_training = np.arange(len(labels)) < rendering.NUM_TRAINING_IMAGES
    chosen = [
        rng.choice(np.flatnonzero((is_training == own) & (labels != label)))
        for own, label in zip(is_training, labels, strict=True)
    ]
    return images[chosen], labels[chosen]


@pytest.mark.slow
def test_the_map_is_highest_where_a_moving_digit_was_replaced(monkeypatch):
    """On the built-in set, with the model of the package; by chance it would be 1 clip of 7."""
    pretrainer = VJEPAPretrainer.from_preset("vjepa_tiny_digits_pixels")
    others = digits_of_others(*rendering.digit_images())
    config, found = rendering.SETS["digit_motion_black"], []
    for index in range(40, 60):
        first = rendering.render_digit_motion("test", index, config).frames[1:17:2]
        with monkeypatch.context() as patch:
            patch.setattr(rendering, "digit_images", lambda: others)
            second = rendering.render_digit_motion("test", index, config).frames[1:17:2]
        frames = np.concatenate([first[:4], second[4:]])
        changes = prediction_changes(pretrainer, WatchedVideo(frames, 6.0, 8, 1, 1))[0]
        found.append(np.unravel_index(changes.argmax(), changes.shape)[0])
    assert np.mean(np.equal(found, 4)) >= 0.75, found
