"""Copy a data set into a form that is read fast, and measure what is gained (§3.4)."""

import errno
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from keras_vjepa import files
from keras_vjepa.arguments import check_whole
from keras_vjepa.data.batches.clips import ClipSettings, read_clips
from keras_vjepa.data.preparation.journal import Journal, each_with_state, state_of, table
from keras_vjepa.data.preparation.transcoding import Copy, Transcoding
from keras_vjepa.data.processes.serving import ProcessFailure
from keras_vjepa.data.random_streams import random_stream
from keras_vjepa.data.reading.errors import UnreadableVideoError
from keras_vjepa.data.reading.locating import is_image, name_of
from keras_vjepa.data.reading.media import Media
from keras_vjepa.data.reading.video import way_of_reading
from keras_vjepa.data.sources.list_writing import why_not_listed, write_list
from keras_vjepa.data.sources.names import below
from keras_vjepa.data.sources.samples import Sample
from keras_vjepa.data.transforms.training import PretrainTransform

RESULTS, COPIES, REASONS = "results.jsonl", "copies.csv", "reasons.csv"
# A copy is made in many steps, each within the time limit. After this many limits it is given up.
_STEPS = 240
_VERSION = 1


@dataclass(frozen=True)
class CopiedVideos:
    """Says what became of a data set.

    Attributes:
        copies: the samples of which there are copies, with the paths of these.
        originals: the same samples with their own paths.
        made: number of copies made now.
        bad_files: reason for each file that could not be copied.
        num_bytes: size of all copies together.
        original_bytes: size of their originals together.
    """

    copies: list[Sample]
    originals: list[Sample]
    made: int
    bad_files: dict[str, str]
    num_bytes: int
    original_bytes: int


def names_of_copies(paths: Sequence[str], root: str | Path, folder: Path) -> dict[str, str]:
    """Name the copy of each file, an MP4 in the same place below `folder` as the file below `root`.

    Args:
        paths: files below `root`.
        root: folder of the originals, as `shared_root` finds it.
        folder: folder of the copies.

    Returns:
        The path of each file's copy. Where two would have the same, their names keep the extensions
        of the originals.

    Example:

    >>> list(names_of_copies(["v/a/1.avi", "v/2.webm", "v/2.mkv"], Path("v"), Path("w")).values())
    ['w/a/1.mp4', 'w/2.webm.mp4', 'w/2.mkv.mp4']
    """
    inner = {path: str(below(root, path)) for path in dict.fromkeys(paths)}
    short = {path: os.path.splitext(name)[0] + ".mp4" for path, name in inner.items()}
    times = Counter(short.values())
    found = {}
    for path, name in inner.items():
        longer = name if is_image(path) else f"{name}.mp4"
        is_taken = times[short[path]] > 1 or is_image(path)
        found[path] = str(folder / (longer if is_taken else short[path]))
    return found


def check_apart(paths: Sequence[str], targets: Sequence[str]) -> None:
    """Check that no copy would take the place of an original.

    Raises:
        ValueError: if a copy would.
    """
    originals = {os.path.realpath(path) for path in paths}
    for target in targets:
        if os.path.realpath(target) in originals:
            raise ValueError(
                f"`folder` must be another than that of the originals. Received: one in which "
                f"{target} would be replaced"
            )


def copy_videos(
    samples: Sequence[Sample],
    root: str | Path,
    folder: Path,
    transcoding: Transcoding,
    num_processes: int = 1,
    progress: Callable[[int, int], None] = lambda done, count: None,
) -> CopiedVideos:
    """Copy the files of samples, several at a time; those that are copied already are left.

    `folder` gets the copies, `copies.csv` which lists them with their labels, `reasons.csv` of the
    files that could not be copied, and `results.jsonl`, by which a stopped call is continued.

    Args:
        samples: what to copy.
        root: folder below which all of them lie.
        folder: folder for the copies, made if need be.
        transcoding: how to copy.
        num_processes: number of files that are copied at a time.
        progress: called with the number of files that are done, and of all files.

    Returns:
        What became of the files.

    Raises:
        ValueError: if a copy would take the place of an original.
        OSError: if a copy cannot be written.
    """
    check_whole(1, num_processes=num_processes)
    sources = {sample.path: sample.source for sample in samples}
    paths = [*sources]
    targets = names_of_copies(paths, root, folder)
    check_apart(paths, [*targets.values()])
    folder.mkdir(parents=True, exist_ok=True)
    settings = {**asdict(transcoding), "version": _VERSION}
    settings["limits"] = way_of_reading(transcoding.limits)
    journal = Journal(folder / RESULTS, settings)
    known = _known(journal, sources, targets)
    ahead = [(sources[path], targets[path]) for path in paths if path not in known]
    new = _copied(ahead, journal, transcoding, num_processes, lambda n: progress(n, len(ahead)))
    found = known | new
    bad_files = {path: found[path].reason for path in paths if found[path].reason}
    originals = [sample for sample in samples if sample.path not in bad_files]
    copies = [Sample(targets[sample.path], sample.label) for sample in originals]
    for original, copy in zip(originals, copies, strict=True):
        if reason := why_not_listed(copy):
            bad_files[original.path] = reason
    originals = [sample for sample in originals if sample.path not in bad_files]
    copies = [sample for sample in copies if not why_not_listed(sample)]
    if copies:
        write_list(folder / COPIES, copies)
    files.write_text(folder / REASONS, table(["path", "reason"], [[*x] for x in bad_files.items()]))
    good = [found[path] for path in paths if path not in bad_files]
    sizes = sum(copy.num_bytes for copy in good), sum(copy.original_bytes for copy in good)
    made = sum(not copy.reason for copy in new.values())
    return CopiedVideos(copies, originals, made, bad_files, *sizes)


