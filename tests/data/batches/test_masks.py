"""Masks against the statistics of the authors' generators, and what the sampler promises."""

import json

import numpy as np
import pytest

from keras_vjepa.data.batches.mask_kinds import (
    LONG_RANGE,
    SHORT_RANGE,
    CausalMultiBlockMask,
    MultiBlockMask,
    RandomTokenMask,
    RandomTubeMask,
)
from keras_vjepa.data.batches.mask_sampler import (
    PADDING,
    MaskSampler,
    default_budgets,
    mean_counts,
)
from tests.support import GOLDEN

pytestmark = pytest.mark.data

STATISTICS = json.loads((GOLDEN / "masks_stats.json").read_text())
MASKS = {"short": SHORT_RANGE, "long": LONG_RANGE}
GRIDS = {"224": (8, 14, 14), "384": (8, 24, 24)}
NUM_BATCHES = 1000
SIGMAS = 5


def budget_sampler(seed: int = 0) -> MaskSampler:
    return MaskSampler(
        [SHORT_RANGE, LONG_RANGE],
        GRIDS["224"],
        context_budgets=(368, 96),
        target_budgets=(752, 1104),
        seed=seed,
    )


def aspect_draws(aspect_ratio: float) -> np.ndarray:
    return np.array([0.5, 0.5, (aspect_ratio - 0.75) / 0.75])


@pytest.fixture(scope="module", params=list(STATISTICS["runs"]))
def run(request) -> tuple[dict, MultiBlockMask, list[np.ndarray], list[tuple[int, int]]]:
    """The reference's statistics, the mask, our visible counts and lengths for many batches."""
    reference = STATISTICS["runs"][request.param]
    resolution, name, _ = request.param.split("_")
    mask = MASKS[name]
    sampler = MaskSampler([mask], GRIDS[resolution], truncation="batch_min")
    counts, lengths = [], []
    for step in range(NUM_BATCHES):
        visible = sampler.draw_visible(0, step, reference["batch_size"])
        counts.append(visible.sum(axis=1))
        batch = sampler(step, reference["batch_size"])
        lengths.append((batch["context_indices_0"].shape[1], batch["target_indices_0"].shape[1]))
    return reference, mask, counts, lengths


def assert_same_mean(ours: np.ndarray, reference_mean: float, reference_batches: int) -> None:
    """Both means carry a standard error; our spread stands for both, one value per batch."""
    error = ours.std(ddof=1) * np.sqrt(1 / len(ours) + 1 / reference_batches)
    assert abs(ours.mean() - reference_mean) < SIGMAS * error


def test_paper_numbers():
    assert (SHORT_RANGE.num_blocks, SHORT_RANGE.spatial_scale) == (8, 0.15)
    assert (LONG_RANGE.num_blocks, LONG_RANGE.spatial_scale) == (2, 0.7)
    for mask in (SHORT_RANGE, LONG_RANGE):
        assert mask.aspect_ratio == (0.75, 1.5)
        assert mask.temporal_scale == (1.0, 1.0)


@pytest.mark.parametrize("setting", list(STATISTICS["block_sizes"]))
def test_block_size_follows_the_aspect_ratio(setting):
    reference = STATISTICS["block_sizes"][setting]
    resolution, name = setting.split("_")
    steps = reference["block_size_by_aspect_ratio"]
    thresholds = np.array([step["aspect_ratio_from"] for step in steps])
    for aspect_ratio in np.linspace(0.75, 1.5, 3000, endpoint=False):
        # The thresholds are stored with four decimals.
        if np.abs(thresholds[1:] - aspect_ratio).min() < 1e-4:
            continue
        expected = steps[np.searchsorted(thresholds, aspect_ratio, side="right") - 1]
        size = MASKS[name].block_size(GRIDS[resolution], aspect_draws(aspect_ratio))
        assert size == (8, expected["h"], expected["w"]), aspect_ratio
    aspect_ratios = STATISTICS["aspect_ratio_by_iteration_counter"]
    sizes = reference["block_size_thw_by_iteration_counter"]
    for aspect_ratio, expected_size in zip(aspect_ratios, sizes, strict=True):
        size = MASKS[name].block_size(GRIDS[resolution], aspect_draws(aspect_ratio))
        assert list(size) == expected_size


