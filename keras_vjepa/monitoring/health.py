"""Measure a pretrainer's features, and judge whether it learns or collapses (§3.1).

This answers a question that people ask of a run: the loss fell and now rises, is the run broken?
Loss and features must be read together. If the loss rises while features spread, the reason is the
moving target. If features draw together, the run collapses, whatever the loss does.

A look is one measurement of features at some step.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keras_vjepa.evaluation.readouts import nearest_neighbors
from keras_vjepa.monitoring.held_out import VIEWS
from keras_vjepa.monitoring.looks import Look
from keras_vjepa.monitoring.spectra import (
    alpha_req,
    covariance_rank,
    is_constant,
    lidar,
    rank_me,
)
from keras_vjepa.monitoring.statistics import (
    channel_deviation,
    mean_cosine,
    normalized_deviation,
    same_video_retrieval,
)

# Numbers of an encoder count as lost if all of a group are below these shares of what they were at
# the first look; see `judge`. The shares were chosen by two runs on the built-in set, measured at 8
# and 12 % of the steps. The run that collapsed had 0.53 and 0.56 of its first rank, and 0.53 and
# 0.42 of its first LiDAR; the one that did not had 1.9 and 2.0, and 1.7 and 1.8. Deviations rose in
# both.
LOST_DIRECTIONS = {"clip_rank": 0.6, "lidar": 0.6}
LOST_DEVIATIONS = {"clip_normalized_deviation": 0.1, "token_normalized_deviation": 0.1}
# A loss has risen if it is above its lowest value by this share; LiDAR has risen if it is above its
# first value by it.
RISEN = 0.1
NEIGHBORS = 10

Row = Mapping[str, Any]


def numbers_of(
    looks: Mapping[str, Look], videos: NDArray[np.integer], labels: Mapping[str, Any]
) -> dict[str, float | int]:
    """Measure the features that each part of a pretrainer computes for some clips.

    Args:
        looks: features by the name of the part.
        videos: `(clips,)`, the video of each clip; two or more clips of each video.
        labels: the class of each clip, by task; empty if the classes are not known.

    Returns:
        Numbers by name: for each part, the spread of clips and of tokens; for both encoders, how
        well clips of one video are told from those of others; for the target encoder with labels,
        the share of clips whose class the nearest neighbours predict. `clips` and `tokens` are the
        numbers of clips and tokens.
    """
    found: dict[str, float | int] = {}
    for part, look in looks.items():
        found |= {f"{part}_{name}": value for name, value in _spread(look).items()}
    for part in ("target", "context"):
        if part in looks:
            rows = looks[part].clips
            found[f"{part}_lidar"] = _lidar(rows, videos)
            found[f"{part}_retrieval"] = same_video_retrieval(rows, videos)
    for task, classes in labels.items():
        found[f"neighbors_{task}"] = neighbors_right(looks["target"].clips, classes, videos)
    return {
        "clips": len(videos),
        "tokens": len(looks["target"].tokens),
        **found,
    }


def _spread(look: Look) -> dict[str, float]:
    clips, tokens = look.clips, look.tokens
    return {
        "clip_deviation": channel_deviation(clips),
        "clip_normalized_deviation": normalized_deviation(clips),
        "clip_rank": covariance_rank(clips),
        "clip_rank_me": rank_me(clips),
        "clip_cosine": mean_cosine(clips),
        "token_deviation": channel_deviation(tokens),
        "token_normalized_deviation": normalized_deviation(tokens),
        "token_rank": covariance_rank(tokens),
        "token_rank_me": rank_me(tokens),
        "token_alpha": alpha_req(tokens),
    }


def _lidar(rows: NDArray[np.float32], videos: NDArray[np.integer]) -> float:
    """Compute LiDAR of views of videos, or NaN for a constant, whose LiDAR would be the best."""
    if is_constant(rows.astype("float64")):
        return np.nan
    return lidar(np.stack([rows[videos == video] for video in np.unique(videos)]))


def neighbors_right(
    clips: NDArray[np.float32], classes: NDArray[np.integer], videos: NDArray[np.integer]
) -> float:
    """Count how often the nearest clips of other videos predict the class of a clip.

    For the clips of each video, the clips of all other videos vote.

    Args:
        clips: features `(clips, dim)`.
        classes: `(clips,)`.
        videos: `(clips,)`, the video of each clip.

    Returns:
        The share of clips; NaN if a feature is not finite.
    """
    if not np.isfinite(clips).all():
        return np.nan
    right = []
    for video in np.unique(videos):
        own = videos == video
        votes = nearest_neighbors(
            clips[~own], classes[~own], clips[own], int(classes.max()) + 1, NEIGHBORS
        )
        right += (votes.argmax(axis=1) == classes[own]).tolist()
    return float(np.mean(right))


# --- In words ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """Holds the judgement of the monitor at a look.

    Attributes:
        state: `"first"`, `"learning"`, `"unclear"`, `"collapse"` or `"not finite"`.
        words: a sentence for people.
    """

    state: str
    words: str

    @property
    def is_bad(self) -> bool:
        """Return whether the run should be stopped."""
        return self.state in ("collapse", "not finite")


def judge(rows: Sequence[Row]) -> Verdict:
    """Judge a run by its looks so far.

    The verdict is collapse if one of two things holds for an encoder at two looks in a row,
    compared with the first look: its features use far fewer directions, both of those in which
    clips differ and of those that tell videos apart; or they have drawn together to a tenth of
    their angle. It is collapse at once if features are a constant. Nothing else is taken for
    collapse, in particular not the course of the loss.

    Args:
        rows: results of `numbers_of`, with `loss`, the oldest first; at least one.
    """
    first, last = rows[0], rows[-1]
    if any(_number(last, f"{part}_token_deviation") is None for part in ("target", "context")):
        return Verdict("not finite", "Features are not finite: lower the learning rate.")
    lost = [text for part in ("target", "context") for text in _lost(part, rows)]
    if lost:
        remedy = (
            "Raise the momentum, lower the learning rate, or give the variance and covariance "
            "terms a weight."
            if len(rows) > 1
            else "No step is done: the reason is that all videos are the same, or the weights."
        )
        return Verdict("collapse", f"{'; '.join(lost)}: collapse. {remedy}")
    spread = "; ".join([_spread_in_words(last), *_probe_in_words(rows)])
    if len(rows) == 1:
        return Verdict("first", f"{spread}. Later looks are compared with this one.")
    scores = _scores(rows)
    better = [name for name in scores if _is_better(name, first, last)]
    probe = _last_probed(rows)
    learns = bool(better) or any(_is_better(name, first, probe) for name in _probes(probe))
    losses = [_number(row, "loss") for row in rows]
    rises = _rises_again([loss for loss in losses if loss is not None])
    of_loss = "the loss rises" if rises else "the loss does not rise"
    names = " and ".join(_in_words(name, first, last) for name in better or scores)
    if learns:
        end = ", as with a moving target" if rises else ""
        return Verdict("learning", f"{names}; {spread}; {of_loss}{end}: it learns.")
    return Verdict("unclear", f"{names}; {spread}; {of_loss}: no collapse, and nothing learnt yet.")


def checkpoint_to_keep(
    rows: Sequence[Row], steps: Collection[int] | None = None
) -> tuple[int, str] | None:
    """Name the step whose weights are worth keeping, and say why.

    Args:
        rows: as in `judge`.
        steps: steps that have a checkpoint; None for the steps of all rows.

    Returns:
        The step, and the reason in words; None if no row with a score has a checkpoint. With
        labels, it is the step at which neighbours predict most clips right; without labels, the
        step of the largest LiDAR. Each value is averaged with those of the looks before and after,
        because a single look is noisy. Of equal values, the last one counts.
    """
    best = _best(rows, _of_steps(rows, steps))
    if best is None:
        return None
    names = _scores(rows)
    is_labelled = names[0].startswith("neighbors_")
    of_views = "views of a video are told apart best"
    what = "neighbours name most clips right" if is_labelled else of_views
    texts = [_in_words(name, rows[0], rows[best]) for name in names]
    first, there = (_mean_score(row, names) for row in (rows[0], rows[best]))
    end = "" if there > first or not best else ", which is no more than before the training"
    return int(rows[best]["step"]), f"{what} there: {' and '.join(texts)}{end}"


def steps_to_protect(rows: Sequence[Row], steps: Collection[int]) -> frozenset[int]:
    """List the checkpoints that may still turn out to be the one to keep.

    Args:
        rows: as in `judge`.
        steps: steps that have a checkpoint.

    Returns:
        The steps of the last checkpoint and of the best one before it. The next look can still
        change the value of the last one, but not those of earlier ones.
    """
    places = _of_steps(rows, steps)
    best = _best(rows, places[:-1])
    kept = places[-1:] if best is None else [best, places[-1]]
    return frozenset(int(rows[place]["step"]) for place in kept)


def _of_steps(rows: Sequence[Row], steps: Collection[int] | None) -> list[int]:
    return [i for i, row in enumerate(rows) if steps is None or row["step"] in steps]


def _scores(rows: Sequence[Row]) -> list[str]:
    return [name for name in rows[-1] if name.startswith("neighbors_")] or ["target_lidar"]


def _probes(row: Row) -> list[str]:
    return [name for name in row if name.startswith("probe_")]


def _last_probed(rows: Sequence[Row]) -> Row:
    """Return the last look with a probe; the last look if there was none."""
    return next((row for row in reversed(rows) if _probes(row)), rows[-1])


def _probe_in_words(rows: Sequence[Row]) -> list[str]:
    """Say what the last probe came to, beside the first look's; nothing if there was none."""
    first, probe = rows[0], _last_probed(rows)
    texts = []
    for name in _probes(probe):
        then = _number(first, name) if probe is not first else None
        before = "" if then is None else f"{_text(then)} -> "
        texts.append(f"{name.removeprefix('probe_')} {before}{_text(_number(probe, name))}")
    at = "" if probe is rows[-1] else f" at step {probe['step']:,}"
    if not texts:
        return []
    return [f"accuracy of a probe on {probe['clips_of_probe']} clips{at}: {' and '.join(texts)}"]


