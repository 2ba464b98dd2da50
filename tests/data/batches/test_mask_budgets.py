"""Budgets that are usual on a grid, and the refusal of others."""

import pytest

from keras_vjepa.data.batches.mask_budgets import check_usual_budgets, usual_budgets
from keras_vjepa.data.batches.mask_kinds import LONG_RANGE, SHORT_RANGE, RandomTubeMask
from keras_vjepa.data.batches.mask_sampler import mean_counts

pytestmark = pytest.mark.data

KINDS = [SHORT_RANGE, LONG_RANGE]


def test_usual_are_the_means_of_1_to_128_clips_and_two_patches():
    grid = (4, 8, 8)
    usual = usual_budgets(KINDS, grid)
    one, many = mean_counts(KINDS, grid, 1), mean_counts(KINDS, grid, 128, 200)
    for ranges, most, least in zip(usual, one, many, strict=True):
        assert [r[0] + 2 * grid[0] for r in ranges] == list(least)
        assert [r[-1] - 2 * grid[0] for r in ranges] == list(most)
    check_usual_budgets(KINDS, grid, *mean_counts(KINDS, grid, 24))


def test_usual_are_tokens_of_the_grid():
    """A grid of few patches has no room for two more."""
    [[contexts], [targets]] = usual_budgets([RandomTubeMask(0.5)], (3, 1, 2))
    assert (contexts, targets) == (range(1, 7), range(1, 7))


@pytest.mark.parametrize(
    ("contexts", "targets", "message"),
    [
        ([40, 20], None, None),
        (None, [110, 170], None),
        ([None, 20], [124, None], None),
        (None, None, None),
        ([35, 20], [124, 176], "context_budgets` .* 4 x 8 x 8 tokens, where 36 to 100 are .*: 35"),
        ([101, 20], None, "context_budgets` .* 36 to 100 .* Received: 101"),
        ([None, 11], None, "context_budgets` .* 12 to 60 .* Received: 11"),
        (None, [103, 176], "target_budgets` .* 104 to 172 .* Received: 103"),
        ([52, 20], [124, 213], "target_budgets` .* 168 to 212 .* Received: 213"),
    ],
)
def test_what_is_not_usual_is_refused(contexts, targets, message):
    if message is None:
        check_usual_budgets(KINDS, (4, 8, 8), contexts, targets)
    else:
        with pytest.raises(ValueError, match=message):
            check_usual_budgets(KINDS, (4, 8, 8), contexts, targets)


def test_nothing_is_drawn_for_budgets_that_are_not_given(monkeypatch):
    monkeypatch.setattr("keras_vjepa.data.batches.mask_budgets.usual_budgets", None)
    check_usual_budgets(KINDS, (4, 8, 8), None, None)
    with pytest.raises(TypeError):
        check_usual_budgets(KINDS, (4, 8, 8), [1, None], None)