def test_block_shape_histogram(run):
    reference, mask, _, _ = run
    grid = tuple(reference["grid"])
    draws = np.random.default_rng(0).random((20_000, 3))
    sizes, counts = np.unique([mask.block_size(grid, d) for d in draws], axis=0, return_counts=True)
    histogram = {f"{h}x{w}": count for (_, h, w), count in zip(sizes, counts, strict=True)}
    assert set(reference["block_hw_hist"]) <= set(histogram)
    for shape, count in histogram.items():
        share = count / len(draws)
        error = np.sqrt(share * (1 - share) * (1 / len(draws) + 1 / reference["num_batches"]))
        expected = reference["block_hw_hist"].get(shape, 0) / reference["num_batches"]
        assert abs(share - expected) < SIGMAS * error, shape


def test_counts_before_truncation(run):
    reference, _, counts, _ = run
    expected = reference["num_context_before_truncation_per_sample"]
    # Samples of a batch have blocks of the same size, so only batches are independent draws.
    assert_same_mean(np.mean(counts, axis=1), expected["mean"], reference["num_batches"])
    mean_squares = np.mean((np.array(counts) - expected["mean"]) ** 2, axis=1)
    assert_same_mean(mean_squares, expected["std"] ** 2, reference["num_batches"])


def test_counts_after_truncation_to_the_batch_minimum(run):
    reference, _, _, lengths = run
    for column, name in enumerate(("context", "target")):
        expected = reference[f"num_{name}_after_truncation_per_batch"]
        ours = np.array(lengths, float)[:, column]
        assert_same_mean(ours, expected["mean"], reference["num_batches"])
        squares = (ours - expected["mean"]) ** 2
        assert_same_mean(squares, expected["std"] ** 2, reference["num_batches"])


def test_time_steps_that_the_context_reaches(run):
    reference, _, counts, lengths = run
    # Full-length blocks show the same number of tokens at every time step.
    reached = [
        np.ceil(num_context / (count / 8)).mean()
        for (num_context, _), count in zip(lengths, counts, strict=True)
    ]
    expected = reference["time_steps_reached_by_context_after_truncation"]
    assert_same_mean(np.array(reached), expected["mean"], reference["num_batches"])


def test_share_of_samples_that_see_nothing(run):
    reference, mask, _, _ = run
    rng = np.random.default_rng(1)
    grid = tuple(reference["grid"])
    shares = np.array(
        [
            1
            - mask.visible(grid, rng.random(3), rng.random((24, mask.num_draws(grid))))
            .any(axis=(1, 2, 3))
            .mean()
            for _ in range(NUM_BATCHES)
        ]
    )
    if reference["rejected_fraction"] == 0:
        assert shares.max() == 0
    else:
        num_batches = reference["num_batches"] * reference["batch_size"] / 24
        assert_same_mean(shares, reference["rejected_fraction"], num_batches)


def test_blocks_reach_every_placement_and_the_borders():
    mask = MultiBlockMask(num_blocks=1, spatial_scale=0.25, aspect_ratio=1.0)
    draws = np.random.default_rng(0).random((2000, 3))
    hidden = ~mask.visible((2, 4, 4), np.zeros(3), draws)
    placements, counts = np.unique(hidden.reshape(2000, -1), axis=0, return_counts=True)
    assert len(placements) == 9
    assert np.abs(counts - 2000 / 9).max() < SIGMAS * np.sqrt(2000 / 9)
    assert (placements.sum(axis=1) == 2 * 2 * 2).all()


def test_blocks_may_be_short_in_time():
    mask = MultiBlockMask(num_blocks=1, spatial_scale=1.0, temporal_scale=0.5)
    visible = mask.visible((4, 3, 3), np.zeros(3), np.array([[0.0, 0, 0], [0.99, 0, 0]]))
    assert visible[:, :, 1, 1].tolist() == [[False] * 2 + [True] * 2, [True] * 2 + [False] * 2]