def _best(rows: Sequence[Row], places: Sequence[int]) -> int | None:
    """Find the position of the best of some rows, by scores averaged with the rows beside.

    Rows without any score, as those of features that are all the same, are left out.
    """
    names = _scores(rows) if rows else []
    places = [i for i in places if any(_number(rows[i], name) is not None for name in names)]
    if not places:
        return None
    scores = np.array([_mean_score(row, names) for row in rows])
    padded = np.pad(scores, 1, mode="edge")
    smooth = (padded[:-2] + padded[1:-1] + padded[2:]) / 3
    return max(reversed(places), key=lambda place: smooth[place])


def _mean_score(row: Row, names: Sequence[str]) -> float:
    return float(np.mean([_number(row, name) or 0.0 for name in names]))


def _number(row: Row, name: str) -> float | None:
    value = row.get(name)
    return None if value is None or not np.isfinite(value) else float(value)


def _lost(part: str, rows: Sequence[Row]) -> list[str]:
    """Say in words how a part has lost its spread, if it has."""
    for unit in ("clip", "token"):
        if _number(rows[-1], f"{part}_{unit}_rank") is None:
            return [f"the features of all {unit}s are one constant ({part} encoder)"]
    if len(rows) < 3:
        return []
    found = []
    for shares, words in (
        (LOST_DIRECTIONS, "loses directions"),
        (LOST_DEVIATIONS, "draws together"),
    ):
        if all(_are_below(part, shares, rows[0], row) for row in rows[-2:]):
            found.append(f"the {part} encoder {words}: {_changes(part, shares, rows)}")
    return found


