"""What looks at a run show: collapse is called what it is, and nothing else is."""

import numpy as np
import pytest

from keras_vjepa.monitoring.health import (
    checkpoint_to_keep,
    judge,
    neighbors_right,
    numbers_of,
    steps_to_protect,
)
from keras_vjepa.monitoring.looks import Look

pytestmark = pytest.mark.data

VIDEOS = np.repeat(np.arange(16), 2)
CLASSES = VIDEOS % 4


def features(spread, seed=0, dim=12, rank=12, offset=5.0):
    """Clips and tokens around one direction, of which views of a video are alike."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.normal(size=(dim, dim)))[0][:rank]
    of_class = rng.normal(size=(4, rank))[CLASSES]
    of_video = rng.normal(size=(16, rank))[VIDEOS]
    clips = (of_class + of_video + 0.1 * rng.normal(size=(32, rank))) @ axes
    tokens = rng.normal(size=(200, rank)) @ axes
    base = offset * np.ones(dim)
    return Look(
        (base + spread * clips).astype("float32"), (base + spread * tokens).astype("float32")
    )


def row(step, loss=None, **parts):
    looks = {
        "target": parts.get("target", features(1.0)),
        "context": parts.get("context", features(1.0, seed=1)),
        "predictions": features(1.0, seed=2),
    }
    return {"step": step, "loss": loss, **numbers_of(looks, VIDEOS, {"digit": CLASSES})}


def test_numbers_say_of_how_many():
    found = row(0)
    assert (found["clips"], found["tokens"]) == (32, 200)
    assert found["target_retrieval"] == 1.0 and found["target_lidar"] > 3
    assert 0.5 < found["neighbors_digit"] <= 1.0


def test_neighbours_are_of_other_videos():
    # Each video is far from all others. Only clips of the same video, which are not allowed, could
    # name its class.
    alone = np.eye(16, dtype="float32")[VIDEOS]
    assert neighbors_right(alone, VIDEOS, VIDEOS) == 0.0
    of_class = np.eye(4, dtype="float32")[CLASSES]
    classes = np.repeat([0, 0, 1, 1, 2, 2, 3, 3] * 2, 2)
    assert neighbors_right(np.eye(4, dtype="float32")[classes], classes, VIDEOS) == 1.0
    assert np.isnan(neighbors_right(of_class * np.nan, CLASSES, VIDEOS))


@pytest.mark.parametrize(
    ("lost", "words"),
    [
        (features(3.0, rank=2), "the target encoder loses directions: clip rank "),
        (features(0.01), "the target encoder draws together: clip normalized deviation "),
    ],
)
def test_lost_spread_is_collapse_at_the_second_look_whatever_the_loss_does(lost, words):
    for losses in ([0.5, 0.4, 0.3], [0.3, 0.4, 0.5]):
        rows = [row(0), row(1, losses[0])]
        rows += [row(step, loss, target=lost) for step, loss in enumerate(losses[1:], 2)]
        verdict = judge(rows)
        assert (verdict.state, verdict.is_bad) == ("collapse", True)
        assert words in verdict.words
        assert "Raise the momentum, lower the learning rate" in verdict.words
        # A single look may be noise.
        assert not judge(rows[:3]).is_bad and not judge([*rows, row(4)]).is_bad


@pytest.mark.parametrize("part", ["target", "context"])
@pytest.mark.parametrize("value", [0.0, 3.0])
def test_a_constant_is_collapse_from_the_first_look_on(part, value):
    constant = Look(np.full((32, 12), value, "float32"), np.full((200, 12), value, "float32"))
    found = row(0, **{part: constant})
    assert np.isnan(found[f"{part}_lidar"]) and np.isnan(found[f"{part}_clip_rank"])
    verdict = judge([found])
    assert verdict.state == "collapse" and f"one constant ({part} encoder)" in verdict.words
    assert verdict.words.endswith("the reason is that all videos are the same, or the weights.")


def test_a_loss_that_rises_is_no_collapse():
    mixed = np.random.default_rng(0).permutation(32)
    poor = Look(features(1.0).clips[mixed], features(1.0).tokens)
    rows = [row(0, target=poor), row(1, 0.3), row(2, 0.2), row(3, 0.5)]
    verdict = judge(rows)
    assert verdict.state == "learning"
    assert "the loss rises, as with a moving target: it learns" in verdict.words
    assert judge([rows[1]]).state == "first"
    assert judge([rows[1], rows[2]]).state == "unclear"


def test_a_smaller_angle_or_fewer_directions_of_tokens_alone_are_no_collapse():
    few = Look(features(1.0).clips, features(3.0, rank=2).tokens)
    for changed in (features(0.3), few):
        assert not judge([row(0), *(row(step, target=changed) for step in (1, 2))]).is_bad


def test_what_is_not_finite_is_said():
    broken = Look(np.full((32, 12), np.nan, "float32"), np.full((200, 12), np.nan, "float32"))
    found = row(4, target=broken)
    verdict = judge([row(0), found])
    assert (verdict.state, verdict.is_bad) == ("not finite", True)
    assert np.isnan(found["neighbors_digit"])


def test_the_checkpoint_to_keep_is_the_best_by_labels_else_by_lidar():
    scores = [0.1, 0.3, 0.9, 0.6, 0.7, 0.65, 0.2]
    labelled = [{"step": 10 * i, "neighbors_a": score} for i, score in enumerate(scores)]
    step, why = checkpoint_to_keep(labelled)
    # A look counts together with its neighbours, so that a single 0.9 does not decide.
    assert step == 30 and "neighbours name most clips right there: neighbours' a 0.10" in why
    without = [{"step": i, "target_lidar": lidar} for i, lidar in enumerate([2.0, 5.0, None, 5.0])]
    step, why = checkpoint_to_keep(without)
    assert step == 3 and why.endswith("LiDAR 2.00 -> 5.00")
    collapsed = [{"step": i, "neighbors_a": score} for i, score in enumerate([0.5, 0.2, 0.5])]
    step, why = checkpoint_to_keep(collapsed, {1, 2})
    assert step == 2 and why.endswith("0.50 -> 0.50, which is no more than before the training")


def test_of_checkpoints_that_are_gone_none_is_named():
    rows = [{"step": i, "neighbors_a": score} for i, score in enumerate([0.1, 0.5, 0.9, 0.3])]
    assert checkpoint_to_keep(rows)[0] == 2
    assert checkpoint_to_keep(rows, {0, 1, 3})[0] == 3
    assert checkpoint_to_keep(rows, ()) is None
    # Features that are all the same have no score at all.
    assert checkpoint_to_keep([{"step": i, "target_lidar": None} for i in range(3)]) is None


def test_a_probe_tells_that_it_learns_until_the_next_probe_tells_otherwise():
    rows = [row(step) for step in range(4)]
    rows[0] |= {"probe_a": 0.2, "clips_of_probe": 100}
    rows[1] |= {"probe_a": 0.5, "clips_of_probe": 100}
    rows[3] |= {"probe_a": 0.25, "clips_of_probe": 100}
    words = [judge(rows[:count]).words for count in range(1, 5)]
    assert [judge(rows[:count]).state for count in range(2, 5)] == ["learning"] * 2 + ["unclear"]
    assert "accuracy of a probe on 100 clips: a 0.20. Later looks" in words[0]
    assert "accuracy of a probe on 100 clips: a 0.20 -> 0.50" in words[1]
    assert "accuracy of a probe on 100 clips at step 1: a 0.20 -> 0.50" in words[2]
    assert "accuracy of a probe on 100 clips: a 0.20 -> 0.25" in words[3]


@pytest.mark.parametrize("seed", range(20))
def test_the_one_that_is_named_at_last_was_protected_all_the_time(seed):
    """Whatever the scores, and although each look knows of those before it alone."""
    scores = np.random.default_rng(seed).random(12).round(1)
    rows = [{"step": i, "neighbors_a": score} for i, score in enumerate(scores)]
    there: set[int] = set()
    for done in range(1, len(rows) + 1):
        there |= {done - 1}
        kept = steps_to_protect(rows[:done], there)
        assert len(kept) <= 2 and done - 1 in kept
        there = set(kept)
    assert checkpoint_to_keep(rows, there)[0] == checkpoint_to_keep(rows)[0]