def test_batch_min_cuts_the_exact_complements_and_keeps_the_first_indices():
    sampler = MaskSampler([SHORT_RANGE, LONG_RANGE], GRIDS["224"], truncation="batch_min")
    batch = sampler(step=3, batch_size=6)
    for kind in range(2):
        visible = sampler.draw_visible(kind, 3, 6)
        contexts, targets = batch[f"context_indices_{kind}"], batch[f"target_indices_{kind}"]
        assert contexts.shape == (6, visible.sum(axis=1).min())
        assert targets.shape == (6, (~visible).sum(axis=1).min())
        for row, context, target in zip(visible, contexts, targets, strict=True):
            np.testing.assert_array_equal(context, np.flatnonzero(row)[: len(context)])
            np.testing.assert_array_equal(target, np.flatnonzero(~row)[: len(target)])


def test_one_sample_is_not_truncated():
    batch = MaskSampler([SHORT_RANGE], GRIDS["224"], truncation="batch_min")(0, 1)
    both = np.concatenate([batch["context_indices_0"][0], batch["target_indices_0"][0]])
    np.testing.assert_array_equal(np.sort(both), np.arange(1568))


def test_budgets_pad_at_the_end_and_agree_with_batch_min():
    budget = budget_sampler()
    batch_min = MaskSampler([SHORT_RANGE, LONG_RANGE], GRIDS["224"], truncation="batch_min")
    num_padded = 0
    for step in range(30):
        ours, theirs = budget(step, 24), batch_min(step, 24)
        for name, indices in ours.items():
            assert indices.dtype == np.int32 and indices.flags.c_contiguous
            shortest = min(indices.shape[1], theirs[name].shape[1])
            np.testing.assert_array_equal(indices[:, :shortest], theirs[name][:, :shortest])
            for row in indices:
                num_real = np.count_nonzero(row != PADDING)
                assert (row[num_real:] == PADDING).all()
                assert (np.diff(row[:num_real]) > 0).all() and row[0] >= 0 and row.max() < 1568
                num_padded += num_real < len(row)
    assert 0 < num_padded < 0.05 * 30 * 24 * 4


def test_pure_function_of_seed_step_and_position():
    whole = budget_sampler()(7, 8)
    halves = [budget_sampler()(7, 4, start=start) for start in (0, 4)]
    last = budget_sampler()(7, 1, start=7)
    for name, indices in whole.items():
        np.testing.assert_array_equal(indices, np.concatenate([half[name] for half in halves]))
        np.testing.assert_array_equal(indices[7:], last[name])
        assert not np.array_equal(indices[:4], indices[4:])
    for other in (budget_sampler()(8, 8), budget_sampler(seed=1)(7, 8)):
        assert not np.array_equal(whole["context_indices_0"], other["context_indices_0"])


def test_redrawn_samples_do_not_depend_on_the_sharding():
    mask = MultiBlockMask(num_blocks=6, spatial_scale=0.7)
    sampler = MaskSampler([mask], GRIDS["224"], context_budgets=[100], target_budgets=[1500])
    draws = np.random.default_rng(0).random((100, 18))
    assert not mask.visible(GRIDS["224"], np.zeros(3), draws).any(axis=(1, 2, 3)).all()
    whole = sampler(0, 32)["context_indices_0"]
    parts = [sampler(0, 8, start=start)["context_indices_0"] for start in range(0, 32, 8)]
    np.testing.assert_array_equal(whole, np.concatenate(parts))
    assert (whole[:, 0] >= 0).all()


def test_kinds_share_the_aspect_ratio_but_not_the_positions():
    sampler = MaskSampler([SHORT_RANGE, SHORT_RANGE], GRIDS["224"], truncation="batch_min")
    batch = sampler(0, 1)
    assert not np.array_equal(batch["target_indices_0"], batch["target_indices_1"])
    single = MultiBlockMask(num_blocks=1, spatial_scale=0.15)
    sampler = MaskSampler([single, single], GRIDS["224"], truncation="batch_min")
    sizes = set()
    for step in range(40):
        batch = sampler(step, 5)
        shapes = set()
        for targets in (batch["target_indices_0"], batch["target_indices_1"]):
            _, rows, columns = np.unravel_index(targets, GRIDS["224"])
            shapes |= set(zip(np.ptp(rows, axis=1) + 1, np.ptp(columns, axis=1) + 1, strict=True))
        assert len(shapes) == 1
        sizes |= shapes
    assert len(sizes) > 2


