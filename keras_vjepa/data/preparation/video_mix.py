"""Mix the paper's pretraining set, VideoMix2M, from the official lists (§3.4, Table 2).

Every video of a validation set of Kinetics-400, -600, -700 and of Something-Something v2 is left
out of all sources, HowTo100M included. A video that several sources have is kept once: in the order
of `SOURCES`, the first one that has a file of it keeps it. Ids tell videos apart.

Departures: the authors do not say which lists they removed. Here those that a user gives are
removed, also of test sets, as UniFormerV2 did for K710. Kinetics lists several clips of some
videos; one of each video is taken, as in K710. A quarter of the set (Table 2) is drawn at random
from all of it.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from keras_vjepa.arguments import check_choice, check_number
from keras_vjepa.data.preparation.merged_classes import MergedClasses
from keras_vjepa.data.random_streams import random_stream
from keras_vjepa.data.sources.official_lists import (
    ListedVideo,
    files_by_name,
    howto100m_videos,
    kinetics_videos,
    something_something_videos,
)
from keras_vjepa.data.sources.samples import Sample

Reader = Callable[[Path], Iterator[ListedVideo]]

# The function that reads the list of each source. Their order is the order of the labels in the
# list that is written.
SOURCES: dict[str, Reader] = {
    "k400": kinetics_videos,
    "k600": kinetics_videos,
    "k700": kinetics_videos,
    "ssv2": something_something_videos,
    "howto100m": howto100m_videos,
}
_KINETICS = ("k400", "k600", "k700")
# Sources whose validation sets the paper removes.
WITH_VALIDATION = (*_KINETICS, "ssv2")
# The mixes of Table 2, as the sources that they consist of.
SUBSETS: dict[str, tuple[str, ...]] = {
    "videomix2m": tuple(SOURCES),
    "k710": _KINETICS,
    "k710_ssv2": (*_KINETICS, "ssv2"),
    "k710_howto100m": (*_KINETICS, "howto100m"),
}


@dataclass(frozen=True)
class MixSource:
    """Says where the lists and the files of one source are.

    Attributes:
        training: official list of the source's training videos.
        videos: folder below which the files lie, at any depth.
    """

    training: Path
    videos: Path


@dataclass
class SourceCount:
    """Counts what became of one source.

    Attributes:
        number: label of the source's videos in the list that is written.
        listed: number of rows in the source's official list.
        kept: number of videos in the mix, before a share of it is drawn.
        left_out: number of rows that were left out, for each reason.
        drawn: number of videos in the list that is written.
    """

    number: int
    listed: int = 0
    kept: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    drawn: int = 0


@dataclass(frozen=True)
class VideoMix:
    """Holds a mix of sources.

    Attributes:
        samples: files, each labelled by the number of its source.
        counts: what became of each source, by its name.
        left_out: source, id and reason of each row that is not in the mix.
        held_out: number of ids that may not be in the mix, by the source of their lists.
        classes: names of the classes in the list of each source of Kinetics.
        class_of: name of the class of each file of Kinetics, by its path.
    """

    samples: list[Sample]
    counts: dict[str, SourceCount]
    left_out: list[tuple[str, str, str]]
    held_out: dict[str, int]
    classes: dict[str, set[str]] = field(default_factory=dict)
    class_of: dict[str, str] = field(default_factory=dict)

    def labelled_by_class(self, merged: MergedClasses) -> list[Sample]:
        """List the files of Kinetics with the numbers of their classes in a merged list."""
        names = {count.number: name for name, count in self.counts.items()}
        return [
            Sample(s.path, merged.number_of[names[s.label]][self.class_of[s.path]])
            for s in self.samples
            if s.label is not None and s.path in self.class_of
        ]

    def label_weights(self, weights: Mapping[str, float]) -> tuple[float, ...]:
        """Order weights of sources as `ClipBatches` takes them, with 1 for those not named."""
        most = max(count.number for count in self.counts.values())
        names = {count.number: name for name, count in self.counts.items()}
        return tuple(weights.get(names.get(n, ""), 1.0) for n in range(most + 1))

    def as_json(self) -> dict[str, Any]:
        """Return the counts in a form that JSON can hold."""
        sources = {
            name: {
                "label": count.number,
                "listed": count.listed,
                "left_out": dict(count.left_out),
                "kept": count.kept,
                "drawn": count.drawn,
            }
            for name, count in self.counts.items()
        }
        return {"videos": len(self.samples), "sources": sources, "held_out_ids": self.held_out}


def mix_videos(
    sources: Mapping[str, MixSource],
    held_out: Mapping[str, Sequence[Path]],
    subset: str = "videomix2m",
    share: float = 1.0,
    seed: int = 0,
) -> VideoMix:
    """Mix sources from their official lists.

    Args:
        sources: lists and files by the names of `SOURCES`; those of `subset` are taken.
        held_out: official lists of validation (and test) videos of each source, none of which may
            be in the mix, whatever source it would come from.
        subset: one of `SUBSETS`.
        share: share of the mix that is drawn, in (0, 1]; the drawn videos keep their order.
        seed: seed of the draw.

    Returns:
        The mix.

    Raises:
        ValueError: for an unknown name, a list that is not as published, or if nothing is left.
        OSError: if a list cannot be read.
    """
    check_choice(SUBSETS, subset=subset)
    check_number("(0, 1]", share=share)
    held = _held_out(held_out)
    counts, left_out, samples = dict[str, SourceCount](), list[tuple[str, str, str]](), []
    # The source of each video by its id, for Something-Something (True) and for YouTube (False).
    taken: dict[bool, dict[str, str]] = {True: {}, False: {}}
    classes, class_of = dict[str, set[str]](), dict[str, str]()
    for number, (name, read) in enumerate(SOURCES.items()):
        if name not in SUBSETS[subset] or name not in sources:
            continue
        count = counts[name] = SourceCount(number)
        known = taken[name == "ssv2"]
        files = files_by_name(sources[name].videos)
        for video in read(sources[name].training):
            count.listed += 1
            has_class = name in _KINETICS and video.label is not None
            if has_class:
                classes.setdefault(name, set()).add(str(video.label))
            path = next((files[stem] for stem in video.names if stem in files), None)
            reason = _reason(video, name, held[name == "ssv2"], known, path)
            if reason or path is None:
                count.left_out[reason] += 1
                left_out.append((name, video.id, reason))
                continue
            known[video.id] = name
            count.kept += 1
            samples.append(Sample(path, number))
            if has_class:
                class_of[path] = str(video.label)
    if not samples:
        raise ValueError(f"No video is left of {', '.join(counts) or 'no source'}: {_why(counts)}")
    samples = _drawn(samples, share, seed)
    for count in counts.values():
        count.drawn = sum(sample.label == count.number for sample in samples)
    ids = {name: sum(n == name for n in held[name == "ssv2"].values()) for name in held_out}
    return VideoMix(samples, counts, left_out, ids, classes, class_of)


def _held_out(lists: Mapping[str, Sequence[Path]]) -> dict[bool, dict[str, str]]:
    """Find the source whose lists hold an id out, for each kind of ids (as in `mix_videos`)."""
    held: dict[bool, dict[str, str]] = {True: {}, False: {}}
    for name, paths in lists.items():
        check_choice(WITH_VALIDATION, held_out=name)
        for path in paths:
            for video in SOURCES[name](path):
                held[name == "ssv2"].setdefault(video.id, name)
    return held


def _reason(
    video: ListedVideo,
    name: str,
    held: Mapping[str, str],
    known: Mapping[str, str],
    path: str | None,
) -> str:
    """Say why a video is left out, "" if it is not."""
    if not video.is_valid:
        return "no id of a video"
    if video.id in held:
        return f"held out by {held[video.id]}"
    if video.id in known:
        other = known[video.id]
        return "listed before" if other == name else f"already in {other}"
    return "" if path is not None else "no file"


def _why(counts: Mapping[str, SourceCount]) -> str:
    total = sum((count.left_out for count in counts.values()), Counter[str]())
    return ", ".join(f"{many:,} {reason}" for reason, many in total.most_common())


def _drawn(samples: list[Sample], share: float, seed: int) -> list[Sample]:
    if share == 1:
        return samples
    count = max(1, round(share * len(samples)))
    chosen = random_stream(seed, 0).permutation(len(samples))[:count]
    return [samples[place] for place in np.sort(chosen).tolist()]


def missing_lists(held_out: Collection[str]) -> list[str]:
    """Name the sources whose validation sets the paper removes, but of which no list is given."""
    return [name for name in WITH_VALIDATION if name not in held_out]