def _known(
    journal: Journal, sources: dict[str, str | Media], targets: dict[str, str]
) -> dict[str, Copy]:
    """Return what became of files earlier, unless they or their copies have changed since."""
    known = {}
    for path, target in targets.items():
        result = journal.get(sources[path])
        if result and result["copy"] == (state_of(target) if not result["reason"] else []):
            known[path] = Copy(**{name: value for name, value in result.items() if name != "copy"})
    return known


def _copied(
    pairs: Sequence[tuple[str | Media, str]],
    journal: Journal,
    transcoding: Transcoding,
    num_processes: int,
    progress: Callable[[int], None],
) -> dict[str, Copy]:
    """Copy files, and write to the journal at once what became of each."""
    found = {}
    seconds = _STEPS * transcoding.limits.max_file_seconds
    work = each_with_state(transcoding, pairs, lambda pair: pair[0], num_processes, seconds)
    for (source, target), state, result in work:
        path = name_of(source)
        if isinstance(result, ProcessFailure):
            if os.strerror(errno.ENOSPC) in result.reason:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), target)
            found[path] = Copy(result.reason)  # not in the journal: the next call tries again
        else:
            found[path] = result
            copy = [] if result.reason else state_of(target)
            journal.add(path, state, {**asdict(result), "copy": copy})
        progress(len(found))
    return found


@dataclass(frozen=True)
class Gain:
    """Says how much faster copies are read, clip by clip on one core.

    Attributes:
        clips: number of pairs that were timed.
        before: clips that are read of the originals in a second.
        after: clips that are read of the copies in a second.
        ratio: how many times faster the copy is read, the median over the pairs.
    """

    clips: int
    before: float
    after: float
    ratio: float


def measured_gain(
    originals: Sequence[Sample], copies: Sequence[Sample], max_videos: int = 12, seed: int = 0
) -> Gain | None:
    """Time the same clips of originals and of their copies, in turn.

    A clip is what pretraining reads (App. C): 16 frames, every fourth, cropped to 224 pixels.
    Processor time is counted, so that other work on the machine changes little.

    Args:
        originals: the original files.
        copies: the copy of each.
        max_videos: how many of the videos are read, two clips of each.
        seed: seed of the choice.

    Returns:
        The gain; None if there is no video of which original and copy can be read.
    """
    pairs = [pair for pair in zip(originals, copies, strict=True) if not is_image(pair[0].source)]
    order = random_stream(seed, 0).permutation(len(pairs))[:max_videos]
    seconds = []
    for number in order.tolist():
        try:
            # The first round is not counted, because in it new files are inspected too.
            turns = [
                [_seconds(sample.source, seed, number, turn) for sample in pairs[number]]
                for turn in range(3)
            ]
        except UnreadableVideoError:
            continue
        seconds += turns[1:]
    if not seconds:
        return None
    before, after = np.maximum(np.array(seconds), 1e-9).T
    return Gain(len(seconds), 1 / before.mean(), 1 / after.mean(), float(np.median(before / after)))


def _seconds(source: str | Media, *key: int) -> float:
    """Measure the processor time of reading one clip, at a place that follows from the key."""
    transform = PretrainTransform(224)
    start = time.process_time()
    rng = random_stream(*key)
    read_clips(source, ClipSettings(16, 4), lambda frames: transform(frames, rng), rng)
    return time.process_time() - start