@pytest.mark.parametrize("resolution", ["224", "384"])
def test_random_tube(resolution):
    reference = STATISTICS["random_tube"][resolution]
    mask = RandomTubeMask(ratio=reference["ratio"])
    sampler = MaskSampler([mask], tuple(reference["grid"]))
    assert sampler.context_budgets == (reference["num_context"],)
    assert sampler.target_budgets == (reference["num_target"],)
    batch = sampler(0, 24)
    tokens = np.concatenate([batch["context_indices_0"], batch["target_indices_0"]], axis=1)
    np.testing.assert_array_equal(np.sort(tokens, axis=1)[5], np.arange(reference["total_tokens"]))
    contexts = batch["context_indices_0"].reshape(24, 8, reference["kept_spatial_positions"])
    num_patches = reference["total_tokens"] // 8
    np.testing.assert_array_equal(contexts % num_patches, contexts[:, :1].repeat(8, axis=1))

    num_samples = 24 * 100
    kept = np.concatenate([sampler(step, 24)["context_indices_0"] for step in range(100)])
    kept = kept[:, : reference["kept_spatial_positions"]]
    frequency = np.bincount(kept.ravel(), minlength=num_patches) / num_samples
    mean = reference["keep_frequency_per_spatial_position"]["mean"]
    assert np.abs(frequency - mean).max() < SIGMAS * np.sqrt(mean * (1 - mean) / num_samples)