def _are_below(part: str, shares: Mapping[str, float], first: Row, row: Row) -> bool:
    """Tell whether all of some numbers are below given shares of their first values."""
    for name, share in shares.items():
        then, now = (_number(one, f"{part}_{name}") for one in (first, row))
        if then is None or now is None or now >= share * then:
            return False
    return True


def _changes(part: str, names: Iterable[str], rows: Sequence[Row]) -> str:
    texts = []
    for name in names:
        then, now = (_number(row, f"{part}_{name}") for row in (rows[0], rows[-1]))
        texts.append(f"{name.replace('_', ' ')} {_text(then)} -> {_text(now)}")
    return " and ".join(texts)


def _is_better(name: str, first: Row, last: Row) -> bool:
    """Tell whether a score has risen by more than chance; for a share, by two standard errors."""
    then, now = (_number(row, name) for row in (first, last))
    if then is None or now is None:
        return False
    if not name.startswith(("neighbors_", "probe_")):
        return now > then * (1 + RISEN)
    # Clips of one video are alike, so that they count as one observation.
    count = last["clips_of_probe"] if name.startswith("probe_") else last["clips"] / VIEWS
    variance = (then * (1 - then) + now * (1 - now)) / max(count, 1)
    return now - then > 2 * np.sqrt(variance)


def _rises_again(losses: Sequence[float]) -> bool:
    return len(losses) > 2 and losses[-1] > min(losses) * (1 + RISEN)


def _spread_in_words(row: Row) -> str:
    return (
        f"deviation {row['target_clip_normalized_deviation']:.3f} of clips and "
        f"{row['target_token_normalized_deviation']:.3f} of tokens, rank "
        f"{row['target_clip_rank']:.1f} of {row['clips']} clips and {row['target_token_rank']:.1f} "
        f"of {row['tokens']} tokens"
    )


def _in_words(name: str, first: Row, last: Row) -> str:
    what = {"target_lidar": "LiDAR"}.get(name, f"neighbours' {name.removeprefix('neighbors_')}")
    then, now = (_number(row, name) for row in (first, last))
    return f"{what} {_text(then)} -> {_text(now)}"


def _text(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"