def test_random_tokens():
    sampler = MaskSampler([RandomTokenMask(0.75)], (4, 6, 6))
    batch = sampler(0, 200)
    contexts, targets = batch["context_indices_0"], batch["target_indices_0"]
    tokens = np.concatenate([contexts, targets], axis=1)
    assert contexts.shape == (200, 36) and (np.sort(tokens, axis=1) == np.arange(144)).all()
    # Unlike with tubes, time steps show different numbers of tokens in different places.
    per_step = np.stack([(contexts // 36 == step).sum(axis=1) for step in range(4)])
    assert (per_step != 9).mean() > 0.5
    frequency = np.bincount(contexts.ravel(), minlength=144) / 200
    assert np.abs(frequency - 0.25).max() < SIGMAS * np.sqrt(0.25 * 0.75 / 200)


@pytest.mark.parametrize(("num_context_frames", "num_steps"), [(6, 3), (12, 6), (1, 1), (16, 8)])
def test_causal(num_context_frames, num_steps):
    causal = CausalMultiBlockMask(8, 0.15, num_context_frames=num_context_frames)
    share = MultiBlockMask(8, 0.15, max_temporal_keep=num_context_frames / 16)
    plain = MultiBlockMask(8, 0.15)
    batches = [MaskSampler([mask], (8, 14, 14), "batch_min")(0, 1) for mask in (causal, share)]
    context = MaskSampler([plain], (8, 14, 14), "batch_min")(0, 1)["context_indices_0"]
    expected = context[context < num_steps * 196]
    for batch in batches:
        np.testing.assert_array_equal(batch["context_indices_0"][0], expected)
        both = np.concatenate([batch["context_indices_0"][0], batch["target_indices_0"][0]])
        np.testing.assert_array_equal(np.sort(both), np.arange(1568))


def test_max_keep():
    mask = MultiBlockMask(8, 0.15, max_keep=40)
    assert MaskSampler([mask], (8, 14, 14), "batch_min")(0, 3)["context_indices_0"].shape == (3, 40)
    tube = MaskSampler([RandomTubeMask(max_keep=40)], (8, 14, 14))
    assert {name: i.shape[1] for name, i in tube(0, 2).items()} == {
        "context_indices_0": 40,
        "target_indices_0": 1416,
    }


def test_mean_counts():
    arguments = ([SHORT_RANGE, LONG_RANGE, RandomTubeMask()], (8, 14, 14), 24)
    contexts, targets = mean_counts(*arguments, num_batches=300)
    assert (contexts, targets) == mean_counts(*arguments, num_batches=300)
    for ours, expected in zip(contexts + targets, (365, 100, 152, 754, 1102, 1416), strict=True):
        assert ours % 8 == 0 and abs(ours - expected) <= 24
    sampler = MaskSampler(*arguments[:2], context_budgets=contexts, target_budgets=targets)
    assert sampler(0, 2)["target_indices_2"].shape == (2, 1416)


def late_shares(kind, lengths):
    """Share of the targets in the last two of eight steps, of lists cut to the shortest of 24
    clips and of lists cut to given lengths, in batches that budgets are not made from."""
    sampler = MaskSampler([kind], (8, 14, 14), "batch_min", seed=1)
    hidden = [~sampler.draw_visible(0, step, 24) for step in range(300)]
    counts = np.array([[of_batch.sum(1), of_batch[:, : 6 * 196].sum(1)] for of_batch in hidden])
    num_hidden, num_early = counts[:, 0], counts[:, 1]
    shares = []
    for length in (num_hidden.min(axis=1, keepdims=True), *lengths):
        cut = np.minimum(num_hidden, length)
        shares.append(np.maximum(0, cut - num_early).sum() / cut.sum())
    return shares


@pytest.mark.parametrize(("kind", "mean"), [(SHORT_RANGE, 752), (LONG_RANGE, 1104)])
def test_budgets_have_as_many_late_targets_as_lists_of_a_batch(kind, mean):
    [[budget]] = default_budgets([kind], (8, 14, 14), 24)[1:]
    assert mean_counts([kind], (8, 14, 14), 24)[1] == (mean,) and mean <= budget <= 1.05 * mean
    wanted, found, of_mean = late_shares(kind, (budget, mean))
    assert found == pytest.approx(wanted, rel=0.05)
    # The budget exceeds the mean only if lists of the mean length have too few late tokens.
    assert (budget > mean) == (of_mean < 0.95 * wanted) == (kind == SHORT_RANGE)


def test_late_targets_never_cost_more_than_a_twentieth():
    """Lists that are not cut have many more late targets than those of one length."""
    [mean] = mean_counts([SHORT_RANGE], (8, 14, 14), 1)[1]
    [budget] = default_budgets([SHORT_RANGE], (8, 14, 14), 1)[1]
    assert 1.04 * mean < budget <= 1.05 * mean


def test_clips_of_two_time_steps_have_the_means():
    kinds = [SHORT_RANGE, LONG_RANGE, RandomTubeMask()]
    for grid in ((1, 14, 14), (2, 8, 8)):
        assert default_budgets(kinds, grid, 24) == mean_counts(kinds, grid, 24)


def test_budgets_that_are_not_given_are_the_means():
    kinds = [SHORT_RANGE, RandomTubeMask(), LONG_RANGE]
    contexts, targets = mean_counts(kinds, (4, 8, 8), 24)
    sampler = MaskSampler(kinds, (4, 8, 8), context_budgets=[None, 8, None])
    assert sampler.context_budgets == (contexts[0], 8, contexts[2])
    assert sampler.target_budgets == targets
    fewer = MaskSampler(kinds, (4, 8, 8), budget_batch_size=1)
    assert fewer.context_budgets == mean_counts(kinds, (4, 8, 8), 1)[0] != contexts
    # The description of a run contains the budgets, as it did when they had to be given.
    assert "budget_batch_size" not in str(fewer) and str(fewer.context_budgets) in str(fewer)


def test_means_fit_where_few_tokens_are_kept():
    """`max_keep` and a context of one time step need not be multiples of the time steps."""
    few = MultiBlockMask(8, 0.15, max_keep=9)
    assert MaskSampler([few], (4, 8, 8)).context_budgets == (9,)
    first = CausalMultiBlockMask(2, 0.7, num_context_frames=1)
    [budget] = MaskSampler([first], (8, 4, 4)).context_budgets
    assert 1 <= budget <= 8
    [[long]] = mean_counts([LONG_RANGE], (8, 4, 4), 24)[:1]
    assert budget < long


def test_a_range_may_come_out_of_a_json_file():
    assert MultiBlockMask(8, [0.1, 0.2]) == MultiBlockMask(8, (0.1, 0.2))  # type: ignore[arg-type]
    assert hash(MultiBlockMask(8, 0.1, aspect_ratio=[1.0, 2.0]))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomTubeMask(ratio=1.5), "`ratio` must be in (0, 1). Received: 1.5"),
        (
            lambda: MultiBlockMask(8, 1.5),
            "`spatial_scale` must be a number or a (low, high) range in (0, 1]. Received: 1.5",
        ),
        (
            lambda: MultiBlockMask(8, 0.1, aspect_ratio=(2.0, 1.0)),
            "`aspect_ratio` must be a number or a (low, high) range in [0.01, 100]. "
            "Received: (2.0, 1.0)",
        ),
        (lambda: MultiBlockMask(0, 0.1), "`num_blocks` must be at least 1. Received: 0"),
        (
            lambda: MultiBlockMask(8, 0.1, max_temporal_keep=0.0),
            "`max_temporal_keep` must be in (0, 1]. Received: 0.0",
        ),
        (
            lambda: CausalMultiBlockMask(8, 0.1, num_context_frames=17),
            "`num_context_frames` must be in [1, `num_frames`=16]. Received: 17",
        ),
        (
            lambda: MaskSampler([SHORT_RANGE], (8, 2, 2), "batch_min"),
            "`spatial_scale` must give blocks of at least one token on the grid (8, 2, 2). "
            "Received: 0.15",
        ),
        (
            lambda: MaskSampler([RandomTubeMask(0.9)], (8, 3, 3)),
            "`ratio` must leave patches to see and to predict on the grid (8, 3, 3). Received: 0.9",
        ),
        (
            lambda: MaskSampler([SHORT_RANGE], (8, 14, 14), context_budgets=[0]),
            "`context_budgets` must be in [1, 1568] (tokens of the grid, or `max_keep`) for "
            "MultiBlockMask; `mean_counts` estimates it. Received: 0",
        ),
        (
            lambda: MaskSampler([SHORT_RANGE], (8, 14, 14), budget_batch_size=0),
            "`budget_batch_size` must be at least 1. Received: 0",
        ),
        (
            lambda: MaskSampler([RandomTubeMask()], (8, 14, 14), target_budgets=[1569]),
            "`target_budgets` must be in [1, 1568] (tokens of the grid, or `max_keep`) for "
            "RandomTubeMask; `mean_counts` estimates it. Received: 1569",
        ),
        (
            lambda: MaskSampler([RandomTubeMask()], (8, 14, 14), context_budgets=[8, 8]),
            "`context_budgets` must hold one number per mask (1). Received: [8, 8]",
        ),
        (
            lambda: MaskSampler([RandomTubeMask()], (8, 14, 14), "none"),  # type: ignore[arg-type]
            '`truncation` must be "budget" or "batch_min". Received: \'none\'',
        ),
        (
            lambda: MaskSampler([], (8, 14, 14)),
            "`masks` must hold at least one mask. Received: none",
        ),
        (
            lambda: MaskSampler([RandomTubeMask()], (8, 14, 14), "batch_min", [8]),
            '`context_budgets` and `target_budgets` must be None with `truncation`="batch_min". '
            "Received: [8] and None",
        ),
        (lambda: budget_sampler()(0, 0), "`batch_size` must be at least 1. Received: 0"),
        (
            lambda: budget_sampler()(-1, 2),
            "`step` and `start` must not be negative. Received: -1 and 0",
        ),
        (
            lambda: MaskSampler([MultiBlockMask(1, 1.0)], (1, 2, 2), "batch_min")(0, 2),
            "`masks` must leave something visible on the grid (1, 2, 2), but 1000 draws hid "
            "everything: use fewer or smaller blocks. Received: "
            f"{MultiBlockMask(1, 1.0)}",
        ),
    ],
)
def test_errors_are_one_line_that_teaches(make, message):
    with pytest.raises(ValueError) as error:
        make()
    assert str(error.value) == message
    assert "\n" not in message
